"""Who answers at the members' addresses, and do they still? One thread greets them all.

It says HELLO to every address every second until there is an answer, then every ten; a WELCOME makes a peer, another incarnation
in it makes the former one leave. A connection that breaks, or greetings without an answer, and the peer is gone at
once. One socket for all of them, and its monitor. It also carries the directory's requests for snapshots, and their
chunks. With keys, the host at an address must prove one of those that the allow-list has for it: they are tried in turn.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

import zmq
from zmq.utils.monitor import recv_monitor_message

from pegashm.logs import tell
from pegashm.notices import PEER_MESSAGE_BAD, PEER_NOT_REACHED
from pegashm.peers.addresses import Address
from pegashm.peers.caller import Target, harden
from pegashm.peers.fabrics import reachable_offers
from pegashm.peers.keys import Keys
from pegashm.peers.known import Known, Peer
from pegashm.peers.membership import Members
from pegashm.peers.messages import (
    VERSION,
    Chunk,
    Hello,
    Malformed,
    Message,
    Reason,
    Refused,
    Snapshot,
    Welcome,
    pack,
    parse,
)
from pegashm.peers.serving import Identity

__all__ = ["Directory", "Greeter"]

_POLL_MS: Final = 100
_KNOCK_SECONDS: Final = 1.0
_KNOCK_SECONDS_MAX: Final = 5.0
_KEEP_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 3.0
_MISSES: Final = 2
_LOOK_SECONDS: Final = 0.5
_LINKS_MAX: Final = 4096
_QUEUE_MESSAGES: Final = 4096


class Directory(Protocol):
    """What the greeter tells and asks the directory of hints. Called from the greeter's thread; nothing may wait."""

    def reserved(self) -> set[int]:
        """Numbers whose hints are not taken out of the table yet: nobody else may have them."""

    def joined(self, peer: Peer) -> None: ...

    def left(self, peer: Peer) -> None: ...

    def snapshots_wanted(self) -> list[int]:
        """Numbers of peers to be asked for a snapshot now."""

    def chunk(self, peer: Peer, number: int, *, last: bool, body: bytes) -> None:
        """A piece of a snapshot."""


@dataclass(slots=True, eq=False)
class _Link:
    """One address that was given to us."""

    address: Address
    number: int  # of this link, in its routes
    attempt: int = 0
    target: Target | None = None
    route: bytes = b""
    asked_id: int = 0  # of the HELLO that waits for an answer
    asked_at: float = 0.0
    greet_at: float = 0.0
    misses: int = 0
    peer: Peer | None = None
    ours: bool = False
    said: str = ""  # the last trouble, said once
    snapshot_id: int = 0
    snapshot_at: int = 0


