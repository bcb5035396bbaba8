"""How do blocks come back from SSD into memory? Requests in, claimed and verified blocks out, answers at the end.

The worker's main thread submits requests and collects answers; each file has a queue and threads of its own that
claim memory, read straight into it, compare every payload with its checksum and publish it. So a file that hangs
holds its own threads and the blocks they claimed (nobody else may write there until its reads have ended), no others. What
waits is bounded: beyond that the answer is OVERLOADED at once. A request past its deadline is answered LATE, whatever
the device does, and what has not been started for it is not. A block that two requests ask for is read once.

What does not check is never published: the claim is given back, the record taken out of the table, counted and named
in the log. Claims that a killed worker leaves are reaped once the kernel has ended its reads (see `liveness`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.logs import tell
from pegashm.notices import SPILL_BLOCK_BAD
from pegashm.payload_sums import PARTS_MAX, Part, store_sums
from pegashm.spill.file import Fetch, SpillFile
from pegashm.transport.messages import Answer, Done, Promote
from pegashm.transport.rows import keys_of, records_of
from pegashm.transport.tier import Tier
from pegashm.units import MIB

__all__ = ["THREADS_A_FILE", "Promoter", "Reply"]

THREADS_A_FILE: Final = 2
_BATCH_BYTES: Final = 16 * MIB
_BATCH_BLOCKS: Final = 256
_QUEUE_BYTES: Final = 512 * MIB
_QUEUE_BLOCKS: Final = 16384
_JOBS_MAX: Final = 4096
_PART_BYTES_MASK: Final = (1 << 48) - 1
_NAMED_IN_LOG: Final = 4

_ANSWERS: Final = {
    _native.EXISTS: Answer.OK,
    _native.PENDING: Answer.PENDING,
}
# Of answers that are given at once; what becomes of the others is counted where it happens.
_COUNTED: Final = {
    Answer.OVERLOADED: "spill_refused",
    Answer.FAILED: "spill_failed",
}

Rows = NDArray[Any]
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and who asked."""

    peer: bytes
    done: Done


@dataclass(slots=True)
class _Job:
    """A request that is not answered yet."""

    peer: bytes
    request_id: int
    deadline: float
    outcomes: bytearray
    left: int


@dataclass(slots=True)
class _Wanted:
    """A block that somebody waits for. `row`: of the spill table, as bytes (arrays of one row are slow to join)."""

    name: tuple[int, bytes]
    row: bytes
    nbytes: int
    file: int
    jobs: list[tuple[_Job, int]] = field(default_factory=list)

    def deadline(self) -> float:
        return max(job.deadline for job, _ in self.jobs)


class _Queue:
    """What is to be read from one file. Under the promoter's mutex."""

    def __init__(self, mutex: threading.Lock) -> None:
        self.changed = threading.Condition(mutex)
        self.waiting: deque[_Wanted] = deque()
        self.nbytes = 0

    def is_full(self) -> bool:
        return self.nbytes >= _QUEUE_BYTES or len(self.waiting) >= _QUEUE_BLOCKS


