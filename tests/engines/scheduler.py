"""The scheduler's side of the connector by itself: what it holds, leases, offers and lets go of.

vLLM's own block pool, and a kvd of a few lines. After every call the side checks itself.
"""

import unittest
import unittest.mock
from pathlib import Path
from types import SimpleNamespace

from kvd.vllm.messages import Ended
from kvd.vllm.scheduler import SchedulerSide
from kvd.vllm.settings import Settings
from vllm.v1.core.block_pool import BlockPool

TOKENS, POOL = 4, 101


class Found:
    def __init__(self, world: "World", blocks: int, reason: str | None) -> None:
        self.world, self.blocks, self.reason, self.tier = world, blocks, reason, "dram"
        world.leases += 1

    def release(self) -> None:
        self.world.leases -= 1


class World:
    """Views, engine and view in one: it has the blocks that `known` names."""

    payload_bytes, epoch, lease_bytes_max = 10, 1, 1000

    def __init__(self) -> None:
        self.engine, self.known, self.leases, self.matches, self.reason = self, set(), 0, 0, "cold"

    def of(self, name: object, within: float) -> "World":
        return self

    def match(self, hashes: list[bytes]) -> Found:
        self.matches += 1
        blocks = next((at for at, one in enumerate(hashes) if one not in self.known), len(hashes))
        return Found(self, blocks, self.reason)

    def tell_pace(self, tokens_per_second: float) -> None:
        pass

    def close(self) -> None:
        pass


