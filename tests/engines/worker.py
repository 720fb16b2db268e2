"""The worker's side of the connector by itself: what it waits for, and what becomes of what it cannot do.

Marks that the test reaches, a clock that it turns, and a kvd of a few lines.
"""

import time
import unittest
import unittest.mock
from pathlib import Path
from types import SimpleNamespace

from kvd.vllm import memory, worker
from kvd.vllm.messages import Load, Orders, Store
from kvd.vllm.settings import Settings
from kvd.vllm.versions import Unsupported

import kvd

SETTINGS = Settings(Path("/none"), bytes(16), "model", 0.05, 2.0)
NAME = SimpleNamespace()


class Mark:
    def __init__(self, gpu: "Gpu") -> None:
        self.gpu, self.at = gpu, gpu.begun

    @property
    def is_reached(self) -> bool:
        if self.gpu.broken:
            raise kvd.KvdError("broken")
        return self.gpu.ended >= self.at

    def wait(self, within: float) -> bool:
        until = time.monotonic() + within
        while not self.is_reached and time.monotonic() < until:
            time.sleep(0.001)
        return self.is_reached

    def since(self, earlier: "Mark") -> float | None:
        return self.at - earlier.at if self.is_reached else None


class Gpu:
    """vLLM's memory, and seconds of work that vLLM has begun there, and that have ended."""

    layout = "layout"

    def __init__(self, *_: object) -> None:
        self.begun, self.ended, self.broken = 0.0, 0.0, False

    def mark(self) -> Mark:
        if self.broken:
            raise kvd.KvdError("broken")
        return Mark(self)


class View:
    """Views and view in one."""

    def __init__(self) -> None:
        self.loads, self.stores = [], []

    def of(self, name: object, within: float) -> "View":
        return self

    def pin_ahead(self, layout: object) -> None:
        pass

    def match(self, hashes: list[bytes], *, within: float) -> SimpleNamespace:
        return SimpleNamespace(release=lambda: None)

    def load(self, found: object, layout: str, blocks: list[int], *, first: int, within: float) -> SimpleNamespace:
        self.loads.append((blocks, within))
        return SimpleNamespace(blocks=len(blocks), reason=None, dram=len(blocks), nvme=0, object=0, corrupt=0)

    def store(self, hashes: list[bytes], layout: str, blocks: list[int], *, parent: bytes | None, first_position: int) -> SimpleNamespace:
        self.stores.append(blocks)
        return SimpleNamespace(granted=len(blocks), present=0, refused=0, reason=None)

    def close(self) -> None:
        pass


