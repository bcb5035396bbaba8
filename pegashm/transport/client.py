"""How does an engine ask for blocks on SSD, without ever waiting?

`promote` sends one request for many keys and returns a ticket, or None where nobody takes it just now: no worker,
a full queue, or a worker that has not answered for a while. `replies` returns what has been answered since.
Nothing here waits: sends and receives return at once, the socket is connected in the background, and the worker's
life is asked of the kernel at most once a second. A worker that ends or changes answers nothing any more: its
open tickets come back as LOST. What was promoted shows in shared memory, whoever asked.

Used by one thread (an engine's scheduler). A forked child must make its own; there `promote` returns None.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Sequence
from typing import Any, Final

import zmq

from pegashm.arena import Arena
from pegashm.liveness import TRANSPORT_BYTE, holder_alive
from pegashm.transport.messages import (
    KEYS_MAX,
    MESSAGE_BYTES_MAX,
    Answer,
    Done,
    Error,
    Malformed,
    Ping,
    Promote,
    keys_of,
    pack,
    parse,
)

__all__ = ["TransportClient", "worker_alive"]

_LOOK_EVERY_SECONDS: Final = 1.0
_SILENCE_SECONDS: Final = 3.0
_QUEUE_MESSAGES: Final = 64
_OPEN_TICKETS_MAX: Final = 4096


@functools.cache
def _context(_pid: int) -> zmq.Context[zmq.Socket[bytes]]:
    """One a process, never destroyed: a context that the garbage collector meets before its sockets waits for them,
    for ever, in whatever thread collects."""
    return zmq.Context()


def worker_alive(arena: Arena) -> bool:
    """Whether a transport worker serves this arena: the kernel's word, one system call."""
    try:
        return holder_alive(arena.control_fd, TRANSPORT_BYTE)
    except OSError:  # closed, or a forked child's
        return False


