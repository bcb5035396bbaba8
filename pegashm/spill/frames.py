"""How do blocks become frames in the log? Hashed, packed and written behind the last frame, several at once.

A `Head` is where the log ends: region, sequence, offset, frames so far. `FrameWriter.begin` starts the next part of an append
and moves the head behind it; `wait` tells how much of a part is in the file, in order: what stands behind a frame that
failed cannot be found again. Payload is hashed and handed to the disk's threads in shares, so that both go on at
once. Called by `file` with its append lock held; knows nothing of syncs, counters or who asked.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm._native import DiskTransfer
from pegashm.spill.checksums import checksum_at, checksums_at, seeds_of
from pegashm.spill.disk import Disk, Pages
from pegashm.spill.format import (
    BLOCK_FIELDS,
    PAGE_BYTES,
    RECORD_FIELDS,
    RECORDS_PER_FRAME,
    FramePlace,
    SpillNamespace,
    Superblock,
    pack_frame,
    strides_of,
)

__all__ = ["BLOCKS_AT_ONCE", "FrameWriter", "Head", "Part", "check_blocks", "shares_of"]

BLOCKS_AT_ONCE: Final = 1024
_FRAMES_AT_ONCE: Final = 64
_SHARE_BYTES: Final = 4 << 20
_UNDER_WAY_BYTES: Final = 32 << 20
_SHARED: Final = tuple(name for name in BLOCK_FIELDS.names or () if name != "address")

Rows = NDArray[Any]
Words = NDArray[np.uint64]


@dataclass(slots=True)
class Head:
    """Where the log ends. `region` -1: there is none yet; `end` is the offset behind the last of `number` frames."""

    region: int = -1
    sequence: int = 0
    end: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class _Frame:
    """Which of its part's rows, and what is being written."""

    rows: slice
    transfers: list[DiskTransfer]


@dataclass(frozen=True, slots=True)
class Part:
    """Frames whose writing has begun, and their records. `full`: no other record fits behind them."""

    records: Rows
    strides: Words
    frames: list[_Frame]
    full: bool

    def wait(self) -> tuple[int, int, int]:
        """(frames, records) from the first on that are in the file, and the errno of the first that is not."""
        frames = records = 0
        failure = 0
        for frame in self.frames:  # all of them: their memory is in use until then
            errors = np.concatenate([transfer.wait(helping=True) for transfer in frame.transfers])
            wrong = errors[errors != 0]
            if failure == 0 and len(wrong):
                failure = int(wrong[0])
            if failure == 0:
                frames += 1
                records = frame.rows.stop
        return frames, records, failure