class Promoter:
    """`answered` is called, from any thread, when there is something to collect."""

    def __init__(
        self, tier: Tier, answered: Callable[[], None], room_needed: Callable[[], None]
    ) -> None:
        self._tier = tier
        self._region = tier.cache.region
        self._client = tier.cache.client
        self._region_id: bytes = tier.cache.region_id
        self._answered = answered
        self._room_needed = room_needed
        self._mutex = threading.Lock()
        self._queues = [_Queue(self._mutex) for _ in tier.config.paths]
        self._wanted: dict[tuple[int, bytes], _Wanted] = {}
        self._jobs: dict[int, _Job] = {}
        self._replies: deque[Reply] = deque()
        self._batch_bytes = max(1, min(_BATCH_BYTES, self._region.payload_bytes // 8))
        self._stopping = False

    # -- main thread -----------------------------------------------------------------------------

    def submit(self, peer: bytes, request: Promote) -> None:
        """Take a request. Its answer can be collected at once, or later, but always."""
        count = len(request.keys)
        now = time.monotonic()
        job = _Job(
            peer, request.request_id, now + request.deadline_ms / 1000, bytearray(count), count
        )
        if request.region_id != self._region_id:
            self._answer_all(job, Answer.MISSING)
            return
        if len(self._jobs) >= _JOBS_MAX:
            self._answer_all(job, Answer.OVERLOADED)
            return
        rows = self._tier.table.find(request.keys, request.namespace_id)
        sizes, files = rows["payload_bytes"].tolist(), rows["file"].tolist()
        raw, width = rows.tobytes(), rows.dtype.itemsize
        fit = self._fit(request.deadline_ms / 1000)
        tally: Counter[Answer] = Counter()
        with self._mutex:
            self._jobs[id(job)] = job
            for at, (key, nbytes, file) in enumerate(zip(request.keys, sizes, files, strict=True)):
                row = raw[at * width : (at + 1) * width]
                answer = self._want(job, at, (request.namespace_id, key), row, nbytes, file, fit)
                if answer is not None:
                    job.outcomes[at] = answer
                    job.left -= 1
                    tally[answer] += 1
            if not job.left:
                self._complete(job)
        self._count(tally)

    def expire(self, now: float) -> None:
        """Answer what is past its deadline, with LATE for what has not come."""
        with self._mutex:
            late = [job for job in self._jobs.values() if job.deadline <= now]
            missing = 0
            for job in late:
                missing += job.left
                self._complete(job)
        self._tier.count("spill_refused", missing)

    def replies(self) -> list[Reply]:
        with self._mutex:
            replies = list(self._replies)
            self._replies.clear()
        return replies

    def stop(self) -> None:
        """Let the threads end once their reads have."""
        with self._mutex:
            self._stopping = True
            for queue in self._queues:
                queue.changed.notify_all()

    # -- under the mutex -------------------------------------------------------------------------

    def _want(
        self,
        job: _Job,
        at: int,
        name: tuple[int, bytes],
        row: bytes,
        nbytes: int,
        file: int,
        fit: Sequence[Answer | None],
    ) -> Answer | None:
        """An answer at once, or None: it will come."""
        if not nbytes:
            return Answer.MISSING
        if (answer := fit[file]) is not None:
            return answer
        wanted = self._wanted.get(name)
        if wanted is None:
            if self._queues[file].is_full():
                return Answer.OVERLOADED
            wanted = self._wanted[name] = _Wanted(name, row, nbytes, file)
            self._queue_up(wanted)
        wanted.jobs.append((job, at))
        job.outcomes[at] = Answer.LATE  # until something better is known
        return None

    def _queue_up(self, wanted: _Wanted) -> None:
        queue = self._queues[wanted.file]
        queue.waiting.append(wanted)
        queue.nbytes += wanted.nbytes
        queue.changed.notify()

    def _complete(self, job: _Job) -> None:
        if self._jobs.pop(id(job), None) is not None:
            self._replies.append(Reply(job.peer, Done(job.request_id, bytes(job.outcomes))))
            self._answered()

    def _take(self, queue: _Queue) -> list[_Wanted]:
        """The next blocks to read, oldest request first; waits for some. Nothing: the end."""
        while not queue.waiting and not self._stopping:
            queue.changed.wait()
        batch: list[_Wanted] = []
        nbytes = 0
        while queue.waiting and not self._stopping and len(batch) < _BATCH_BLOCKS:
            if batch and nbytes + queue.waiting[0].nbytes > self._batch_bytes:
                break
            batch.append(queue.waiting.popleft())
            nbytes += batch[-1].nbytes
        queue.nbytes -= nbytes
        return batch

    # -- a file's threads ------------------------------------------------------------------------

    def run(self, number: int) -> None:
        """The life of a thread that reads from one file."""
        queue = self._queues[number]
        while True:
            with self._mutex:
                batch = self._take(queue)
            if not batch:
                return
            file = self._tier.files.files[number]
            if file is None:
                self._finish(batch, [Answer.FAILED] * len(batch))
                continue
            self._promote(file, batch)

    def _promote(self, file: SpillFile, batch: Sequence[_Wanted]) -> None:
        now = time.monotonic()
        with self._mutex:
            deadlines = [wanted.deadline() for wanted in batch]
        answers: list[Answer] = [
            Answer.LATE if deadline <= now else Answer.OK for deadline in deadlines
        ]
        handles = self._claim(batch, answers)
        held = np.flatnonzero(handles)
        if len(held):
            rows = np.frombuffer(
                b"".join([batch[at].row for at in held.tolist()]), _native.SPILL_FIELDS
            )
            outcomes = self._fetch(file, rows, handles[held])
            for at, answer in zip(held.tolist(), outcomes, strict=True):
                answers[at] = answer
        self._finish(batch, answers)

    def _claim(self, batch: Sequence[_Wanted], answers: list[Answer]) -> Words:
        """Memory for those that are not late; 0 where there is none, or no need, and `answers` says why."""
        handles = np.zeros(len(batch), np.uint64)
        kinds: dict[tuple[int, int], list[int]] = {}
        for at, wanted in enumerate(batch):
            if answers[at] is Answer.OK:
                kinds.setdefault((wanted.name[0], wanted.nbytes), []).append(at)
        for (namespace_id, nbytes), places in kinds.items():
            if self._tier.namespaces.of(namespace_id) is None:
                for at in places:
                    answers[at] = Answer.MISSING
                continue
            claimed, outcomes = self._client.claim(
                [batch[at].name[1] for at in places], namespace_id, nbytes
            )
            for at, handle, outcome in zip(
                places, claimed.tolist(), outcomes.tolist(), strict=True
            ):
                if outcome == _native.OK:
                    handles[at] = handle
                else:
                    answers[at] = _ANSWERS.get(outcome, Answer.NO_SPACE)
                    if answers[at] is Answer.NO_SPACE:
                        self._room_needed()
        return handles

    def _fetch(self, file: SpillFile, rows: Rows, handles: Words) -> list[Answer]:
        """Read into claimed blocks, and publish what checks. Every claim is published or given back."""
        offsets, _ = self._client.locate(handles)
        addresses = offsets + np.uint64(self._region.payload_address)
        namespaces = [self._tier.namespaces.of(ident) for ident in rows["namespace_id"].tolist()]
        fingerprints = [b"" if one is None else one.fingerprint for one in namespaces]
        outcomes = file.fetch(records_of(rows), addresses, fingerprints)
        good = outcomes == Fetch.OK
        if not good.all():
            self._client.abandon(handles[~good])
            self._drop(file, rows[~good], outcomes[~good])
        answers = [_FETCHED[Fetch(outcome)] for outcome in outcomes.tolist()]
        if good.any():
            self._store_sums(rows[good], handles[good], offsets[good])
            published = self._client.publish(handles[good])
            self._tier.count("spill_bytes_read", int(rows["payload_bytes"][good].sum()))
            self._tier.count("spill_promoted", int((published == _native.OK).sum()))
            for at, outcome in zip(np.flatnonzero(good).tolist(), published.tolist(), strict=True):
                if outcome != _native.OK:
                    answers[at] = Answer.FAILED
        return answers

    def _store_sums(self, rows: Rows, handles: Words, offsets: Words) -> None:
        """Blocks that had checksums of their parts have them again."""
        layouts = rows["sum_layout"]
        for layout in np.unique(layouts[layouts != 0]).tolist():
            nbytes, count = layout & _PART_BYTES_MASK, layout >> 48 & 0xFF
            if not 1 <= count <= PARTS_MAX or not nbytes:
                continue
            mine = (layouts == layout) & (rows["payload_bytes"] >= np.uint64(nbytes * count))
            for index in range(count):
                part = Part(index=index, count=count, nbytes=nbytes)
                store_sums(self._region, handles[mine], offsets[mine], part)

    def _drop(self, file: SpillFile, rows: Rows, outcomes: NDArray[np.uint8]) -> None:
        """What cannot be read, or is not what was written, is found no more."""
        self._tier.table.forget(rows)
        self._tier.count("spill_damaged", int((outcomes == Fetch.DAMAGED).sum()))
        self._tier.count("spill_failed", int((outcomes == Fetch.FAILED).sum()))
        for fetch, what in (
            (Fetch.DAMAGED, "hold other bytes than were written"),
            (Fetch.FAILED, "could not be read"),
        ):
            bad = rows[outcomes == fetch]
            if not len(bad):
                continue
            named = keys_of(bad[:_NAMED_IN_LOG])
            places = ", ".join(
                f"{key.hex()} at offset {row['file_offset']}"
                for row, key in zip(bad[:_NAMED_IN_LOG], named, strict=True)
            )
            tell(
                SPILL_BLOCK_BAD,
                "spill file %s: %d blocks %s: dropped, which costs misses: %s",
                file.path,
                len(bad),
                what,
                places,
                subject=(file.path, what),
                path=file.path,
                keys=[key.hex() for key in named],
                blocks=len(bad),
            )

    def _finish(self, batch: Sequence[_Wanted], answers: Sequence[Answer]) -> None:
        now = time.monotonic()
        with self._mutex:
            for wanted, answer in zip(batch, answers, strict=True):
                if (
                    answer is Answer.LATE and wanted.deadline() > now
                ):  # somebody else asked meanwhile
                    self._queue_up(wanted)
                    continue
                self._wanted.pop(wanted.name, None)
                if answer is Answer.LATE:  # expire() says so
                    continue
                for job, at in wanted.jobs:
                    if id(job) not in self._jobs:  # answered: it was late
                        continue
                    job.outcomes[at] = answer
                    job.left -= 1
                    if not job.left:
                        self._complete(job)
        self._tier.count("spill_refused", sum(answer is Answer.NO_SPACE for answer in answers))

    def _fit(self, seconds: float) -> list[Answer | None]:
        """For each file that cannot serve a request with so much time, the answer; None for the others."""
        usable = self._tier.files.usable_mask
        answers: list[Answer | None] = []
        for number, file in enumerate(self._tier.files.files):
            if file is None or not usable >> number & 1:
                answers.append(Answer.FAILED)
            elif (
                file.waiting_seconds > seconds
            ):  # what is ahead has waited longer than this one may
                answers.append(Answer.OVERLOADED)
            else:
                answers.append(None)
        return answers

    # -- small things ----------------------------------------------------------------------------

    def _answer_all(self, job: _Job, answer: Answer) -> None:
        job.outcomes[:] = bytes([answer]) * job.left
        with self._mutex:
            self._jobs[id(job)] = job
            self._complete(job)
        self._count(Counter({answer: job.left}))

    def _count(self, tally: Counter[Answer]) -> None:
        for answer, counter in _COUNTED.items():
            self._tier.count(counter, tally[answer])


_FETCHED: Final = {
    Fetch.OK: Answer.OK,
    Fetch.STALE: Answer.MISSING,
    Fetch.FAILED: Answer.FAILED,
    Fetch.DAMAGED: Answer.DAMAGED,
}
