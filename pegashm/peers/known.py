"""Which hosts do we know just now, by their numbers, and how are they doing?

A peer is one life of one host: greeted, its identity known, its hints in the shared table under `number`. The greeter adds
and removes them; fetch threads choose among them and leave their experience here. A peer that is gone is gone at
once and alone: its connections are closed, fetches from it end, nobody else notices. One that (re)joined gets its
share gradually, over half a minute. Thread-safe.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from pegashm.fabric.interface import Connection, Fabric
from pegashm.logs import tell
from pegashm.notices import PEER_GONE, PEER_JOINED, PEER_LEFT_ALONE
from pegashm.peers.addresses import Address
from pegashm.peers.breaker import Breaker
from pegashm.peers.caller import Target

__all__ = ["Known", "Peer"]

_RAMP_SECONDS: Final = 30.0
_RAMP_LEAST: Final = 0.1
_FETCHES_AT_ONCE: Final = 2
_LOAD_A_FETCH: Final = 250  # what a fetch of ours adds to a load in thousandths
_CHANCE: Final = 50.0


@dataclass(slots=True, eq=False)
class Peer:
    """`alive`: False for good once it left; the same host may come back as another Peer."""

    number: int
    address: Address
    target: Target
    host_id: bytes
    incarnation: bytes
    stream: str
    offers: dict[str, bytes]
    load: int = 0
    alive: bool = True
    joined_at: float = field(default_factory=time.monotonic)
    breaker: Breaker = field(default_factory=Breaker)
    fetching: int = 0
    fetched: int = 0
    failed: int = 0
    connecting: threading.Lock = field(default_factory=threading.Lock)
    connections: dict[str, Connection] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.address} ({self.host_id.hex()[:12]})"

    def share(self, now: float) -> float:
        """How much of its share it gets already: 0.1 to 1."""
        return min(1.0, max(_RAMP_LEAST, (now - self.joined_at) / _RAMP_SECONDS))

    def connection(
        self, fabric: Fabric, introduce: Callable[[bytes], bytes], deadline: float
    ) -> Connection:
        """The connection over this fabric, made if need be. OSError or ValueError when it cannot be."""
        if not self.connecting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError("others wait for a connection as well")
        try:
            connection = self.connections.get(fabric.name)
            if connection is not None and not connection.broken:
                return connection
            if connection is not None:
                connection.close()
                del self.connections[fabric.name]
            if not self.alive:
                raise ConnectionError("the peer has left")
            connection = fabric.connect(self.offers[fabric.name], introduce, deadline)
            self.connections[fabric.name] = connection
            return connection
        finally:
            self.connecting.release()

    def close(self) -> None:
        with self.connecting:
            for connection in self.connections.values():
                connection.close()
            self.connections.clear()


class Known:
    """All peers. The mutex is never held over anything that waits."""

    def __init__(self, host_count: int) -> None:
        self._mutex = threading.Lock()
        self._host_count = host_count
        self._peers: dict[int, Peer] = {}
        self._chance = random.Random()

    def __len__(self) -> int:
        return len(self._peers)

    def peers(self) -> list[Peer]:
        with self._mutex:
            return list(self._peers.values())

    def number(self, taken: Iterable[int] = ()) -> int | None:
        """One that no peer has, nor `taken`; None when there are too many hosts."""
        with self._mutex:
            used = set(taken) | set(self._peers)
            return next((n for n in range(self._host_count) if n not in used), None)

    def of(self, number: int) -> Peer | None:
        return self._peers.get(number)

    def add(self, peer: Peer) -> None:
        with self._mutex:
            self._peers[peer.number] = peer
        tell(PEER_JOINED, "host %s joined", peer, host_id=peer.host_id.hex())

    def remove(self, peer: Peer, why: str) -> None:
        """It is gone: reads from it end now. `why` empty: there is nothing to tell."""
        with self._mutex:
            if self._peers.get(peer.number) is peer:
                del self._peers[peer.number]
            was, peer.alive = peer.alive, False
        if was and why:
            tell(
                PEER_GONE,
                "host %s is gone: %s. Its blocks are misses until it is back",
                peer,
                why,
                host_id=peer.host_id.hex(),
            )
        peer.close()

    # -- choosing ----------------------------------------------------------------------------------

    def choose(self, numbers: Iterable[int], now: float) -> tuple[Peer | None, bool]:
        """The best of these to fetch from now, and whether to wait for one that is only busy."""
        best, best_score, busy = None, 0.0, False
        with self._mutex:
            for number in numbers:
                peer = self._peers.get(number)
                if peer is None or not peer.breaker.allows(now):
                    continue
                share = peer.share(now)
                if peer.fetching >= (_FETCHES_AT_ONCE if share > 0.5 else 1):
                    busy = True
                    continue
                score = (peer.load + _LOAD_A_FETCH * peer.fetching + _CHANCE) / share
                score *= self._chance.uniform(0.8, 1.2)
                if best is None or score < best_score:
                    best, best_score = peer, score
        return best, busy

    def started(self, peer: Peer, now: float, seconds: float) -> None:
        with self._mutex:
            peer.fetching += 1
            peer.breaker.started(now, seconds)

    def ended(self, peer: Peer, *, good: bool | None, blocks: int = 0) -> None:
        """`good` None: says nothing about the peer (it was busy, or we were late)."""
        now = time.monotonic()
        with self._mutex:
            peer.fetching -= 1
            peer.fetched += blocks
            opened = False
            if good:
                peer.breaker.succeeded()
            elif good is not None:
                peer.failed += 1
                opened = peer.breaker.failed(now)
        if opened and peer.alive:
            tell(
                PEER_LEFT_ALONE,
                "host %s: fetches from it failed, it is left alone for a while",
                peer,
                subject=peer.number,
                host_id=peer.host_id.hex(),
            )