class FrameWriter:
    """Of one file. Two parts may be under way; their frames' pages are the two halves of `_pages`."""

    def __init__(self, disk: Disk, superblock: Superblock) -> None:
        self._disk = disk
        self._superblock = superblock
        self._pages = Pages(2 * _FRAMES_AT_ONCE)
        self._parts = 0
        self._under_way: deque[tuple[DiskTransfer, int]] = deque()

    def begin(self, head: Head, namespace: SpillNamespace, blocks: Rows) -> Part:
        """Start writing the first of these blocks, as many as fit into the region and a part."""
        records = np.zeros(len(blocks), RECORD_FIELDS)
        for name in _SHARED:
            records[name] = blocks[name]
        records["sequence"] = head.sequence
        strides = strides_of(records["payload_bytes"])
        seeds = seeds_of(namespace.fingerprint, blocks)
        addresses: list[int] = blocks["address"].tolist()
        half = self._parts % 2 * _FRAMES_AT_ONCE
        self._parts += 1
        frames: list[_Frame] = []
        done = 0
        full = False
        while done < len(blocks) and len(frames) < _FRAMES_AT_ONCE and not full:
            count = self._fitting(head, strides[done : done + RECORDS_PER_FRAME])
            full = count == 0
            if not full:
                rows = slice(done, done + count)
                places = (records[rows], strides[rows], seeds[rows], addresses[rows])
                transfers = self._begin_frame(head, namespace, *places, slot=half + len(frames))
                frames.append(_Frame(rows, transfers))
                done += count
        return Part(records[:done], strides[:done], frames, full)

    def _fitting(self, head: Head, strides: Words) -> int:
        """How many of these fit behind the last frame, with a page for themselves."""
        end = self._superblock.region_end(head.region) if head.region >= 0 else 0
        room = end - head.end - PAGE_BYTES
        return int((np.cumsum(strides) <= room).sum()) if room > 0 else 0

    def _begin_frame(
        self,
        head: Head,
        namespace: SpillNamespace,
        records: Rows,
        strides: Words,
        seeds: list[int],
        addresses: list[int],
        *,
        slot: int,
    ) -> list[DiskTransfer]:
        """Hash and start writing one frame, in shares; its page goes with the last of them."""
        ends = np.cumsum(strides)
        records["file_offset"] = np.uint64(head.end + PAGE_BYTES) + ends - strides
        nbytes = PAGE_BYTES + int(ends[-1])
        place = FramePlace(
            region_index=head.region,
            sequence=head.sequence,
            offset=head.end,
            number=head.number,
            nbytes=nbytes,
        )
        transfers = []
        for first, last in shares_of(ends):
            share = slice(first, last)
            _hash(records[share], seeds[share], addresses[share])
            offsets = records["file_offset"][share]
            where = np.array(addresses[share], np.uint64)
            lengths = strides[share]
            if last == len(records):
                page = pack_frame(self._superblock.file_id, place, namespace, records)
                self._pages.rows[slot] = np.frombuffer(page, np.uint8)
                page_at = np.uint64(self._pages.address + slot * PAGE_BYTES)
                offsets = np.concatenate([[np.uint64(head.end)], offsets])
                where = np.concatenate([[page_at], where])
                lengths = np.concatenate([[np.uint64(PAGE_BYTES)], lengths])
            while sum(size for _, size in self._under_way) > _UNDER_WAY_BYTES:
                self._under_way.popleft()[0].wait()
            transfers.append(self._disk.start(offsets, where, lengths, write=True))
            self._under_way.append((transfers[-1], int(lengths.sum())))
        head.end += nbytes
        head.number += 1
        return transfers


def check_blocks(blocks: Rows, superblock: Superblock) -> None:
    """ValueError for rows (BLOCK_FIELDS) that no region can hold."""
    largest = int(blocks["payload_bytes"].max(initial=0))
    if largest > superblock.payload_bytes_max:
        raise ValueError(
            f"a block of {largest} bytes does not fit into a region: at most {superblock.payload_bytes_max}"
        )
    if len(blocks) and (
        not blocks["payload_bytes"].all()
        or not ((blocks["key_bytes"] >= 1) & (blocks["key_bytes"] <= 32)).all()
        or (blocks["address"] % np.uint64(PAGE_BYTES)).any()
    ):
        raise ValueError(
            "blocks have 1 byte of payload or more, 1 to 32 of key, and page-aligned addresses"
        )


def shares_of(ends: Words) -> list[tuple[int, int]]:
    """Cut runs with these end positions into shares of about 4 MiB, a run at least."""
    shares = []
    first, start = 0, 0
    while first < len(ends):
        last = max(
            first + 1, int(np.searchsorted(ends, np.uint64(start + _SHARE_BYTES), side="right"))
        )
        shares.append((first, last))
        first, start = last, int(ends[last - 1])
    return shares


def _hash(records: Rows, seeds: list[int], addresses: list[int]) -> None:
    """Checksums of those that have none yet."""
    sizes = records["payload_bytes"].tolist()
    if not records["checksum"].any():
        records["checksum"] = checksums_at(addresses, sizes, seeds)
        return
    for row in np.flatnonzero(records["checksum"] == 0).tolist():
        records["checksum"][row] = checksum_at(addresses[row], sizes[row], seeds[row])
