"""How do payloads of a peer get into blocks claimed here over TCP, with nothing written once `read` has returned?

A connection is one session with a peer and a few streams, opened when they are needed and used by one read at a time each. A
read is cut in shares, a stream each: the caller's own thread takes one, threads of the connection the others. Each
receives straight into the claimed blocks and hashes what has come while it is in the processor's cache. No other
thread writes there, and none waits in the kernel beyond the deadline: when all shares are over, the read is. A stream
that was late, or on which anything was wrong, is closed with what is still on its way in it.

The deadline is kept by `poll` until the first byte is there, by SO_RCVTIMEO from then on. SO_RCVTIMEO alone does not keep it: a
signal, or a stop and SIGCONT, interrupts a receive that has nothing yet, and Python then begins it again with all of its time.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

import xxhash

from pegashm.fabric.interface import Connection, Grant, Part, ReadOutcome
from pegashm.fabric.tcp_wire import (
    GREETING_BYTES,
    NONCE_BYTES,
    PARTS_MAX,
    REPLY_BYTES,
    WELCOME_BYTES,
    Offer,
    Piece,
    Status,
    lots_of,
    pack_hello,
    pack_request,
    parse_grant,
    parse_greeting,
    parse_reply,
    parse_welcome,
    payload_seed,
    stream_key,
)
from pegashm.logs import tell
from pegashm.notices import PEER_BYTES_BAD, PEER_READ_FAILED

__all__ = ["TcpConnection"]

# Below this a second stream gains less than it costs to wake another thread.
_SHARE_BYTES: Final = 2 << 20
_SUM_BYTES: Final = 8
# A limit set in the kernel serves until it is so much too long: setting it costs a call.
_SLACK_SECONDS: Final = 0.1
_SEED_MASK: Final = (1 << 64) - 1
_TIMEVAL: Final = struct.Struct("ll")
OK, FAILED, LATE = ReadOutcome.OK, ReadOutcome.FAILED, ReadOutcome.LATE

Share = Sequence[int]  # indexes into the parts of a read


class _RefusedError(OSError):
    """The peer does not know our session: another connect is needed."""


class TcpConnection(Connection):
    """One session with one peer."""

    def __init__(
        self,
        payload: memoryview,
        payload_address: int,
        offer: Offer,
        session: bytes,
        secret: bytes,
        *,
        streams: int,
        deadline: float,
        on_close: Callable[[TcpConnection], None],
    ) -> None:
        """Opens a first stream. OSError, ValueError: there is no connection to be had."""
        self._payload = payload
        self._base = payload_address
        self._offer = offer
        self._session = session
        self._secret = secret
        self._streams_max = streams
        self._mutex = threading.Condition(threading.Lock())
        self._idle: list[_Stream] = []
        self._all: set[_Stream] = set()
        self._busy = 0  # streams in use or being opened
        self._broken = False
        self._closed = False
        self._on_close = on_close
        self._idle.append(self._open(deadline))
        self._helpers = ThreadPoolExecutor(max(streams - 1, 1), "fabric tcp read")

    # -- the interface ---------------------------------------------------------------------------

    def read(self, grant: Grant, parts: Sequence[Part], deadline: float) -> list[ReadOutcome]:
        outcomes = [FAILED] * len(parts)
        reachable = [at for at, part in enumerate(parts) if self._is_ours(part)]
        if not reachable:
            return outcomes
        try:
            ticket = parse_grant(grant.opaque)
            job = _Job(self._payload, self._base, grant.lease_id, ticket, parts, deadline, outcomes)
            first, *others = self._shares(parts, reachable)
            under_way = self._delegate(job, others)
            try:
                self._run(job, first)
            finally:
                _await(under_way)
        except Exception as error:  # noqa: BLE001 - promised: a read never raises
            tell(PEER_READ_FAILED, "fabric: a read by TCP failed: %r", error)
            return [FAILED] * len(parts)
        return outcomes

    @property
    def broken(self) -> bool:
        return self._broken or self._closed

    def close(self) -> None:
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            for stream in self._all:
                stream.interrupt()
            for stream in self._idle:
                stream.close()
                self._all.discard(stream)
            self._idle.clear()
            self._mutex.notify_all()
        self._helpers.shutdown(wait=False)
        self._on_close(self)

    def join(self) -> None:
        """After close(): until no read is under way."""
        with self._mutex:
            while self._busy:
                self._mutex.wait()

    # -- shares ----------------------------------------------------------------------------------

    def _is_ours(self, part: Part) -> bool:
        start = part.address - self._base
        return part.nbytes > 0 and 0 <= start <= len(self._payload) - part.nbytes

    def _shares(self, parts: Sequence[Part], indexes: Share) -> list[Share]:
        """Runs of about as many bytes each; one request holds no more than PARTS_MAX."""
        whole = sum(parts[at].nbytes for at in indexes)
        count = max(1, min(self._streams_max, len(indexes), whole // _SHARE_BYTES))
        shares: list[Share] = []
        begin = taken = 0
        for at, index in enumerate(indexes):
            taken += parts[index].nbytes
            full = taken * count >= whole * (len(shares) + 1)
            if full or at + 1 - begin == PARTS_MAX:
                shares.append(indexes[begin : at + 1])
                begin = at + 1
        if begin < len(indexes):
            shares.append(indexes[begin:])
        return shares

    def _delegate(self, job: _Job, shares: Sequence[Share]) -> list[Future[None]]:
        under_way: list[Future[None]] = []
        for share in shares:
            try:
                under_way.append(self._helpers.submit(self._run, job, share))
            except RuntimeError:  # closed meanwhile: they stay FAILED
                break
        return under_way

    def _run(self, job: _Job, share: Share) -> None:
        """One share, on one stream; what became of it is in the job's outcomes."""
        try:
            stream = self._take(job.deadline)
        except TimeoutError:
            job.settle(share, LATE)
            return
        except (OSError, ValueError) as error:
            if not self._closed:
                tell(
                    PEER_READ_FAILED,
                    "fabric: no stream to %s: %s",
                    self._offer.host,
                    error,
                    subject=self._offer.host,
                    address=self._offer.host,
                )
            job.settle(share, FAILED)
            return
        good = False
        try:
            good = stream.read(job, share)
        finally:
            self._give_back(stream, good)

    # -- streams ---------------------------------------------------------------------------------

    def _take(self, deadline: float) -> _Stream:
        """A stream of one's own. TimeoutError at the deadline; OSError or ValueError when none can be had."""
        with self._mutex:
            while True:
                if self.broken:
                    raise OSError("the connection is broken")
                if time.monotonic() >= deadline:
                    raise TimeoutError
                while self._idle:
                    stream = self._idle.pop()
                    if stream.is_usable():
                        self._busy += 1
                        return stream
                    self._all.discard(stream)
                    stream.close()
                if self._busy < self._streams_max:
                    self._busy += 1
                    break
                self._mutex.wait(deadline - time.monotonic())
        try:
            return self._open(deadline)
        except TimeoutError:
            self._one_less()
            raise
        except (OSError, ValueError):
            self._broken = True  # nobody listens there, or somebody else does
            self._one_less()
            raise

    def _open(self, deadline: float) -> _Stream:
        stream = _Stream(self._offer, self._session, self._secret, deadline)
        with self._mutex:
            if not self._closed:
                self._all.add(stream)
                return stream
        stream.close()
        raise OSError("the connection was closed")

    def _give_back(self, stream: _Stream, good: bool) -> None:
        with self._mutex:
            self._busy -= 1
            if good and not self._closed:
                self._idle.append(stream)
            else:
                self._all.discard(stream)
                stream.close()
            self._mutex.notify_all()

    def _one_less(self) -> None:
        with self._mutex:
            self._busy -= 1
            self._mutex.notify_all()


