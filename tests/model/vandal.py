"""Child of `test_corruption.py`: use an arena while its control bytes are being damaged under it.

Flips random bits and writes random and telling values (zeros, ones, other tags, huge numbers) into the
tables behind the header, and between strokes does all that engines, reapers and tools do, through mappings
made before the damage. What the calls answer does not matter; that they answer does. Ends with JSON of
how many strokes and calls there were; the step it is at stands on stdout before, for whoever reads a crash.
Usage: python -m tests.model.vandal ARENA SEED STROKES TABLE
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import sys
from collections.abc import Callable

import numpy as np

from pegashm import _native
from pegashm.cache import Cache
from pegashm.errors import PegaShmError
from pegashm.keys import namespace_of
from pegashm.names import control_path

TABLES = (
    "namespaces", "clients", "counter_labels", "counter_values", "segments", "free_bits", "blocks",
    "touches", "buckets", "journal",
)  # fmt: skip
MUTABLE_HEADER = (256, 512)  # the words that engines advance; geometry is never read again
KEYS = [bytes([index]) * 32 + bytes(4) for index in range(1, 60)]
SIZES = (4096, 16384, 40960, 65536)
WORDS = (0, 1, 2, 3, 4, 0xFF, 1 << 40, (1 << 64) - 1, 1 << 63, 0x0101010101010101)
TAGS = (0, 1, 2, 3, 4, 0x7F, 0xFF)


def forged_segment(chance: random.Random, _records: int) -> int:
    """tag:8 | owner:8 | epoch:24 | stride_pages:24"""
    pages = chance.choice((0, 0, 1, 2, 4, 10, 16, 17, (1 << 24) - 1))
    return (
        chance.choice(TAGS) | chance.randrange(256) << 8 | chance.randrange(4) << 16 | pages << 40
    )


def forged_block(chance: random.Random, _records: int) -> int:
    """tag:8 | owner:16 | generation:40"""
    generation = chance.choice((0, 1, 2, 3, (1 << 40) - 1))
    return chance.choice(TAGS) | chance.choice((0, 1, 2, 127, 128, 0xFFFF)) << 8 | generation << 24


def forged_entry(chance: random.Random, records: int) -> int:
    """record:24 | generation:16 | fingerprint:24"""
    record = chance.choice((0, 1, records - 1, records, (1 << 24) - 1))
    return record | chance.randrange(4) << 24 | chance.getrandbits(24) << 40


# Table -> (bytes between two of its words, what makes one).
FORGERS: dict[str, tuple[int, Callable[[random.Random, int], int]]] = {
    "segments": (64, forged_segment),
    "blocks": (128, forged_block),
    "buckets": (8, forged_entry),
}


class Vandal:
    """Damages one table of a control region, or all of it."""

    def __init__(
        self, name: str, chance: random.Random, table: str, header: dict[str, int]
    ) -> None:
        descriptor = os.open(control_path(name), os.O_RDWR)
        self.control = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        os.close(descriptor)
        self.chance = chance
        self.header = header
        offsets = [header[f"{each}_offset"] for each in TABLES] + [header["control_bytes"]]
        self.spans = dict(zip(TABLES, itertools.pairwise(offsets), strict=False))
        self.spans["header"] = MUTABLE_HEADER
        self.tables = [table] if table != "all" else list(self.spans)

    def strike(self) -> str:
        """One change; says what it was."""
        table = self.chance.choice(self.tables)
        start, end = self.spans[table]
        if table in FORGERS and self.chance.random() < 0.5:
            return self.forge(table)
        if self.chance.random() < 0.5:  # where things stand: tables are mostly empty
            end = min(end, start + 4096)
        offset = self.chance.randrange(start, end) // 8 * 8
        kind = self.chance.randrange(5)
        if kind == 0:
            self.control[offset] ^= 1 << self.chance.randrange(8)
        elif kind == 1:
            self.put(offset, self.chance.choice(WORDS))
        elif kind == 2:
            self.put(offset, self.chance.getrandbits(64))
        elif kind == 3:
            self.control[offset] = self.chance.choice(TAGS)
        else:
            size = min(256, end - offset)
            self.control[offset : offset + size] = self.chance.randbytes(size)
        return f"kind {kind} at {offset}"

    def forge(self, table: str) -> str:
        """A word that could be one: right in form, wrong in what it says."""
        stride, forger = FORGERS[table]
        start, end = self.spans[table]
        count = self.header["segment_count"] if table == "segments" else (end - start) // stride
        offset = start + self.chance.randrange(count) * stride
        word = forger(self.chance, self.header["record_count"])
        self.put(offset, word)
        return f"forged {word:#x} at {offset}"

    def put(self, offset: int, word: int) -> None:
        self.control[offset : offset + 8] = word.to_bytes(8, "little")


class Users:
    """Two clients that go on whatever happens."""

    def __init__(self, name: str, chance: random.Random) -> None:
        self.name = name
        self.chance = chance
        self.fences = [
            namespace_of({"model": index}, label="v", maximum_bytes=index * 65536)
            for index in range(3)
        ]
        self.caches = [self.attach() for _ in range(2)]
        self.handles = np.zeros(1, dtype=np.uint64)

    def attach(self) -> Cache:
        return Cache.attach(self.name, namespace=self.chance.choice(self.fences), label="v")

    def act(self) -> None:
        """One random call with keys, handles and sizes that may or may not make sense by now."""
        cache = self.chance.choice(self.caches)
        keys = self.chance.sample(KEYS, self.chance.randint(1, 12))
        size = self.chance.choice(SIZES)
        action = self.chance.randrange(16)
        if action <= 3:
            handles, _ = cache.claim(keys, size)
            self.write(cache, handles)
            cache.publish(handles, self.chance.choice((0, 0, 1)))
            self.remember(handles)
        elif action <= 6:
            handles, _ = self.chance.choice((cache.find, cache.find_prefix))(keys, pin=True)
            self.write(cache, handles)
            cache.touch(handles)
            self.remember(handles)
            if self.chance.random() < 0.7:
                cache.unpin(handles)
        elif action == 7:
            cache.evict(self.handles)
        elif action == 8:
            cache.evict_lru(size, self.chance.randint(1, 9))
        elif action == 9:
            cache.region.repair()
        elif action == 10:
            cache.region.reap_client(self.chance.randrange(128))
        elif action == 11:
            cache.abandon(self.handles)
            cache.pin(self.handles)
            cache.unpin(self.handles)
        elif action == 12:
            _native.part_done(cache.region, self.handles, True)
            _native.parts_total(cache.region, self.handles)
            _native.generations_hold(cache.region, self.handles)
        elif action == 13:
            cache.enter(self.chance.choice(self.fences))
        elif action == 14:
            self.look(cache.region)
        else:
            self.caches.append(self.attach())  # refused: then we go on with what we have
            self.caches.remove(cache)
            cache.close()

    def write(self, cache: Cache, handles: np.ndarray) -> None:
        """Use the places we are told: they must lie inside the arenas."""
        for offset, size in zip(*(array.tolist() for array in cache.locate(handles)), strict=True):
            cache.region.payload(offset, size)[:16] = bytes(min(16, size))

    def remember(self, handles: np.ndarray) -> None:
        invented = [self.chance.getrandbits(64), self.chance.getrandbits(26) | 1 << 24]
        self.handles = np.concatenate(
            [self.handles[-20:], handles, np.array(invented, dtype=np.uint64)]
        )

    def look(self, region: _native.Region) -> None:
        region.clients()
        region.namespaces()
        region.segments()
        region.blocks()
        region.tally()
        region.counters()
        region.journal(0)
        region.journal(self.chance.getrandbits(64), 10)


def main(name: str, seed: int, strokes: int, table: str) -> None:
    chance = random.Random(seed)
    users = Users(name, chance)
    for _ in range(40):
        users.act()
    vandal = Vandal(name, chance, table, users.caches[0].region.header)
    calls = refusals = 0
    for stroke in range(strokes):
        what = vandal.strike()
        for _ in range(3):
            print(f"stroke {stroke} {what}", flush=False)
            try:
                users.act()
            except PegaShmError:
                refusals += 1
            calls += 1
    print(json.dumps({"strokes": strokes, "calls": calls, "refusals": refusals}))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
