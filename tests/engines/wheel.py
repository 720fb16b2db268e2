"""The wheel against a daemon: wheel.py SOCKET

Blocks of 2 layers, 3 heads and 4 tokens, in memory of two orders: what is stored from one is loaded into the other.
"""

import ctypes
import os
import sys
import time
import unittest

import kvd

LAYERS, HEADS, TOKENS, CONTENT, BLOCKS = 2, 3, 4, 32, 8
UNIT = TOKENS * CONTENT
BLOCK = HEADS * UNIT
SOCKET = sys.argv.pop()


def namespace(model: str) -> kvd.Namespace:
    return kvd.Namespace(model, weights_digest=bytes(32), kv_dtype="int8", hash_algorithm="test", block_tokens=TOKENS, groups=[group()])


def group() -> kvd.Group:
    return kvd.Group([kvd.Plane("kv", layers=LAYERS, heads=HEADS, unit_bytes=UNIT, k_dim=16, v_dim=16)])


class Memory:
    """Layers apart; within a layer heads before tokens, or tokens before heads."""

    def __init__(self, content: bytes, *, heads_first: bool) -> None:
        self.layers = [
            ctypes.create_string_buffer(content[at * BLOCKS * BLOCK :][: BLOCKS * BLOCK], BLOCKS * BLOCK) for at in range(LAYERS)
        ]
        head, token = (UNIT, CONTENT) if heads_first else (CONTENT, HEADS * CONTENT)
        memories = [
            kvd.PlaneMemory(ctypes.addressof(layer), BLOCKS * BLOCK, block_stride=BLOCK, head_stride=head, token_stride=token, kv_stride=16)
            for layer in self.layers
        ]
        self.layout = kvd.Layout(group(), SHARD, TOKENS, memories, owner=self.layers)
        self.strides = (head, token)

    def cell(self, layer: int, block: int, head: int, token: int) -> bytes:
        of_head, of_token = self.strides
        at = block * BLOCK + head * of_head + token * of_token
        return self.layers[layer].raw[at : at + CONTENT]


SHARD = kvd.Shard((0, LAYERS), (0, HEADS))
HASHES = [bytes([number]) * 32 for number in range(1, 6)]


def engine(number: int, socket: str = SOCKET) -> kvd.Engine:
    made = kvd.Engine(socket, instance=bytes([number]) * 16, name="wheel", match_deadline=0.5)
    until = time.monotonic() + 10
    while made.epoch is None and socket == SOCKET and time.monotonic() < until:
        time.sleep(0.01)
    return made


class Wheel(unittest.TestCase):
    def test_what_is_stored_is_loaded_into_memory_of_another_order(self) -> None:
        source = Memory(os.urandom(LAYERS * BLOCKS * BLOCK), heads_first=True)
        target = Memory(bytes(LAYERS * BLOCKS * BLOCK), heads_first=False)
        writer = engine(1).open_view(namespace("orders"), shard=SHARD)
        stored = writer.store(HASHES, source.layout, [0, 1, 2, 3, 4])
        self.assertEqual((stored.granted, stored.refused, stored.reason), (5, 0, None))
        reader = engine(2).open_view(namespace("orders"), shard=SHARD)
        found = reader.match([*HASHES, bytes(32)])
        self.assertEqual((found.blocks, found.tier, found.reason), (5, "dram", "cold"))
        loaded = reader.load(found, target.layout, [7, 6, 5], first=2)
        self.assertEqual((loaded.blocks, loaded.dram, loaded.reason), (3, 3, None))
        for to, of in ((7, 2), (6, 3), (5, 4)):
            for layer in range(LAYERS):
                for head in range(HEADS):
                    for token in range(TOKENS):
                        wanted = source.cell(layer, of, head, token)
                        self.assertEqual(target.cell(layer, to, head, token), wanted)
        found.release()
        self.assertEqual(reader.load(found, target.layout, [0]).blocks, 0, "what is released holds nothing")
        again = writer.store(HASHES, source.layout, [0, 1, 2, 3, 4])
        self.assertEqual((again.granted, again.present), (0, 5))

    def test_other_weights_are_another_namespace(self) -> None:
        self.assertNotEqual(namespace("a").digest, namespace("b").digest)
        memory = Memory(bytes(LAYERS * BLOCKS * BLOCK), heads_first=True)
        engine(1).open_view(namespace("a"), shard=SHARD).store(HASHES, memory.layout, [0, 1, 2, 3, 4])
        self.assertEqual(engine(1).open_view(namespace("b"), shard=SHARD).match(HASHES).blocks, 0)

    def test_a_daemon_that_is_not_there_costs_misses(self) -> None:
        memory = Memory(bytes(LAYERS * BLOCKS * BLOCK), heads_first=True)
        alone = engine(3, SOCKET + ".none")
        self.assertIsNone(alone.epoch)
        view = alone.open_view(namespace("alone"), shard=SHARD)
        self.assertEqual(view.match(HASHES).reason, "tier_down")
        self.assertEqual(view.store(HASHES, memory.layout, [0, 1, 2, 3, 4]).reason, "tier_down")

    def test_what_is_described_wrongly_is_told_at_once(self) -> None:
        with self.assertRaisesRegex(ValueError, "unit_order is token_kv_dim, kv_token_dim or opaque, not .nhd."):
            kvd.Plane("kv", layers=1, heads=1, unit_bytes=64, unit_order="nhd")
        with self.assertRaises(kvd.KvdError):
            kvd.Shard((2, 2), (0, 1))
        with self.assertRaisesRegex(kvd.LayoutError, "2 layers of planes, but 0 memories"):
            kvd.Layout(group(), SHARD, TOKENS, [])
        memory = Memory(bytes(LAYERS * BLOCKS * BLOCK), heads_first=True)
        view = engine(1).open_view(namespace("wrong"), shard=SHARD)
        with self.assertRaisesRegex(kvd.LayoutError, "block 8 lies outside"):
            view.store(HASHES[:1], memory.layout, [BLOCKS])
        with self.assertRaises(kvd.KvdError):
            view.match([b""])

    def test_what_a_thread_has_done_is_behind_its_mark(self) -> None:
        layout = Memory(bytes(LAYERS * BLOCKS * BLOCK), heads_first=True).layout
        earlier = layout.mark()
        later = layout.mark()
        self.assertTrue(earlier.is_reached and later.wait(0))
        self.assertGreaterEqual(later.since(earlier), 0)
        engine(1).pin_ahead(layout)

    def test_a_digest_is_that_of_the_bytes(self) -> None:
        empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        self.assertEqual(bytes(kvd.file_digest(os.devnull)).hex(), empty)
        with self.assertRaises(FileNotFoundError):
            kvd.file_digest("/none/such")


unittest.main()
