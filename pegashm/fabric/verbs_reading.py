"""The reading side: how do a lease's blocks get from a peer's payload into blocks claimed here?

A connection has a queue pair on each rail (a device here and one there); a grant says which rail and which key opens which
span. Every part becomes one READ or, across chunks, a few; they are posted in chains and their completions polled by
whichever thread is reading just then, for all. Work requests are made once and used again: pyverbs never frees one.

The promise of `interface.py`: a read that ends early, by its deadline or by any failure, first ends every queue pair of the
connection. That fails the connection's other reads too; the next `connect` makes new ones.
Called by the transport worker's fetching threads, several at once.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from pegashm.errors import ResourceError
from pegashm.fabric.interface import Connection, Grant, Part, ReadOutcome
from pegashm.fabric.verbs_memory import Chunks
from pegashm.fabric.verbs_names import SGE, PyverbsError, SendWR, e
from pegashm.fabric.verbs_queue import Queue, status_text
from pegashm.fabric.verbs_wire import Row, parse_grant
from pegashm.logs import tell
from pegashm.notices import RDMA_CONNECTION_ENDED, RDMA_TROUBLE

__all__ = ["Rail", "VerbsConnection"]


_DRAIN_SECONDS: Final = 0.05
# A few READs: poll this often at once (64 KiB take 10 us on a fast network), then with short sleeps between, which last
# about 75 us. Many: sleep while about half of those under way arrive; the device has the other half to go on with.
_EAGER_POLLS: Final = 50
_FEW: Final = 4
_NAP_SECONDS: Final = 20e-6
_NAP_SECONDS_MAX: Final = 1e-3
_SMOOTHING: Final = 0.2
# New requests are posted when so many places are free: fewer calls, longer chains.
_REFILL: Final = 16


# One READ: part, rail, address here, its key, bytes, address there, its key. A plain tuple: there are many.
_Piece = tuple[int, int, int, int, int, int, int]


class _Reading:
    """One call of `read`: which parts are not cut into READs yet, which READs are not posted yet, what is still to come."""

    __slots__ = (
        "cut",
        "missing",
        "outcomes",
        "parts",
        "pending",
        "rows",
        "starts",
        "under_way",
        "unfinished",
    )

    def __init__(self, parts: Sequence[Part], rows: Sequence[Row], rails: int) -> None:
        self.parts = parts
        self.rows = rows
        self.starts = [row.offset for row in rows]
        self.outcomes: list[ReadOutcome | None] = [None] * len(parts)
        self.missing = [0] * len(parts)  # READs of each part that have not arrived
        self.cut = 0  # parts
        self.pending: list[deque[_Piece]] = [deque() for _ in range(rails)]
        self.under_way = 0  # READs
        self.unfinished = len(parts)

    def arrived(self, part: int) -> None:
        self.under_way -= 1
        self.missing[part] -= 1
        if not self.missing[part]:
            self.finish(part, ReadOutcome.OK)

    def finish(self, part: int, outcome: ReadOutcome) -> None:
        self.outcomes[part] = outcome
        self.unfinished -= 1


class Rail:
    """A queue pair and its work requests: a ring, since they complete in the order in which they were posted."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.depth: int = queue.depth
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

    def post(self, reading: _Reading, pieces: deque[_Piece], count: int) -> None:
        """Post the first `count` of the pieces in one chain. PyverbsError: none of them may be counted on."""
        first = before = None
        last = self.posted + count - 1
        reading.under_way += count
        while self.posted <= last:
            part, _, address, key, nbytes, remote, rkey = pieces.popleft()
            place = self.posted % self.depth
            sge = self._sges[place]
            sge.addr = address
            sge.length = nbytes
            sge.lkey = key
            request = self._last[place] if self.posted == last else self._linked[place]
            request.set_wr_rdma(rkey, remote)
            if before is None:
                first = request
            else:
                before.next_wr = request
            before = request
            self.owners[place] = (reading, part)
            self.posted += 1
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
            landing = device.landing
            reading = _Reading([Part(0, len(expected), landing.buf)], (), 0)
            reading.missing[0] = 1
            piece = (0, 0, landing.buf, landing.lkey, len(expected), address, rkey)
            try:
                self.post(reading, deque([piece]), 1)
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
        self._interval = _NAP_SECONDS  # between two arrivals, lately
        self._arrived_at = 0.0
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
        try:
            rows = parse_grant(
                grant.opaque,
                grant.lease_id,
                connection=self.number,
                most=self._grant_bytes_max,
            )
        except ValueError as error:
            tell(RDMA_TROUBLE, "verbs: nothing is read under lease %d: %s", grant.lease_id, error)
            return [ReadOutcome.FAILED] * len(parts)
        reading = _Reading(parts, rows, len(self._rails))
        late = self._carry_out(reading, deadline)
        rest = ReadOutcome.LATE if late else ReadOutcome.FAILED
        return [rest if outcome is None else outcome for outcome in reading.outcomes]

    def close(self) -> None:
        with self._turn:
            self._break("it was closed")

    # -- one read ----------------------------------------------------------------------------------

    def _cut(self, reading: _Reading) -> None:
        """Make READs of the next part. One that the grant does not cover, or with no block of ours to go to, is FAILED."""
        number = reading.cut
        reading.cut += 1
        part = reading.parts[number]
        pieces = self._pieces(reading, number, part)
        if not pieces:
            reading.finish(number, ReadOutcome.FAILED)
            return
        reading.missing[number] = len(pieces)
        for piece in pieces:
            reading.pending[piece[1]].append(piece)

    def _pieces(self, reading: _Reading, number: int, part: Part) -> list[_Piece]:
        offset, nbytes, address = part
        end = offset + nbytes
        to = address - self._payload_address
        if not (self._chunks.covers(to, nbytes) and 0 <= offset and end <= self._remote_bytes):
            return []
        found: list[_Piece] = []
        at = bisect_right(reading.starts, offset) - 1
        while offset < end:
            if not 0 <= at < len(reading.rows):
                return []
            start, length, rail, rkey = reading.rows[at]
            stop = min(end, start + length)
            if not start <= offset < stop or rail >= len(self._rails):
                return []
            device = self._rails[rail].queue.device
            there = self._remote_address + offset - to
            for chunk, here, count in self._chunks.pieces(to, stop - offset):
                key = device.region(chunk).lkey
                found.append(
                    (number, rail, self._payload_address + here, key, count, there + here, rkey)
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
                    except (PyverbsError, ResourceError, ValueError) as error:
                        self._break(str(error))
                        return False
                    now = time.monotonic()
                    if reading.unfinished and now >= deadline:
                        if reading.under_way:
                            self._break("the deadline of a read passed")
                        return True
                    under_way = sum(rail.under_way for rail in self._rails)
                    if arrived:
                        each = min((now - self._arrived_at) / arrived, _NAP_SECONDS_MAX)
                        self._interval += (each - self._interval) * _SMOOTHING
                        self._arrived_at = now
                idle = 0 if arrived else idle + 1
                if under_way > _FEW:
                    half = self._interval * under_way / 2
                    time.sleep(min(max(half, _NAP_SECONDS), _NAP_SECONDS_MAX))
                elif idle > _EAGER_POLLS:
                    time.sleep(min(_NAP_SECONDS * (idle / _EAGER_POLLS), _NAP_SECONDS_MAX))
                elif len(self._readings) > 1:
                    time.sleep(0)
        finally:
            with self._turn:
                self._readings.discard(reading)
        return False

    def _advance(self, reading: _Reading) -> int:
        """Post what there is room for, and see what has arrived, whoever it is for; how many READs."""
        room = max(1, self._rails[0].depth // len(self._readings)) - reading.under_way
        waiting = len(reading.parts) - reading.cut + sum(map(len, reading.pending))
        if waiting and room >= min(_REFILL, waiting):
            for _ in range(room):
                if reading.cut < len(reading.parts):
                    self._cut(reading)
            for rail, pending in zip(self._rails, reading.pending, strict=True):
                count = min(rail.free, room, len(pending))
                if count > 0:
                    if not rail.under_way:
                        self._arrived_at = time.monotonic()
                    rail.post(reading, pending, count)
                    room -= count
        arrived = 0
        for rail in self._rails:
            if rail.under_way:
                arrived += rail.poll()
        return arrived

    def _break(self, why: str) -> None:
        """End every queue pair, and count what had arrived before. The caller holds the lock."""
        if self._broken:
            return
        self._broken = True
        tell(RDMA_CONNECTION_ENDED, "verbs: connection %x ends: %s", self.number, why)
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
