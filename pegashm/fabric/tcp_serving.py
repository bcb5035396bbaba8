"""How do peers get payload out of this arena over TCP, without any of them holding up another?

A few threads, each with an epoll of its own, serve all streams; no call in them waits for a peer. A stream says hello (or is
closed soon), then asks: one request at a time, of which every block must be covered by a lease of its peer. The answer
goes straight from the arena: a lot of pieces is hashed, which brings it into the processor's cache, and handed to the
kernel, within the lease (`Lease.enter`). One lot a turn, so that streams share fairly. Who reads slowly has its socket full,
who stands still is closed after a while, and either costs its socket and nothing else.

What a peer does wrong is one line in the log (one a second at most), the end of that stream, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

import xxhash

from pegashm.fabric.tcp_channel import Channel, Plain, Secure
from pegashm.fabric.tcp_leases import Lease, Leases, Session
from pegashm.fabric.tcp_wire import (
    BLOCK_BYTES,
    HELLO_BYTES,
    NONCE_BYTES,
    REQUEST_BYTES,
    Piece,
    Request,
    Status,
    hello_holds,
    lots_of,
    pack_greeting,
    pack_reply,
    pack_welcome,
    parse_body,
    parse_hello,
    parse_request,
    payload_seed,
    request_proof,
    same,
    stream_key,
)
from pegashm.logs import tell
from pegashm.notices import PEER_STREAM_REFUSED

__all__ = ["Server"]

_HELLO_SECONDS: Final = 5.0  # to say hello, and to send the whole of a request once begun
_STALL_SECONDS: Final = 30.0  # a reply of which nothing is taken
_IDLE_SECONDS: Final = 300.0  # the reader opens another when it needs one
_SWEEP_SECONDS: Final = 1.0
_STRANGERS_MAX: Final = 64  # streams that have not said hello
_ACCEPTS_AT_ONCE: Final = 64
_PAUSE_SECONDS: Final = 0.2  # of accepting, when descriptors are used up
_REFUSALS_MAX: Final = 64  # on one stream
_STEPS_A_TURN: Final = 8  # of a stream that has more at once
_SUM_BYTES: Final = 8
_SEED_MASK: Final = (1 << 64) - 1


class Server:
    """Listens, and sends what leases allow."""

    def __init__(
        self,
        payload: memoryview,
        leases: Leases,
        *,
        host: str,
        port: int,
        loops: int,
        streams_max: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.payload = payload
        self.leases = leases
        self.tls = tls
        self.streams_max = streams_max
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=256)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.strangers: deque[Stream] = deque()  # in the order in which they came
        self.mutex = threading.Lock()
        self.stream_count = 0
        self.counters = {"bytes": 0, "requests": 0, "refused": 0, "malformed": 0, "streams": 0}
        self.loops = [_Loop(self, number) for number in range(loops)]
        self.loops[0].listen(self._listener)
        for loop in self.loops:
            loop.thread.start()

    def wake(self) -> None:
        """Leases or sessions are over: close the streams that were busy with them."""
        for loop in self.loops:
            loop.wake()

    def close(self) -> None:
        for loop in self.loops:
            loop.stopping = True
            loop.wake()
        for loop in self.loops:
            loop.thread.join()
        self._listener.close()

    def complain(self, text: str) -> None:
        """Whoever reaches the port can make us say it: so it is said seldom."""
        tell(PEER_STREAM_REFUSED, "%s", text, subject=self.port)


class _Loop:
    """One thread and its streams."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.stopping = False
        self.streams: dict[int, Stream] = {}
        self.accepted: deque[socket.socket] = deque()
        self._listener: socket.socket | None = None
        self._listening_again_at = 0.0
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self.thread = threading.Thread(target=self._run, name=f"fabric tcp {number}", daemon=True)

    def listen(self, listener: socket.socket) -> None:
        self._listener = listener
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        sweep_at = 0.0
        try:
            while not self.stopping:
                woken = False
                for descriptor, _ in self._epoll.poll(_SWEEP_SECONDS):
                    stream = self.streams.get(descriptor)
                    if stream is not None:
                        self._turn(stream)
                    elif descriptor == self._wake_fd:
                        os.eventfd_read(self._wake_fd)
                        woken = True
                    elif self._listener is not None and descriptor == self._listener.fileno():
                        self._accept(self._listener)
                while self.accepted:
                    self._begin(self.accepted.popleft())
                now = time.monotonic()
                if woken or now >= sweep_at:
                    sweep_at = now + _SWEEP_SECONDS
                    self._sweep(now)
        finally:
            for stream in list(self.streams.values()):
                self._end(stream)
            while self.accepted:
                self.accepted.popleft().close()
            self._epoll.close()
            os.close(self._wake_fd)

    # -- streams come ----------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        server = self.server
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    server.complain(f"cannot accept: {error.strerror}")
                    self._epoll.unregister(listener.fileno())
                    self._listening_again_at = time.monotonic() + _PAUSE_SECONDS
                    return
                continue  # it was gone before we looked
            server.counters["streams"] += 1
            loop = server.loops[server.counters["streams"] % len(server.loops)]
            loop.accepted.append(sock)
            if loop is not self:
                loop.wake()

    def _begin(self, sock: socket.socket) -> None:
        server = self.server
        with server.mutex:
            full = server.stream_count >= server.streams_max
            server.stream_count += not full
        if full:
            server.complain(f"{server.streams_max} streams are open: one more is refused")
            sock.close()
            return
        stream = None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            stream = Stream(server, sock)
            self.streams[stream.descriptor] = stream
            self._epoll.register(stream.descriptor, stream.waits_for)
        except OSError:
            sock.close()
            if stream is None:
                with server.mutex:
                    server.stream_count -= 1
            else:
                self._end(stream)
            return
        with server.mutex:
            server.strangers.append(stream)
            if len(server.strangers) > _STRANGERS_MAX:
                server.strangers = deque(each for each in server.strangers if each.is_stranger)
            many = len(server.strangers) > _STRANGERS_MAX
            oldest = server.strangers.popleft() if many else None
        if oldest is not None:
            oldest.unwanted = True  # its own loop closes it
            server.complain(
                f"more than {_STRANGERS_MAX} connections did not say hello: the oldest is closed"
            )
            server.wake()
        self._turn(stream)

    # -- and go on -------------------------------------------------------------------------------

    def _turn(self, stream: Stream) -> None:
        try:
            stream.turn()
        except (ConnectionError, TimeoutError, ssl.SSLError):
            self._end(stream)
        except ValueError as error:
            self.server.counters["malformed"] += 1
            self.server.complain(f"{stream.name}: {error}")
            self._end(stream)
        except OSError as error:
            self.server.complain(f"{stream.name}: {error}")
            self._end(stream)
        else:
            if stream.ended:
                self._end(stream)
            elif stream.waits_for != stream.registered:
                stream.registered = stream.waits_for
                self._epoll.modify(stream.descriptor, stream.registered)

    def _sweep(self, now: float) -> None:
        for stream in list(self.streams.values()):
            if stream.overdue(now):
                self._end(stream)
        if self._listening_again_at and now >= self._listening_again_at:
            self._listening_again_at = 0.0
            assert self._listener is not None
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _end(self, stream: Stream) -> None:
        if self.streams.pop(stream.descriptor, None) is None:
            return
        with contextlib.suppress(OSError):
            self._epoll.unregister(stream.descriptor)
        stream.close()
        with self.server.mutex:
            self.server.stream_count -= 1


