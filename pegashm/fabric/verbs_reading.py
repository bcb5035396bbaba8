"""The reading side: how do a lease's blocks get from a peer's payload into blocks claimed here?

A connection has a queue pair on each rail (a device here and one there); a grant says which rail and which key opens which
span. Every part becomes one READ or, across chunks, a few; they are posted in chains and their completions polled by
whichever thread is reading just then, for all. Work requests are made once and used again: pyverbs never frees one.

The promise of `interface.py`: a read that ends early, by its deadline or by any failure, first ends every queue pair of the
connection. That fails the connection's other reads too; the next `connect` makes new ones.
Called by the transport worker's fetching threads, several at once.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from pegashm.errors import ResourceError
from pegashm.fabric.interface import Connection, Grant, Part, ReadOutcome
from pegashm.fabric.verbs_memory import Chunks
from pegashm.fabric.verbs_names import SGE, PyverbsError, SendWR, e
from pegashm.fabric.verbs_queue import Queue, status_text
from pegashm.fabric.verbs_wire import Row, parse_grant

__all__ = ["Rail", "VerbsConnection"]

_log: Final = logging.getLogger(__name__)

_DRAIN_SECONDS: Final = 0.05
# Polling: this often at once, then with sleeps between. A READ of 64 KiB takes 10 us on a fast network, and
# a sleep of 20 us lasts about 75.
_EAGER_POLLS: Final = 50
_NAP_SECONDS: Final = 20e-6
_LONG_NAP_SECONDS: Final = 200e-6
_EAGER_NAPS: Final = 200
# New requests are posted when so many places are free: fewer calls, longer chains.
_REFILL: Final = 8


class _Piece(NamedTuple):
    """One READ."""

    part: int
    rail: int
    address: int
    key: int
    nbytes: int
    remote: int
    rkey: int


class _Reading:
    """One call of `read`: what is still to be posted, what is still to come."""

    __slots__ = ("missing", "outcomes", "pending", "under_way", "unfinished")

    def __init__(self, count: int) -> None:
        self.outcomes: list[ReadOutcome | None] = [None] * count
        self.missing = [0] * count  # pieces of each part that have not arrived
        self.pending: list[list[_Piece]] = []  # by rail, last first
        self.under_way = 0
        self.unfinished = 0  # pieces

    def arrived(self, part: int) -> None:
        self.under_way -= 1
        self.unfinished -= 1
        self.missing[part] -= 1
        if not self.missing[part] and self.outcomes[part] is None:
            self.outcomes[part] = ReadOutcome.OK


class Rail:
    """A queue pair and its work requests: a ring, since they complete in the order in which they were posted."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.depth = queue.depth
        self.posted = 0
        self.done = 0
        self.owners: list[tuple[_Reading, int] | None] = [None] * self.depth
        # Each place has a request that leads to the next one's and one that ends a chain: a link cannot be undone.
        self._sges = [SGE(0, 0, 0) for _ in range(self.depth)]
        self._linked = [self._request(sge) for sge in self._sges]
        self._last = [self._request(sge) for sge in self._sges]

    @staticmethod
    def _request(sge: Any) -> Any:
        request = SendWR(opcode=e.IBV_WR_RDMA_READ, num_sge=1, sg=[sge])
        request.close()  # frees its copy of the sge, and nothing else
        request.sg_list = sge  # shared from now on, so that a change there is one here
        return request

    @property
    def under_way(self) -> int:
        return self.posted - self.done

    @property
    def free(self) -> int:
        return self.depth - self.under_way

    def post(self, reading: _Reading, pieces: list[_Piece], count: int) -> None:
        """Post the last `count` of the pieces, last first, in one chain. PyverbsError: none of them may be counted on."""
        first = before = None
        for n in range(count):
            piece = pieces.pop()
            place = self.posted % self.depth
            self.posted += 1
            self.owners[place] = (reading, piece.part)
            sge = self._sges[place]
            sge.addr = piece.address
            sge.length = piece.nbytes
            sge.lkey = piece.key
            request = self._last[place] if n == count - 1 else self._linked[place]
            request.set_wr_rdma(piece.rkey, piece.remote)
            if before is None:
                first = request
            else:
                before.next_wr = request
            before = request
        reading.under_way += count
        self.queue.post(first)

    def poll(self) -> int:
        """Completions so far of the rail's requests; how many came. A ValueError names the error of a failed one."""
        completions = self.queue.poll()
        for completion in completions:
            if completion.status:
                raise ValueError(status_text(completion.status))
            place = self.done % self.depth
            self.done += 1
            owner = self.owners[place]
            self.owners[place] = None
            assert owner is not None
            owner[0].arrived(owner[1])
        return len(completions)

    def probe(self, address: int, rkey: int, expected: bytes, deadline: float) -> str | None:
        """Read the peer's name over this rail; what went wrong, None if it is the one expected."""
        device = self.queue.device
        with device.probing():
            reading = _Reading(1)
            reading.missing[0] = reading.unfinished = 1
            landing = device.landing
            piece = _Piece(0, 0, landing.buf, landing.lkey, len(expected), address, rkey)
            try:
                self.post(reading, [piece], 1)
                while not self.poll():
                    if time.monotonic() > deadline:
                        self.queue.close()
                        return "no answer within the deadline"
                    time.sleep(_NAP_SECONDS)
            except (PyverbsError, ValueError) as error:
                self.queue.close()
                return str(error)
            if device.probe_landing() != expected:
                return "another peer answered than the one that was introduced"
        return None

    def close(self) -> None:
        self.queue.close()
        for sge in self._sges:
            sge.close()  # pyverbs frees it only when told to, and twice when told twice
        self._sges = []


