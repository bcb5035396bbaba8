"""What may a power loss leave of a file? A disk that writes down every write and sync, and the states they allow.

`RecordingDisk` does everything for real and keeps a log besides: each write in the order in which it was handed over
(offset, bytes), each sync with the writes that it covers: those finished when it began. `states` replays the log to a
cut: what a sync covered is there; of the rest all of it in order with the last write torn (`prefixes`), or any part in any
order, each write whole, torn at 512-byte sectors, or absent (`shuffled`): what a device may do that promises no more.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegashm._native import DiskTransfer
from pegashm.spill.disk import Disk

__all__ = ["SECTOR_BYTES", "Log", "RecordingDisk", "prefixes", "shuffled"]

SECTOR_BYTES = 512
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Sync:
    covered: frozenset[int]  # places in the log


@dataclass(frozen=True, slots=True)
class Note:
    """Something the test wants to remember at this point: returned records, a region taken."""

    what: str
    value: Any


@dataclass(slots=True)
class Log:
    events: list[Write | Sync | Note] = field(default_factory=list)
    under_way: dict[int, DiskTransfer] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, value: Any) -> None:
        with self.mutex:
            self.events.append(Note(what, value))


class RecordingDisk(Disk):
    """As Disk; `log` is to be set before the first write."""

    log: Log

    def start(self, offsets: Words, addresses: Words, sizes: Words, *, write: bool) -> DiskTransfer:
        if not write:
            return super().start(offsets, addresses, sizes, write=False)
        with self.log.mutex:
            first = len(self.log.events)
            for offset, address, size in zip(
                offsets.tolist(), addresses.tolist(), sizes.tolist(), strict=True
            ):
                self.log.events.append(Write(offset, ctypes.string_at(address, size)))
            transfer = super().start(offsets, addresses, sizes, write=True)
            for place in range(first, len(self.log.events)):
                self.log.under_way[place] = transfer
        return transfer

    def sync(self) -> None:
        with self.log.mutex:
            covered = frozenset(
                place for place, transfer in self.log.under_way.items() if transfer.finished
            )
        super().sync()
        with self.log.mutex:
            self.log.events.append(Sync(covered))


@dataclass(frozen=True, slots=True)
class State:
    """A file as a power loss after `cut` events may leave it."""

    name: str
    cut: int
    image: bytearray
    durable: frozenset[int]  # writes that a sync covered


def prefixes(log: Log, start: bytes, torn: int) -> Iterator[State]:
    """Every prefix of the writes; of the last one its first sectors only, `torn` different numbers of them."""
    image = bytearray(start)
    durable: set[int] = set()
    for place, event in enumerate(log.events):
        if isinstance(event, Sync):
            durable |= event.covered
        if not isinstance(event, Write):
            continue
        sectors = len(event.data) // SECTOR_BYTES
        for some in sorted({round(sectors * share / (torn + 1)) for share in range(torn + 1)}):
            part = bytearray(image)
            part[event.offset : event.offset + some * SECTOR_BYTES] = event.data[
                : some * SECTOR_BYTES
            ]
            yield State(
                f"write {place}, {some} of {sectors} sectors", place, part, frozenset(durable)
            )
        image[event.offset : event.offset + len(event.data)] = event.data
    yield State("all", len(log.events), image, frozenset(durable))


def shuffled(log: Log, start: bytes, chance: random.Random, *, honest: bool) -> State:
    """After a random cut: what no sync covered may be there, or torn, or not. Not `honest`: nor what one did."""
    cut = chance.randrange(1, len(log.events) + 1)
    durable: set[int] = set()
    for event in log.events[:cut]:
        if isinstance(event, Sync) and honest:
            durable |= event.covered
    image = bytearray(start)
    for place, event in enumerate(log.events[:cut]):
        if not isinstance(event, Write):
            continue
        fate = "whole" if place in durable else chance.choice(("whole", "torn", "absent"))
        for sector in range(0, len(event.data), SECTOR_BYTES):
            if fate == "whole" or (fate == "torn" and chance.random() < 0.5):
                at = event.offset + sector
                image[at : at + SECTOR_BYTES] = event.data[sector : sector + SECTOR_BYTES]
    return State(f"cut {cut}, honest={honest}", cut, image, frozenset(durable))
