"""What do the other hosts hold? All their streams, followed into the table of hints that every lookup here reads.

A thread of the transport worker with a SUB socket for each host, so that what a host says counts for itself alone,
whatever it claims to be. A host's hints count from its first snapshot on, while it is heard; after five seconds of silence they do
not, and do again as soon as it speaks. When it leaves they count no more at once; they are swept out of the table a
little later, and until then nobody else gets its number.

`peers` is whoever knows the hosts, and carries requests for snapshots and their chunks: it calls from its own thread
what stands under "for who knows the hosts", none of which waits. Writes nothing but the table.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import zmq

from pegashm import _native
from pegashm.directory.messages import (
    DELTA_BYTES_MAX,
    Chunk,
    Malformed,
    parse_chunk,
    parse_delta,
)
from pegashm.directory.stream import Stream
from pegashm.logs import tell
from pegashm.notices import PEER_MESSAGE_BAD, PEER_NOT_HEARD

__all__ = ["Follower", "Host"]

SILENCE_SECONDS: Final = 5.0
_POLL_MS: Final = 250
_LOOK_SECONDS: Final = 0.25
_SWEEP_SECONDS: Final = 1.0
_TELL_SECONDS: Final = 2.0
_MESSAGES_AT_ONCE: Final = 64
_QUEUE_MESSAGES: Final = 1024
# Asking so many sockets what they have takes longer than a message: let some come together first.
_MANY_HOSTS: Final = 16
_GATHER_SECONDS: Final = 0.02
_SNAPSHOTS_AT_ONCE: Final = 4
_CHUNKS_WAITING_MAX: Final = 64
_BAD_MAX: Final = 100


class Host(Protocol):
    """One life of another host, as far as it matters here."""

    @property
    def number(self) -> int: ...
    @property
    def host_id(self) -> bytes: ...
    @property
    def incarnation(self) -> bytes: ...
    @property
    def stream(self) -> str:
        """Where it publishes: an endpoint. Empty: it does not."""


@dataclass(slots=True, eq=False)
class _Followed:
    """`gone`: it left. `usable`: lookups see its hints. Both only under the follower's mutex."""

    host: Host
    stream: Stream
    socket: zmq.Socket[bytes] | None = None
    gone: bool = False
    usable: bool = False
    bad: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk that has come and was not applied yet."""

    followed: _Followed
    place: int
    last: bool
    body: bytes


class Follower:
    """`run` is the life of its thread; `stop` ends it."""

    def __init__(
        self,
        region: _native.Region,
        table: _native.RemoteTable,
        context: zmq.Context[zmq.Socket[bytes]],
        configure: Callable[[zmq.Socket[bytes], Host], None],
    ) -> None:
        """`table`: cleared already. `configure`: security of the socket that connects to a host's stream."""
        self._region = region
        self._table = table
        self._context = context
        self._configure = configure
        self._mutex = threading.Lock()
        self._hosts: dict[int, _Followed] = {}
        self._retired: frozenset[int] = frozenset()
        self._come: deque[_Followed] = deque()
        self._pieces: deque[_Piece] = deque()
        self._wanted: tuple[int, ...] = ()
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._followed: dict[zmq.Socket[bytes], _Followed] = {}
        self._look_at = self._tell_at = self._sweep_at = 0.0
        self._displaced = 0

    # -- for who knows the hosts ---------------------------------------------------------------------

    def reserved(self) -> set[int]:
        """Numbers whose hints are still in the table: for nobody else."""
        return set(self._retired)

    def joined(self, host: Host) -> None:
        """Follow it. Its number is free: of no other host, and not reserved."""
        followed = _Followed(host, Stream(self._table, host.number, time.monotonic()))
        with self._mutex:
            self._hosts[host.number] = followed
        self._come.append(followed)
        self._wake()

    def left(self, host: Host) -> None:
        """It is gone: its hints count no more when this returns."""
        with self._mutex:
            followed = self._hosts.get(host.number)
            if followed is None or followed.host.incarnation != host.incarnation:
                return
            del self._hosts[host.number]
            followed.gone = True
            self._table.set_usable(host.number, usable=False)
            self._retired |= {host.number}
        self._wake()

    def snapshots_wanted(self) -> list[int]:
        """Numbers of hosts to be asked for a snapshot now; each is named once, until it is time to ask again."""
        wanted, self._wanted = self._wanted, ()
        return list(wanted)

    def chunk(self, host: Host, number: int, *, last: bool, body: bytes) -> None:
        """A piece of a snapshot of this host, in order from 0."""
        with self._mutex:
            followed = self._hosts.get(host.number)
        if followed is not None and len(self._pieces) < _CHUNKS_WAITING_MAX:
            self._pieces.append(_Piece(followed, number, last, body))
            self._wake()

    # -- its thread ----------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._go_on(dict(self._poller.poll(_POLL_MS)))
                if len(self._followed) > _MANY_HOSTS:
                    self._stopping.wait(_GATHER_SECONDS)
        finally:
            self._table.set_none_usable()
            for followed in tuple(self._followed.values()):
                self._leave(followed)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def stop(self) -> None:
        self._stopping.set()
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: it has ended
            os.write(self._wake_write, b"\0")

    def _go_on(self, ready: dict[object, int]) -> None:
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        while self._come:
            self._follow(self._come.popleft())
        events = 0
        for source in ready:
            followed = self._followed.get(source) if isinstance(source, zmq.Socket) else None
            if followed is not None:
                events += self._hear(followed)
        if events:
            self._region.count("remote_events_received", events)
        while self._pieces:
            self._take(self._pieces.popleft())
        now = time.monotonic()
        if now >= self._look_at or self._wake_read in ready:
            self._look_at = now + _LOOK_SECONDS
            self._look(now)
        if now >= self._tell_at:
            self._tell_at = now + _TELL_SECONDS
            self._tell(now)

    def _follow(self, followed: _Followed) -> None:
        host = followed.host
        if followed.gone or not host.stream:
            return
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
        socket.setsockopt(zmq.MAXMSGSIZE, DELTA_BYTES_MAX)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            self._configure(socket, host)
            socket.connect(host.stream)
        except (zmq.ZMQError, OSError) as error:
            socket.close(linger=0)
            tell(
                PEER_NOT_HEARD,
                "directory: cannot follow the host at %s: %s",
                host.stream,
                error,
                address=host.stream,
            )
            return
        followed.socket = socket
        self._followed[socket] = followed
        self._poller.register(socket, zmq.POLLIN)

    def _leave(self, followed: _Followed) -> None:
        socket, followed.socket = followed.socket, None
        if socket is not None:
            del self._followed[socket]
            self._poller.unregister(socket)
            socket.close(linger=0)

    def _hear(self, followed: _Followed) -> int:
        """What a host has said; how many operations."""
        events = 0
        now = time.monotonic()
        for _ in range(_MESSAGES_AT_ONCE):
            if followed.socket is None:  # by what it said just now
                break
            try:
                frames = followed.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            if followed.gone:
                continue
            delta = parse_delta(frames[0]) if len(frames) == 1 else Malformed("more than one frame")
            if isinstance(delta, Malformed):
                self._complain(followed, delta.reason)
            elif (delta.host_id, delta.incarnation) == (
                followed.host.host_id,
                followed.host.incarnation,
            ):
                events += len(delta.ops)
                followed.stream.hear(delta, now)
            # Else it is of another life of that host: who greets it will know in a moment.
        return events

    def _take(self, piece: _Piece) -> None:
        followed = piece.followed
        if followed.gone:
            return
        chunk = parse_chunk(piece.body)
        if isinstance(chunk, Malformed):
            self._complain(followed, chunk.reason)
            return
        assert isinstance(chunk, Chunk)
        snapshots = followed.stream.snapshots
        followed.stream.take(chunk, place=piece.place, last=piece.last, now=time.monotonic())
        self._region.count("remote_snapshots_received", followed.stream.snapshots - snapshots)

    def _complain(self, followed: _Followed, reason: str) -> None:
        """Once, and then of the hundredth: a host that says nothing else is not heard any more."""
        followed.bad += 1
        self._region.count("remote_messages_bad")
        if followed.bad == 1:
            tell(
                PEER_MESSAGE_BAD,
                "directory: the host at %s sends what is none: %s",
                followed.host.stream,
                reason,
                subject=followed.host.stream,
                address=followed.host.stream,
            )
        elif followed.bad == _BAD_MAX:
            tell(
                PEER_NOT_HEARD,
                "directory: not heard any more: the host at %s: it sends what cannot be understood",
                followed.host.stream,
                address=followed.host.stream,
            )
            self._leave(followed)

    def _look(self, now: float) -> None:
        """Who is silent, who is to be asked, who has left."""
        with self._mutex:
            hosts = tuple(self._hosts.values())
            for followed in hosts:
                silent = now > followed.stream.heard_at + SILENCE_SECONDS
                usable = followed.stream.known and not silent
                if usable != followed.usable:
                    followed.usable = usable
                    self._table.set_usable(followed.host.number, usable)
            retired = self._retired
        for followed in tuple(self._followed.values()):
            if followed.gone:
                self._leave(followed)
        if retired and now >= self._sweep_at:
            for number in retired:
                self._table.retire(number)
            self._table.drop_retired()
            with self._mutex:
                self._retired -= retired
            # A pass over a large table takes a while, and many may leave one after another.
            self._sweep_at = now + max(_SWEEP_SECONDS, 4 * (time.monotonic() - now))
        self._ask(hosts, now)

    def _ask(self, hosts: tuple[_Followed, ...], now: float) -> None:
        if self._wanted:
            return  # who carries the requests has not come for the last ones
        wanted = [followed for followed in hosts if followed.stream.wants_snapshot(now)]
        room = _SNAPSHOTS_AT_ONCE - sum(followed.stream.is_coming for followed in hosts)
        asked = wanted[: max(room, 0)]
        for followed in asked:
            followed.stream.asked(now)
        self._wanted = tuple(followed.host.number for followed in asked)

    def _tell(self, now: float) -> None:
        """For tools: what is known of each host."""
        heard_ns = time.time_ns()
        with self._mutex:
            for followed in self._hosts.values():
                stream, host = followed.stream, followed.host
                self._table.describe(
                    host.number,
                    host_id=host.host_id,
                    incarnation=host.incarnation,
                    address=host.stream.rpartition("//")[2],
                    sequence=min(stream.sequence, (1 << 64) - 1),
                    events=stream.events,
                    heard_at_ns=heard_ns - int((now - stream.heard_at) * 1e9),
                )
        displaced = self._table.displaced
        self._region.count("remote_hints_displaced", max(displaced - self._displaced, 0))
        self._displaced = displaced
