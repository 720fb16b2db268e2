"""The engine's side of kvd: match prefixes, load and store KV cache blocks.

An :class:`Engine` is one process of an inference engine; a :class:`View` is what one rank of it reads and writes. Calls never raise
because of the daemon: what is not there, or not there in time, is a miss with a reason. The vLLM connector is :mod:`kvd.vllm`.
"""

from ._kvd import (
    ConnectError,
    Engine,
    Group,
    KvdError,
    Layout,
    LayoutError,
    Loaded,
    Mark,
    Match,
    Namespace,
    Plane,
    PlaneMemory,
    Shard,
    Stored,
    View,
    __version__,
    file_digest,
)
from .sockets import default_socket

__all__ = [
    "ConnectError",
    "Engine",
    "Group",
    "KvdError",
    "Layout",
    "LayoutError",
    "Loaded",
    "Mark",
    "Match",
    "Namespace",
    "Plane",
    "PlaneMemory",
    "Shard",
    "Stored",
    "View",
    "__version__",
    "default_socket",
    "file_digest",
]