class VerbsConnection(Connection):
    """See `interface.Connection`."""

    def __init__(
        self,
        *,
        number: int,
        rails: Sequence[Rail],
        chunks: Chunks,
        payload_address: int,
        remote_address: int,
        remote_bytes: int,
        grant_bytes_max: int,
        on_end: Callable[[VerbsConnection], None],
    ) -> None:
        self.number = number
        self._rails = list(rails)
        self._chunks = chunks
        self._payload_address = payload_address
        self._remote_address = remote_address
        self._remote_bytes = remote_bytes
        self._grant_bytes_max = grant_bytes_max
        self._on_end = on_end
        self._turn = threading.Lock()
        self._readings: set[_Reading] = set()
        self._broken = False

    @property
    def broken(self) -> bool:
        return self._broken

    def read(self, grant: Grant, parts: Sequence[Part], deadline: float) -> list[ReadOutcome]:
        if not parts:
            return []
        if time.monotonic() >= deadline:
            return [ReadOutcome.LATE] * len(parts)
        if self._broken:
            return [ReadOutcome.FAILED] * len(parts)
        reading = _Reading(len(parts))
        try:
            rows = parse_grant(
                grant.opaque,
                grant.lease_id,
                connection=self.number,
                most=self._grant_bytes_max,
            )
            self._cut(reading, rows, parts)
        except (ValueError, ResourceError) as error:
            _log.warning("verbs: nothing is read under lease %d: %s", grant.lease_id, error)
            return [ReadOutcome.FAILED] * len(parts)
        late = self._carry_out(reading, deadline)
        rest = ReadOutcome.LATE if late else ReadOutcome.FAILED
        return [rest if outcome is None else outcome for outcome in reading.outcomes]

    def close(self) -> None:
        with self._turn:
            self._break("it was closed")

    # -- one read ----------------------------------------------------------------------------------

    def _cut(self, reading: _Reading, rows: Sequence[Row], parts: Sequence[Part]) -> None:
        """Make pieces of all parts. One that the grant does not cover, or with no block of ours to go to, is FAILED."""
        starts = [row.offset for row in rows]
        by_rail: list[list[_Piece]] = [[] for _ in self._rails]
        for number, part in enumerate(parts):
            to = part.address - self._payload_address
            if part.nbytes > 0 and self._chunks.covers(to, part.nbytes):
                pieces = self._pieces(number, part, to, rows, starts)
            else:
                pieces = None
            if pieces is None:
                reading.outcomes[number] = ReadOutcome.FAILED
                continue
            reading.missing[number] = len(pieces)
            reading.unfinished += len(pieces)
            for piece in pieces:
                by_rail[piece.rail].append(piece)
        for of_rail in by_rail:
            of_rail.reverse()
        reading.pending = by_rail

    def _pieces(
        self, number: int, part: Part, to: int, rows: Sequence[Row], starts: Sequence[int]
    ) -> list[_Piece] | None:
        offset, end = part.offset, part.offset + part.nbytes
        if offset < 0 or end > self._remote_bytes:
            return None
        found = []
        at = bisect_right(starts, offset) - 1
        while offset < end:
            if not 0 <= at < len(rows):
                return None
            row = rows[at]
            stop = min(end, row.offset + row.nbytes)
            if not row.offset <= offset < stop or row.rail >= len(self._rails):
                return None
            device = self._rails[row.rail].queue.device
            for chunk, here, nbytes in self._chunks.pieces(to, stop - offset):
                found.append(
                    _Piece(
                        number,
                        row.rail,
                        self._payload_address + here,
                        device.region(chunk).lkey,
                        nbytes,
                        self._remote_address + offset + here - to,
                        row.rkey,
                    )
                )
            to += stop - offset
            offset = stop
            at += 1
        return found

    def _carry_out(self, reading: _Reading, deadline: float) -> bool:
        """Post and poll until all has arrived; whether the deadline came first. After a failure nothing is under way."""
        idle = 0
        with self._turn:
            self._readings.add(reading)
        try:
            while reading.unfinished:
                with self._turn:
                    if self._broken:
                        return False
                    try:
                        arrived = self._advance(reading)
                    except (PyverbsError, ValueError) as error:
                        self._break(str(error))
                        return False
                    if reading.unfinished and time.monotonic() >= deadline:
                        if reading.under_way:
                            self._break("the deadline of a read passed")
                        return True
                idle = 0 if arrived else idle + 1
                if idle > _EAGER_POLLS:
                    napped = idle - _EAGER_POLLS
                    time.sleep(_NAP_SECONDS if napped < _EAGER_NAPS else _LONG_NAP_SECONDS)
                elif len(self._readings) > 1:
                    time.sleep(0)
        finally:
            with self._turn:
                self._readings.discard(reading)
        return False

    def _advance(self, reading: _Reading) -> int:
        share = max(1, self._rails[0].depth // len(self._readings))
        arrived = 0
        for rail, pending in zip(self._rails, reading.pending, strict=True):
            if pending:
                count = min(rail.free, share - reading.under_way, len(pending))
                if count >= min(_REFILL, share, len(pending)):
                    rail.post(reading, pending, count)
            if rail.under_way:
                arrived += rail.poll()
        return arrived

    def _break(self, why: str) -> None:
        """End every queue pair, and count what had arrived before. The caller holds the lock."""
        if self._broken:
            return
        self._broken = True
        _log.info("verbs: connection %x ends: %s", self.number, why)
        for rail in self._rails:
            rail.queue.fail()
        until = time.monotonic() + _DRAIN_SECONDS
        for rail in self._rails:
            try:
                while rail.under_way and time.monotonic() < until:
                    if not rail.poll():
                        time.sleep(_NAP_SECONDS)
            except (PyverbsError, ValueError):
                pass  # the first that did not arrive: nor did any after it
        for rail in self._rails:
            rail.close()
        self._on_end(self)