class TransportClient:
    """An engine's side of the conversation with the worker of one arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._region_id: bytes = arena.region.header["region_id"]
        self._socket: zmq.Socket[bytes] | None = None
        self._peer: tuple[str, int, int] = ("", 0, 0)  # path, pid, started at
        self._owner = os.getpid()
        self._alive = False
        self._look_at = 0.0
        self._ping_at = 0.0
        self._next_id = 1
        self._open: dict[int, int] = {}  # ticket -> keys asked for
        self._lost: list[Done] = []
        self._waiting_since: float | None = None  # of the oldest request that nobody has answered
        self._heard_at = 0.0
        self.error = ""  # the last thing that a worker did not understand, for a log
        self._look(time.monotonic())

    @property
    def alive(self) -> bool:
        """Whether there is a worker to ask (asked of the kernel once a second)."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look(now)
        return self._alive and self._socket is not None and self._owner == os.getpid()

    def promote(self, keys: Sequence[bytes], namespace_id: int, deadline_ms: int) -> int | None:
        """Ask for these blocks in memory within `deadline_ms`; the ticket of the answer.

        None: nobody takes the request now (each of them is a miss, or ask again in a while). At most
        KEYS_MAX keys count: the first ones.
        """
        if not keys or not self.alive or len(self._open) >= _OPEN_TICKETS_MAX:
            return None
        now = time.monotonic()
        if self._is_silent(now):
            self._ping(now)
            self._lost = (
                self.replies()
            )  # kept for who asks for them; the answer to a ping ends the silence
            return None
        wanted = keys_of(keys[:KEYS_MAX])
        ticket = self._next_id
        message = Promote(
            request_id=ticket,
            region_id=self._region_id,
            namespace_id=namespace_id,
            deadline_ms=max(1, min(deadline_ms, 0xFFFFFFFF)),
            keys=wanted,
        )
        if not self._send(pack(message)):
            return None
        self._next_id += 1
        self._open[ticket] = len(wanted)
        if self._waiting_since is None:
            self._waiting_since = now
        return ticket

    def replies(self) -> list[Done]:
        """Answers since the last call: the ticket (`request_id`) and an `Answer` for each key asked for."""
        alive = self.alive  # may find that the worker has changed
        replies, self._lost = self._lost, []
        while alive and (frame := self._receive()) is not None:
            self._heard_at = time.monotonic()
            message = parse(frame)
            if isinstance(message, Done) and message.request_id in self._open:
                count = self._open.pop(message.request_id)
                if count != len(message.outcomes):
                    self.error = (
                        "the transport worker answered another number of keys than were asked for"
                    )
                    message = Done(message.request_id, bytes([Answer.FAILED]) * count)
                replies.append(message)
            elif isinstance(message, Error | Malformed):
                # A worker of another version answers with a frame that this build cannot read. The ticket, which stands
                # at the same place in all versions, says whom it refuses: nobody waits for it until a deadline.
                self.error = message.text if isinstance(message, Error) else message.reason
                if count := self._open.pop(message.request_id, 0):
                    replies.append(Done(message.request_id, bytes([Answer.FAILED]) * count))
            self._waiting_since = self._heard_at if self._open else None
        return replies

    def forget(self, ticket: int) -> None:
        """Nobody waits for this answer any more. That it did not come still tells of the worker's silence."""
        self._open.pop(ticket, None)

    def close(self) -> None:
        self._disconnect()
        self._look_at = float("inf")
        self._alive = False

    def __enter__(self) -> TransportClient:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- who is at the other end -----------------------------------------------------------------

    def _look(self, now: float) -> None:
        self._look_at = now + _LOOK_EVERY_SECONDS
        if self._owner != os.getpid():
            self._alive = False
            return
        self._alive = worker_alive(self._arena)
        if not self._alive:
            self._disconnect()
            return
        header: dict[str, Any] = self._arena.region.header
        path = header["transport_path"]
        peer = (
            path if isinstance(path, str) else os.fsdecode(path),
            int(header["transport_pid"]),
            int(header["transport_started_at_ns"]),
        )
        if peer != self._peer or self._socket is None:
            self._disconnect()
            self._connect(peer)

    def _connect(self, peer: tuple[str, int, int]) -> None:
        if not peer[0]:  # it has taken its lock and does not listen yet
            return
        socket = _context(self._owner).socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # no queue for a worker that does not answer the door
        socket.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
        socket.setsockopt(zmq.RCVHWM, 2 * _OPEN_TICKETS_MAX)
        socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        try:
            socket.connect(f"ipc://{peer[0]}")
        except zmq.ZMQError as error:
            socket.close(linger=0)
            self.error = f"cannot connect to {peer[0]}: {error}"
            return
        self._socket, self._peer = socket, peer
        self._waiting_since = None

    def _disconnect(self) -> None:
        if self._socket is not None and self._owner == os.getpid():
            self._socket.close(linger=0)
        self._socket = None
        self._peer = ("", 0, 0)
        self._waiting_since = None
        self._lost += [
            Done(ticket, bytes([Answer.LOST]) * count) for ticket, count in self._open.items()
        ]
        self._open.clear()

    def _is_silent(self, now: float) -> bool:
        """It lives and does not answer: stopped, or its machine is at its limits."""
        since = self._waiting_since
        return since is not None and now - max(since, self._heard_at) > _SILENCE_SECONDS

    def _ping(self, now: float) -> None:
        if now >= self._ping_at:
            self._ping_at = now + _LOOK_EVERY_SECONDS
            self._send(pack(Ping(0)))

    # -- bytes -----------------------------------------------------------------------------------

    def _send(self, frame: bytes) -> bool:
        assert self._socket is not None
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:  # not connected yet, or its queue is full
            return False
        except zmq.ZMQError as error:
            self.error = f"cannot send to the transport worker: {error}"
            return False
        return True

    def _receive(self) -> bytes | None:
        if self._socket is None:
            return None
        with contextlib.suppress(zmq.ZMQError):  # nothing there, or not to be had
            parts = self._socket.recv_multipart(zmq.DONTWAIT)
            return parts[-1] if len(parts) == 1 else b""
        return None
