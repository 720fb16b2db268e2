"""What vLLM logs and exports of kvd's work."""

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig

#: Outcomes of blocks that were to be loaded, and of blocks that were to be stored.
LOADED = ("dram", "nvme", "object", "missed")
STORED = ("stored", "present", "refused")
#: How long loads took, from the first question to the last block.
SECONDS = "load_seconds"
#: Copies that did not pass their checksums.
CORRUPT = "corrupt"
NAMES = (*LOADED, *STORED, CORRUPT, SECONDS)


class Stats(KVConnectorStats):
    """Sums of an interval, by name. `data` travels from the workers to vLLM's front end, where another one is made of it."""

    data: dict[str, float]

    def add(self, name: str, amount: float) -> None:
        if amount:
            self.data[name] = self.data.get(name, 0) + amount

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> "Stats":
        for name, amount in other.data.items():
            self.add(name, amount)
        return self

    def reduce(self) -> dict[str, int | float]:
        return {f"kvd_{name}": round(self.data[name], 3) for name in NAMES if name in self.data}

    def is_empty(self) -> bool:
        return not self.data


class PromMetrics(KVConnectorPromMetrics):
    """The same for Prometheus, among vLLM's own metrics."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        counter = self._counter_cls
        by_outcome = [*labelnames, "outcome"]
        self._loaded = counter("vllm:kvd_load_blocks", "Blocks that were found in kvd, by the tier they came from", by_outcome)
        self._stored = counter("vllm:kvd_store_blocks", "Blocks that were offered to kvd, by what became of them", by_outcome)
        self._corrupt = counter("vllm:kvd_corrupt_blocks", "Copies that did not pass their checksums", labelnames)
        self._seconds = counter("vllm:kvd_load_seconds", "Time that loads took", labelnames)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, amount in transfer_stats_data.items():
            if name in LOADED:
                self._loaded.labels(*labels, name).inc(amount)
            elif name in STORED:
                self._stored.labels(*labels, name).inc(amount)
            elif name == CORRUPT:
                self._corrupt.labels(*labels).inc(amount)
            elif name == SECONDS:
                self._seconds.labels(*labels).inc(amount)
