"""What can one process do that shares with nobody? A dict, a buffer, and the C library's memcpy: the yardstick of all rates.

Put and get are one call of reference.c a batch, to and from random slots of shared memory with pages of 4 KiB, so this is what
a plain memcpy of the same blocks costs in the same run. Nobody else can see it, and it dies with its process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench import memory
from bench.reference import Reference
from bench.rivals.store import POOL_BYTES, Rows, Store

__all__ = ["ProcessStore", "open_store"]

Words = np.ndarray[Any, np.dtype[np.uint64]]
SLOTS_BYTES = POOL_BYTES // 4


class ProcessStore(Store):
    """A dict from name to slot."""

    def __init__(self) -> None:
        self.slots = memory.shared_file("/dev/shm", SLOTS_BYTES)
        self.reference = Reference()
        self.places: dict[bytes, int] = {}
        self.prepare(4096)

    def prepare(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.places.clear()
        free = np.random.default_rng(1).permutation(SLOTS_BYTES // block_bytes)
        self.free: list[int] = (free * block_bytes + self.slots.address).tolist()

    def exists(self, names: Sequence[Any]) -> int:
        return sum(map(self.places.__contains__, names))

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        taken = [self.free.pop() for _ in names]
        self._copy(np.array(taken, np.uint64), self._addresses(rows))
        self.places.update(zip(names, taken, strict=True))

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        places = [self.places[name] for name in names]
        self._copy(self._addresses(rows), np.array(places, np.uint64))
        return len(places)

    def delete(self, names: Sequence[Any]) -> None:
        self.free += [self.places.pop(name) for name in names]

    def _addresses(self, rows: Rows) -> Words:
        steps = np.arange(len(rows), dtype=np.uint64) * np.uint64(rows.strides[0])
        return steps + np.uint64(rows.ctypes.data)

    def _copy(self, targets: Words, sources: Words) -> None:
        sizes = np.full(len(targets), self.block_bytes, np.uint64)
        self.reference.copy("memcpy", 1, targets, sources, sizes)


def open_store(config: Mapping[str, Any]) -> Store:
    return ProcessStore()
