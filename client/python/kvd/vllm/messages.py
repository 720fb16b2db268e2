"""What the scheduler's side tells the worker's, and the other way round."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

if TYPE_CHECKING:
    from .identity import Name


@dataclass
class Load:
    """Blocks `first..` of a chain, into these of vLLM's."""

    request: str
    hashes: list[bytes]
    first: int
    blocks: list[int]


@dataclass
class Store:
    """Blocks `first..` of a chain, from these of vLLM's. `hashes` are theirs alone."""

    number: int
    parent: bytes | None
    first: int
    hashes: list[bytes]
    blocks: list[int]


@dataclass
class Orders(KVConnectorMetadata):
    """What a step is to load, and to store when it is over."""

    name: "Name"
    #: That the step computes.
    tokens: int = 0
    loads: list[Load] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)


@dataclass
class Ended(KVConnectorWorkerMetadata):
    """Stores that are over, whatever became of them, and the pace of prompts, where it changed."""

    stores: list[int] = field(default_factory=list)
    tokens_per_second: float | None = None

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "Ended":
        # A store is over when the last worker says so; there is one.
        raise NotImplementedError("kvd.vllm runs with one worker per engine")