class Greeter:
    """`run` is the life of its thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        members: Members,
        known: Known,
        identity: Identity,
        keys: Keys | None,
        directory: Directory | None,
        *,
        advertise: str,
    ) -> None:
        self._members = members
        self._known = known
        self._identity = identity
        self._keys = keys
        self._directory = directory
        self._advertise = advertise
        self._links: dict[Address, _Link] = {}
        self._routes: dict[bytes, _Link] = {}
        self._numbers = itertools.count(1)
        self._suspects: deque[tuple[Peer, str]] = deque()
        self._stopping = threading.Event()
        self._look_at = 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
        harden(self._socket, None)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def suspect(self, peer: Peer, why: str) -> None:
        """Something about this peer is not right: greet it anew. From any thread."""
        self._suspects.append((peer, why))
        self._wake()

    def stop(self) -> None:
        self._stopping.set()
        self._wake()

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                ready = dict(poller.poll(_POLL_MS))
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                if self._socket in ready:
                    self._receive()
                if self._monitor in ready:
                    self._watch()
                self._go_on(time.monotonic())
        finally:
            for peer in self._known.peers():
                self._known.remove(peer, "")
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=0)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    # -- what goes on by itself --------------------------------------------------------------------

    def _go_on(self, now: float) -> None:
        while self._suspects:
            peer, why = self._suspects.popleft()
            for link in self._links.values():
                if link.peer is peer:
                    self._lose(link, why)
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._look(now)
        for link in self._links.values():
            if link.asked_id and now > link.asked_at + _ANSWER_SECONDS:
                self._missed(link, now)
            if not link.asked_id and now >= link.greet_at:
                self._greet(link, now)
        if self._directory is not None:
            for number in self._directory.snapshots_wanted():
                self._ask_snapshot(number)

    def _look(self, now: float) -> None:
        """Which addresses came, which went."""
        addresses = self._members.addresses()
        for address in self._links.keys() - addresses:
            link = self._links.pop(address)
            self._lose(link, "it is no member any more")
            self._disconnect(link)
        for address in addresses - self._links.keys():
            if len(self._links) < _LINKS_MAX:
                self._links[address] = _Link(address, next(self._numbers), greet_at=now)
        if self._keys is not None:
            self._keys.allowed.refresh()
            for link in self._links.values():
                struck = link.peer and not self._keys.allowed.allows(link.peer.target.server_key)
                if struck:
                    self._lose(link, "its key is not allowed any more")
                    self._disconnect(link)

    def _greet(self, link: _Link, now: float) -> None:
        if link.target is None and not self._connect(link):
            link.greet_at = now + _KNOCK_SECONDS_MAX
            return
        link.asked_id = next(self._numbers)
        link.asked_at = now
        mine = self._identity
        self._send(
            link,
            Hello(
                request_id=link.asked_id,
                host_id=mine.host_id,
                incarnation=mine.incarnation,
                hash_version=mine.hash_version,
                address=self._advertise,
            ),
        )

    def _missed(self, link: _Link, now: float) -> None:
        link.asked_id = 0
        link.misses += 1
        if link.peer is not None:
            if link.misses >= _MISSES:
                self._lose(link, "it does not answer")
            link.greet_at = now
            return
        link.greet_at = now + min(_KNOCK_SECONDS * link.misses, _KNOCK_SECONDS_MAX)
        self._trouble(link, "it does not answer" + (" to any key allowed" if self._keys else ""))
        if self._keys is not None:  # perhaps it has another of the keys
            link.attempt += 1
            self._disconnect(link)

    def _lose(self, link: _Link, why: str) -> None:
        peer, link.peer = link.peer, None
        link.misses = 0
        link.greet_at = 0.0
        link.asked_id = 0
        link.snapshot_id = 0
        if peer is not None:
            if self._directory is not None:
                self._directory.left(peer)
            self._known.remove(peer, why)

    # -- connections -------------------------------------------------------------------------------

    def _connect(self, link: _Link) -> bool:
        server_key = b""
        if self._keys is not None:
            keys = self._keys.allowed.keys_for(link.address)
            if not keys:
                self._trouble(link, f"{self._keys.allowed.path} has no key for it")
                return False
            server_key = keys[link.attempt % len(keys)]
            harden(self._socket, self._keys.pair, server_key)
        link.target = Target(link.address.endpoint(), server_key)
        link.route = b"\1" + next(self._numbers).to_bytes(8, "big")
        self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, link.route)
        try:
            self._socket.connect(link.target.endpoint)
        except zmq.ZMQError as error:
            self._trouble(link, str(error))
            link.target = None
            return False
        self._routes[link.route] = link
        return True

    def _disconnect(self, link: _Link) -> None:
        if link.target is not None:
            self._routes.pop(link.route, None)
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(link.target.endpoint)
        link.target = None

    def _watch(self) -> None:
        """Connections that broke."""
        with contextlib.suppress(zmq.Again):
            while True:
                event = recv_monitor_message(self._monitor, zmq.DONTWAIT)
                endpoint = event["endpoint"].decode(errors="replace")
                for link in self._links.values():
                    if link.target is not None and link.target.endpoint == endpoint:
                        self._lose(link, "its connection broke")

    def _send(self, link: _Link, message: Message) -> bool:
        try:
            self._socket.send_multipart([link.route, pack(message)], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    # -- answers -----------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(256):
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            link = self._routes.get(frames[0])
            if link is None or len(frames) != 2:
                continue
            message = parse(frames[1])
            if isinstance(message, Welcome) and message.request_id == link.asked_id:
                link.asked_id = link.misses = 0
                self._welcomed(link, message, time.monotonic())
            elif isinstance(message, Chunk) and message.request_id == link.snapshot_id:
                self._chunk(link, message)
            elif isinstance(message, Refused):
                self._refused(link, message)
            elif isinstance(message, Malformed):
                tell(
                    PEER_MESSAGE_BAD,
                    "host at %s: it sent what cannot be understood: %s",
                    link.address,
                    message.reason,
                    subject=str(link.address),
                    address=str(link.address),
                )

    def _welcomed(self, link: _Link, welcome: Welcome, now: float) -> None:
        link.greet_at = now + _KEEP_SECONDS
        link.said = ""
        link.ours = welcome.host_id == self._identity.host_id
        if link.ours:
            return
        if welcome.hash_version != self._identity.hash_version:
            self._lose(link, "it speaks of blocks by another hash")
            link.greet_at = now + _KEEP_SECONDS
            self._trouble(
                link,
                f"it speaks of blocks by hash version {welcome.hash_version}, this build by "
                f"{self._identity.hash_version}: run the same PegaShm on all hosts",
            )
            return
        peer = link.peer
        if peer is not None and peer.incarnation == welcome.incarnation:
            peer.load = min(1000, welcome.load)
            peer.offers = reachable_offers(welcome.offers, link.address.host)
            return
        if peer is not None:
            self._lose(link, "another process answers at its address")
            link.greet_at = now + _KEEP_SECONDS
        if any(other.host_id == welcome.host_id for other in self._known.peers()):
            # The same host by another address; or, for a moment, its former life.
            link.greet_at = now + _KNOCK_SECONDS_MAX
            return
        self._join(link, welcome)

    def _join(self, link: _Link, welcome: Welcome) -> None:
        assert link.target is not None
        taken = self._directory.reserved() if self._directory is not None else set[int]()
        number = self._known.number(taken)
        if number is None:
            self._trouble(link, "there are more hosts than can be told apart")
            return
        stream = link.address.endpoint(welcome.stream_port) if welcome.stream_port else ""
        link.peer = Peer(
            number=number,
            address=link.address,
            target=link.target,
            host_id=welcome.host_id,
            incarnation=welcome.incarnation,
            stream=stream,
            offers=reachable_offers(welcome.offers, link.address.host),
            load=min(1000, welcome.load),
        )
        self._known.add(link.peer)
        if self._directory is not None:
            self._directory.joined(link.peer)

    def _refused(self, link: _Link, message: Refused) -> None:
        if message.request_id in (link.asked_id, link.snapshot_id):
            if message.reason == Reason.INCARNATION:
                self._lose(link, "another process answers at its address")
            elif message.request_id == link.asked_id:
                link.asked_id = 0
                link.greet_at = time.monotonic() + _KEEP_SECONDS
                self._trouble(
                    link, f"it refused (this build speaks version {VERSION}): {message.text}"
                )
            link.snapshot_id = 0

    def _trouble(self, link: _Link, what: str) -> None:
        if link.said != what:
            link.said = what
            tell(
                PEER_NOT_REACHED,
                "no host at %s: %s. It is tried again",
                link.address,
                what,
                address=str(link.address),
            )

    # -- snapshots -----------------------------------------------------------------------------------

    def _ask_snapshot(self, number: int) -> None:
        link = next(
            (link for link in self._links.values() if link.peer and link.peer.number == number),
            None,
        )
        if link is None or link.peer is None:
            return
        link.snapshot_id = next(self._numbers)
        link.snapshot_at = 0
        mine, peer = self._identity.host_id, link.peer
        self._send(link, Snapshot(link.snapshot_id, mine, peer.incarnation))

    def _chunk(self, link: _Link, chunk: Chunk) -> None:
        """In order, or not at all: the directory asks again for what does not come to its end."""
        if link.peer is None or chunk.number != link.snapshot_at or self._directory is None:
            link.snapshot_id = 0
            return
        link.snapshot_at += 1
        if chunk.last:
            link.snapshot_id = 0
        self._directory.chunk(link.peer, chunk.number, last=chunk.last, body=chunk.body)
