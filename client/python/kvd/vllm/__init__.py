"""vLLM on kvd: prefixes that outlive an engine, and are shared by the engines of a node.

Start ``kvd serve``, then vLLM with::

    vllm serve MODEL --kv-transfer-config \
      '{"kv_connector":"KvdConnector","kv_connector_module_path":"kvd.vllm","kv_role":"kv_both"}'

Settings, all optional, in ``kv_connector_extra_config``: ``socket`` (the daemon's), ``weights_digest`` (64 hexadecimal digits, where
kvd cannot find the files of the weights), ``match_deadline`` and ``load_deadline`` (seconds).
"""

from .connector import KvdConnector

__all__ = ["KvdConnector"]
