"""The connector as vLLM knows it: each call goes to the scheduler's side or to the worker's."""

import logging
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from . import versions
from .identity import form_of, name_of
from .messages import Ended, Orders
from .scheduler import SchedulerSide
from .settings import Settings
from .stats import PromMetrics, Stats
from .worker import WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = logging.getLogger("vllm.kvd")


class KvdConnector(KVConnectorBase_V1, SupportsHMA):
    """Keeps vLLM's prefixes in kvd."""

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        settings, form = Settings.of(vllm_config), form_of(vllm_config, kv_cache_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role is KVConnectorRole.SCHEDULER:
            # A block that does not come is computed. vLLM's default is to fail the request, and it reads this after the connector
            # was made.
            vllm_config.kv_transfer_config.kv_load_failure_policy = "recompute"
            hash_tokens = versions.hash_tokens(vllm_config, kv_cache_config, form.block_tokens)
            versions.warn_of_random_hashes(vllm.__version__)
            self._scheduler = SchedulerSide(form, name_of(vllm_config, kv_cache_config), settings, hash_tokens)
        else:
            self._worker = WorkerSide(form, settings, kv_cache_config.num_blocks)
        logger.info("kvd: %s, socket %s", role.name.lower(), settings.socket)

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: what is not stored is computed again."""
        return False

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: "VllmConfig") -> str | None:
        """With each head of a block in one piece, so that a rank of another size finds its heads in longer pieces."""
        from vllm.platforms import current_platform

        return "HND" if current_platform.is_cuda() else None

    # The scheduler's side

    def bind_gpu_block_pool(self, gpu_block_pool: "BlockPool") -> None:
        self._deciding.bind(gpu_block_pool)

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._deciding.matched(request, num_computed_tokens)

    def get_external_cache_hit_sources(self, request: "Request", num_external_tokens: int) -> dict[Any, int]:
        return self._deciding.sources(request, num_external_tokens)

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        self._deciding.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        return self._deciding.orders(scheduler_output)

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        if isinstance(ended := connector_output.kv_connector_worker_meta, Ended):
            self._deciding.ended(ended)
        received, failed = connector_output.finished_recving, connector_output.invalid_block_ids
        self._deciding.received(received or (), set(failed or ()))

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        # Blocks that are still being stored are held one by one, so the request's may go.
        self._deciding.finished(request)
        return False, None

    def request_finished_all_groups(self, request: "Request", block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        self._deciding.finished(request)
        return False, None

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and self._scheduler.busy()

    def reset_cache(self) -> bool | None:
        """Asked for when the weights were updated in place: from here on it is another namespace. vLLM asks for it as well when it
        sleeps and when it pauses, and does not say which it is."""
        if self._scheduler is not None:
            self._scheduler.forget()
        return True

    # The worker's side

    def register_kv_caches(self, kv_caches: "dict[str, torch.Tensor]") -> None:
        self._moving.register(kv_caches)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        # Before the forward pass in every release; since 0.29 loads are started behind it.
        self._moving.begin_step(self._orders)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        self._moving.start_loads(self._orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Requests run only once all of theirs is there."""

    def save_kv_layer(self, layer_name: str, kv_layer: "torch.Tensor", attn_metadata: "AttentionMetadata", **kwargs: Any) -> None:
        """Blocks are stored whole, after the step."""

    def wait_for_save(self) -> None:
        self._moving.start_stores(self._orders)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._moving.received() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._moving.failed_blocks()

    def build_connector_worker_meta(self) -> Ended | None:
        return self._moving.stored()

    def get_kv_connector_stats(self) -> Stats | None:
        # vLLM asks both sides; what there is to tell happens in the worker.
        return self._worker.stats() if self._worker is not None else None

    # vLLM's front end

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> PromMetrics:
        return PromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # Both

    def shutdown(self) -> None:
        if self._scheduler is not None:
            self._scheduler.close()
        if self._worker is not None:
            self._worker.close()

    @property
    def _deciding(self) -> SchedulerSide:
        assert self._scheduler is not None, "a call for the scheduler's side"
        return self._scheduler

    @property
    def _moving(self) -> WorkerSide:
        assert self._worker is not None, "a call for the worker's side"
        return self._worker

    @property
    def _orders(self) -> Orders:
        orders = self._get_connector_metadata()
        assert isinstance(orders, Orders), "metadata of another connector"
        return orders
