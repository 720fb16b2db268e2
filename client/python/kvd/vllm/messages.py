"""What the scheduler's side tells the worker's, and the other way round."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


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

    hash_seed: bytes
    generation: int
    #: That the step computes.
    tokens: int = 0
    loads: list[Load] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)


@dataclass
class Ended(KVConnectorWorkerMetadata):
    """Stores that are over, whatever became of them, and how many workers say so; and the pace of prompts, where it changed."""

    stores: dict[int, int] = field(default_factory=dict)
    tokens_per_second: float | None = None

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "Ended":
        assert isinstance(other, Ended)
        for number, workers in other.stores.items():
            self.stores[number] = self.stores.get(number, 0) + workers
        paces = [pace for pace in (self.tokens_per_second, other.tokens_per_second) if pace is not None]
        self.tokens_per_second = min(paces, default=None)
        return self