class Stream:
    """One accepted socket, from its greeting on. Used by its loop's thread only, but for `is_stranger`, `unwanted`."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self.name = f"fabric: stream from {sock.getpeername()[0]}"
        self._channel: Channel = Plain(sock) if server.tls is None else Secure(sock, server.tls)
        self.descriptor = self._channel.fileno()
        self.unwanted = False
        self.ended = False
        self.registered = self.waits_for = select.EPOLLIN
        self._since = time.monotonic()  # of the last progress
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._session: Session | None = None
        self._key = b""
        self._last_sequence = 0
        self._refusals = 0
        self._request: tuple[Request, bytes] | None = None
        # What comes in: exactly as much as the next step needs.
        self._in = memoryview(bytearray(HELLO_BYTES))
        self._have = 0
        # What goes out: the rest of what was packed, then the lots of the reply in hand.
        self._out: list[memoryview] = [memoryview(pack_greeting(self._nonce))]
        self._lease: Lease | None = None
        self._blocks: list[tuple[int, int]] = []
        self._lots: Iterator[list[Piece]] | None = None
        self._seed = 0

    @property
    def is_stranger(self) -> bool:
        return self._session is None and not self.ended

    def turn(self) -> None:
        """Go on until that would mean waiting, or a lot has been sent. OSError, ValueError: it is over."""
        if self.unwanted:
            self.ended = True
            return
        if self._out and not self._push():
            return
        for _ in range(_STEPS_A_TURN):
            if self._lots is not None:
                lot = next(self._lots, None)
                if lot is None:
                    self._expect_request()
                elif not self._load(lot):
                    return
                elif not (lot[-1].last and lot[-1].part == len(self._blocks) - 1):
                    break
                elif not self._channel.pending:
                    self._expect_request()  # which comes when this reply has been read, or later
                    self.waits_for = select.EPOLLIN
                    return
                else:
                    continue
            if not self._pull():
                return
            self._heard()
            if self.ended or (self._out and self._lots is None and not self._push()):
                return
        self.waits_for = select.EPOLLOUT  # others first

    def overdue(self, now: float) -> bool:
        """Whether to close it without another word."""
        if self.unwanted or self.ended:
            return True
        waited = now - self._since
        if self._session is None:
            return waited > _HELLO_SECONDS
        if self._session.over:
            return True
        if self._lots is not None:
            return waited > _STALL_SECONDS or (
                self._lease is not None and (self._lease.over or now >= self._lease.expires)
            )
        if self._have or self._request is not None or self._out:
            return waited > _HELLO_SECONDS
        return waited > _IDLE_SECONDS

    def close(self) -> None:
        self.ended = True
        self._drop_reply()
        session, self._session = self._session, None
        if session is not None:
            self._server.leases.close_stream(session)
        self._channel.close()

    # -- what comes in ---------------------------------------------------------------------------

    def _pull(self) -> bool:
        """Whether all that was expected is here."""
        self.waits_for = select.EPOLLIN
        while self._have < len(self._in):
            count = self._channel.receive(self._in[self._have :])
            if count is None:
                return False
            if not count:
                self.ended = True
                return False
            if not self._have:
                self._since = time.monotonic()
            self._have += count
        return True

    def _expect(self, nbytes: int) -> None:
        self._in = memoryview(bytearray(nbytes))
        self._have = 0

    def _expect_request(self) -> None:
        self._drop_reply()
        self._request = None
        self._since = time.monotonic()
        self._expect(REQUEST_BYTES + BLOCK_BYTES)  # there is one block at least

    def _heard(self) -> None:
        data = bytes(self._in)
        if self._session is None:
            self._greeted(data)
        elif self._request is None:
            request = parse_request(data[:REQUEST_BYTES])
            if request.count == 1:
                self._answer(request, data, data[REQUEST_BYTES:])
            else:
                self._request = (request, data)
                self._expect((request.count - 1) * BLOCK_BYTES)
        else:
            request, begin = self._request
            self._answer(request, begin, begin[REQUEST_BYTES:] + data)

    def _greeted(self, data: bytes) -> None:
        hello = parse_hello(data)
        session = self._server.leases.session(hello.session)
        if session is None or not hello_holds(hello, session.secret, self._nonce):
            self._refuse_hello(Status.UNKNOWN, hello.nonce, "does not belong to any peer admitted")
            return
        if not self._server.leases.open_stream(session):
            self._refuse_hello(Status.TOO_MANY, hello.nonce, "is one too many of its peer")
            return
        self._session = session
        self._key = stream_key(session.secret, self._nonce, hello.nonce)
        self._say(pack_welcome(Status.OK, session.secret, self._nonce, hello.nonce))
        self._expect_request()

    def _refuse_hello(self, status: Status, nonce: bytes, why: str) -> None:
        self._server.counters["refused"] += 1
        self._server.complain(f"{self.name} {why}: refused")
        self._say(pack_welcome(status, b"", self._nonce, nonce))
        self._push()
        self.ended = True

    def _answer(self, request: Request, data: bytes, body: bytes) -> None:
        assert self._session is not None
        if request.sequence != self._last_sequence + 1:
            raise ValueError(
                f"request {request.sequence} after {self._last_sequence}: sent by nobody of ours, or twice"
            )
        self._last_sequence = request.sequence
        self._server.counters["requests"] += 1
        lease = self._server.leases.lease(request.lease_id)
        blocks = parse_body(body)
        if (
            lease is None
            or lease.peer != self._session.peer
            or not same(request.proof, request_proof(self._key, lease.ticket, data, body))
        ):
            # Usual when a lease ended before it was used; a proof that is wrong is not.
            known = lease is not None
            self._refuse(request, Status.UNKNOWN, "asks under a lease that is not its own" * known)
        elif any(lease.blocks.get(offset) != nbytes for offset, nbytes in blocks):
            self._refuse(
                request, Status.NOT_COVERED, "asks for a block that its lease does not cover"
            )
        elif not lease.enter():
            self._refuse(request, Status.UNKNOWN, "")
        else:
            lease.leave()
            self._lease = lease
            self._blocks = blocks
            self._lots = lots_of([nbytes for _, nbytes in blocks])
            self._seed = payload_seed(self._key, lease.ticket, request.sequence)
            self._out.append(memoryview(pack_reply(Status.OK, request.sequence)))

    def _refuse(self, request: Request, status: Status, why: str) -> None:
        self._server.counters["refused"] += 1
        self._refusals += 1
        if why:
            self._server.complain(f"{self.name} {why}: refused")
        if self._refusals > _REFUSALS_MAX:
            raise ValueError(f"{self._refusals} requests refused: the stream is closed")
        self._expect_request()
        self._say(pack_reply(status, request.sequence))

    def _say(self, data: bytes) -> None:
        self._out.append(memoryview(data))

    # -- what goes out ---------------------------------------------------------------------------

    def _load(self, lot: list[Piece]) -> bool:
        """Hash one lot and send what the socket takes of it; whether that was all. `ended` when the lease is over."""
        lease = self._lease
        assert lease is not None
        if not lease.enter():
            self.ended = True
            return False
        try:
            payload, seed, hashed = self._server.payload, self._seed, xxhash.xxh3_64_intdigest
            sums = bytearray()
            out = self._out
            for piece in lot:
                start = self._blocks[piece.part][0] + piece.start
                view = payload[start : start + piece.nbytes]
                sums += hashed(view, seed).to_bytes(_SUM_BYTES, "little")
                seed = seed + 1 & _SEED_MASK
                out.append(view)
            out.append(memoryview(sums))
            self._seed = seed
            return self._write()
        finally:
            lease.leave()

    def _push(self) -> bool:
        """Send what is left; whether that was all."""
        lease = self._lease
        if lease is None:
            return self._write()
        if not lease.enter():
            self.ended = True
            return False
        try:
            return self._write()
        finally:
            lease.leave()

    def _write(self) -> bool:
        out = self._out
        sent = self._channel.send(out)
        if sent is not None:
            self._since = time.monotonic()
            self._server.counters["bytes"] += sent
            done = 0
            while done < len(out) and sent >= len(out[done]):
                sent -= len(out[done])
                done += 1
            del out[:done]
            if sent:
                out[0] = out[0][sent:]
        if out:  # full: asking again would say so once more
            self.waits_for = select.EPOLLOUT
            return False
        return True

    def _drop_reply(self) -> None:
        self._lease = None
        self._lots = None
        self._blocks = []
        if self.ended:
            self._out = []
