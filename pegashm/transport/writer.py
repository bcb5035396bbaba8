"""How do blocks of memory get into one spill file? A thread a file: opens it, then writes batch after batch.

The spiller hands over blocks that are pinned already; here their checksums are compared if they have any, they are
appended, and only then do lookups see them on SSD. At the end pins are dropped, and where the batch is of blocks that
are to be evicted, those that nobody has used meanwhile are. The pins are held for as long as the device takes: memory
under a write is not given to anybody. A device that hangs holds this thread and its two batches, no other.

A block whose payload does not match its checksums is marked and not written. After a failed write the rest of the
batch is given up, and evicted all the same where that was the plan.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.logs import tell
from pegashm.notices import BLOCK_DAMAGED
from pegashm.payload_sums import Verdict, check, condemn
from pegashm.spill.file import Advance, Append, SpillFile
from pegashm.transport.rows import blocks_of, handles_of
from pegashm.transport.tier import Tier

__all__ = ["Batch", "Writer"]

_BATCHES_WAITING: Final = 2
_PART_COUNT_SHIFT: Final = np.uint64(48)

Rows = NDArray[Any]
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Blocks that we hold pinned, as `Region.describe` gave them. `touches`: evict them afterwards, unless
    they were used since (None: only write); then all are of one `stride`."""

    described: Rows
    touches: Words | None = None
    stride: int = 0

    @property
    def handles(self) -> Words:
        return handles_of(self.described)

    @property
    def nbytes(self) -> int:
        return int(self.described["payload_bytes"].sum())


class Writer:
    """The only appender of one file. `done` is called for each batch, from this thread."""

    def __init__(self, tier: Tier, number: int, done: Callable[[Batch], None]) -> None:
        self._tier = tier
        self._number = number
        self._done = done
        self._queue: queue.Queue[Batch | None] = queue.Queue(_BATCHES_WAITING)

    def offer(self, batch: Batch) -> bool:
        """Hand over a batch; False when enough are waiting."""
        try:
            self._queue.put_nowait(batch)
        except queue.Full:
            return False
        return True

    def run(self) -> None:
        """The thread's life. What still waits when it is asked to end is let go unwritten."""
        if not self._tier.open(self._number):
            return
        while True:
            try:
                batch = self._queue.get(timeout=0.1)
            except queue.Empty:
                if self._tier.stopping.is_set():
                    return
                continue
            try:
                if batch is not None and not self._tier.stopping.is_set():
                    self._write(batch)
            finally:
                if batch is not None:
                    self._let_go(batch)

    def _let_go(self, batch: Batch) -> None:
        client = self._tier.cache.client
        self._tier.files.settle(self._number, batch.nbytes)
        if batch.touches is None or self._tier.stopping.is_set():
            client.unpin(batch.handles)
        else:
            client.evict_untouched(batch.handles, batch.touches)
        self._done(batch)

    def _write(self, batch: Batch) -> None:
        file = self._tier.files.files[self._number]
        assert file is not None
        written = 0
        sound, layouts = self._judge(batch)
        ids = batch.described["namespace_id"]
        for namespace_id in np.unique(ids[sound]).tolist():
            mine = sound & (ids == namespace_id)
            written += self._write_namespace(
                file, namespace_id, batch.described[mine], layouts[mine]
            )
        self._tier.count("spill_stored", written)
        self._tier.count("spill_late", int(sound.sum()) - written)

    def _judge(self, batch: Batch) -> tuple[NDArray[np.bool_], Words]:
        """Which blocks are as they were stored (or have nothing to compare with), and their sum layouts."""
        region = self._tier.cache.region
        handles, offsets = batch.handles, batch.described["payload_offset"]
        layouts = np.zeros(len(handles), np.uint64)
        sound = np.ones(len(handles), np.bool_)
        summed = np.flatnonzero(batch.described["sum_parts"])
        if len(summed):
            checked = check(region, handles[summed], offsets[summed])
            if checked.damages:
                condemn(region, checked.damages)
                for damage in checked.damages:
                    tell(BLOCK_DAMAGED, "spill: %s: not written to SSD", damage)
            _, part_bytes, part_counts, _ = _native.read_sums(region, handles[summed])
            right = checked.verdicts == Verdict.OK
            layouts[summed[right]] = (
                part_bytes | part_counts.astype(np.uint64) << _PART_COUNT_SHIFT
            )[right]
            sound[summed] = checked.verdicts != Verdict.MISMATCH
        return sound, layouts

    def _write_namespace(
        self, file: SpillFile, namespace_id: int, described: Rows, layouts: Words
    ) -> int:
        namespace = self._tier.namespaces.of(namespace_id)
        if namespace is None:
            return 0
        largest = file.superblock.payload_bytes_max
        fits = described["payload_bytes"] <= largest
        blocks = blocks_of(described[fits], self._tier.cache.region.payload_address, layouts[fits])
        done = listed = 0
        while done < len(blocks):
            before = file.counters["bytes_written"]
            appended = file.append(namespace, blocks[done:])
            spent = file.counters["bytes_written"] - before
            count = len(appended.records)
            if count:
                listed += self._tier.list_written(
                    self._number, file, appended.records, namespace_id
                )
                self._tier.count(
                    "spill_payload_bytes", int(appended.records["payload_bytes"].sum())
                )
            done += count
            self._spent(spent)
            if appended.outcome is Append.FAILED:
                self._tier.count("spill_write_errors")
                break
            if appended.outcome is Append.REGION_FULL and not self._take_region(file):
                break
        return listed

    def _take_region(self, file: SpillFile) -> bool:
        before = file.counters["bytes_written"]
        outcome = self._tier.next_region(self._number, file)
        self._spent(file.counters["bytes_written"] - before)
        if outcome is Advance.FAILED:
            self._tier.count("spill_write_errors")
        return outcome is Advance.DONE

    def _spent(self, nbytes: int) -> None:
        self._tier.count("spill_file_bytes", nbytes)
        self._tier.budget.spend(nbytes)
