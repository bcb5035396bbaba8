"""Where do these tests get blocks whose bytes anybody can tell from their keys? And is what a file holds right?

A key says number and size; number, size and nothing else give the payload, so whoever finds a record anywhere
knows what it must hold. `Memory` is page-aligned memory with a slot a block; `found` reads everything
in a file and fails on any wrong byte that passed for right.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pegashm.spill.file import Advance, Append, Fetch, SpillFile
from pegashm.spill.format import BLOCK_FIELDS, PAGE_BYTES, RECORD_FIELDS, SpillNamespace

__all__ = [
    "NAMESPACE",
    "OTHER",
    "Memory",
    "append_all",
    "found",
    "key_of",
    "number_of",
    "payload_of",
]

NAMESPACE = SpillNamespace(bytes(range(32)), "test model")
OTHER = SpillNamespace(bytes(range(1, 33)), "another model")
KEY_BYTES = 20


def key_of(number: int, size: int) -> bytes:
    return number.to_bytes(8, "big") + size.to_bytes(8, "big") + b"pega"


def number_of(row: NDArray[np.void]) -> int:
    return int.from_bytes(row["key"][:8].tobytes(), "big")


def payload_of(number: int, size: int) -> NDArray[np.uint8]:
    words = np.arange(size // 8 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (words ^ np.uint64(number * 0xC2B2AE3D27D4EB4F % 2**64)).view(np.uint8)[:size]


class Memory:
    """Slots of one size. Bytes behind a payload are whatever was there."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slot_bytes = -(-slot_bytes // PAGE_BYTES) * PAGE_BYTES
        self._memory = mmap.mmap(-1, slots * self.slot_bytes)
        self.slots: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8).reshape(slots, -1)

    def addresses(self, count: int) -> NDArray[np.uint64]:
        start = int(self.slots.ctypes.data)
        return (start + self.slot_bytes * np.arange(count)).astype(np.uint64)

    def blocks(self, numbers: Iterable[int], size: int) -> NDArray[np.void]:
        """Rows of BLOCK_FIELDS, their payloads written into the first slots."""
        numbers = list(numbers)
        rows = np.zeros(len(numbers), BLOCK_FIELDS)
        for slot, number in enumerate(numbers):
            self.slots[slot, :size] = payload_of(number, size)
            rows["key"][slot, :KEY_BYTES] = np.frombuffer(key_of(number, size), np.uint8)
        rows["key_bytes"] = KEY_BYTES
        rows["group"] = 3
        rows["address"] = self.addresses(len(numbers))
        rows["payload_bytes"] = size
        rows["sum_layout"] = 7
        rows["published_at_ns"] = numbers
        return rows


def append_all(
    file: SpillFile, blocks: NDArray[np.void], namespace: SpillNamespace = NAMESPACE
) -> NDArray[np.void]:
    """Append, taking regions as needed; the records in the order of the blocks."""
    parts = [np.zeros(0, RECORD_FIELDS)]
    done = 0
    while done < len(blocks):
        appended = file.append(namespace, blocks[done:])
        assert appended.outcome in (Append.DONE, Append.REGION_FULL)
        parts.append(appended.records)
        done += len(appended.records)
        if appended.outcome is Append.REGION_FULL:
            assert Advance.DONE == file.advance()
    return np.concatenate(parts)


def found(file: SpillFile) -> dict[tuple[int, int], Fetch]:
    """(number, file offset) of every record, and what fetching it gave; OK only where every byte is right."""
    out: dict[tuple[int, int], Fetch] = {}
    for lot in file.records():
        size = int(lot.records["payload_bytes"].max())
        memory = Memory(len(lot.records), size)
        outcomes = file.fetch(
            lot.records, memory.addresses(len(lot.records)), lot.namespace.fingerprint
        )
        for slot, (row, outcome) in enumerate(zip(lot.records, outcomes.tolist(), strict=True)):
            number, nbytes = number_of(row), int(row["payload_bytes"])
            if outcome == Fetch.OK:
                assert key_of(number, nbytes) == row["key"][: row["key_bytes"]].tobytes()
                assert (3, 7, number) == (row["group"], row["sum_layout"], row["published_at_ns"])
                assert (memory.slots[slot, :nbytes] == payload_of(number, nbytes)).all()
            out[number, int(row["file_offset"])] = Fetch(outcome)
    return out
