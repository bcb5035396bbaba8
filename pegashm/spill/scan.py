"""What is in a spill file? Its regions and their chains of frames, read from headers alone.

First the header page of every region, then the frame pages: the chain of a region can only be walked step by step
(a frame's length says where the next one begins), so many regions are walked side by side, a page of each a round.
The time depends on the number of records, not of bytes. A chain ends at the first page that is not the frame
expected there; what an earlier use of the region left behind it carries another sequence. Called at open
and by tools, with the file in use or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm.spill.disk import Disk, Pages
from pegashm.spill.format import (
    PAGE_BYTES,
    RECORD_FIELDS,
    RegionHeader,
    SpillNamespace,
    Superblock,
    judge_frames,
    unpack_records,
    unpack_region_header,
)

__all__ = ["Chain", "Lot", "Regions", "read_chains", "read_lots", "read_regions"]

HEADERS_AT_ONCE: Final = 1024
CHAINS_AT_ONCE: Final = 64

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Lot:
    """Neighbouring records of one namespace, in log order; all of one region."""

    namespace: SpillNamespace
    records: NDArray[Any]


@dataclass(slots=True)
class Chain:
    """The frames of one region: `end` is where the next one would begin."""

    region: int
    sequence: int
    end: int
    frames: int = 0
    damaged: int = 0  # 1: it ends at a page that is its own and does not check
    unreadable: int = 0  # 1: it ends at a page that the device did not give
    lots: list[Lot] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Regions:
    """Headers by region (None: never used, torn or damaged), and pages that could not be read."""

    headers: list[RegionHeader | None]
    unreadable: int

    def in_log_order(self) -> list[RegionHeader]:
        """Oldest first."""
        used = [header for header in self.headers if header is not None]
        return sorted(used, key=lambda header: header.sequence)


def read_regions(disk: Disk, superblock: Superblock) -> Regions:
    headers: list[RegionHeader | None] = []
    unreadable = 0
    pages = Pages(min(HEADERS_AT_ONCE, superblock.region_count))
    for first in range(0, superblock.region_count, len(pages)):
        regions = range(first, min(first + len(pages), superblock.region_count))
        offsets = np.array([superblock.region_start(region) for region in regions], np.uint64)
        errors = _read_pages(disk, offsets, pages)
        unreadable += int((errors != 0).sum())
        headers += [
            None if error else unpack_region_header(memoryview(row), superblock.file_id, region)
            for region, error, row in zip(regions, errors.tolist(), pages.rows, strict=False)
        ]
    return Regions(headers, unreadable)


def read_chains(disk: Disk, superblock: Superblock, headers: Sequence[RegionHeader]) -> list[Chain]:
    """Walk these regions' chains side by side, a page of each a round."""
    chains = [
        Chain(
            header.region_index,
            header.sequence,
            superblock.region_start(header.region_index) + PAGE_BYTES,
        )
        for header in headers
    ]
    pages = Pages(len(chains))
    walking = [chain for chain in chains if _has_room(chain, superblock)]
    while walking:
        places = [(chain.region, chain.sequence, chain.end, chain.frames) for chain in walking]
        regions, sequences, offsets, numbers = np.array(places, np.uint64).T
        errors = _read_pages(disk, offsets, pages)
        found = pages.rows[: len(walking)]
        holds, damaged, sizes = judge_frames(
            found,
            superblock.file_id,
            regions=regions,
            sequences=sequences,
            offsets=offsets,
            numbers=numbers,
            ends=_ends(superblock, regions),
        )
        readable = errors == 0
        for chain, error, broken in zip(walking, errors.tolist(), damaged.tolist(), strict=True):
            chain.unreadable += error != 0
            chain.damaged += broken and error == 0
        going = np.flatnonzero(holds & readable)
        _append(walking, going, found, sizes)
        walking = [walking[row] for row in going.tolist()]
        walking = [chain for chain in walking if _has_room(chain, superblock)]
    return chains


def read_lots(disk: Disk, superblock: Superblock, headers: Sequence[RegionHeader]) -> Iterator[Lot]:
    """All records of these regions, in the order of `headers`; neighbours of one namespace together."""
    for first in range(0, len(headers), CHAINS_AT_ONCE):
        for chain in read_chains(disk, superblock, headers[first : first + CHAINS_AT_ONCE]):
            yield from _merged(chain.lots)


def _append(
    walking: list[Chain], going: NDArray[np.int64], found: NDArray[np.uint8], sizes: Words
) -> None:
    records, page_of, namespaces = unpack_records(found[going])
    cuts = np.searchsorted(page_of, np.arange(len(going) + 1)).tolist()
    for row, walker in enumerate(going.tolist()):
        chain = walking[walker]
        chain.lots.append(Lot(namespaces[row], records[cuts[row] : cuts[row + 1]]))
        chain.end += int(sizes[walker])
        chain.frames += 1


def _merged(lots: Sequence[Lot]) -> Iterator[Lot]:
    first = 0
    for last in range(1, len(lots) + 1):
        if last == len(lots) or lots[last].namespace != lots[first].namespace:
            parts = [lot.records for lot in lots[first:last]]
            yield Lot(lots[first].namespace, np.concatenate(parts, dtype=RECORD_FIELDS))
            first = last


def _has_room(chain: Chain, superblock: Superblock) -> bool:
    return chain.end + 2 * PAGE_BYTES <= superblock.region_end(chain.region)


def _ends(superblock: Superblock, regions: Words) -> Words:
    ends: Words = np.uint64(PAGE_BYTES) + (regions + np.uint64(1)) * np.uint64(
        superblock.region_bytes
    )
    return ends


def _read_pages(disk: Disk, offsets: Words, pages: Pages) -> NDArray[np.int32]:
    count = len(offsets)
    sizes = np.full(count, PAGE_BYTES, np.uint64)
    return disk.transfer(offsets, pages.addresses(count), sizes, write=False)