class Worker(unittest.TestCase):
    def setUp(self) -> None:
        self.view, self.gpu = View(), Gpu()
        with (
            unittest.mock.patch("kvd.vllm.worker.Views", lambda *_: self.view),
            unittest.mock.patch("kvd.vllm.worker.Memory", lambda *_: self.gpu),
        ):
            self.side = worker.WorkerSide(SimpleNamespace(), SETTINGS, 8)
            self.side.register({})
        self.addCleanup(self.side.close)

    def step(self, orders: Orders, seconds: float, *, loads_behind: bool) -> None:
        """As vLLM calls: since 0.29 loads are started behind the forward pass."""
        self.side.begin_step(orders)
        if not loads_behind:
            self.side.start_loads(orders)
        self.gpu.begun += seconds
        if loads_behind:
            self.side.start_loads(orders)
        self.side.start_stores(orders)

    def come(self, what: str, wanted: bool = True) -> None:
        until = time.monotonic() + 10
        while bool(eval(what, {"self": self})) != wanted:
            self.assertLess(time.monotonic(), until, what)
            time.sleep(0.002)

    def test_loads_wait_for_the_steps_before_and_for_no_more(self) -> None:
        for loads_behind in (False, True):
            self.view.loads.clear()
            self.gpu.begun += 5.0
            self.step(Orders(NAME, 1, [Load("a", [b"1"], 0, [7])]), 3.0, loads_behind=loads_behind)
            time.sleep(0.05)
            self.assertEqual((self.side.received(), self.view.loads), (set(), []), "the step before may write there")
            self.gpu.ended = self.gpu.begun - 3.0
            self.come("self.view.loads")
            ((blocks, within),) = self.view.loads
            self.assertEqual(blocks, [7])
            self.assertGreater(within, 1.9, "its time begins when the steps before have ended")
            self.come("self.side.received() == {'a'}")
            self.gpu.ended = self.gpu.begun

    def test_stores_wait_for_their_own_step(self) -> None:
        self.step(Orders(NAME, 1, [], [Store(1, None, 0, [b"1"], [3])]), 3.0, loads_behind=True)
        time.sleep(0.05)
        self.assertIsNone(self.side.stored())
        self.gpu.ended = 2.9
        time.sleep(0.05)
        self.assertEqual(self.view.stores, [], "the step is not over")
        self.gpu.ended = 3.0
        self.come("self.view.stores == [[3]]")
        self.come("self.side.stored() is not None")

    def test_the_pace_is_that_of_the_forward_pass(self) -> None:
        for loads_behind in (False, True):
            self.step(Orders(NAME, 512), 2.0, loads_behind=loads_behind)
        self.assertIsNone(self.side.stored(), "nothing has ended")
        self.gpu.ended = 4.0
        self.assertEqual(self.side.stored().tokens_per_second, 256)
        self.assertIsNone(self.side.stored())

    def test_a_gpu_that_fails_raises_nothing(self) -> None:
        store = Store(1, None, 0, [b"1"], [3])
        self.gpu.begun = 1.0
        self.step(Orders(NAME, 512, [Load("a", [b"1"], 0, [7])], [store]), 1.0, loads_behind=True)
        self.gpu.broken = True
        self.come("self.side.received() == {'a'}")
        self.come("(ended := self.side.stored()) is not None and ended.stores == [1]")
        self.step(Orders(NAME, 512, [Load("b", [b"1"], 0, [5])], [Store(2, None, 0, [b"1"], [3])]), 1.0, loads_behind=True)
        self.come("self.side.received() == {'b'}")
        self.assertEqual(self.side.failed_blocks(), {5, 7})
        self.come("(ended := self.side.stored()) is not None and ended.stores == [2]")
        self.assertEqual((self.view.loads, self.view.stores), ([], []))

    def test_an_engine_ends_also_where_its_gpu_hangs(self) -> None:
        load, store = Load("a", [b"1"], 0, [7]), Store(1, None, 0, [b"1"], [3])
        self.gpu.begun = 1.0
        self.step(Orders(NAME, 512, [load], [store]), 1.0, loads_behind=True)
        begun = time.monotonic()
        self.side.close()
        self.assertLess(time.monotonic() - begun, 5)
        self.assertEqual((self.view.loads, self.view.stores), ([], []))


class Layouts(unittest.TestCase):
    """Two layers of 3 blocks, 2 heads, 4 tokens, key and value of 8 elements."""

    @staticmethod
    def caches(order: tuple[int, ...]) -> dict:
        import torch

        shape = (3, 2, 4, 16)
        flat = [torch.arange(384).reshape([shape[axis] for axis in order]).to(torch.int16) for _ in range(2)]
        back = [order.index(axis) for axis in range(4)]
        return {f"layer{at}": tensor.permute(back) for at, tensor in enumerate(flat)}

    @staticmethod
    def form(*, opaque: bool) -> SimpleNamespace:
        order = "opaque" if opaque else "token_kv_dim"
        plane = kvd.Plane("kv", layers=2, heads=2, unit_bytes=4 * 32, unit_order=order, k_dim=8, v_dim=8)
        return SimpleNamespace(
            group=kvd.Group([plane]),
            shard=kvd.Shard((0, 2), (0, 2)),
            block_tokens=4,
            layers=("layer0", "layer1"),
            heads=2,
            key=8,
            content=16,
            heads_in_one_piece=opaque,
        )

    def test_heads_first_and_tokens_first_are_known_by_their_strides(self) -> None:
        heads_first, tokens_first = (0, 1, 2, 3), (0, 2, 1, 3)
        for order in (heads_first, tokens_first):
            memory.Memory(self.form(opaque=False), self.caches(order), 3)
        with self.assertRaisesRegex(Unsupported, "each head of a block in one piece"):
            memory.Memory(self.form(opaque=True), self.caches(tokens_first), 3)

    def test_what_is_not_known_is_refused_in_words(self) -> None:
        caches = self.caches((0, 1, 2, 3))
        with self.assertRaisesRegex(Unsupported, "vLLM has caches for"):
            memory.Memory(self.form(opaque=False), {"layer0": caches["layer0"]}, 3)
        split = {name: tensor.reshape(3, 2, 2, 4, 8) for name, tensor in caches.items()}
        with self.assertRaisesRegex(Unsupported, "kvd does not guess"):
            memory.Memory(self.form(opaque=False), split, 3)
        with self.assertRaisesRegex(Unsupported, "kvd does not guess"):
            memory.Memory(self.form(opaque=False), caches, 4)


unittest.main()
