"""Which blocks are written to SSD, and which leave memory before anybody needs their room?

One thread that plans and never touches a device; `writer` threads do the writing, one a file. It follows the journal of
the region, so that blocks are written soon after they were published (write-behind), and looks at how much is free of
each size: below the low watermark the least recently used blocks are pinned, written if they are not on SSD
yet, and evicted unless somebody used them meanwhile, until the high watermark is reached.

No store waits for any of it. What is to be written is bounded in bytes and in seconds; what falls out of the
backlog, or is evicted by an engine in need before its turn, is counted as late and was in memory only. Blocks
that were published while no worker ran are written when there is nothing else to do. Hints all: a handle whose
life is over is not pinned and is passed over.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.logs import tell
from pegashm.notices import SPILL_BUDGET_SPENT, SPILL_WRITTEN
from pegashm.spill.format import strides_of
from pegashm.transport.admission import Admission
from pegashm.transport.backlog import Backlog
from pegashm.transport.rows import full_key, handles_of, keys_of, words
from pegashm.transport.tier import Tier
from pegashm.transport.writer import Batch, Writer
from pegashm.units import MIB, format_bytes

__all__ = ["Spiller"]

_IDLE_SECONDS: Final = 0.02
_HOLE_SECONDS: Final = 0.2
_EVENTS_AT_ONCE: Final = 1024
_BATCH_BYTES: Final = 32 * MIB
_BATCH_BLOCKS: Final = 512
_EVICT_AT_ONCE: Final = 512
_LOOK_EVERY_SECONDS: Final = 1.0
_REPORT_EVERY_SECONDS: Final = 3600.0
_OPEN_PATIENCE_SECONDS: Final = 30.0
_READY: Final = 2

Rows = NDArray[Any]
Words = NDArray[np.uint64]


class Spiller:
    """The planner. `writers`: one a file, in the order of the files."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._region = tier.cache.region
        self._client = tier.cache.client
        self._config = tier.config
        self._admission = Admission(tier.config.admission)
        self.writers = [
            Writer(tier, number, self._batch_done) for number in range(len(tier.config.paths))
        ]
        self._batch_bytes = max(1, min(_BATCH_BYTES, self._region.payload_bytes // 16))
        self._wake = threading.Event()
        self._mutex = threading.Lock()  # over what writers give back
        self._under_way: set[int] = set()
        self._under_way_bytes = 0
        self._leaving: dict[int, int] = {}  # stride -> blocks that writers will evict
        self._refilling: set[int] = (
            set()
        )  # strides on their way from the low watermark to the high one
        self._backlog = Backlog(tier.config.backlog_bytes, tier.config.backlog_seconds)
        self._missed: deque[int] = deque()  # published before us
        self._after = int(self._region.header["journal_head"])  # of the journal: known up to here
        self._hole = 0  # an event that was not to be read when we last looked
        self._hole_since = 0.0
        self._look_at = 0.0
        self._report_at = time.monotonic() + _REPORT_EVERY_SECONDS
        self._reported_bytes = 0

    def wake(self) -> None:
        """Look now: room is short, or a writer has room again."""
        self._wake.set()

    def run(self) -> None:
        """The thread's life."""
        self._tier.wait_opened(_OPEN_PATIENCE_SECONDS)  # or we would write what is there already
        if self._admission.writes_behind:
            self._gather_missed()
        while not self._tier.stopping.is_set():
            self._wake.clear()
            busy = self._follow_journal()
            busy |= self._evict_ahead()
            busy |= self._write_behind()
            self._each_second(time.monotonic())
            if not busy:
                self._wake.wait(_IDLE_SECONDS)

    def _gather_missed(self) -> None:
        blocks = self._region.blocks()
        self._missed.extend(handles_of(blocks[blocks["state"] == _READY]).tolist())

    # -- what was published ----------------------------------------------------------------------

    def _follow_journal(self) -> bool:
        last, events = self._region.journal(self._after, _EVENTS_AT_ONCE)
        last, events = self._before_hole(last, events)
        # Overwritten when the ring has turned under us, or its writer died in the middle: their blocks are
        # written at the latest when they are evicted ahead.
        self._tier.count("spill_late", last - self._after - len(events))
        self._after = last
        published = [event for event in events if event["event"] == "publish"]
        if self._admission.selective:
            for event in events:
                if event["event"] == "evict":
                    self._admission.gone(event["handle"], event["namespace_id"], full_key(event))
        if published:
            described = self._region.describe(words(event["handle"] for event in published))
            for event, touched, nbytes in zip(
                published,
                described["touched"].tolist(),
                described["payload_bytes"].tolist(),
                strict=True,
            ):
                if nbytes and self._admission.watch(
                    event["handle"], touched, event["namespace_id"], full_key(event)
                ):
                    self._remember(event["handle"], nbytes)
        return len(events) == _EVENTS_AT_ONCE

    def _before_hole(self, last: int, events: list[Any]) -> tuple[int, list[Any]]:
        """What comes before an event that is missing: its writer may be just about to finish it, so look again for a while."""
        if last - self._after == len(events):
            return last, events
        hole = self._after + 1
        count = 0
        while count < len(events) and events[count]["sequence"] == hole:
            hole += 1
            count += 1
        now = time.monotonic()
        if hole != self._hole:
            self._hole, self._hole_since = hole, now
        elif now - self._hole_since >= _HOLE_SECONDS:
            return last, events
        return hole - 1, events[:count]

    def _remember(self, handle: int, nbytes: int) -> None:
        if not self._backlog.add(handle, nbytes, time.monotonic()):
            self._tier.count("spill_late")

    def _each_second(self, now: float) -> None:
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_SECONDS
        watched = self._admission.watched()
        if len(watched):
            described = self._region.describe(watched)
            sizes = dict(zip(watched.tolist(), described["payload_bytes"].tolist(), strict=True))
            for handle in self._admission.look(watched.tolist(), described["touched"].tolist()):
                self._remember(handle, sizes[handle])
        self._say_gauges()
        if now >= self._report_at:
            self._report_at = now + _REPORT_EVERY_SECONDS
            self._report()

    def _say_gauges(self) -> None:
        """What only we know, for whoever reads the region."""
        with self._mutex:
            blocks, nbytes = len(self._under_way), self._under_way_bytes
        for gauge, value in (
            ("spill_files", len(self._config.paths)),
            ("spill_listed", len(self._tier.table)),
            ("spill_backlog_blocks", blocks + len(self._backlog)),
            ("spill_backlog_bytes", nbytes + self._backlog.nbytes),
            ("spill_daily_bytes_limit", self._config.daily_bytes),
            ("spill_daily_bytes_written", self._tier.budget.spent()),
        ):
            self._region.set_gauge(gauge, value)

    def _report(self) -> None:
        spent = self._tier.budget.spent()
        if spent == self._reported_bytes:
            return
        self._reported_bytes = spent
        payload = file = 0
        for opened in self._tier.files.files:
            if opened is not None:
                payload += opened.counters["payload_bytes_written"]
                file += opened.counters["bytes_written"]
        limit = self._config.daily_bytes
        tell(
            SPILL_WRITTEN,
            "spill: %s written in the last 24 hours%s, write amplification %.3f",
            format_bytes(spent),
            f" of {format_bytes(limit)} allowed" if limit else "",
            file / payload if payload else 1.0,
            bytes=spent,
            bytes_allowed=limit,
        )

    # -- write behind ----------------------------------------------------------------------------

    def _write_behind(self) -> bool:
        """Hand over one batch of what waits longest. True when there may be more to do at once."""
        self._tier.count("spill_late", self._backlog.expire(time.monotonic()))
        if chosen := self._backlog.take(self._batch_bytes, _BATCH_BLOCKS):
            left = self._write([waiting.handle for waiting in chosen], patient=True)
            again = [waiting for waiting in chosen if waiting.handle in left]
            self._backlog.put_back(again)
            return not again
        missed = [self._missed.popleft() for _ in range(min(_BATCH_BLOCKS, len(self._missed)))]
        left = self._write(missed) if missed else set()
        self._missed.extendleft(handle for handle in reversed(missed) if handle in left)
        return bool(missed) and len(left) < len(missed)

    def _write(self, handles: Sequence[int], *, patient: bool = False) -> set[int]:
        """Hand over those that are not on SSD, as many as make a batch. Which are left: no writer has room for them.

        `patient`: also those that cannot be pinned just now, until their time in the backlog is over.
        """
        with self._mutex:
            fresh = words(handle for handle in handles if handle not in self._under_way)
        described = self._region.describe(fresh)
        gone = described["payload_bytes"] == 0
        self._tier.count("spill_late", int(gone.sum()))
        wanted = described[~gone & ~self._on_ssd(described)]
        if not len(wanted):
            return set()
        if (allowed := self._allowed(wanted)) < len(wanted):
            self._tier.count("spill_skipped", len(wanted) - allowed)
            if not allowed:
                return set()
            wanted = wanted[:allowed]
        ends = np.cumsum(wanted["payload_bytes"])
        count = max(1, int((ends <= self._batch_bytes).sum()))
        rest = set(handles_of(wanted[count:]).tolist())
        wanted = wanted[:count]
        number = self._tier.files.choose(nbytes := int(ends[count - 1]))
        if number is None:  # no file can be written to
            self._tier.count("spill_late", count)
            return rest
        pinned = self._client.pin(handles_of(wanted)) == _native.OK
        batch = Batch(described=wanted[pinned])
        self._tier.files.settle(number, nbytes - batch.nbytes)
        if patient:  # an evictor and we may both have stepped back: it is there still
            rest |= set(handles_of(wanted[~pinned]).tolist())
        if not len(batch.described) or self._hand_over(number, batch):
            return rest
        self._client.unpin(batch.handles)
        self._tier.files.settle(number, batch.nbytes)
        return rest | set(batch.handles.tolist())

    # -- evict ahead -----------------------------------------------------------------------------

    def _evict_ahead(self) -> bool:
        unassigned, sizes = self._region.room()
        if unassigned or not self._config.high:  # a whole segment is free for whoever comes
            return False
        busy = False
        for size in sizes:
            capacity = size["capacity"]
            low = math.ceil(self._config.low * capacity)
            high = max(low, math.ceil(self._config.high * capacity))
            stride = size["stride_bytes"]
            with self._mutex:
                free = size["free"] + self._leaving.get(stride, 0)
            if free >= high or (free >= low and stride not in self._refilling):
                self._refilling.discard(stride)
                continue
            self._refilling.add(stride)
            wanted = min(high - free, _EVICT_AT_ONCE)
            busy |= self._make_room(stride, wanted, urgent=2 * free < low)
        return busy

    def _make_room(self, stride: int, wanted: int, *, urgent: bool) -> bool:
        """Evict the oldest blocks of a size, those on SSD at once, others once they are written."""
        handles, touches = self._client.oldest(stride, wanted)
        if not len(handles):
            return False
        described = self._region.describe(handles)
        go = self._on_ssd(described)
        for at in np.flatnonzero(~go).tolist():
            row = described[at : at + 1]
            go[at] = not self._admission.admits_victim(
                int(handles[at]),
                int(row["touched"][0]),
                int(row["namespace_id"][0]),
                keys_of(row)[0],
            )
            if go[at]:
                self._tier.count("spill_skipped")
        handed = False
        stay = np.flatnonzero(~go)
        if len(stay) and (allowed := self._allowed(described[stay])) < len(stay):
            self._tier.count("spill_skipped", len(stay) - allowed)
            go[stay[allowed:]] = True
            stay = stay[:allowed]
        if len(stay):
            ends = np.cumsum(described["payload_bytes"][stay])
            count = max(1, int((ends <= self._batch_bytes).sum()))
            first, rest = stay[:count], stay[count:]
            handed = self._write_and_evict(stride, described[first], touches[first])
            if not handed:
                # Nobody writes: at the latest when half the reserve is gone, room is worth more.
                go[first] = urgent
                if urgent:
                    self._tier.count("spill_late", len(first))
                else:
                    self._client.unpin(handles[first])
            self._client.unpin(handles[rest])
        if go.any():
            self._client.evict_untouched(handles[go], touches[go])
            self._backlog.drop(handles[go].tolist())
        if handed:
            self._backlog.drop(handles[first].tolist())
        return handed or bool(go.any())

    def _write_and_evict(self, stride: int, described: Rows, touches: Words) -> bool:
        batch = Batch(described=described, touches=touches, stride=stride)
        number = self._tier.files.choose(batch.nbytes)
        if number is None:
            return False
        with self._mutex:
            self._leaving[stride] = self._leaving.get(stride, 0) + len(described)
        if self._hand_over(number, batch):
            return True
        self._tier.files.settle(number, batch.nbytes)
        with self._mutex:
            self._leaving[stride] -= len(described)
        return False

    # -- both ------------------------------------------------------------------------------------

    def _hand_over(self, number: int, batch: Batch) -> bool:
        with self._mutex:
            self._under_way.update(batch.handles.tolist())
            self._under_way_bytes += batch.nbytes
        if self.writers[number].offer(batch):
            return True
        with self._mutex:
            self._under_way.difference_update(batch.handles.tolist())
            self._under_way_bytes -= batch.nbytes
        return False

    def _batch_done(self, batch: Batch) -> None:
        """Called by a writer: its pins are dropped, what was to be evicted is."""
        with self._mutex:
            self._under_way.difference_update(batch.handles.tolist())
            self._under_way_bytes -= batch.nbytes
            if batch.touches is not None:
                self._leaving[batch.stride] -= len(batch.described)
        self._wake.set()

    def _allowed(self, described: Rows) -> int:
        """How many of these, the first of them, the daily budget still allows."""
        with self._mutex:
            pending = self._under_way_bytes
        left = self._tier.budget.left()
        if left is None:
            return len(described)
        ends = pending + np.cumsum(strides_of(described["payload_bytes"]).astype(np.int64))
        allowed = int((ends <= left).sum())
        if allowed < len(described):
            tell(
                SPILL_BUDGET_SPENT,
                "spill: the budget of %s in 24 hours is spent: blocks are not written, those evicted now are lost. "
                "Raise --spill-daily-writes, or admit less (--spill-admission second-touch)",
                format_bytes(self._config.daily_bytes),
                bytes=self._tier.budget.spent(),
                bytes_allowed=self._config.daily_bytes,
            )
        return allowed

    def _on_ssd(self, described: Rows) -> NDArray[np.bool_]:
        """Which of these blocks a file in use has already."""
        there = np.zeros(len(described), np.bool_)
        ids = described["namespace_id"]
        present = described["payload_bytes"] != 0
        usable = self._tier.files.usable_mask
        for namespace_id in np.unique(ids[present]).tolist():
            mine = present & (ids == namespace_id)
            rows = self._tier.table.find(keys_of(described[mine]), namespace_id)
            in_use = np.array([usable >> file & 1 for file in rows["file"].tolist()], np.bool_)
            there[mine] = (rows["payload_bytes"] != 0) & in_use
        return there
