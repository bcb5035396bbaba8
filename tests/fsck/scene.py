"""An arena with something in it, a hand that writes any byte of its control region, and a proof that it works.

`filled` makes the arena, `Hand` plants what is wrong, `works` uses every block again and compares every byte.
Called by the tests of this folder.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

import numpy as np

from pegashm import _native
from pegashm.arena import Arena
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.names import control_path

from tests.arenas import Shape, temporary_arena

__all__ = ["BLOCKS", "FENCE", "PAYLOAD_BYTES", "Hand", "filled", "key_of", "stamp_of", "works"]

FENCE = namespace_of({"model": "fsck"}, label="fsck")
PAYLOAD_BYTES = 4096
BLOCKS = 64  # that the default shape holds
READY = 40
SPILL_RECORDS = 16
SPILLED = 6
REMOTE_BUCKETS = 16
REUSE_REGISTERS = 16


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big") + bytes(4)


def stamp_of(key: bytes) -> bytes:
    return (key * (PAYLOAD_BYTES // len(key) + 1))[:PAYLOAD_BYTES]


@contextlib.contextmanager
def filled() -> Iterator[Arena]:
    """An arena that its only client has left with 40 READY blocks in 3 of 4 segments, and some on SSD."""
    with temporary_arena(
        Shape(
            spill_records=SPILL_RECORDS,
            remote_buckets=REMOTE_BUCKETS,
            reuse_registers=REUSE_REGISTERS,
        )
    ) as arena:
        with Cache.attach(arena.name, namespace=FENCE, label="filler") as cache:
            cache.count_asked([key_of(number) for number in range(1, READY + 1)])
            put(cache, [key_of(number) for number in range(1, READY + 1)])
            list_spilled(arena, cache.namespace_id)
        list_remote(arena)
        yield arena


def list_spilled(arena: Arena, namespace_id: int) -> None:
    """Blocks of which only the table says that they are on SSD."""
    rows = np.zeros(SPILLED, dtype=_native.SPILL_FIELDS)
    rows["key"][:, 31] = np.arange(SPILLED) + 1
    rows["key"][:, 0] = 1
    rows["key_bytes"], rows["namespace_id"], rows["payload_bytes"] = 32, namespace_id, PAYLOAD_BYTES
    rows["file_offset"] = np.arange(SPILLED) * 4096
    table = _native.SpillTable(arena.region)
    table.clear()
    assert table.store(rows).all()
    table.set_usable(1)


def list_remote(arena: Arena) -> None:
    """Hints of what two other hosts hold, one of which can be asked."""
    table = _native.RemoteTable(arena.region)
    table.clear()
    for host in (3, 70):
        table.add(host, np.arange(1, 20, dtype=np.uint64) << np.uint64(40))
    table.set_usable(3, True)


def put(cache: Cache, keys: list[bytes]) -> int:
    """Store a stamp under each key; how many could be."""
    handles, _ = cache.claim(keys, PAYLOAD_BYTES)
    offsets, sizes = cache.locate(handles)
    for key, offset, size in zip(keys, offsets.tolist(), sizes.tolist(), strict=True):
        if size:
            cache.region.payload(offset, size)[:] = stamp_of(key)
    return int((cache.publish(handles[handles != 0]) == 0).sum())


def works(arena: Arena, *, known: bool = True) -> None:
    """Every block can be used, and what is found is what was stored.

    `known` False: of fresh keys only, where damage may have made one old key look like another.
    """
    keys = [key_of(number) for number in range(1, 500)]
    with Cache.attach(arena.name, namespace=FENCE) as cache:
        handles, _ = cache.find(keys if known else [], pin=True)
        offsets, sizes = cache.locate(handles)
        for key, offset, size in zip(keys, offsets.tolist(), sizes.tolist(), strict=False):
            assert not size or stamp_of(key) == bytes(cache.region.payload(offset, PAYLOAD_BYTES))
        cache.unpin(handles)
        fresh = [key_of(number) for number in range(1000, 1000 + BLOCKS)]
        assert BLOCKS == put(cache, fresh)
        handles, _ = cache.find(fresh, pin=True)
        assert BLOCKS == np.count_nonzero(handles), "not every block can be used"
        offsets, sizes = cache.locate(handles)
        assert BLOCKS == len(set(offsets.tolist()))
        for key, offset, size in zip(fresh, offsets.tolist(), sizes.tolist(), strict=True):
            assert stamp_of(key) == bytes(cache.region.payload(offset, size))


class Hand:
    """Reads and writes words of one control region, by table."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.header = arena.region.header
        descriptor = os.open(control_path(arena.name), os.O_RDWR)
        self.bytes = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        states = [self.get(self.block(r)) & 0xFF for r in range(self.header["record_count"])]
        self.ready = [record for record, tag in enumerate(states) if tag == 2]
        in_use = {record // self.header["records_per_segment"] for record in self.ready}
        self.free = [
            segment * self.header["records_per_segment"] + index
            for segment in in_use
            for index in range(BLOCKS // 4)
            if not states[segment * self.header["records_per_segment"] + index]
        ]

    def get(self, offset: int) -> int:
        return int.from_bytes(self.bytes[offset : offset + 8], "little")

    def put(self, offset: int, value: int) -> None:
        self.bytes[offset : offset + 8] = value.to_bytes(8, "little")

    def block(self, record: int, field: int = 0) -> int:
        return int(self.header["blocks_offset"]) + 128 * record + field

    def spill(self, index: int, field: int = 0) -> int:
        return int(self.header["spill_offset"]) + 128 * index + field

    def reuse(self, offset: int) -> int:
        """The table that begins on the page behind the remote hints."""
        end = int(self.header["remote_offset"]) + 64 * int(self.header["remote_bucket_count"])
        return -(-end // 4096) * 4096 + offset

    def touch(self, record: int) -> int:
        return int(self.header["touches_offset"]) + 8 * record

    def segment(self, number: int) -> int:
        return int(self.header["segments_offset"]) + 64 * number

    def client(self, slot: int) -> int:
        return int(self.header["clients_offset"]) + 192 * slot

    def free_word(self, record: int) -> int:
        return int(self.header["free_bits_offset"]) + record // 64 * 8

    def entry(self, number: int) -> int:
        return int(self.header["buckets_offset"]) + 8 * number

    def entry_of(self, record: int) -> int:
        """Where the index names a record."""
        for number in range(8 * self.header["bucket_count"]):
            word = self.get(self.entry(number))
            if word and word & 0xFFFFFF == record:
                return number
        raise LookupError(f"no entry names record {record}")
