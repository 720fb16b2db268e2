from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

__version__: str

class KvdError(Exception): ...
class ConnectError(KvdError): ...
class LayoutError(KvdError): ...

def file_digest(path: str | PathLike[str]) -> bytes:
    """BLAKE3 of a file's bytes, on all cores."""

class Plane:
    def __init__(
        self,
        name: str,
        *,
        layers: int,
        heads: int,
        unit_bytes: int,
        unit_order: Literal["token_kv_dim", "kv_token_dim", "opaque"] = "token_kv_dim",
        k_dim: int = 0,
        v_dim: int = 0,
        scales_bytes: int = 0,
        replicated: bool = False,
    ) -> None: ...

class Group:
    def __init__(
        self,
        planes: Sequence[Plane],
        *,
        kind: Literal["full_attention", "mla", "sliding_window", "state", "indexer"] = "full_attention",
        window_tokens: int = 0,
        geometry: bytes | None = None,
    ) -> None: ...
    def record_bytes(self, shard: Shard) -> int: ...

class Shard:
    def __init__(self, layers: tuple[int, int], heads: tuple[int, int], *, interleave: tuple[int, int] = (0, 1)) -> None: ...

class Namespace:
    def __init__(
        self,
        model: str,
        *,
        weights_digest: bytes,
        kv_dtype: str,
        hash_algorithm: str,
        block_tokens: int,
        groups: Sequence[Group],
        hash_seed: bytes = b"",
        scale_scheme: str = "",
        lora: str | None = None,
    ) -> None: ...
    @property
    def digest(self) -> str: ...

class PlaneMemory:
    def __init__(
        self, address: int, bytes: int, *, block_stride: int, head_stride: int = 0, token_stride: int = 0, kv_stride: int = 0
    ) -> None: ...

class Layout:
    def __init__(
        self,
        group: Group,
        shard: Shard,
        block_tokens: int,
        memories: Sequence[PlaneMemory],
        *,
        device: int | None = None,
        owner: Any = None,
    ) -> None: ...
    @property
    def device_failure(self) -> str | None: ...
    def mark(self, stream: int = 0) -> Mark: ...

class Mark:
    @property
    def is_reached(self) -> bool: ...
    def wait(self, within: float) -> bool: ...
    def since(self, earlier: Mark) -> float | None: ...

class Engine:
    def __init__(
        self,
        socket: str | PathLike[str],
        *,
        instance: bytes,
        role: Literal["scheduler", "worker", "engine"] = "engine",
        name: str = "",
        match_deadline: float | None = None,
        load_deadline: float | None = None,
        store_deadline: float | None = None,
    ) -> None: ...
    @property
    def epoch(self) -> int | None: ...
    @property
    def times_joined(self) -> int: ...
    @property
    def lease_bytes_max(self) -> int | None: ...
    def pin_ahead(self, layout: Layout) -> None: ...
    def open_view(
        self,
        namespace: Namespace,
        *,
        shard: Shard,
        group: int = 0,
        hash_bytes: int = 32,
        prefill_tokens_per_second: float = 0.0,
        token_ids: bool = False,
    ) -> View: ...

class Match:
    @property
    def blocks(self) -> int: ...
    @property
    def own_blocks(self) -> int: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def tier(self) -> str | None: ...
    @property
    def estimate(self) -> float: ...
    def release(self) -> None: ...

class Loaded:
    @property
    def blocks(self) -> int: ...
    @property
    def dram(self) -> int: ...
    @property
    def nvme(self) -> int: ...
    @property
    def object(self) -> int: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def corrupt(self) -> int: ...

class Stored:
    @property
    def granted(self) -> int: ...
    @property
    def present(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def reason(self) -> str | None: ...

class View:
    @property
    def payload_bytes(self) -> int: ...
    def match(self, hashes: Sequence[bytes], *, within: float | None = None) -> Match: ...
    def prefetch(self, hashes: Sequence[bytes]) -> None: ...
    def load(self, found: Match, layout: Layout, indices: Sequence[int], *, first: int = 0, within: float | None = None) -> Loaded: ...
    def store(
        self,
        hashes: Sequence[bytes],
        layout: Layout,
        indices: Sequence[int],
        *,
        parent: bytes | None = None,
        first_position: int = 0,
        tokens: Sequence[int] | None = None,
    ) -> Stored: ...
    def set_prefill_rate(self, tokens_per_second: float) -> None: ...
