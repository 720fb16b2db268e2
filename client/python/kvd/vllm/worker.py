"""The side of vLLM's worker: bytes between its KV cache and kvd, on threads of its own."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import kvd

from .memory import Memory
from .messages import Ended, Load, Orders, Store
from .pace import TOKENS_MIN, Pace
from .patience import Patience
from .settings import Settings
from .stats import CORRUPT, SECONDS, Stats
from .views import Views

if TYPE_CHECKING:
    import torch

    from .identity import Form, Name

logger = logging.getLogger("vllm.kvd")

#: Loads wait for their requests, so they never stand behind stores.
LOAD_THREADS = 2
STORE_THREADS = 1
#: Seconds in which vLLM ends a step that it has begun, or something is wrong with it.
STEP_DEADLINE = 60.0
#: Between two looks whether the engine ends.
LOOK_EVERY = 0.25
#: Between two warnings that say the same.
WARN_EVERY = 60.0


class Start:
    """When the loads of a step may begin, and their deadlines with them: their requests could not run before either."""

    def __init__(self, mark: kvd.Mark | None, wait_for: Callable[[kvd.Mark | None], bool]) -> None:
        self._mark, self._wait_for = mark, wait_for
        self._lock = threading.Lock()
        self._at: float | None = None
        # Mostly, and always on CPUs, there is nothing to wait for. What has failed is told by who waits.
        with contextlib.suppress(kvd.KvdError):
            self._at = time.monotonic() if mark is not None and mark.is_reached else None

    def wait(self) -> float | None:
        """The moment; `None` where it does not come."""
        with self._lock:
            if self._at is None and self._wait_for(self._mark):
                self._at = time.monotonic()
            return self._at


class WorkerSide:
    """Moves; decides nothing."""

    def __init__(self, form: "Form", settings: Settings, num_blocks: int) -> None:
        self._form = form
        self._settings = settings
        self._num_blocks = num_blocks
        self._views = Views(form, settings, "worker")
        self._registered: Memory | None = None
        self._loading = ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="kvd-load")
        self._storing = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="kvd-store")
        self._loads: dict[str, tuple[Load, Future[tuple[kvd.Loaded | None, float]]]] = {}
        self._stores: dict[int, Future[kvd.Stored | None]] = {}
        self._failed: set[int] = set()
        self._begun: kvd.Mark | None = None
        self._closing = False
        #: With stores alone: a load is a request's, which has found something just now.
        self._patience = Patience()
        self._pace = Pace()
        self._stats = Stats()
        self._warned = float("-inf")

    def register(self, caches: "dict[str, torch.Tensor]") -> None:
        """vLLM's memory: described by its strides, or refused."""
        self._registered = Memory(self._form, caches, self._num_blocks)
        self._views.pin_ahead(self._registered.layout)

    def begin_step(self, orders: Orders) -> None:
        """Nothing of the step is begun. What is still computed of those before may write to blocks that a load has been given since."""
        counts = orders.tokens >= TOKENS_MIN
        self._begun = self._mark() if counts or orders.loads else None
        if counts and self._begun is not None:
            self._pace.begin(orders.tokens, self._begun)

    def start_loads(self, orders: Orders) -> None:
        if not orders.loads:
            return
        start = Start(self._begun, self._wait_for)
        for load in orders.loads:
            self._loads[load.request] = (load, self._loading.submit(self._load, orders.name, load, start))

    def start_stores(self, orders: Orders) -> None:
        """All of the step is begun, or over: what it computes is there behind this mark."""
        if not orders.stores and orders.tokens < TOKENS_MIN:
            return
        if (mark := self._mark()) is not None:
            self._pace.end(mark)
        for store in orders.stores:
            self._stores[store.number] = self._storing.submit(self._store, orders.name, store, mark)

    def _load(self, name: "Name", load: Load, start: "Start") -> tuple[kvd.Loaded | None, float]:
        """`None` where the request has waited long enough before its turn came."""
        asked = start.wait()
        if asked is None:
            return None, 0.0
        until = asked + self._settings.load_deadline
        if (left := until - time.monotonic()) <= 0 or (view := self._views.of(name, left)) is None:
            return None, time.monotonic() - asked
        # Under a lease of this process: the scheduler's is another's, and of another epoch after a restart.
        found = view.match(load.hashes, within=max(until - time.monotonic(), 0))
        try:
            left = max(until - time.monotonic(), 0)
            loaded = view.load(found, self._memory.layout, load.blocks, first=load.first, within=left)
        finally:
            found.release()
        return loaded, time.monotonic() - asked

    def _store(self, name: "Name", store: Store, mark: kvd.Mark | None) -> kvd.Stored | None:
        if not self._wait_for(mark) or self._patience.is_over():
            return None
        if (view := self._views.of(name, self._settings.match_deadline)) is None:
            return None
        stored = view.store(store.hashes, self._memory.layout, store.blocks, parent=store.parent, first_position=store.first)
        self._patience.note(stored.reason)
        return stored

    def _mark(self) -> kvd.Mark | None:
        """Behind all that vLLM has begun; `None` where the GPU refuses it, and then nothing is moved."""
        try:
            return self._memory.mark()
        except kvd.KvdError as error:
            self._warn("the GPU takes no marks: %s", error)
            return None

    def _wait_for(self, mark: kvd.Mark | None) -> bool:
        """Whether it is reached. Ends soon where the engine does, also on a GPU that hangs."""
        until = time.monotonic() + STEP_DEADLINE
        while mark is not None and not self._closing and time.monotonic() < until:
            if mark.wait(LOOK_EVERY):
                return True
        return False

    def received(self) -> set[str]:
        """Requests whose loads are over. What is not in place is among the blocks of :meth:`failed_blocks`."""
        over = {name for name, (_, future) in self._loads.items() if future.done()}
        for name in over:
            load, future = self._loads.pop(name)
            try:
                loaded, took = future.result()
                blocks, reason = (loaded.blocks, loaded.reason) if loaded else (0, "timeout")
                self._count_load(loaded, took)
            except Exception as error:
                blocks, reason = 0, str(error)
            self._stats.add("missed", len(load.blocks) - blocks)
            if blocks < len(load.blocks):
                self._failed.update(load.blocks[blocks:])
                self._warn("%d of %d blocks were not loaded (%s): computed instead", len(load.blocks) - blocks, len(load.blocks), reason)
        return over

    def failed_blocks(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def stored(self) -> Ended | None:
        """Stores that are over."""
        over = [number for number, future in self._stores.items() if future.done()]
        for number in over:
            try:
                self._count_store(self._stores.pop(number).result())
            except Exception as error:
                self._warn("blocks were not stored: %s", error)
        faster = self._pace.news()
        return Ended(over, faster) if over or faster is not None else None

    def stats(self) -> Stats | None:
        """Of what has ended since it was last asked."""
        stats, self._stats = self._stats, Stats()
        return None if stats.is_empty() else stats

    def _count_load(self, loaded: kvd.Loaded | None, took: float) -> None:
        self._stats.add(SECONDS, took)
        if loaded is None:
            return
        for name, amount in (("dram", loaded.dram), ("nvme", loaded.nvme), ("object", loaded.object)):
            self._stats.add(name, amount)
        self._stats.add(CORRUPT, loaded.corrupt)

    def _count_store(self, stored: kvd.Stored | None) -> None:
        if stored is not None:
            for name, amount in (("stored", stored.granted), ("present", stored.present), ("refused", stored.refused)):
                self._stats.add(name, amount)

    def close(self) -> None:
        """Nothing touches vLLM's memory afterwards: calls have deadlines, and what was not begun is dropped."""
        self._closing = True
        for pool in (self._loading, self._storing):
            pool.shutdown(wait=True, cancel_futures=True)
        self._views.close()

    @property
    def _memory(self) -> Memory:
        assert self._registered is not None, "vLLM registers its caches before anything is loaded or stored"
        return self._registered

    def _warn(self, text: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._warned >= WARN_EVERY:
            self._warned = now
            logger.warning(text, *values)
