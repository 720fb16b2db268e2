"""The side of vLLM's scheduler: which prefixes are there, what is to be loaded and stored, and which blocks must not change."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import kvd

from .messages import Ended, Load, Orders, Store
from .patience import Patience
from .settings import Settings

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    from .identity import Identity

logger = logging.getLogger("vllm.kvd")

#: Of vLLM's blocks, those that stores may hold at a time: one in so many. What is beyond waits for a later step of its request.
HELD_SHARE = 4


@dataclass
class Tracked:
    """A request, and how far it has come."""

    request: "Request"
    #: What was found for it, held until its load is over, and blocks that vLLM had without it.
    found: kvd.Match | None = None
    local: int = 0
    #: A load of it failed: what is there is not asked for again, or it would go on for ever.
    failed: bool = False
    #: vLLM's blocks of it, from the first on.
    blocks: list[int] = field(default_factory=list)
    #: Blocks that were offered to kvd, or came from there.
    offered: int = 0

    def release(self) -> None:
        if self.found is not None:
            self.found.release()
            self.found = None


class SchedulerSide:
    """Decides; moves no byte."""

    def __init__(self, identity: "Identity", settings: Settings, hash_tokens: int) -> None:
        self._identity = identity
        self._settings = settings
        #: vLLM may hash smaller pieces than its blocks: every so many-th hash is a block's.
        self._hashes_per_block = identity.block_tokens // hash_tokens
        self._engine = settings.engine("scheduler")
        self._patience = Patience()
        self._generation = 0
        self._view: kvd.View | None = None
        self._requests: dict[str, Tracked] = {}
        self._loads: list[Load] = []
        self._pool: BlockPool | None = None
        self._stores = 0
        #: vLLM's blocks that are being stored: held, so that nobody writes there meanwhile.
        self._held: dict[int, list[KVCacheBlock]] = {}
        self._telling = ThreadPoolExecutor(1, thread_name_prefix="kvd-pace")
        self._there: bool | None = None

    def bind(self, pool: "BlockPool") -> None:
        self._pool = pool

    # What is there

    def matched(self, request: "Request", computed: int) -> tuple[int, bool]:
        """Tokens behind the `computed` ones that kvd has, and whether they come while other requests run."""
        tracked = self._track(request)
        tracked.release()
        if tracked.failed or request.skip_reading_prefix_cache or self._patience.is_over():
            return 0, False
        # The last token is computed in any case, or there would be nothing to sample from.
        most = (request.num_tokens - 1) // self._identity.block_tokens
        hashes = self._hashes(request)[:most]
        if len(hashes) * self._identity.block_tokens <= computed:
            return 0, False
        found = self._opened().match(hashes)
        self._patience.note(found.reason)
        tokens = found.blocks * self._identity.block_tokens - computed
        if tokens <= 0:
            found.release()
            return 0, False
        tracked.found, tracked.local = found, computed // self._identity.block_tokens
        return tokens, True

    def allocated(self, request: "Request", blocks: "KVCacheBlocks", tokens: int) -> None:
        """vLLM has blocks for the request; `tokens` of them are to be loaded."""
        tracked = self._track(request)
        (tracked.blocks,) = (list(of_group) for of_group in blocks.get_block_ids())
        if tokens == 0 or tracked.found is None:
            return
        first = tracked.local
        end = first + tokens // self._identity.block_tokens
        hashes = self._hashes(request)[:end]
        self._loads.append(Load(request.request_id, hashes, first, tracked.blocks[first:end]))
        tracked.offered = end

    def sources(self, request: "Request", tokens: int) -> dict[Any, int]:
        """In vLLM's words, whence `tokens` come: the slowest tier of what was found."""
        from vllm.v1.metrics.cache_hit_source import CacheHitSource

        tracked = self._requests.get(request.request_id)
        tier = tracked.found.tier if tracked and tracked.found else None
        known = {"dram": CacheHitSource.HOST, "nvme": CacheHitSource.DISK}
        return {known.get(tier or "", CacheHitSource.EXTERNAL_UNSPECIFIED): tokens} if tokens else {}

    def orders(self, step: "SchedulerOutput") -> Orders:
        """What the workers are to load, and to store once the step is over."""
        self._tell_whether_kvd_is_there()
        tokens = step.total_num_scheduled_tokens
        orders = Orders(self._settings.hash_seed(), self._generation, tokens, self._loads)
        self._loads = []
        for new in step.scheduled_new_reqs:
            if tracked := self._requests.get(new.req_id):
                (tracked.blocks,) = (list(of_group) for of_group in new.block_ids)
                self._offer(tracked, new.num_computed_tokens + step.num_scheduled_tokens[new.req_id], orders)
        again = step.scheduled_cached_reqs
        for at, name in enumerate(again.req_ids):
            tracked = self._requests.get(name)
            if tracked is None:
                continue
            if (more := again.new_block_ids[at]) is not None:
                (more,) = more
                tracked.blocks = list(more) if name in again.resumed_req_ids else tracked.blocks + list(more)
            self._offer(tracked, again.num_computed_tokens[at] + step.num_scheduled_tokens[name], orders)
        return orders

    def _offer(self, tracked: Tracked, computed: int, orders: Orders) -> None:
        """Blocks that are complete after this step. Tokens that are only guessed have no hash and are not among them."""
        request = tracked.request
        complete = min(computed, request.num_tokens) // self._identity.block_tokens
        first = tracked.offered
        if self._pool is None or complete <= first:
            return
        hashes = self._hashes(request)[:complete]
        room = len(self._pool.blocks) // HELD_SHARE - sum(len(held) for held in self._held.values())
        end = min(len(hashes), len(tracked.blocks), first + room)
        if first >= end:
            return
        hashes, blocks = hashes[:end], tracked.blocks[first:end]
        held = [self._pool.blocks[number] for number in blocks]
        if any(block.is_null for block in held):
            return
        tracked.offered = end
        self._pool.touch(held)
        self._stores += 1
        self._held[self._stores] = held
        parent = hashes[first - 1] if first else None
        orders.stores.append(Store(self._stores, parent, first, hashes[first:], blocks))

    # What has come of it

    def ended(self, ended: Ended) -> None:
        """Blocks that were stored may change again."""
        if ended.tokens_per_second is not None:
            # The daemon is told by another thread: nothing here waits for it.
            self._telling.submit(self._opened().set_prefill_rate, ended.tokens_per_second)
        for number in ended.stores:
            if (held := self._held.pop(number, None)) and self._pool is not None:
                self._pool.free_blocks(held)

    def received(self, names: set[str], failed: set[int]) -> None:
        """Loads are over, but for these of vLLM's blocks."""
        for name in names:
            if tracked := self._requests.get(name):
                tracked.release()
                if not failed.isdisjoint(tracked.blocks):
                    tracked.failed = True
                    tracked.offered = 0

    def finished(self, request: "Request") -> None:
        if tracked := self._requests.pop(request.request_id, None):
            tracked.release()

    def busy(self) -> bool:
        """Whether blocks are held, which are given back in a step."""
        return bool(self._held)

    def forget(self) -> None:
        """The weights may be others: what was stored belongs to the old ones."""
        self._generation += 1
        self._view = None

    def close(self) -> None:
        for tracked in self._requests.values():
            tracked.release()
        self._requests.clear()
        self._telling.shutdown(wait=True, cancel_futures=True)

    # Helpers

    def _tell_whether_kvd_is_there(self) -> None:
        """Once when it goes, and once when it comes back."""
        there = self._engine.epoch is not None
        if there != self._there:
            if there:
                logger.info("joined kvd at %s", self._settings.socket)
            else:
                logger.warning("kvd does not answer at %s: everything is computed until it does", self._settings.socket)
            self._there = there

    def _track(self, request: "Request") -> Tracked:
        if request.request_id not in self._requests:
            self._requests[request.request_id] = Tracked(request)
        return self._requests[request.request_id]

    def _hashes(self, request: "Request") -> list[bytes]:
        step = self._hashes_per_block
        return [bytes(one) for one in request.block_hashes[step - 1 :: step]]

    def _opened(self) -> kvd.View:
        if self._view is None:
            namespace = self._identity.namespace(self._settings.hash_seed(), self._generation)
            self._view = self._engine.open_view(namespace, shard=self._identity.shard)
        return self._view
