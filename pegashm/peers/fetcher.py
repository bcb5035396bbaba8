"""How do blocks come from other hosts into memory? Requests in, claimed and verified blocks out, answers at the end.

The worker's main thread submits requests and collects answers, as with the promoter. A few threads take what waits: as
many blocks of one namespace as one peer has are one batch, which `fetching` carries out; what the peer's lease has no room
for goes back to the front for the next thread, so that asking and reading overlap. Where a block did not come, another host
that has it is asked, if there is one and time left.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import zmq
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.fabric.interface import Fabric
from pegashm.logs import tell
from pegashm.notices import PEER_FETCH_FAILED
from pegashm.peers.caller import Caller
from pegashm.peers.fetching import FetchError, Fetching
from pegashm.peers.keys import KeyPair
from pegashm.peers.known import Known, Peer
from pegashm.peers.messages import KEYS_MAX
from pegashm.peers.wanted import Batch, Job, Wanted
from pegashm.transport.messages import Answer, Done, Promote
from pegashm.transport.namespaces import Namespaces
from pegashm.transport.promoter import Reply

__all__ = ["THREADS", "Fetcher"]

THREADS: Final = 4
_QUEUE_BLOCKS: Final = 16384
_JOBS_MAX: Final = 4096
_IDLE_SECONDS: Final = 0.1

_COUNTED: Final = {
    Answer.MISSING: "remote_missing",
    Answer.FAILED: "remote_failed",
    Answer.OVERLOADED: "remote_refused",
    Answer.NO_SPACE: "remote_refused",
    Answer.LATE: "remote_late",
}
# Another host may give what this one did not.
_ASK_ANOTHER: Final = (Answer.MISSING, Answer.FAILED, Answer.OVERLOADED, Answer.DAMAGED)

Words = NDArray[np.uint64]


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
        self._table = table
        self._known = known
        self._context = context
        self._pair = pair
        self._host_id = host_id
        self._answered = answered
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._queue: deque[Wanted] = deque()
        self._wanted: dict[tuple[int, bytes], Wanted] = {}
        self._jobs: dict[int, Job] = {}
        self._replies: deque[Reply] = deque()
        self._stopping = False
        self._fetching = Fetching(
            cache,
            namespaces,
            table,
            fabrics,
            host_id=host_id,
            again=self._put_back,
            suspect=suspect,
            stopping=lambda: self._stopping,
        )

    # -- main thread -----------------------------------------------------------------------------

    def submit(self, peer: bytes, request: Promote) -> None:
        """Take a request. Its answer can be collected at once, or later, but always."""
        count = len(request.keys)
        job = Job(
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
        job: Job,
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
            wanted = self._wanted[name] = Wanted(name, mark, hosts, memory)
            self._queue.append(wanted)
        wanted.jobs.append((job, at))
        job.outcomes[at] = Answer.LATE  # until something better is known
        return None

    def _complete(self, job: Job) -> None:
        if self._jobs.pop(id(job), None) is not None:
            self._replies.append(Reply(job.peer, Done(job.request_id, bytes(job.outcomes))))
            self._answered()

    def _take(self) -> Batch | None:
        """The next blocks to ask one peer for; waits for some. None: the end."""
        while not self._stopping:
            batch = self._gather(time.monotonic())
            if batch is not None:
                return batch
            # With something in the queue, all that could be asked are busy: look again when one is not.
            self._changed.wait(_IDLE_SECONDS if self._queue else None)
        return None

    def _gather(self, now: float) -> Batch | None:
        batch: Batch | None = None
        left: deque[Wanted] = deque()
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
                    batch = Batch(peer, wanted.name[0], [wanted], wanted.deadline())
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

    def _settle(self, wanted: Wanted, answer: Answer) -> int:
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

    def _fetch(self, caller: Caller, batch: Batch) -> None:
        peer, good, blocks = batch.peer, None, 0
        answers: list[Answer | None] = [Answer.FAILED] * len(batch.wanted)
        try:
            answers = self._fetching.carry_out(caller, batch)
            blocks = sum(answer is Answer.OK for answer in answers)
            good = True
        except FetchError as failed:
            good = failed.good
            answers = [
                None if at in batch.later else failed.answer for at in range(len(batch.wanted))
            ]
            if peer.alive and good is not None:
                tell(
                    PEER_FETCH_FAILED,
                    "host %s: %s",
                    peer,
                    failed,
                    subject=peer.number,
                    host_id=peer.host_id.hex(),
                )
            if good is False:
                caller.drop(peer.target)
        finally:
            self._known.ended(peer, good=good, blocks=blocks)
            self._finish(batch, answers)

    def _put_back(self, wanted: Sequence[Wanted]) -> None:
        """They are the next thread's, now. Takes the mutex."""
        with self._mutex:
            self._queue.extendleft(reversed(wanted))
            self._changed.notify(1)

    # -- afterwards ----------------------------------------------------------------------------------

    def _finish(self, batch: Batch, answers: Sequence[Answer | None]) -> None:
        """Answer, or ask another host that has it."""
        now = time.monotonic()
        tally: Counter[Answer] = Counter()
        with self._mutex:
            for wanted, answer in zip(batch.wanted, answers, strict=True):
                if answer is None:  # in the queue already
                    continue
                wanted.hosts = tuple(n for n in wanted.hosts if n != batch.peer.number)
                elsewhere = answer in _ASK_ANOTHER
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
