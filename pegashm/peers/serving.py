"""What do other hosts get from us? Greetings, leases on blocks of ours, snapshots of the directory, and refusals.

A thread with a ROUTER on the `--listen` address. It touches no payload and waits for nothing but messages: a PIN whose blocks are on
SSD waits aside until the promoter has brought them, or its time is over. Every request stands for itself (sender,
incarnation it is meant for), so that nothing has to be remembered of a connection. With keys, who is at the other
end is what ZAP found (its public key), and a host id counts only together with it: nobody can touch what another
key leased. Whatever a peer sends costs it a refusal, a line in our log and a count, and us nothing else; ROUTER
takes from all connections in turn, so a flood delays the flooder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import zmq
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.fabric.interface import Fabric, Served
from pegashm.logs import tell
from pegashm.notices import PEER_LEASE_EXPIRED, PEER_MESSAGE_BAD
from pegashm.peers.leases import Leases
from pegashm.peers.messages import (
    ROW_FIELDS,
    Chunk,
    Hello,
    Introduce,
    Introduced,
    Malformed,
    Message,
    Offer,
    Outcome,
    Pin,
    Pinned,
    Reason,
    Refused,
    Release,
    Released,
    Snapshot,
    Welcome,
    pack,
    parse,
)
from pegashm.transport.namespaces import Namespaces

__all__ = ["Identity", "Promote", "Server"]

_POLL_MS: Final = 50
_MESSAGES_AT_ONCE: Final = 64
_WAITING_MAX: Final = 64
_LEASE_SECONDS_MAX: Final = 30.0
_PEERS_MAX: Final = 8192
_FORGET_AFTER_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 1.0
_SNAPSHOTS_MAX: Final = 8
_CHUNKS_AT_ONCE: Final = 2

Words = NDArray[np.uint64]
# Bring of these keys of a namespace, the first so many bytes of them, into memory within so many ms, then call back (from
# any thread).
Promote = Callable[[tuple[bytes, ...], int, int, int, Callable[[], None]], None]
# The directory's bodies of CHUNK messages, made as they are sent.
Snapshots = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who we are to other hosts, in this life of the worker."""

    host_id: bytes
    incarnation: bytes
    hash_version: int
    stream_port: int = 0


@dataclass(slots=True)
class _Peer:
    """Somebody who asked: by `token`, its host id and key."""

    user: bytes  # its public key, as far as there are keys
    heard_at: float = 0.0
    fabrics: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Waiting:
    """A PIN whose blocks are being promoted."""

    route: bytes
    token: bytes
    pin: Pin
    until: float
    arrived: bool = False


@dataclass(slots=True)
class _Sending:
    """A snapshot on its way, a few chunks at a time."""

    route: bytes
    request_id: int
    bodies: Iterator[bytes]
    number: int = 0
    ahead: bytes | None = None


