"""Hosts of one process: each an arena with a publisher and a follower, and somebody who carries snapshots.

Sockets, threads and shared memory are the real ones. The carrier stands for `pegashm.peers`, which asks for snapshots over
its own connections: it asks the publisher itself, and may lose, cut or delay what comes. Not a test itself.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import zmq

from pegashm import _native
from pegashm.arena import Arena
from pegashm.cache import Cache
from pegashm.directory.follower import Follower
from pegashm.directory.publisher import Publisher
from pegashm.keys import namespace_of

from tests.arenas import Shape, temporary_arena

__all__ = ["BYTES", "FENCE", "Named", "Node", "key_of", "keys_of", "node", "until"]

FENCE = namespace_of({"model": "directory"}, label="directory")
BYTES = 4096
PATIENCE_S = 20.0


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big") + bytes(4)


def keys_of(numbers: range | list[int]) -> list[bytes]:
    return [key_of(number) for number in numbers]


def until(what: Callable[[], object]) -> None:
    """Until it is so; an assertion when it is not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Named:
    """A host as a follower is told of it."""

    number: int
    host_id: bytes
    incarnation: bytes
    stream: str


def unsecured(_socket: zmq.Socket[bytes], *_: object) -> None:
    """On loopback."""


@dataclass(slots=True)
class Node:
    """One host."""

    arena: Arena
    cache: Cache
    context: zmq.Context[zmq.Socket[bytes]]
    spill: _native.SpillTable
    table: _native.RemoteTable
    publisher: Publisher
    follower: Follower
    host_id: bytes
    incarnation: bytes
    threads: list[threading.Thread] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    known: dict[int, tuple[Named, Publisher]] = field(default_factory=dict)
    met_at: float = 0.0
    carried: int = 0
    lose: Callable[[int], bool] = lambda _: False

    def start(self, life: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=life, daemon=True))
        self.threads[-1].start()

    def named(self, number: int) -> Named:
        endpoint = f"tcp://127.0.0.1:{self.publisher.port}"
        return Named(number, self.host_id, self.incarnation, endpoint)

    def meet(self, other: Node, number: int) -> Named:
        """Follow another host under this number."""
        host = other.named(number)
        self.known[number] = (host, other.publisher)
        self.follower.joined(host)
        self.met_at = time.monotonic()
        return host

    def hears(self, number: int) -> bool:
        """Whether what that host says from now on comes here; a snapshot may have come before that."""
        return self.follower._hosts[number].stream.heard_at > self.met_at

    def carry(self) -> None:
        """The life of the carrier's thread."""
        while not self.stopping.wait(0.01):
            for number in self.follower.snapshots_wanted():
                if number not in self.known:
                    continue
                host, publisher = self.known[number]
                bodies = list(publisher.snapshot())
                for place, body in enumerate(bodies):
                    self.carried += 1
                    if not self.lose(self.carried):
                        self.follower.chunk(host, place, last=place + 1 == len(bodies), body=body)

    def put(self, numbers: range | list[int]) -> _native.Handles:
        handles, _ = self.cache.claim(keys_of(numbers), BYTES)
        self.cache.publish(handles)
        return handles

    def drop(self, numbers: range | list[int]) -> None:
        handles, _ = self.cache.find(keys_of(numbers))
        self.cache.evict(handles)

    def sees(self, numbers: range | list[int]) -> list[bool]:
        """Which of these are on another host, as far as its lookups say."""
        outcomes = self.cache.find(keys_of(numbers))[1]
        return (outcomes == _native.REMOTE).tolist()

    def holdings(self) -> dict[int, int]:
        """Remote hash -> tiers, of all that can be read here."""
        header = self.arena.region.header
        hashes, tiers = _native.remote_holdings(
            self.arena.region, 0, header["record_count"] + header["spill_record_count"]
        )
        held: dict[int, int] = {}
        for hash_, tier in zip(hashes.tolist(), tiers.tolist(), strict=True):
            held[hash_] = held.get(hash_, 0) | tier
        return held

    def hints_of(self, other: Node, number: int) -> dict[int, int]:
        """What this host thinks that another holds, of all that the other holds; and how many hints it has."""
        held = other.holdings()
        if not held:
            return {}
        hashes = np.array(list(held), dtype=np.uint64)
        hosts, tiers = self.table.find(hashes)
        return {
            hash_: int(row_tiers[row_hosts == number][0])
            for hash_, row_hosts, row_tiers in zip(held, hosts, tiers, strict=True)
            if number in row_hosts
        }

    def agrees_with(self, other: Node, number: int) -> bool:
        held = other.holdings()
        return self.hints_of(other, number) == held and self.table.hints(number) == len(held)


@contextlib.contextmanager
def node(shape: Shape | None = None, *, hosts: int = 1, running: bool = True) -> Iterator[Node]:
    """A host with its threads; `running` False: without, for who calls what they would."""
    made = shape or Shape(spill_records=64, remote_buckets=256)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with (
        temporary_arena(made) as arena,
        Cache.attach(arena.name, namespace=FENCE) as cache,
    ):
        spill = _native.SpillTable(arena.region)
        spill.clear()
        spill.set_usable(1)
        table = _native.RemoteTable(arena.region)
        table.clear()
        host_id, incarnation = secrets.token_bytes(16), secrets.token_bytes(16)
        one = Node(
            arena=arena,
            cache=cache,
            context=context,
            spill=spill,
            table=table,
            publisher=Publisher(
                arena.region,
                context,
                host_id=host_id,
                incarnation=incarnation,
                bind="tcp://127.0.0.1:*",
                configure=unsecured,
                hosts=lambda: hosts,
                spill=spill,
            ),
            follower=Follower(arena.region, table, context, unsecured),
            host_id=host_id,
            incarnation=incarnation,
        )
        if running:
            for life in (one.publisher.run, one.follower.run, one.carry):
                one.start(life)
        try:
            yield one
        finally:
            one.stopping.set()
            one.publisher.stop()
            one.follower.stop()
            for thread in one.threads:
                thread.join(PATIENCE_S)
            context.destroy(linger=0)
