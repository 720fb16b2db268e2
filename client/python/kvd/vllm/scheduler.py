"""The side of vLLM's scheduler: which prefixes are there, what is to be loaded and stored, and which blocks must not change."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import kvd

from . import versions
from .identity import Form, Name
from .messages import Ended, Load, Orders, Store
from .patience import Patience
from .settings import Settings
from .views import Views

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

logger = logging.getLogger("vllm.kvd")

#: Of vLLM's blocks, those that stores may hold at a time: one in so many. What is beyond waits for a later step of its request.
HELD_SHARE = 4
#: Of what the engine may lease, what the scheduler's side keeps: the workers lease the same blocks when they load them.
LEASED_SHARE = 2


@dataclass
class Tracked:
    """A request, and how far it has come."""

    request: "Request"
    #: What was found for it, held until its load is over where there is room for that.
    found: kvd.Match | None = None
    #: The slowest tier of it, and blocks that vLLM had without it.
    tier: str | None = None
    local: int = 0
    #: Bytes that `found` leases.
    leased: int = 0
    #: A load of it failed: what is there is not asked for again, or it would go on for ever.
    failed: bool = False
    #: vLLM's blocks of it, from the first on.
    blocks: list[int] = field(default_factory=list)
    #: Blocks that were offered to kvd, or came from there.
    offered: int = 0


class SchedulerSide:
    """Decides; moves no byte, and waits for nothing but the answer to a match."""

    def __init__(self, form: Form, name: Name, settings: Settings, hash_tokens: int) -> None:
        # What breaks a bound is told when vLLM starts.
        _ = name.namespace(form)
        self._form = form
        self._name = name
        self._settings = settings
        #: vLLM may hash smaller pieces than its blocks: every so many-th hash is a block's.
        self._hashes_per_block = form.block_tokens // hash_tokens
        self._views = Views(form, settings, "scheduler")
        self._patience = Patience()
        self._requests: dict[str, Tracked] = {}
        self._leased = 0
        self._loads: list[Load] = []
        self._pool: BlockPool | None = None
        self._stores = 0
        #: vLLM's blocks that are being stored: held, so that nobody writes there meanwhile.
        self._held: dict[int, list[KVCacheBlock]] = {}
        self._held_blocks = 0
        self._there: bool | None = None

    def bind(self, pool: "BlockPool") -> None:
        self._pool = pool

    # What is there

    def matched(self, request: "Request", computed: int) -> tuple[int, bool]:
        """Tokens behind the `computed` ones that kvd has, and whether they come while other requests run."""
        tracked = self._track(request)
        self._release(tracked)
        if tracked.failed or request.skip_reading_prefix_cache or self._patience.is_over():
            return 0, False
        # Also where vLLM has all of it: what kvd has too is kept as used, and need not be offered.
        hashes = self._hashes(request, request.num_tokens // self._form.block_tokens)
        if not hashes:
            return 0, False
        view = self._views.of(self._named(), self._settings.match_deadline)
        if view is None:
            return 0, False
        try:
            found = view.match(hashes)
        except kvd.KvdError as error:
            logger.warning("kvd: %s", error)
            return 0, False
        self._patience.note(found.reason)
        tracked.offered = found.blocks
        # The last token is computed in any case, or there would be nothing to sample from.
        blocks = min(found.blocks, (request.num_tokens - 1) // self._form.block_tokens)
        tokens = blocks * self._form.block_tokens - computed
        if tokens <= 0:
            found.release()
            return 0, False
        tracked.tier, tracked.local = found.tier, computed // self._form.block_tokens
        leased = found.blocks * view.payload_bytes
        if (self._leased + leased) * LEASED_SHARE > (self._views.engine.lease_bytes_max or 0):
            # The worker finds it again, or what fell meanwhile is computed.
            found.release()
        else:
            tracked.found, tracked.leased = found, leased
            self._leased += leased
        return tokens, True

    def allocated(self, request: "Request", blocks: "KVCacheBlocks", tokens: int) -> None:
        """vLLM has blocks for the request; `tokens` of them are to be loaded."""
        tracked = self._track(request)
        (tracked.blocks,) = (list(of_group) for of_group in blocks.get_block_ids())
        if tokens == 0:
            return
        first = tracked.local
        end = first + tokens // self._form.block_tokens
        self._loads.append(Load(request.request_id, self._hashes(request, end), first, tracked.blocks[first:end]))

    def sources(self, request: "Request", tokens: int) -> dict[Any, int]:
        """In vLLM's words, whence `tokens` come: the slowest tier of what was found."""
        from vllm.v1.metrics.cache_hit_source import CacheHitSource

        tracked = self._requests.get(request.request_id)
        known = {"dram": CacheHitSource.HOST, "nvme": CacheHitSource.DISK}
        tier = tracked.tier if tracked else None
        return {known.get(tier or "", CacheHitSource.EXTERNAL_UNSPECIFIED): tokens} if tokens else {}

    def orders(self, step: "SchedulerOutput") -> Orders:
        """What the workers are to load, and to store once the step is over."""
        self._tell_whether_kvd_is_there()
        orders = Orders(self._named(), step.total_num_scheduled_tokens, self._loads)
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
        request, first = tracked.request, tracked.offered
        complete = min(computed, request.num_tokens) // self._form.block_tokens
        if self._pool is None or not self._there:
            return
        room = len(self._pool.blocks) // HELD_SHARE - self._held_blocks
        end = min(complete, len(tracked.blocks), first + room)
        if first >= end:
            return
        hashes, blocks = self._hashes(request, end), tracked.blocks[first:end]
        held = [self._pool.blocks[number] for number in blocks]
        if len(hashes) < end or any(block.is_null for block in held):
            return
        tracked.offered = end
        self._pool.touch(held)
        self._stores += 1
        self._held[self._stores] = held
        self._held_blocks += len(held)
        parent = hashes[first - 1] if first else None
        orders.stores.append(Store(self._stores, parent, first, hashes[first:], blocks))

    # What has come of it

    def ended(self, ended: Ended) -> None:
        """Blocks that were stored may change again."""
        if ended.tokens_per_second is not None:
            self._views.tell_pace(ended.tokens_per_second)
        for number in ended.stores:
            if (held := self._held.pop(number, None)) and self._pool is not None:
                self._held_blocks -= len(held)
                # A chain's last block is the first to go, or what is left of it would be of no use.
                self._pool.free_blocks(reversed(held))

    def received(self, names: Iterable[str], failed: set[int]) -> None:
        """Loads are over, but for these of vLLM's blocks."""
        for name in names:
            if tracked := self._requests.get(name):
                self._release(tracked)
                if not failed.isdisjoint(tracked.blocks):
                    tracked.failed = True
                    tracked.offered = 0

    def finished(self, request: "Request") -> None:
        if tracked := self._requests.pop(request.request_id, None):
            self._release(tracked)

    def busy(self) -> bool:
        """Whether blocks are held, which are given back in a step."""
        return bool(self._held)

    def forget(self) -> None:
        """The weights may be others: what was stored belongs to the old ones, also where another engine has updated the same ones."""
        self._name = self._name.with_weights(os.urandom(16))
        for tracked in self._requests.values():
            # Its first blocks are not in the new namespace.
            tracked.offered = 0

    def self_check(self) -> None:
        """What must hold between any two calls."""
        assert self._held_blocks == sum(len(held) for held in self._held.values())
        assert self._leased == sum(tracked.leased for tracked in self._requests.values())
        assert all((tracked.found is None) == (tracked.leased == 0) for tracked in self._requests.values())

    def close(self) -> None:
        for tracked in self._requests.values():
            self._release(tracked)
        self._requests.clear()
        self._views.close()

    # Helpers

    def _release(self, tracked: Tracked) -> None:
        if tracked.found is not None:
            tracked.found.release()
            self._leased -= tracked.leased
            tracked.found, tracked.leased = None, 0

    def _tell_whether_kvd_is_there(self) -> None:
        """Once when it goes, and once when it comes back."""
        there = self._views.engine.epoch is not None
        if there != self._there:
            if there:
                logger.info("joined kvd at %s", self._settings.socket)
            else:
                logger.warning("kvd does not answer at %s: everything is computed until it does", self._settings.socket)
            self._there = there

    def _named(self) -> Name:
        if not self._name.hash_seed:
            self._name = replace(self._name, hash_seed=versions.hash_seed())
        return self._name

    def _track(self, request: "Request") -> Tracked:
        if request.request_id not in self._requests:
            self._requests[request.request_id] = Tracked(request)
        return self._requests[request.request_id]

    def _hashes(self, request: "Request", blocks: int) -> list[bytes]:
        """Of the first blocks; the last of several hashes is a block's, since it is chained over the others."""
        step = self._hashes_per_block
        return [bytes(one) for one in request.block_hashes[step - 1 : blocks * step : step]]
