"""Into which pieces is the payload cut for a device, and where does a span of it lie in them?

A device knows memory by regions that were registered with it. The payload is registered in chunks, since one
registration of a large arena fails or stands still for seconds, and since pyverbs holds the GIL meanwhile: CHUNK_BYTES
take about 13 ms with 4 KiB pages and next to nothing with huge ones. A block that lies across two chunks is two pieces. Nothing here
knows of a device; called by the serving and the reading side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from pegashm.units import MIB

__all__ = ["CHUNK_BYTES", "PAGE_BYTES", "Chunk", "Chunks", "Place", "places_of"]

CHUNK_BYTES: Final = 128 * MIB
PAGE_BYTES: Final = 4096


class Place(NamedTuple):
    """A part of the payload that lies in one NUMA node's memory (-1: not known)."""

    offset: int
    nbytes: int
    node: int


class Chunk(NamedTuple):
    """What is registered in one go."""

    offset: int
    nbytes: int
    node: int


def places_of(header: dict[str, Any]) -> tuple[Place, ...]:
    """The places of a mapped region, by its header: one an arena."""
    places = []
    offset = 0
    for arena in header["arenas"]:
        places.append(Place(offset, arena["bytes"], arena["numa_node"]))
        offset += arena["bytes"]
    return tuple(places)


class Chunks:
    """The payload's chunks in their order, without gaps."""

    def __init__(
        self, nbytes: int, places: Sequence[Place] = (), *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        if nbytes <= 0 or chunk_bytes <= 0 or chunk_bytes % PAGE_BYTES:
            raise ValueError(
                f"a payload of some bytes in chunks of whole pages expected, got {nbytes} bytes in chunks of {chunk_bytes}"
            )
        self.nbytes = nbytes
        self.all: list[Chunk] = []
        for offset, length, node in places or [Place(0, nbytes, -1)]:
            end = offset + length
            if offset != (self.all[-1].offset + self.all[-1].nbytes if self.all else 0):
                raise ValueError(f"places must follow each other, one begins at {offset}")
            self.all += [
                Chunk(at, min(chunk_bytes, end - at), node)
                for at in range(offset, end, chunk_bytes)
            ]
        if self.all[-1].offset + self.all[-1].nbytes != nbytes:
            raise ValueError(f"places must cover the payload of {nbytes} bytes")
        self._starts = [chunk.offset for chunk in self.all]

    def covers(self, offset: int, nbytes: int) -> bool:
        return 0 <= offset < self.nbytes and 0 < nbytes <= self.nbytes - offset

    def index(self, offset: int) -> int:
        """The number of the chunk that this byte lies in."""
        return bisect_right(self._starts, offset) - 1

    def pieces(self, offset: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """(chunk number, offset, bytes) of each piece of a span that lies within the payload."""
        index = self.index(offset)
        end = offset + nbytes
        while offset < end:
            chunk = self.all[index]
            stop = min(end, chunk.offset + chunk.nbytes)
            yield index, offset, stop - offset
            offset = stop
            index += 1
