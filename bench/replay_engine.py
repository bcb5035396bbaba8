"""What does an engine do with its requests' blocks? This, without a model: a child of bench/replay_broker.py.

`python -m bench.replay_engine NAME BLOCK_BYTES COPIES` attaches to the arena, says "ready", and serves each line of
its input, a request's block ids in runs (`0,14-27`): it finds the prefix and pins it, loads it and compares what came, claims,
writes and publishes the rest, unpins, and says how it ended as the connector does (`touch_keys`, tail to head). It answers with
a line: blocks hit, blocks stored, blocks not stored, blocks wrong. With COPIES, a block is so many keys, as when each
rank of a tensor-parallel engine keeps its own, and hits when all of them do.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pegashm._native import OK, Copier
from pegashm.cache import Cache
from pegashm.keys import namespace_of

from bench.policies.workload import blocks_of

__all__ = ["Engine", "main"]

NAMESPACE = namespace_of({"bench": "replay"}, label="bench.replay")
BLOCKS_MOST = 4096  # of one request

Words = NDArray[np.uint64]


class Engine:
    """One attached client with room of its own for one request."""

    def __init__(self, name: str, block_bytes: int, copies: int) -> None:
        self.cache = Cache.attach(name, namespace=NAMESPACE, label="bench.replay")
        self.block_bytes = block_bytes
        self.copies = copies
        self._copier = Copier(1)
        self._own = np.zeros((BLOCKS_MOST * copies, block_bytes // 8), np.uint64)
        self._keys: dict[int, list[bytes]] = {}

    def close(self) -> None:
        self._copier.close()
        self.cache.close()

    def serve(self, blocks: Sequence[int]) -> tuple[int, int, int, int]:
        """One request; (hit, stored, not stored, wrong), in blocks."""
        if len(blocks) > BLOCKS_MOST:
            raise ValueError(f"a request of {len(blocks)} blocks; at most {BLOCKS_MOST}")
        cache = self.cache
        keys = [key for block in blocks for key in self._keys_of(block)]
        found, outcomes = cache.find_prefix(keys, pin=True)
        misses = np.flatnonzero(outcomes != OK)
        hits = (int(misses[0]) if len(misses) else len(outcomes)) // self.copies
        loaded = found[: hits * self.copies]
        wrong = self._load(loaded, blocks[:hits])
        cache.touch(loaded[::-1])
        handles, _ = cache.claim(keys[len(loaded) :], self.block_bytes)
        ours = np.flatnonzero(handles)
        names = np.repeat(np.array(blocks[hits:], np.uint64), self.copies)
        self._store(handles[ours], names[ours])
        cache.publish(handles[ours])
        cache.unpin(found)
        cache.touch_keys(keys[::-1])
        there = len(handles) - len(ours)  # or refused; the caller's counters tell which
        return hits, len(ours) // self.copies, there // self.copies, wrong

    def _keys_of(self, block: int) -> list[bytes]:
        keys = self._keys.get(block)
        if keys is None:
            digest = hashlib.blake2b(block.to_bytes(8, "little"), digest_size=32).digest()
            keys = [digest + rank.to_bytes(4, "big") for rank in range(self.copies)]
            self._keys[block] = keys
        return keys

    def _load(self, handles: Words, blocks: Sequence[int]) -> int:
        """Copy out; how many blocks are not what was stored."""
        if not len(handles):
            return 0
        self._copy(handles, into_arena=False)
        expected = np.repeat(np.array(blocks, np.uint64), self.copies)
        return int((self._own[: len(handles)] != expected[:, None]).any(axis=1).sum())

    def _store(self, handles: Words, names: Words) -> None:
        if len(handles):
            self._own[: len(handles)] = names[:, None]
            self._copy(handles, into_arena=True)

    def _copy(self, handles: Words, *, into_arena: bool) -> None:
        offsets, sizes = self.cache.locate(handles)
        arena = offsets + np.uint64(self.cache.region.payload_address)
        rows = np.arange(len(handles), dtype=np.uint64)
        own = np.uint64(self._own.ctypes.data) + rows * np.uint64(self.block_bytes)
        self._copier.copy(arena if into_arena else own, own if into_arena else arena, sizes)


def main(name: str, block_bytes: int, copies: int) -> None:
    engine = Engine(name, block_bytes, copies)
    try:
        print("ready", flush=True)
        for line in sys.stdin:
            print(*engine.serve(blocks_of(line.strip())), flush=True)
    finally:
        engine.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
