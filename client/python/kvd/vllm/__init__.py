"""vLLM on kvd: prefixes that outlive an engine, and are shared by the engines of a node.

Start ``kvd serve``, then vLLM with::

    vllm serve MODEL --kv-transfer-config \
      '{"kv_connector":"KvdConnector","kv_connector_module_path":"kvd.vllm","kv_role":"kv_both"}'

Settings, all optional, in ``kv_connector_extra_config``: ``socket`` (the daemon's), ``weights_digest`` (64 hexadecimal digits, where
kvd cannot find the files of the weights), ``match_deadline`` and ``load_deadline`` (seconds).
"""

import vllm

from .versions import require_known

# Before anything of vLLM's is named that another release may lack.
require_known(vllm.__version__)

from .connector import KvdConnector  # noqa: E402

__all__ = ["KvdConnector"]