class _Job:
    """One call of `read`: what its shares have in common. Each outcome is written by one thread."""

    __slots__ = ("_base", "_payload", "deadline", "lease_id", "outcomes", "parts", "ticket")

    def __init__(
        self,
        payload: memoryview,
        base: int,
        lease_id: int,
        ticket: bytes,
        parts: Sequence[Part],
        deadline: float,
        outcomes: list[ReadOutcome],
    ) -> None:
        self._payload = payload
        self._base = base
        self.lease_id = lease_id
        self.ticket = ticket
        self.parts = parts
        self.deadline = deadline
        self.outcomes = outcomes

    def settle(self, share: Share, outcome: ReadOutcome) -> None:
        for index in share:
            self.outcomes[index] = outcome

    def view(self, index: int, piece: Piece) -> memoryview:
        """Where a piece of part `index` goes."""
        start = self.parts[index].address - self._base + piece.start
        return self._payload[start : start + piece.nbytes]


class _Stream:
    """One socket, of one thread at a time; `interrupt` may come from another."""

    def __init__(self, offer: Offer, session: bytes, secret: bytes, deadline: float) -> None:
        """Connect and say hello. TimeoutError, OSError, ValueError."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock: socket.socket = socket.create_connection((offer.host, offer.port), left)
        self._tls = bool(offer.fingerprint)
        self._sequence = 0
        self._timeout = 0.0  # as set in the kernel
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls:
                self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
                self._sock = _secured(self._sock, offer.fingerprint)
            else:
                self._sock.setblocking(True)
                self._incoming, self._outgoing = select.poll(), select.poll()
                self._incoming.register(self._sock, select.POLLIN)
                self._outgoing.register(self._sock, select.POLLOUT)
            server_nonce = parse_greeting(self._exactly(GREETING_BYTES, deadline))
            nonce = secrets.token_bytes(NONCE_BYTES)
            self._send(pack_hello(session, secret, server_nonce, nonce), deadline)
            welcome = self._exactly(WELCOME_BYTES, deadline)
            status = parse_welcome(welcome, secret, server_nonce, nonce)
            if status is not Status.OK:
                raise _RefusedError(f"the peer refuses a stream: {status.name.lower()}")
        except BaseException:
            self._sock.close()
            raise
        self._key = stream_key(secret, server_nonce, nonce)

    def is_usable(self) -> bool:
        """Idle since its last use: neither closed by the peer nor with anything in it that nobody asked for."""
        try:
            if self._tls:
                self._sock.settimeout(0.0)
                self._sock.recv(1)
            else:
                self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def read(self, job: _Job, share: Share) -> bool:
        """Ask for a share and receive it; whether the stream can be used again."""
        left = list(share)
        try:
            self._ask(job, share)
            return self._receive(job, share, left)
        except TimeoutError:
            job.settle(left, LATE)
        except (OSError, ValueError):
            job.settle(left, FAILED)
        return False

    def interrupt(self) -> None:
        """Make the thread that uses it come back at once."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()

    # -- one share -------------------------------------------------------------------------------

    def _ask(self, job: _Job, share: Share) -> None:
        self._sequence += 1
        blocks = [(job.parts[index].offset, job.parts[index].nbytes) for index in share]
        request = pack_request(self._key, job.ticket, job.lease_id, self._sequence, blocks)
        self._send(request, job.deadline)

    def _receive(self, job: _Job, share: Share, left: list[int]) -> bool:
        """`left` loses what is settled."""
        reply = bytearray(REPLY_BYTES)
        head: memoryview | None = memoryview(reply)
        seed = payload_seed(self._key, job.ticket, self._sequence)
        hashed = xxhash.xxh3_64_intdigest
        good = right = True
        done = 0
        for lot in lots_of([job.parts[index].nbytes for index in share]):
            views = [job.view(share[piece.part], piece) for piece in lot]
            sums = bytearray(_SUM_BYTES * len(lot))
            wanted = [*views, memoryview(sums)]
            if head is not None:  # together, since they mostly come together
                wanted = self._begin([head, *wanted], REPLY_BYTES, job.deadline)
                head = None
                if parse_reply(reply, self._sequence) is not Status.OK:
                    job.settle(left, FAILED)
                    return len(wanted) == len(views) + 1
            self._fill(wanted, job.deadline)
            for at, (piece, view) in enumerate(zip(lot, views, strict=True)):
                said = int.from_bytes(sums[at * _SUM_BYTES : (at + 1) * _SUM_BYTES], "little")
                right = right and hashed(view, seed) == said
                seed = seed + 1 & _SEED_MASK
                if piece.last:
                    job.outcomes[share[piece.part]] = OK if right else FAILED
                    good, right = good and right, True
                    done += 1
            del left[: done - (len(share) - len(left))]
        if not good:
            tell(PEER_BYTES_BAD, "fabric: bytes of a peer did not have the checksum sent with them")
        return good

    # -- bytes, until the deadline -----------------------------------------------------------------

    def _exactly(self, nbytes: int, deadline: float) -> bytearray:
        data = bytearray(nbytes)
        self._fill([memoryview(data)], deadline)
        return data

    def _fill(self, views: list[memoryview], deadline: float) -> None:
        """Receive into all of these. TimeoutError, OSError."""
        while views:
            self._some(views, deadline, socket.MSG_WAITALL)

    def _begin(self, views: list[memoryview], nbytes: int, deadline: float) -> list[memoryview]:
        """Receive so many bytes, and what has come behind them; what is left of the views."""
        while nbytes > 0:
            nbytes -= self._some(views, deadline, 0)
        return views

    def _some(self, views: list[memoryview], deadline: float, flags: int) -> int:
        """Receive some bytes into the first of these, which are taken off the list as they are filled."""
        seconds = _left(deadline)
        if self._tls:
            self._sock.settimeout(seconds)
            count = self._sock.recv_into(views[0])
        else:
            _wait(self._incoming, seconds)
            self._limit(seconds)
            if len(views) == 1:
                count = self._sock.recv_into(views[0], 0, flags)
            else:
                count = self._sock.recvmsg_into(views, 0, flags)[0]
        if not count:
            raise ConnectionResetError("the peer has closed the stream")
        left = count
        while views and left >= len(views[0]):
            left -= len(views.pop(0))
        if left:
            views[0] = views[0][left:]
        return count

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            seconds = _left(deadline)
            if self._tls:
                self._sock.settimeout(seconds)
                rest = rest[self._sock.send(rest) :]
            else:
                _wait(self._outgoing, seconds)
                rest = rest[self._sock.send(rest, socket.MSG_DONTWAIT) :]

    def _limit(self, seconds: float) -> None:
        """The kernel's own limit on a receive that has begun: so long, or longer by no more than the slack."""
        if not seconds <= self._timeout <= seconds + _SLACK_SECONDS:
            self._timeout = seconds + _SLACK_SECONDS / 2
            micros = int(self._timeout * 1e6)
            timeval = _TIMEVAL.pack(micros // 1_000_000, micros % 1_000_000)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


def _left(deadline: float) -> float:
    """Seconds until then. TimeoutError when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _wait(ready: select.poll, seconds: float) -> None:
    """TimeoutError when the socket is not ready by then. An interrupted poll goes on with what is left of its time."""
    if not ready.poll(seconds * 1000):
        raise TimeoutError


def _await(under_way: Sequence[Future[None]]) -> None:
    """Nobody writes any more once this is over, also when somebody types Ctrl-C meanwhile."""
    interrupted: BaseException | None = None
    for helper in under_way:
        while not helper.done():
            try:
                wait([helper])
            except BaseException as error:  # noqa: BLE001 - raised below
                interrupted = error
    if interrupted is not None:
        raise interrupted
    for helper in under_way:
        helper.result()


def _secured(sock: socket.socket, fingerprint: bytes) -> ssl.SSLSocket:
    """TLS with whoever has the certificate that the offer named; no authority is asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    secured = context.wrap_socket(sock)
    shown = secured.getpeercert(binary_form=True) or b""
    if not secrets.compare_digest(hashlib.sha256(shown).digest(), fingerprint):
        secured.close()
        raise ValueError(
            "who answers at the peer's address shows another certificate than the peer's offer names"
        )
    return secured
