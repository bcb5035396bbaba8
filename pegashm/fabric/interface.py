"""How does a payload come from another host's arena into a block claimed here? What every fabric promises.

A fabric is one way to move bytes: `tcp` (plain sockets) or `verbs` (RDMA READ). Who may be read, which blocks are
pinned for how long and what is published afterwards is decided elsewhere (`pegashm.peers`), over an authenticated
connection that also carries the few opaque bytes that the two sides of a fabric have to tell each other: an offer
(in the greeting), an introduction of each connection, and a grant with each lease.

The one promise that all depends on: when `Connection.read` has returned, or the reading process is dead and its kernel
locks are free, nothing writes into the destinations any more. And a reader that lies or stands still can cost the
serving side no more than its own connections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "GRANT_BYTES_MAX",
    "OPAQUE_BYTES_MAX",
    "Connection",
    "Fabric",
    "Grant",
    "Part",
    "ReadOutcome",
    "Served",
]

OPAQUE_BYTES_MAX = 4096
GRANT_BYTES_MAX = 60_000  # of a grant alone: a key for each span of neighbouring blocks


class ReadOutcome(IntEnum):
    """What became of one part."""

    OK = 0  # these are the bytes that lay there while the lease held, as far as the fabric can tell
    FAILED = 1  # the connection broke, the peer refused, or a checksum of the fabric did not match
    LATE = 2  # the deadline passed first


class Served(NamedTuple):
    """One block of the serving arena under a lease. `offset`: bytes from the start of its payload."""

    offset: int
    nbytes: int


class Part(NamedTuple):
    """One block to read: where it lies there, and the address (in this process) of the block claimed for it."""

    offset: int
    nbytes: int
    address: int


class Grant(NamedTuple):
    """What a reader needs to read under one lease, besides the lease itself. Opaque to who carries it."""

    lease_id: int
    opaque: bytes


class Connection(ABC):
    """A reader's way to one peer. `read` may be called from several threads at once."""

    @abstractmethod
    def read(self, grant: Grant, parts: Sequence[Part], deadline: float) -> list[ReadOutcome]:
        """Read all parts, which are blocks of the grant's lease in its order or some of them; an outcome each.

        `deadline` by time.monotonic(). Never raises and never outlasts the deadline by more than the 0.25 s it may
        take to make sure that nothing is written any more.
        """

    @property
    @abstractmethod
    def broken(self) -> bool:
        """Whether another `connect` is needed; every further `read` fails at once."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. A `read` under way ends as FAILED."""


class Fabric(ABC):
    """Both sides on one host: the payload at `payload_address`, `payload_bytes` long, is served and read into."""

    name: str

    @abstractmethod
    def offer(self) -> bytes:
        """What a peer must know to connect; at most OPAQUE_BYTES_MAX. For an authenticated peer only."""

    @abstractmethod
    def admit(self, peer: bytes, introduction: bytes) -> bytes:
        """Serving side: `peer` (its host id) connects; the answer to what its `connect` sent. ValueError refuses."""

    @abstractmethod
    def dismiss(self, peer: bytes) -> None:
        """Serving side: this peer is gone, or not welcome any more: nothing of ours is readable by it."""

    @abstractmethod
    def grant(self, peer: bytes, lease_id: int, blocks: Sequence[Served], expires: float) -> Grant:
        """Serving side: this peer may read these blocks, which are pinned, until `expires` (time.monotonic())."""

    @abstractmethod
    def revoke(self, lease_id: int) -> None:
        """Serving side: the lease is over; the pins go when this has returned. Nothing is sent from the blocks after that
        by us; what a NIC still reads the reader discards."""

    @abstractmethod
    def connect(
        self, offer: bytes, introduce: Callable[[bytes], bytes], deadline: float
    ) -> Connection:
        """Reading side. `introduce` carries bytes to the peer's `admit` and returns its answer (OSError when it cannot).

        OSError or ValueError when there is no connection to be had.
        """

    @abstractmethod
    def close(self) -> None:
        """End serving and reading; connections end with it."""