class Server:
    """One host's serving side. `run` is the life of its thread; `stop` ends it."""

    def __init__(
        self,
        cache: Cache,
        namespaces: Namespaces,
        router: zmq.Socket[bytes],
        fabrics: Mapping[str, Fabric],
        identity: Identity,
        *,
        leases: Leases,
        promote: Promote | None,
        snapshots: Snapshots | None,
        allows: Callable[[bytes], bool] | None,
    ) -> None:
        self._region = cache.region
        self._client = cache.client
        self._namespaces = namespaces
        self._router = router
        self._fabrics = dict(fabrics)
        self._identity = identity
        self._leases = leases
        self._promote = promote
        self._snapshots = snapshots
        self._allows = allows
        self._look_at = 0.0
        self._peers: dict[bytes, _Peer] = {}
        self._waiting: list[_Waiting] = []
        self._sending: deque[_Sending] = deque()
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.served_blocks = 0

    @property
    def peers_seen(self) -> int:
        return len(self._peers)

    def stop(self) -> None:
        self._stopping.set()
        self._wake()

    def run(self) -> None:
        """The thread's life."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                ready = dict(poller.poll(0 if self._sending else _POLL_MS))
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                if self._router in ready:
                    self._receive()
                self._go_on(time.monotonic())
        finally:
            self._leases.close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.write(self._wake_write, b"\0")

    # -- messages --------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                frames = self._router.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            route = frames[0].bytes
            message = (
                parse(frames[1].bytes)
                if len(frames) == 2
                else Malformed(f"a message is one frame, this one has {len(frames) - 1}")
            )
            self._judge(route, _user_of(frames[-1]), message)

    def _judge(self, route: bytes, user: bytes, message: Message | Malformed) -> None:
        if self._allows is not None and not self._allows(user):
            return  # struck off the list while connected: not worth a word
        if isinstance(message, Malformed):
            self._bad(user, message.reason)
            reason = Reason.VERSION if message.other_version else Reason.MALFORMED
            self._say(route, Refused(message.request_id, reason, message.reason))
            return
        if not isinstance(message, Hello | Introduce | Pin | Release | Snapshot):
            return  # WELCOME and so on are ours to say: from a reader they mean nothing
        sender = message.host_id if isinstance(message, Hello) else message.sender
        token = hashlib.blake2b(sender, digest_size=16, key=user).digest()
        peer = self._peers.get(token)
        if peer is None:
            if len(self._peers) >= _PEERS_MAX:
                self._say(route, _overloaded(message.request_id, "too many hosts ask"))
                return
            peer = self._peers[token] = _Peer(user)
        peer.heard_at = time.monotonic()
        if isinstance(message, Hello):
            self._welcome(route, message)
            return
        if message.incarnation != self._identity.incarnation:
            self._say(
                route,
                Refused(
                    message.request_id,
                    Reason.INCARNATION,
                    "this is meant for another life of this host: greet it again",
                ),
            )
        elif isinstance(message, Introduce):
            self._introduce(route, token, peer, message)
        elif isinstance(message, Pin):
            self._pin(route, token, message)
        elif isinstance(message, Release):
            held = self._leases.release(token, message.lease_id)
            self._say(
                route,
                Released(
                    request_id=message.request_id,
                    lease_id=message.lease_id,
                    intact=held is not None,
                    held=held or b"",
                ),
            )
        else:
            self._snapshot(route, message)

    def _welcome(self, route: bytes, hello: Hello) -> None:
        mine = self._identity
        self._say(
            route,
            Welcome(
                request_id=hello.request_id,
                host_id=mine.host_id,
                incarnation=mine.incarnation,
                hash_version=mine.hash_version,
                stream_port=mine.stream_port,
                load=self._leases.load,
                offers=tuple(Offer(name, fabric.offer()) for name, fabric in self._fabrics.items()),
            ),
        )

    def _introduce(self, route: bytes, token: bytes, peer: _Peer, message: Introduce) -> None:
        fabric = self._fabrics.get(message.fabric)
        if fabric is None:
            self._say(route, self._no_fabric(message.request_id, message.fabric))
            return
        try:
            answer = fabric.admit(token, message.introduction)
        except (ValueError, OSError) as error:
            self._bad(token, f"an introduction to the fabric {message.fabric} was refused: {error}")
            self._say(route, Refused(message.request_id, Reason.FABRIC, str(error)))
            return
        peer.fabrics.add(message.fabric)
        self._say(route, Introduced(message.request_id, answer))

    # -- leases ----------------------------------------------------------------------------------

    def _pin(self, route: bytes, token: bytes, pin: Pin) -> None:
        if pin.fabric not in self._fabrics:
            self._say(route, self._no_fabric(pin.request_id, pin.fabric))
            return
        if not self._leases.room(token):
            self._count("remote_serve_refused", len(pin.keys))
            self._say(route, _overloaded(pin.request_id, "it has as many leases as it may"))
            return
        namespace_id = self._namespaces.known(pin.fingerprint)
        if not namespace_id:
            rows = np.zeros(len(pin.keys), ROW_FIELDS)
            rows["outcome"] = Outcome.MISSING
            self._answer(route, pin, rows)
            return
        if self._promote is not None and pin.wait_ms and len(self._waiting) < _WAITING_MAX:
            _, outcomes = self._client.find(pin.keys, namespace_id, counted=False)
            spilled = tuple(pin.keys[at] for at in np.flatnonzero(outcomes == _native.SPILLED))
            if spilled:
                waiting = _Waiting(route, token, pin, time.monotonic() + pin.wait_ms / 1000)
                self._waiting.append(waiting)

                def arrived() -> None:
                    waiting.arrived = True
                    self._wake()

                room = min(pin.bytes_max, self._leases.room(token))
                self._promote(spilled, namespace_id, room, pin.wait_ms, arrived)
                return
        self._lease(route, token, pin, namespace_id)

    def _lease(self, route: bytes, token: bytes, pin: Pin, namespace_id: int) -> None:
        """Pin what is in memory, as much as may be, and answer."""
        handles, outcomes = self._client.find(pin.keys, namespace_id, pin=True, counted=False)
        rows = np.zeros(len(pin.keys), ROW_FIELDS)
        rows["outcome"] = np.where(outcomes == _native.PENDING, Outcome.PENDING, Outcome.MISSING)
        # On SSD still: beyond what a lease has room for, or not promoted in time. To be asked for again, after others.
        rows["outcome"][outcomes == _native.SPILLED] = Outcome.NOT_NOW
        found = np.flatnonzero(handles)
        if not len(found):
            self._answer(route, pin, rows)
            return
        offsets, sizes = self._client.locate(handles[found])
        sums, sum_bytes, sum_counts, damaged = _native.read_sums(self._region, handles[found])
        usable = (sizes != 0) & ~damaged
        room = min(pin.bytes_max, self._leases.room(token))
        fits = usable & (np.cumsum(np.where(usable, sizes, 0)) <= np.uint64(room))
        if not fits.all():
            self._client.unpin(handles[found[~fits]])
            rows["outcome"][found[usable & ~fits]] = Outcome.NOT_NOW
        kept = found[fits]
        if not len(kept):
            self._count("remote_serve_refused", int(usable.sum()))
            self._answer(route, pin, rows)
            return
        rows["outcome"][kept] = Outcome.OK
        rows["offset"][kept], rows["nbytes"][kept] = offsets[fits], sizes[fits]
        counts = np.where((sums != 0).sum(axis=1) == sum_counts, sum_counts, 0)[fits]
        rows["sum_count"][kept] = counts
        rows["sum_bytes"][kept] = np.where(counts != 0, sum_bytes[fits], 0)
        flat = sums[fits][np.arange(sums.shape[1]) < counts[:, None]]
        self._grant(route, token, pin, rows, flat, handles[kept])

    def _grant(
        self,
        route: bytes,
        token: bytes,
        pin: Pin,
        rows: NDArray[Any],
        sums: Words,
        handles: Words,
    ) -> None:
        seconds = min(pin.lease_ms / 1000, _LEASE_SECONDS_MAX)
        places = np.flatnonzero(rows["outcome"] == Outcome.OK)
        blocks = [
            Served(offset, nbytes)
            for offset, nbytes in zip(
                rows["offset"][places].tolist(), rows["nbytes"][places].tolist(), strict=True
            )
        ]
        while True:
            try:
                lease_id, grant = self._leases.grant(
                    token, self._fabrics[pin.fabric], handles, blocks, time.monotonic() + seconds
                )
                break
            except (ValueError, OSError) as error:
                # Perhaps they lie too scattered for one grant of this fabric: then half of them.
                half = len(blocks) // 2
                self._client.unpin(handles[half:])
                if not half:
                    self._say(route, Refused(pin.request_id, Reason.FABRIC, str(error)))
                    return
                later = places[half:]
                sums = sums[: int(rows["sum_count"][places[:half]].sum(dtype=np.int64))]
                rows[later] = 0
                rows["outcome"][later] = Outcome.NOT_NOW
                places, blocks, handles = places[:half], blocks[:half], handles[:half]
        self.served_blocks += len(blocks)
        self._count("remote_served", len(blocks))
        self._count("remote_bytes_served", sum(block.nbytes for block in blocks))
        self._answer(
            route, pin, rows, sums, lease_id=lease_id, lease_ms=int(seconds * 1000), grant=grant
        )

    def _answer(
        self,
        route: bytes,
        pin: Pin,
        rows: NDArray[Any],
        sums: Words | None = None,
        *,
        lease_id: int = 0,
        lease_ms: int = 0,
        grant: bytes = b"",
    ) -> None:
        self._say(
            route,
            Pinned(
                request_id=pin.request_id,
                lease_id=lease_id,
                lease_ms=lease_ms,
                load=self._leases.load,
                grant=grant,
                rows=rows,
                sums=np.zeros(0, np.uint64) if sums is None else sums,
            ),
        )

    # -- what goes on by itself --------------------------------------------------------------------

    def _go_on(self, now: float) -> None:
        for waiting in [one for one in self._waiting if one.arrived or one.until <= now]:
            self._waiting.remove(waiting)
            namespace_id = self._namespaces.known(waiting.pin.fingerprint)
            self._lease(waiting.route, waiting.token, waiting.pin, namespace_id)
        for lease in self._leases.expire(now):
            self._count("remote_leases_expired")
            tell(
                PEER_LEASE_EXPIRED,
                "a lease of %d blocks was not given back in time by host %s",
                len(lease.handles),
                lease.peer.hex()[:12],
                subject=lease.peer,
                host_id=lease.peer.hex(),
                blocks=len(lease.handles),
            )
        self._send_snapshots()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            for token, peer in list(self._peers.items()):
                idle = peer.heard_at + _FORGET_AFTER_SECONDS < now and not self._leases.holds(token)
                if idle or (self._allows is not None and not self._allows(peer.user)):
                    self._dismiss(token)

    def _dismiss(self, token: bytes) -> None:
        self._leases.drop(token)
        for name in self._peers.pop(token).fabrics:
            self._fabrics[name].dismiss(token)

    def _snapshot(self, route: bytes, message: Snapshot) -> None:
        if self._snapshots is None:
            self._say(
                route,
                Refused(message.request_id, Reason.DIRECTORY, "this host publishes no directory"),
            )
        elif len(self._sending) >= _SNAPSHOTS_MAX:
            self._say(route, _overloaded(message.request_id, "too many snapshots are on their way"))
        else:
            self._sending.append(_Sending(route, message.request_id, self._snapshots()))

    def _send_snapshots(self) -> None:
        for _ in range(min(_CHUNKS_AT_ONCE, len(self._sending))):
            one = self._sending.popleft()
            body = one.ahead if one.ahead is not None else next(one.bodies, b"")
            one.ahead = next(one.bodies, None)
            chunk = Chunk(
                request_id=one.request_id, number=one.number, last=one.ahead is None, body=body
            )
            one.number += 1
            if self._say(one.route, chunk) and one.ahead is not None:
                self._sending.append(one)

    # -- small things ------------------------------------------------------------------------------

    def _say(self, route: bytes, message: Message) -> bool:
        """To somebody who may be gone or may not read: then it is dropped, as a ROUTER does."""
        try:
            self._router.send_multipart([route, pack(message)], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def _no_fabric(self, request_id: int, name: str) -> Refused:
        return Refused(
            request_id,
            Reason.FABRIC,
            f"this host offers {', '.join(self._fabrics)}, not {name!r}",
        )

    def _bad(self, who: bytes, text: str) -> None:
        self._count("remote_messages_bad")
        name = who.decode("ascii", "replace") if len(who) == 40 else who.hex()
        tell(
            PEER_MESSAGE_BAD,
            "from host %s: %s",
            name or "without a key",
            text,
            subject=name,
            public_key=name,
        )

    def _count(self, counter: str, amount: int = 1) -> None:
        if amount:
            self._region.count(counter, amount)


def _overloaded(request_id: int, text: str) -> Refused:
    return Refused(request_id, Reason.OVERLOADED, text)


def _user_of(frame: zmq.Frame) -> bytes:
    """The public key that ZAP let in; empty without keys."""
    try:
        return str(frame.get("User-Id")).encode()
    except zmq.ZMQError:
        return b""
