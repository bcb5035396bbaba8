"""How do blocks get into one spill file, and out again?

The log grows at its head: `append` packs blocks into frames and writes them behind the last one. When the head's
region is full, the caller forgets the records of the region that comes next (`next_region`) and takes it
(`advance`), which is refused while somebody still reads from it. A record returned by `append` is in the file
for whoever opens it after the death of this process; a power loss may cost those since the last sync, which a
thread of this file's own makes when a region is full (once a second at most) and `sync_seconds` after the first write
that is not synced.

One thread appends, any number fetch. Nothing here waits but for the device: a device that hangs holds its callers,
`waiting_seconds` tells others. Errors are outcomes, counted in `counters`; after several in a row the
file says so (`readable`, `writable`), and `probe` asks it again. Knows nothing of arenas or the index: blocks are
addresses, records are rows (`format.BLOCK_FIELDS`, `format.RECORD_FIELDS`).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm.logs import tell
from pegashm.notices import SPILL_READ_FAILED, SPILL_WRITE_FAILED
from pegashm.spill.checksums import checksums_at, seeds_of
from pegashm.spill.disk import PIECE_BYTES, THREADS, Disk, Pages
from pegashm.spill.format import (
    PAGE_BYTES,
    RECORD_FIELDS,
    RegionHeader,
    SpillNamespace,
    Superblock,
    pack_region_header,
    pack_superblock,
    strides_of,
)
from pegashm.spill.frames import BLOCKS_AT_ONCE, FrameWriter, Head, Part, check_blocks, shares_of
from pegashm.spill.opening import open_or_create
from pegashm.spill.scan import Lot, read_chains, read_lots, read_regions

__all__ = ["Advance", "Append", "Appended", "Fetch", "NextRegion", "SpillFile"]

ERRORS_IN_A_ROW: Final = 3
SYNC_SECONDS: Final = 5.0
SEAL_SECONDS: Final = 1.0


Rows = NDArray[Any]
Words = NDArray[np.uint64]


class Append(Enum):
    """How an append ended."""

    DONE = "done"  # all blocks are in the file
    REGION_FULL = "region full"  # those returned are; for the others take the next region
    FAILED = "failed"  # those returned are; the device refused a write, or has before


class Advance(Enum):
    """What came of taking the next region."""

    DONE = "done"
    BUSY = "busy"  # somebody reads from it: try again
    FAILED = "failed"  # its header could not be written


class Fetch(IntEnum):
    """What became of one record, as a byte of an array."""

    OK = 0
    STALE = 1  # its region has been used again: there is no such record any more
    FAILED = 2  # the device did not give it
    DAMAGED = 3  # other bytes than were stored


@dataclass(frozen=True, slots=True)
class Appended:
    """Rows (RECORD_FIELDS) of the first blocks given, as many as are in the file now."""

    records: Rows
    outcome: Append
    errno: int = 0


@dataclass(frozen=True, slots=True)
class NextRegion:
    """What `advance` will overwrite: all records with this sequence (0: nothing)."""

    region: int
    sequence: int


DiskMaker = Callable[..., Disk]


class SpillFile:
    """One spill file, open for writing and locked. Close it, or the kernel drops the lock when we end."""

    def __init__(
        self,
        path: str,
        disk: Disk,
        superblock: Superblock,
        *,
        sync_seconds: float = SYNC_SECONDS,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = path
        self.superblock = superblock
        self.counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self._disk = disk
        self._now_ns = now_ns
        self._sync_seconds = sync_seconds
        self._frames = FrameWriter(disk, superblock)
        self._appending = threading.Lock()
        self._state = threading.Lock()  # over readers, sequences, counters and errors in a row
        self._readers = np.zeros(superblock.region_count, np.uint32)
        self._sequences = np.zeros(superblock.region_count, np.uint64)
        self._read_errors = 0
        self._write_errors = 0
        self._head = Head()
        self._header: RegionHeader | None = None  # of its region
        self._sequence_next = 1
        self._adopt()

        self._closing = False
        self._sync_wanted = threading.Condition(self._state)
        self._dirty_since: float | None = None
        self._sealed = False
        self._synced_at = -math.inf
        self._syncing = threading.Lock()
        self._syncer = threading.Thread(
            target=self._sync_when_due, name=f"sync {os.path.basename(path)}", daemon=True
        )
        self._syncer.start()

    @classmethod
    def open_or_create(
        cls,
        path: str,
        size_bytes: int,
        *,
        region_bytes: int | None = None,
        threads: int = THREADS,
        piece_bytes: int = PIECE_BYTES,
        sync_seconds: float = SYNC_SECONDS,
        make_disk: DiskMaker = Disk,
    ) -> SpillFile:
        """Open the file, making it first where there is none. Errors as from `opening.open_or_create`."""
        opened = open_or_create(path, size_bytes, region_bytes=region_bytes)
        disk = make_disk(
            opened.descriptor, direct=opened.direct, threads=threads, piece_bytes=piece_bytes
        )
        try:
            return cls(path, disk, opened.superblock, sync_seconds=sync_seconds)
        except BaseException:
            disk.close()
            raise

    def __enter__(self) -> SpillFile:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, patience_seconds: float = 5.0) -> bool:
        """Sync and close. False when the device hangs: then the lock is held until the process ends."""
        with self._sync_wanted:
            self._closing = True
            self._sync_wanted.notify_all()
        self._syncer.join(patience_seconds)
        return not self._syncer.is_alive() and self._disk.close(patience_seconds)

    # -- what is in it ---------------------------------------------------------------------------

    def records(self) -> Iterator[Lot]:
        """All that can be found in the file, in log order: of two records of one key the later one counts."""
        order = np.argsort(self._sequences, kind="stable").tolist()
        headers = [
            RegionHeader(region, int(self._sequences[region]), 0)
            for region in order
            if self._sequences[region]
        ]
        yield from read_lots(self._disk, self.superblock, headers)

    @property
    def sequence(self) -> int:
        """Of the region at the head of the log; 0 in a new file."""
        return self._head.sequence

    @property
    def regions_used(self) -> int:
        return int((self._sequences != 0).sum())

    @property
    def direct(self) -> bool:
        """Whether bytes go past the page cache."""
        return self._disk.direct

    @property
    def readable(self) -> bool:
        return self._read_errors < ERRORS_IN_A_ROW

    @property
    def writable(self) -> bool:
        return self._write_errors < ERRORS_IN_A_ROW

    @property
    def waiting_seconds(self) -> float:
        """How long the oldest unfinished transfer has been under way: a device that hangs shows here."""
        return self._disk.waiting_seconds

    @property
    def amplification(self) -> float:
        """Bytes written for each byte of payload; 1.0 while nothing was."""
        payload = self.counters["payload_bytes_written"]
        return self.counters["bytes_written"] / payload if payload else 1.0

    # -- the head of the log ---------------------------------------------------------------------

    def append(self, namespace: SpillNamespace, blocks: Rows) -> Appended:
        """Write blocks (BLOCK_FIELDS) behind the last frame; their memory must not change meanwhile.

        ValueError for a block that no region can hold, that is empty, or whose key is.
        """
        check_blocks(blocks, self.superblock)
        with self._appending:
            if not self.writable:
                return Appended(np.zeros(0, RECORD_FIELDS), Append.FAILED, errno.EIO)
            return self._append(namespace, blocks)

    def next_region(self) -> NextRegion:
        """The region that `advance` takes."""
        region = (self._head.region + 1) % self.superblock.region_count
        return NextRegion(region, int(self._sequences[region]))

    def advance(self) -> Advance:
        """Take the next region. First make sure that nobody finds its records any more."""
        with self._appending:
            if not self.writable:
                return Advance.FAILED
            region = self.next_region().region
            with self._state:
                if self._readers[region]:
                    self.counters["busy"] += 1
                    return Advance.BUSY
                self._sequences[region] = 0  # from here on its records are STALE
            sequence = self._sequence_next
            self._sequence_next += 1
            start, end = self.superblock.region_start(region), self.superblock.region_end(region)
            # Until its header is there: full.
            self._head = Head(region, self._head.sequence, end)
            self._header = RegionHeader(region, sequence, self._now_ns())
            page = _page(pack_region_header(self.superblock.file_id, self._header))
            error = self._move_page(start, page, write=True)
            if self._note_writes(error, PAGE_BYTES, seal=True):
                return Advance.FAILED
            self._head = Head(region, sequence, start + PAGE_BYTES)
            with self._state:
                self._sequences[region] = sequence
                self.counters["regions"] += 1
            return Advance.DONE

    # -- reading ---------------------------------------------------------------------------------

    def fetch(
        self, records: Rows, addresses: Words, fingerprints: bytes | Sequence[bytes]
    ) -> NDArray[np.uint8]:
        """Read records (RECORD_FIELDS) to page-aligned addresses and verify them: a `Fetch` for each.

        Memory is written up to the next multiple of 4 KiB behind the payload. Where the outcome is not OK
        it may hold anything. `fingerprints`: of the records' namespaces, one for all or one each.
        """
        return self._fetch(records, addresses, seeds_of(fingerprints, records))

    def read(self, records: Rows, addresses: Words) -> NDArray[np.uint8]:
        """As `fetch`, without looking at the bytes."""
        return self._fetch(records, addresses, None)

    # -- health ----------------------------------------------------------------------------------

    def sync(self) -> bool:
        """Make what was written so far outlast a power loss, now. False when the device refused."""
        with self._syncing:
            with self._state:
                self._dirty_since = None
                self._sealed = False
            started = time.perf_counter_ns()
            try:
                self._disk.sync()
            except OSError as error:
                self._note_writes(error.errno or errno.EIO, 0)
                return False
            with self._state:
                self._synced_at = time.monotonic()
                self.counters["syncs"] += 1
                self.counters["sync_ns"] += time.perf_counter_ns() - started
            return True

    def probe(self) -> bool:
        """Ask a file that failed again: read its first page and, had writes failed, write the header of the newest
        region as it is. Where both go well, it may be used again."""
        page = Pages(1)
        right = self._move_page(0, page, write=False) == 0
        right = right and page.rows.tobytes() == pack_superblock(self.superblock)
        with self._appending:
            if right and not self.writable and self._header is not None:
                page = _page(pack_region_header(self.superblock.file_id, self._header))
                offset = self.superblock.region_start(self._header.region_index)
                right = self._move_page(offset, page, write=True) == 0
        if right:
            with self._state:
                self._read_errors = self._write_errors = 0
        return right

    def _move_page(self, offset: int, pages: Pages, *, write: bool) -> int:
        """The first of `pages`, to or from the file: 0 or an errno."""
        size = np.array([PAGE_BYTES], np.uint64)
        where = np.array([offset], np.uint64)
        return int(self._disk.transfer(where, pages.addresses(1), size, write=write)[0])

    # -- opening ---------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Find the head: the newest region, and the end of its chain. New frames go there."""
        regions = read_regions(self._disk, self.superblock)
        self.counters["read_errors"] += regions.unreadable
        order = regions.in_log_order()
        for each in order:
            self._sequences[each.region_index] = each.sequence
        # A header that cannot be read now may be readable later: its sequence is not given twice.
        self._sequence_next = 1 + regions.unreadable
        if order:
            self._header = newest = order[-1]
            (chain,) = read_chains(self._disk, self.superblock, [newest])
            self._head = Head(newest.region_index, newest.sequence, chain.end, chain.frames)
            self._sequence_next += newest.sequence

    # -- appending -------------------------------------------------------------------------------

    def _append(self, namespace: SpillNamespace, blocks: Rows) -> Appended:
        """In parts; each is begun before the one before it is waited for, so that the device never runs dry."""
        begun: deque[Part] = deque()
        ended: list[Appended] = []
        done = 0
        finished = False
        try:
            while True:
                more = done < len(blocks) and not (begun and begun[-1].full)
                if more and (not ended or ended[-1].outcome is Append.DONE):
                    some = blocks[done : done + BLOCKS_AT_ONCE]
                    begun.append(self._frames.begin(self._head, namespace, some))
                    done += len(begun[-1].records)
                    if len(begun) == 1 and not begun[0].full:
                        continue
                if not begun:
                    break
                ended.append(self._finish(begun.popleft(), ended))
            finished = True
        finally:
            if not finished:
                self._end_region()
        records = [np.zeros(0, RECORD_FIELDS), *(each.records for each in ended)]
        last = ended[-1] if ended else Appended(records[0], Append.DONE)
        return Appended(np.concatenate(records, dtype=RECORD_FIELDS), last.outcome, last.errno)

    def _finish(self, part: Part, before: Sequence[Appended]) -> Appended:
        """Wait for a part. What stands behind a frame that failed, in this part or before it, is not returned."""
        frames, kept, failure = part.wait()
        if before and before[-1].errno:
            return Appended(part.records[:0], Append.FAILED, before[-1].errno)
        records = part.records[:kept]
        written = int(part.strides[:kept].sum()) + PAGE_BYTES * len(part.frames)
        with self._state:
            self.counters["frames"] += frames
        self._note_writes(failure, written, int(records["payload_bytes"].sum()), kept)
        if failure:
            self._end_region()
            return Appended(records, Append.FAILED, failure)
        return Appended(records, Append.REGION_FULL if part.full else Append.DONE)

    def _end_region(self) -> None:
        """Nothing more goes in here: what stands behind a hole cannot be found."""
        if self._head.region >= 0:
            self._head.end = self.superblock.region_end(self._head.region)

    def _note_writes(
        self,
        error: int,
        nbytes: int,
        payload_bytes: int = 0,
        records: int = 0,
        *,
        seal: bool = False,
    ) -> int:
        """Count what was written or failed, and let the syncer know. Returns the error."""
        with self._sync_wanted:
            self.counters["bytes_written"] += nbytes
            self.counters["payload_bytes_written"] += payload_bytes
            self.counters["records_written"] += records
            if error:
                self.counters["write_errors"] += 1
                self._write_errors += 1
            elif nbytes:
                self._write_errors = 0
                if self._dirty_since is None:
                    self._dirty_since = time.monotonic()
                self._sealed |= seal
                self._sync_wanted.notify_all()
            errors = self._write_errors
        if error:
            tell(
                SPILL_WRITE_FAILED,
                "spill file %s: a write failed: %s%s",
                self.path,
                os.strerror(error),
                _OUT_OF_USE if errors == ERRORS_IN_A_ROW else "",
                subject=(self.path, errors == ERRORS_IN_A_ROW),
                path=self.path,
                errno=error,
            )
        return error

    # -- fetching --------------------------------------------------------------------------------

    def _fetch(self, records: Rows, addresses: Words, seeds: list[int] | None) -> NDArray[np.uint8]:
        outcomes = np.full(len(records), Fetch.STALE, np.uint8)
        with self._reading(records) as held:
            # In the order of the file: neighbours are read together, whatever order was asked for.
            order = held[np.argsort(records["file_offset"][held], kind="stable")]
            sizes = strides_of(records["payload_bytes"][order])
            shares = [order[first:last] for first, last in shares_of(np.cumsum(sizes))]
            transfers = [
                self._disk.start(
                    records["file_offset"][share],
                    addresses[share],
                    strides_of(records["payload_bytes"][share]),
                    write=False,
                )
                for share in shares
            ]
            failures: list[int] = []
            for share, transfer in zip(shares, transfers, strict=True):
                errors = transfer.wait(helping=True)
                outcomes[share] = np.where(errors != 0, Fetch.FAILED, Fetch.OK)
                failures += errors[errors != 0].tolist()
                if seeds is not None:
                    good = share[errors == 0]
                    outcomes[good] = _verified(records[good], addresses[good], seeds, good)
        self._note_reads(records, outcomes, failures)
        return outcomes

    @contextlib.contextmanager
    def _reading(self, records: Rows) -> Iterator[NDArray[np.int64]]:
        """Which of the records are still there; their regions are kept from being used again meanwhile."""
        block = self.superblock
        offsets: Words = records["file_offset"]
        inside = (offsets >= np.uint64(2 * PAGE_BYTES)) & (offsets < np.uint64(block.file_bytes))
        regions = block.region_of(np.where(inside, offsets, np.uint64(PAGE_BYTES)))
        inside &= regions < block.region_count
        regions[~inside] = 0
        ends = (regions + np.uint64(1)) * np.uint64(block.region_bytes) + np.uint64(PAGE_BYTES)
        sizes = records["payload_bytes"]
        inside &= (sizes >= 1) & (sizes <= np.uint64(block.payload_bytes_max))
        inside &= strides_of(np.where(inside, sizes, np.uint64(1))) <= ends - np.where(
            inside, offsets, ends
        )
        inside &= records["sequence"] != 0
        with self._state:
            held = np.flatnonzero(inside & (self._sequences[regions] == records["sequence"]))
            used = np.unique(regions[held])
            self._readers[used] += 1
        try:
            yield held
        finally:
            with self._state:
                self._readers[used] -= 1

    def _note_reads(self, records: Rows, outcomes: NDArray[np.uint8], failures: list[int]) -> None:
        good = outcomes == Fetch.OK
        with self._state:
            self.counters["records_read"] += int(good.sum())
            self.counters["payload_bytes_read"] += int(records["payload_bytes"][good].sum())
            self.counters["damaged"] += int((outcomes == Fetch.DAMAGED).sum())
            self.counters["stale"] += int((outcomes == Fetch.STALE).sum())
            if failures:
                self.counters["read_errors"] += len(failures)
                self._read_errors += 1
            elif good.any():
                self._read_errors = 0
            errors = self._read_errors
        if failures:
            tell(
                SPILL_READ_FAILED,
                "spill file %s: %d of %d records could not be read: %s%s",
                self.path,
                len(failures),
                len(records),
                os.strerror(failures[0]),
                _OUT_OF_USE if errors == ERRORS_IN_A_ROW else "",
                subject=(self.path, errors == ERRORS_IN_A_ROW),
                path=self.path,
                errno=failures[0],
            )

    # -- syncing ---------------------------------------------------------------------------------

    def _sync_when_due(self) -> None:
        """The syncer's life: sleeps until the oldest write is old enough, or a region is full."""
        while True:
            with self._sync_wanted:
                while not self._closing:
                    left = self._seconds_to_sync()
                    if left is not None and left <= 0:
                        break
                    self._sync_wanted.wait(left)
                due = self._dirty_since is not None
                closing = self._closing
            if due:
                self.sync()
            if closing:
                return

    def _seconds_to_sync(self) -> float | None:
        """Until the next sync is due; None while there is nothing to sync."""
        now = time.monotonic()
        if self._dirty_since is None:
            return None
        left = self._dirty_since + self._sync_seconds - now
        # At full speed regions fill many times a second, and a sync holds up the writes around it.
        return min(left, self._synced_at + SEAL_SECONDS - now) if self._sealed else left


_COUNTERS: Final = (
    "bytes_written",
    "payload_bytes_written",
    "records_written",
    "frames",
    "regions",
    "records_read",
    "payload_bytes_read",
    "syncs",
    "sync_ns",
    "busy",
    "stale",
    "damaged",
    "read_errors",
    "write_errors",
)
_OUT_OF_USE: Final = (
    f"; that was {ERRORS_IN_A_ROW} times in a row, and it is taken out of use. Look at `dmesg` and at the "
    "device's health (`smartctl -a`); other spill files go on"
)


def _page(content: bytes) -> Pages:
    page = Pages(1)
    page.rows[0] = np.frombuffer(content, np.uint8)
    return page


def _verified(
    records: Rows, addresses: Words, seeds: list[int], rows: NDArray[np.int64]
) -> NDArray[np.uint8]:
    sizes = records["payload_bytes"].tolist()
    sums = checksums_at(addresses.tolist(), sizes, [seeds[row] for row in rows.tolist()])
    same = np.array(sums, np.uint64) == records["checksum"]
    verdicts: NDArray[np.uint8] = np.where(same, np.uint8(Fetch.OK), np.uint8(Fetch.DAMAGED))
    return verdicts