def request(name: str, tokens: int) -> SimpleNamespace:
    hashes = [f"{name}{block}".encode().ljust(32) for block in range(tokens // TOKENS)]
    return SimpleNamespace(request_id=name, num_tokens=tokens, block_hashes=hashes, skip_reading_prefix_cache=False)


class Scheduler(unittest.TestCase):
    def setUp(self) -> None:
        name = SimpleNamespace(namespace=lambda form: None, hash_seed=b"1", with_weights=lambda mark: name)
        settings = Settings(Path("/none"), bytes(16), "model", 0.05, 2.0)
        form = SimpleNamespace(block_tokens=TOKENS)
        self.world = World()
        with unittest.mock.patch("kvd.vllm.scheduler.Views", lambda *_: self.world):
            self.side = SchedulerSide(form, name, settings, TOKENS)
        self.pool = BlockPool(num_gpu_blocks=POOL, enable_caching=True, hash_block_size=TOKENS)
        self.side.bind(self.pool)
        self.free = self.pool.get_num_free_blocks()

    def tearDown(self) -> None:
        self.side.self_check()

    def step(self, one: SimpleNamespace, blocks: list, computed: int, tokens: int, *, new: bool = True):
        ids = [block.block_id for block in blocks]
        fresh = [SimpleNamespace(req_id=one.request_id, block_ids=(ids,), num_computed_tokens=computed)]
        cached = SimpleNamespace(req_ids=[one.request_id], new_block_ids=[None], resumed_req_ids=set(), num_computed_tokens=[computed])
        nobody = SimpleNamespace(req_ids=[], new_block_ids=[], resumed_req_ids=set(), num_computed_tokens=[])
        orders = self.side.orders(
            SimpleNamespace(
                scheduled_new_reqs=fresh if new else [],
                scheduled_cached_reqs=nobody if new else cached,
                num_scheduled_tokens={one.request_id: tokens},
                total_num_scheduled_tokens=tokens,
            )
        )
        self.side.self_check()
        return orders

    def admit(self, one: SimpleNamespace, blocks: list, tokens: int) -> None:
        ids = [block.block_id for block in blocks]
        self.side.allocated(one, SimpleNamespace(get_block_ids=lambda: (ids,)), tokens)
        self.side.self_check()

    def test_stored_blocks_are_nobody_elses_until_the_store_is_over(self) -> None:
        one, blocks = request("a", 18), self.pool.get_new_blocks(5)
        self.assertEqual(self.side.matched(one, 0), (0, False))
        self.admit(one, blocks, 0)
        (store,) = self.step(one, blocks, 0, 18).stores
        self.assertEqual((store.first, store.parent, len(store.hashes)), (0, None, 4), "the fifth block is not complete")
        self.side.finished(one)
        self.pool.free_blocks(reversed(blocks))
        self.assertEqual(self.pool.get_num_free_blocks(), self.free - 4)
        self.assertTrue(self.side.busy())
        self.side.ended(Ended([store.number]))
        self.side.ended(Ended([store.number]))
        self.assertEqual(self.pool.get_num_free_blocks(), self.free)
        self.assertFalse(self.side.busy())

    def test_blocks_are_stored_once_and_in_their_order(self) -> None:
        one, blocks = request("a", 18), self.pool.get_new_blocks(5)
        self.side.matched(one, 0)
        self.admit(one, blocks, 0)
        (first,) = self.step(one, blocks, 0, 10).stores
        (second,) = self.step(one, blocks, 10, 8, new=False).stores
        self.assertEqual((len(first.hashes), second.first, len(second.hashes)), (2, 2, 2))
        self.assertEqual(second.parent, one.block_hashes[1])
        self.assertEqual(self.step(one, blocks, 18, 1, new=False).stores, [], "guessed tokens complete no block")

    def test_at_most_a_quarter_of_the_pool_is_held(self) -> None:
        one, blocks = request("a", 60 * TOKENS), self.pool.get_new_blocks(60)
        self.side.matched(one, 0)
        self.admit(one, blocks, 0)
        (store,) = self.step(one, blocks, 0, 240).stores
        self.assertEqual(len(store.blocks), POOL // 4)
        self.assertEqual(self.step(one, blocks, 239, 1, new=False).stores, [])
        self.side.ended(Ended([store.number]))
        (rest,) = self.step(one, blocks, 239, 1, new=False).stores
        self.assertEqual(rest.first, POOL // 4)

    def test_what_is_found_is_held_until_it_is_loaded(self) -> None:
        one, blocks = request("a", 17), self.pool.get_new_blocks(5)
        self.world.known = set(one.block_hashes)
        self.assertEqual(self.side.matched(one, 4), (12, True))
        self.side.matched(one, 4)
        self.assertEqual(self.world.leases, 1, "asked again, not held twice")
        self.admit(one, blocks, 12)
        (load,) = self.step(one, blocks, 16, 0).loads
        self.assertEqual((load.first, load.blocks), (1, [block.block_id for block in blocks[1:4]]))
        self.side.received({"a"}, set())
        self.assertEqual(self.world.leases, 0)

    def test_what_kvd_has_is_not_offered_where_vllm_has_it_too(self) -> None:
        one, blocks = request("a", 16), self.pool.get_new_blocks(4)
        self.world.known = set(one.block_hashes)
        self.assertEqual(self.side.matched(one, 12), (0, False), "the last token is computed")
        self.assertEqual((self.world.matches, self.world.leases), (1, 0))
        self.admit(one, blocks, 0)
        self.assertEqual(self.step(one, blocks, 12, 4).stores, [])
        self.assertFalse(self.side.busy())
        # What kvd has lost meanwhile is.
        two, blocks = request("b", 16), self.pool.get_new_blocks(4)
        self.world.known = set(two.block_hashes[:2])
        self.side.matched(two, 12)
        self.admit(two, blocks, 0)
        (store,) = self.step(two, blocks, 12, 4).stores
        self.assertEqual((store.first, store.parent, len(store.hashes)), (2, two.block_hashes[1], 2))

    def test_a_load_that_failed_is_not_tried_again(self) -> None:
        one, blocks = request("a", 17), self.pool.get_new_blocks(5)
        self.world.known = set(one.block_hashes)
        self.side.matched(one, 0)
        self.admit(one, blocks, 16)
        self.step(one, blocks, 16, 0)
        self.side.received({"a", "unknown"}, {blocks[2].block_id})
        self.assertEqual(self.side.matched(one, 0), (0, False))
        (store,) = self.step(one, blocks, 0, 17).stores
        self.assertEqual(store.first, 0, "what is computed instead is stored")

    def test_leases_leave_room_for_the_worker(self) -> None:
        many = [request(name, 16 * TOKENS + 1) for name in "abcd"]
        for one in many:
            self.world.known |= set(one.block_hashes)
            self.assertEqual(self.side.matched(one, 0), (16 * TOKENS, True))
            self.side.self_check()
        self.assertEqual(self.world.leases, 3, "160 bytes each, of which 500 may be held")
        for one in many:
            self.side.finished(one)
        self.assertEqual(self.world.leases, 0)

    def test_a_daemon_that_is_late_is_left_alone(self) -> None:
        self.world.reason = "timeout"
        self.side.matched(request("a", 17), 0)
        self.side.matched(request("b", 17), 0)
        self.assertEqual(self.world.matches, 1)

    def test_new_weights_begin_with_the_first_block(self) -> None:
        one, blocks = request("a", 18), self.pool.get_new_blocks(5)
        self.side.matched(one, 0)
        self.admit(one, blocks, 0)
        self.step(one, blocks, 0, 10)
        self.side.forget()
        (store,) = self.step(one, blocks, 10, 8, new=False).stores
        self.assertEqual((store.first, store.parent), (0, None))


unittest.main()
