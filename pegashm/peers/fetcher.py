"""How do blocks come from other hosts into memory? Requests in, claimed and verified blocks out, answers at the end.

The worker's main thread submits requests and collects answers, as with the promoter. A few threads take what waits: as
many blocks of one namespace as one peer has go into one PIN, answered with a lease on as many as a batch may hold; what is
left goes back to the front for the next thread, so that asking and reading overlap. Memory is claimed here only for
what is pinned there, read into, compared with the checksums that came with the lease, published, and the lease given
back. A block without checksums is published only after the peer has said that its lease held to the end of the read.
Nothing that fails is published: the claim is given back, and another host that has the block is asked, if there is one
and time left. Waits are bounded by deadlines and end at once when the peer is gone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import zmq
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.fabric.interface import Fabric, Grant, Part, ReadOutcome
from pegashm.payload_sums import payload_sum
from pegashm.peers.caller import Caller
from pegashm.peers.complaints import Complaints
from pegashm.peers.keys import KeyPair
from pegashm.peers.known import Known, Peer
from pegashm.peers.messages import (
    KEYS_MAX,
    LEASE_MS_MAX,
    Introduce,
    Introduced,
    Malformed,
    Message,
    Outcome,
    Pin,
    Pinned,
    Reason,
    Refused,
    Release,
    Released,
    sums_of,
)
from pegashm.transport.messages import Answer, Done, Promote
from pegashm.transport.namespaces import Namespaces
from pegashm.transport.promoter import Reply
from pegashm.units import MIB

__all__ = ["THREADS", "Fetcher"]

THREADS: Final = 4
_BATCH_BYTES: Final = 64 * MIB
_BATCH_SHARE: Final = 16  # of the payload, at most, for one thread's claims
_QUEUE_BLOCKS: Final = 16384
_JOBS_MAX: Final = 4096
_ANSWER_SECONDS: Final = 2.0  # for what needs no device of the peer's
_LEASE_MARGIN_SECONDS: Final = 0.5
_LEASE_SECONDS_MAX: Final = 30.0
_RELEASE_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 0.1

_CLAIMED: Final = {_native.EXISTS: Answer.OK, _native.PENDING: Answer.PENDING}
_COUNTED: Final = {
    Answer.MISSING: "remote_missing",
    Answer.FAILED: "remote_failed",
    Answer.OVERLOADED: "remote_refused",
    Answer.NO_SPACE: "remote_refused",
    Answer.LATE: "remote_late",
}

Words = NDArray[np.uint64]


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
    """A block that somebody waits for, and the numbers of hosts that may have it and were not asked yet."""

    name: tuple[int, bytes]
    mark: int
    hosts: tuple[int, ...]
    memory: bool  # all of them have it in memory, as far as we know
    jobs: list[tuple[_Job, int]] = field(default_factory=list)
    last: Answer = Answer.MISSING  # what the host before said

    def deadline(self) -> float:
        return max(job.deadline for job, _ in self.jobs)


@dataclass(slots=True)
class _Batch:
    """Blocks of one namespace that one peer is asked for."""

    peer: Peer
    namespace_id: int
    wanted: list[_Wanted]
    deadline: float
    later: set[int] = field(default_factory=set)  # places of those that are in the queue again


class _FetchError(Exception):
    """Nothing came of a batch. `good`: what it says of the peer; None: nothing."""

    def __init__(self, why: str, answer: Answer, *, good: bool | None = False) -> None:
        super().__init__(why)
        self.answer = answer
        self.good = good


class Fetcher:
    """`answered` is called, from any thread, when there is something to collect; `suspect` with a peer that speaks as
    if it were another one by now."""

    def __init__(
        self,
        cache: Cache,
        namespaces: Namespaces,
        table: _native.RemoteTable,
        known: Known,
        fabrics: Mapping[str, Fabric],
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        pair: KeyPair | None,
        host_id: bytes,
        answered: Callable[[], None],
        suspect: Callable[[Peer, str], None],
    ) -> None:
        self._region = cache.region
        self._region_id = cache.region_id
        self._client = cache.client
        self._namespaces = namespaces
        self._table = table
        self._known = known
        self._fabrics = dict(fabrics)
        self._context = context
        self._pair = pair
        self._host_id = host_id
        self._answered = answered
        self._suspect = suspect
        self._complaints = Complaints()
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._queue: deque[_Wanted] = deque()
        self._wanted: dict[tuple[int, bytes], _Wanted] = {}
        self._jobs: dict[int, _Job] = {}
        self._replies: deque[Reply] = deque()
        self._stopping = False
        segment: int = cache.region.header["segment_bytes"]
        self._block_bytes_max = segment
        self._batch_bytes = max(
            segment, min(_BATCH_BYTES, self._region.payload_bytes // _BATCH_SHARE)
        )

    # -- main thread -----------------------------------------------------------------------------

    def submit(self, peer: bytes, request: Promote) -> None:
        """Take a request. Its answer can be collected at once, or later, but always."""
        count = len(request.keys)
        job = _Job(
            peer,
            request.request_id,
            time.monotonic() + request.deadline_ms / 1000,
            bytearray(count),
            count,
        )
        marks, hosts, memory = self._hosts_of(request)
        tally: Counter[Answer] = Counter()
        with self._mutex:
            if len(self._jobs) >= _JOBS_MAX or self._stopping:
                job.outcomes[:] = bytes([Answer.OVERLOADED]) * count
                self._jobs[id(job)] = job
                self._complete(job)
                tally[Answer.OVERLOADED] += count
                count = 0
            else:
                self._jobs[id(job)] = job
            for at in range(count):
                name = (request.namespace_id, request.keys[at])
                answer = self._want(job, at, name, marks[at], hosts[at], memory[at])
                if answer is not None:
                    job.outcomes[at] = answer
                    job.left -= 1
                    tally[answer] += 1
            if count and not job.left:
                self._complete(job)
            self._changed.notify(THREADS)
        self._count(tally)

    def expire(self, now: float) -> None:
        """Answer what is past its deadline, with LATE for what has not come."""
        with self._mutex:
            late = [job for job in self._jobs.values() if job.deadline <= now]
            missing = sum(job.left for job in late)
            for job in late:
                self._complete(job)
        self._count(Counter({Answer.LATE: missing}))

    def replies(self) -> list[Reply]:
        with self._mutex:
            replies = list(self._replies)
            self._replies.clear()
        return replies

    def stop(self) -> None:
        """Let the threads end once their reads have."""
        with self._mutex:
            self._stopping = True
            self._changed.notify_all()

    # -- under the mutex -------------------------------------------------------------------------

    def _want(
        self,
        job: _Job,
        at: int,
        name: tuple[int, bytes],
        mark: int,
        hosts: tuple[int, ...],
        memory: bool,
    ) -> Answer | None:
        """An answer at once, or None: it will come."""
        wanted = self._wanted.get(name)
        if wanted is None:
            if not hosts:
                return Answer.MISSING
            if len(self._queue) >= _QUEUE_BLOCKS:
                return Answer.OVERLOADED
            wanted = self._wanted[name] = _Wanted(name, mark, hosts, memory)
            self._queue.append(wanted)
        wanted.jobs.append((job, at))
        job.outcomes[at] = Answer.LATE  # until something better is known
        return None

    def _complete(self, job: _Job) -> None:
        if self._jobs.pop(id(job), None) is not None:
            self._replies.append(Reply(job.peer, Done(job.request_id, bytes(job.outcomes))))
            self._answered()

    def _take(self) -> _Batch | None:
        """The next blocks to ask one peer for; waits for some. None: the end."""
        while not self._stopping:
            batch = self._gather(time.monotonic())
            if batch is not None:
                return batch
            # With something in the queue, all that could be asked are busy: look again when one is not.
            self._changed.wait(_IDLE_SECONDS if self._queue else None)
        return None

    def _gather(self, now: float) -> _Batch | None:
        batch: _Batch | None = None
        left: deque[_Wanted] = deque()
        busy: set[tuple[int, ...]] = set()
        tally: Counter[Answer] = Counter()
        while self._queue:
            wanted = self._queue.popleft()
            if wanted.deadline() <= now:  # expire() says so
                self._wanted.pop(wanted.name, None)
                continue
            if batch is None and wanted.hosts not in busy:
                peer, wait = self._known.choose(wanted.hosts, now)
                if peer is not None:
                    batch = _Batch(peer, wanted.name[0], [wanted], wanted.deadline())
                    continue
                if not wait:  # nobody is left to ask
                    tally[wanted.last] += self._settle(wanted, wanted.last)
                    continue
                busy.add(wanted.hosts)
            if (
                batch is not None
                and wanted.name[0] == batch.namespace_id
                and batch.peer.number in wanted.hosts
                and len(batch.wanted) < KEYS_MAX
            ):
                batch.wanted.append(wanted)
                batch.deadline = max(batch.deadline, wanted.deadline())
                continue
            left.append(wanted)
        self._queue = left
        self._count(tally)
        if batch is not None:
            self._known.started(batch.peer, now, batch.deadline - now)
        return batch

    def _settle(self, wanted: _Wanted, answer: Answer) -> int:
        """Tell all who wait for a block; how many waited still."""
        self._wanted.pop(wanted.name, None)
        told = 0
        if answer is Answer.LATE:  # expire() says so
            return 0
        for job, at in wanted.jobs:
            if id(job) not in self._jobs:  # answered: it was late
                continue
            job.outcomes[at] = answer
            job.left -= 1
            told += 1
            if not job.left:
                self._complete(job)
        return told

    # -- a thread's life ---------------------------------------------------------------------------

    def run(self) -> None:
        caller = Caller(self._context, self._pair, self._host_id)
        try:
            while True:
                with self._mutex:
                    batch = self._take()
                if batch is None:
                    return
                self._fetch(caller, batch)
        finally:
            caller.close()

    def _fetch(self, caller: Caller, batch: _Batch) -> None:
        peer, good, blocks = batch.peer, None, 0
        answers: list[Answer | None] = [Answer.FAILED] * len(batch.wanted)
        try:
            answers = self._ask(caller, batch)
            blocks = sum(answer is Answer.OK for answer in answers)
            good = True
        except _FetchError as failed:
            good = failed.good
            answers = [
                None if at in batch.later else failed.answer for at in range(len(batch.wanted))
            ]
            if peer.alive and good is not None:
                self._complaints.say(f"fetch {peer.number}", f"host {peer}: {failed}")
            if good is False:
                caller.drop(peer.target)
        finally:
            self._known.ended(peer, good=good, blocks=blocks)
            self._finish(batch, answers)

    def _ask(self, caller: Caller, batch: _Batch) -> list[Answer | None]:
        """PIN, read, RELEASE. An answer for each block, None for those to be asked for again. _FetchError for all at once."""
        peer = batch.peer
        fabric = next((self._fabrics[name] for name in self._fabrics if name in peer.offers), None)
        namespace = self._namespaces.of(batch.namespace_id)
        if fabric is None or namespace is None:
            raise _FetchError("it offers no fabric that we have", Answer.FAILED)
        started, booted = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
        seconds = batch.deadline - started
        if seconds <= 0:
            raise _FetchError("too late", Answer.LATE, good=None)
        introduced = self._introducer(caller, peer, fabric, batch.deadline)
        patience = min(seconds, _ANSWER_SECONDS)
        try:
            connection = peer.connection(fabric, introduced, started + patience)
        except (OSError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise _FetchError(f"no connection by {fabric.name}: {why}", Answer.FAILED) from error
        waits = not all(wanted.memory for wanted in batch.wanted)
        lease_seconds = min(seconds + 2 * _LEASE_MARGIN_SECONDS, _LEASE_SECONDS_MAX)
        pin = Pin(
            request_id=caller.number(),
            sender=self._host_id,
            incarnation=peer.incarnation,
            fingerprint=namespace.fingerprint,
            lease_ms=max(1, int(lease_seconds * 1000)),
            # The answer has to come in time, with what is there by then.
            wait_ms=min(LEASE_MS_MAX, int((seconds if waits else patience) * 800)),
            bytes_max=self._batch_bytes,
            fabric=fabric.name,
            keys=tuple(wanted.name[1] for wanted in batch.wanted),
        )
        answer = caller.ask(
            peer.target,
            pin,
            batch.deadline if waits else started + patience,
            lambda: peer.alive and not self._stopping,
        )
        pinned = self._pinned(peer, pin, answer)
        lease = _Lease(
            pinned=pinned,
            grant=Grant(pinned.lease_id, pinned.grant),
            ends=started + pinned.lease_ms / 1000 - _LEASE_MARGIN_SECONDS,
            boot_ends=booted + pinned.lease_ms / 1000 - _LEASE_MARGIN_SECONDS,
        )
        answers = self._missing(peer, batch, pinned)
        if pinned.lease_id:
            self._requeue(batch, pinned)
            try:
                self._read(caller, batch, lease, connection, answers)
            except BaseException:
                self._release(caller, peer, lease, wait=False)
                raise
        return answers

    def _introducer(
        self, caller: Caller, peer: Peer, fabric: Fabric, deadline: float
    ) -> Callable[[bytes], bytes]:
        def introduce(introduction: bytes) -> bytes:
            message = Introduce(
                request_id=caller.number(),
                sender=self._host_id,
                incarnation=peer.incarnation,
                fabric=fabric.name,
                introduction=introduction,
            )
            until = min(deadline, time.monotonic() + _ANSWER_SECONDS)
            answer = caller.ask(peer.target, message, until, lambda: peer.alive)
            if isinstance(answer, Introduced):
                return answer.answer
            self._check_refusal(peer, answer)
            raise ConnectionError(_said(answer))

        return introduce

    def _check_refusal(self, peer: Peer, answer: Message | Malformed | None) -> None:
        if isinstance(answer, Refused) and answer.reason == Reason.INCARNATION:
            self._suspect(peer, "another process answers at its address")

    def _pinned(self, peer: Peer, pin: Pin, answer: Message | Malformed | None) -> Pinned:
        """The answer, as far as it can be believed."""
        self._check_refusal(peer, answer)
        if isinstance(answer, Refused) and answer.reason == Reason.OVERLOADED:
            peer.load = 1000
            raise _FetchError(_said(answer), Answer.OVERLOADED, good=None)
        if not isinstance(answer, Pinned):
            raise _FetchError(_said(answer), Answer.FAILED)
        rows = answer.rows
        ours = rows["outcome"] == Outcome.OK
        sizes = rows["nbytes"]
        if (
            len(rows) != len(pin.keys)
            or bool(ours.any()) != bool(answer.lease_id)
            or bool((sizes > self._block_bytes_max).any())
            or int(sizes.sum(dtype=np.uint64)) > pin.bytes_max
        ):
            raise _FetchError("its answer does not fit the request", Answer.FAILED)
        peer.load = min(1000, answer.load)
        return answer

    def _missing(self, peer: Peer, batch: _Batch, pinned: Pinned) -> list[Answer | None]:
        """An answer for what is not pinned; its hints are forgotten where it is gone."""
        outcomes = pinned.rows["outcome"].tolist()
        gone = [
            batch.wanted[at].mark
            for at, outcome in enumerate(outcomes)
            if outcome == Outcome.MISSING
        ]
        if gone:
            self._table.remove(peer.number, np.array(gone, np.uint64))
        again = None if pinned.lease_id else Answer.OVERLOADED
        table: dict[int, Answer | None] = {
            Outcome.OK: Answer.FAILED,
            Outcome.MISSING: Answer.MISSING,
            Outcome.PENDING: Answer.MISSING,
            Outcome.NOT_NOW: again,
            Outcome.OVERLOADED: Answer.OVERLOADED,
        }
        return [table[outcome] for outcome in outcomes]

    def _requeue(self, batch: _Batch, pinned: Pinned) -> None:
        """What this lease has no room for is the next thread's, now."""
        later = np.flatnonzero(pinned.rows["outcome"] == Outcome.NOT_NOW)
        if len(later):
            batch.later.update(later.tolist())
            with self._mutex:
                self._queue.extendleft(batch.wanted[at] for at in reversed(later.tolist()))
                self._changed.notify(1)

    # -- one lease -----------------------------------------------------------------------------------

    def _read(
        self,
        caller: Caller,
        batch: _Batch,
        lease: _Lease,
        connection: Any,
        answers: list[Answer | None],
    ) -> None:
        rows = lease.pinned.rows
        handles = self._claim(batch, rows, answers)
        places = np.flatnonzero(handles)
        if not len(places):
            self._release(caller, batch.peer, lease, wait=False)
            return
        held = handles[places]
        offsets, _ = self._client.locate(held)
        addresses = offsets + np.uint64(self._region.payload_address)
        parts = [
            Part(offset, nbytes, address)
            for offset, nbytes, address in zip(
                rows["offset"][places].tolist(),
                rows["nbytes"][places].tolist(),
                addresses.tolist(),
                strict=True,
            )
        ]
        outcomes = connection.read(lease.grant, parts, min(batch.deadline, lease.ends))
        # From here on nothing is written into the claims.
        good = np.array([outcome is ReadOutcome.OK for outcome in outcomes], np.bool_)
        for place, outcome in zip(places.tolist(), outcomes, strict=True):
            if outcome is not ReadOutcome.OK:
                answers[place] = Answer.LATE if outcome is ReadOutcome.LATE else Answer.FAILED
        proven = self._prove(batch, lease, places, offsets, good)
        self._confirm(caller, batch.peer, lease, places, good, proven)
        if not good.all():
            self._client.abandon(held[~good])
        if good.any():
            self._keep_sums(lease, places[good], held[good])
            published = self._client.publish(held[good])
            done = published == _native.OK
            for place, fine in zip(places[good].tolist(), done.tolist(), strict=True):
                answers[place] = Answer.OK if fine else Answer.FAILED
            self._region.count("remote_fetched", int(done.sum()))
            self._region.count("remote_bytes_fetched", int(rows["nbytes"][places[good]].sum()))
        if ReadOutcome.FAILED in outcomes and not good.any():
            raise _FetchError("reading from it failed", Answer.FAILED)

    def _claim(self, batch: _Batch, rows: NDArray[Any], answers: list[Answer | None]) -> Words:
        """Memory for what is pinned there; 0 where there is none, or no need, and `answers` says why."""
        handles = np.zeros(len(rows), np.uint64)
        pinned = rows["outcome"] == Outcome.OK
        for nbytes in np.unique(rows["nbytes"][pinned]).tolist():
            places = np.flatnonzero(pinned & (rows["nbytes"] == nbytes))
            claimed, outcomes = self._client.claim(
                [batch.wanted[at].name[1] for at in places.tolist()], batch.namespace_id, nbytes
            )
            handles[places] = np.where(outcomes == _native.OK, claimed, 0)
            for at, outcome in zip(places.tolist(), outcomes.tolist(), strict=True):
                if outcome != _native.OK:
                    answers[at] = _CLAIMED.get(outcome, Answer.NO_SPACE)
        return handles

    def _prove(
        self,
        batch: _Batch,
        lease: _Lease,
        places: NDArray[np.int64],
        offsets: Words,
        good: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which blocks have the checksums that came with them; those that have others are not `good` any more."""
        rows, sums = lease.pinned.rows, sums_of(lease.pinned)
        proven = np.zeros(len(places), np.bool_)
        for at, (place, offset) in enumerate(zip(places.tolist(), offsets.tolist(), strict=True)):
            expected = sums[place]
            if not good[at] or not expected:
                continue
            nbytes = int(rows["sum_bytes"][place])
            found = [
                payload_sum(self._region.payload(offset + part * nbytes, nbytes))
                for part in range(len(expected))
            ]
            proven[at] = found == list(expected)
            if not proven[at]:
                good[at] = False
                self._region.count("remote_damaged")
                self._table.remove(
                    batch.peer.number, np.array([batch.wanted[place].mark], np.uint64)
                )
                self._complaints.say(
                    f"damaged {batch.peer.number}",
                    f"host {batch.peer}: block {batch.wanted[place].name[1].hex()} came with other bytes than "
                    "were stored: dropped, which costs a miss",
                )
        return proven

    def _confirm(
        self,
        caller: Caller,
        peer: Peer,
        lease: _Lease,
        places: NDArray[np.int64],
        good: NDArray[np.bool_],
        proven: NDArray[np.bool_],
    ) -> None:
        """Give the lease back. Blocks without checksums are good only when it held until after the read."""
        unproven = good & ~proven
        if not unproven.any():
            self._release(caller, peer, lease, wait=False)
            return
        in_time = (
            time.monotonic() < lease.ends
            and time.clock_gettime(time.CLOCK_BOOTTIME) < lease.boot_ends
        )
        released = self._release(caller, peer, lease, wait=in_time)
        pinned = np.flatnonzero(lease.pinned.rows["outcome"] == Outcome.OK)
        if released is None or not released.intact or len(released.held) != len(pinned):
            good &= proven
            return
        held = np.zeros(len(lease.pinned.rows), np.bool_)
        held[pinned] = np.frombuffer(released.held, np.uint8) == 1
        good &= proven | held[places]

    def _release(self, caller: Caller, peer: Peer, lease: _Lease, *, wait: bool) -> Released | None:
        release = Release(
            request_id=caller.number(),
            sender=self._host_id,
            incarnation=peer.incarnation,
            lease_id=lease.grant.lease_id,
        )
        if not wait:
            caller.tell(peer.target, release)
            return None
        until = min(lease.ends, time.monotonic() + _RELEASE_SECONDS)
        answer = caller.ask(peer.target, release, until, lambda: peer.alive)
        if isinstance(answer, Released) and answer.lease_id == release.lease_id:
            return answer
        return None

    def _keep_sums(self, lease: _Lease, places: NDArray[np.int64], handles: Words) -> None:
        """Blocks that came with checksums of their parts have them here too."""
        rows, sums = lease.pinned.rows, sums_of(lease.pinned)
        counts, sizes = rows["sum_count"][places], rows["sum_bytes"][places]
        for count, nbytes in set(zip(counts.tolist(), sizes.tolist(), strict=True)):
            if not count:
                continue
            mine = np.flatnonzero((counts == count) & (sizes == nbytes))
            for part in range(count):
                values = np.array([sums[places[at]][part] for at in mine.tolist()], np.uint64)
                _native.write_sums(
                    self._region,
                    handles[mine],
                    values,
                    part=part,
                    part_count=count,
                    part_bytes=nbytes,
                )

    # -- afterwards ----------------------------------------------------------------------------------

    def _finish(self, batch: _Batch, answers: Sequence[Answer | None]) -> None:
        """Answer, or ask another host that has it."""
        now = time.monotonic()
        tally: Counter[Answer] = Counter()
        with self._mutex:
            for wanted, answer in zip(batch.wanted, answers, strict=True):
                if answer is None:  # in the queue already
                    continue
                wanted.hosts = tuple(n for n in wanted.hosts if n != batch.peer.number)
                elsewhere = answer in (Answer.MISSING, Answer.FAILED, Answer.OVERLOADED)
                if elsewhere and wanted.deadline() > now and not self._stopping:
                    wanted.last = answer
                    self._queue.append(wanted)
                    continue
                late = answer is Answer.LATE and wanted.deadline() <= now
                # Late for who asked first, not for somebody who asked meanwhile.
                final = Answer.FAILED if answer is Answer.LATE and not late else answer
                tally[final] += self._settle(wanted, final)
            self._changed.notify_all()
        self._count(tally)

    def _hosts_of(self, request: Promote) -> tuple[list[int], list[tuple[int, ...]], list[bool]]:
        """For each key its hash among hosts, who has it, and whether all of them have it in memory."""
        count = len(request.keys)
        nothing: tuple[list[int], list[tuple[int, ...]], list[bool]] = (
            [0] * count,
            [()] * count,
            [False] * count,
        )
        if request.region_id != self._region_id:
            return nothing
        try:
            marks = _native.remote_hashes(self._region, request.keys, request.namespace_id)
        except ValueError:  # no such namespace
            return nothing
        numbers, tiers = self._table.find(marks)
        hosts = [tuple(n for n in row if n >= 0) for row in numbers.tolist()]
        memory = ((tiers & _native.TIER_MEMORY != 0) | (numbers < 0)).all(axis=1).tolist()
        return marks.tolist(), hosts, memory

    def _count(self, tally: Counter[Answer]) -> None:
        for answer, counter in _COUNTED.items():
            if tally[answer]:
                self._region.count(counter, tally[answer])


@dataclass(frozen=True, slots=True)
class _Lease:
    """A lease as its reader sees it: when it must be over by each of our clocks, counted from before it was asked for."""

    pinned: Pinned
    grant: Grant
    ends: float
    boot_ends: float


def _said(answer: Message | Malformed | None) -> str:
    if answer is None:
        return "it did not answer in time"
    if isinstance(answer, Refused):
        return f"it refused: {answer.text}"
    if isinstance(answer, Malformed):
        return f"it sent what cannot be understood: {answer.reason}"
    return f"it answered with a {type(answer).__name__}"
