"""What have we promised to other hosts to leave where it is, and until when?

A lease pins blocks of ours for one peer, so that nobody evicts them while it reads. It ends when the peer releases it, when
its time is over, or when the peer is dismissed: the fabric is told first, then the pins go. What peers may hold is bounded,
each for itself and all together, in leases and in bytes: our own engines need memory too. Used by one thread, that of
`serving.py`; the pins are the worker's, so that a killed worker's are reaped like any client's.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.fabric.interface import Fabric, Served

__all__ = ["Lease", "Leases", "Limits"]

Words = NDArray[np.uint64]

_SHARE_OF_ALL: Final = 4  # of the payload may be pinned for other hosts
_SHARE_OF_ONE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What peers may hold: bytes and leases, all of them and each."""

    bytes_all: int
    bytes_each: int
    count_all: int = 256
    count_each: int = 16

    @classmethod
    def of(cls, payload_bytes: int) -> Limits:
        return cls(
            bytes_all=payload_bytes // _SHARE_OF_ALL, bytes_each=payload_bytes // _SHARE_OF_ONE
        )


@dataclass(frozen=True, slots=True)
class Lease:
    lease_id: int
    peer: bytes
    fabric: Fabric
    handles: Words
    nbytes: int
    expires: float


class _Held:
    """Of one peer."""

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0


class Leases:
    """All that are under way."""

    def __init__(self, cache: Cache, limits: Limits) -> None:
        self._region = cache.region
        self._client = cache.client
        self.limits = limits
        self._leases: dict[int, Lease] = {}
        self._peers: dict[bytes, _Held] = {}
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def load(self) -> int:
        """In thousandths of what is allowed."""
        return min(
            1000,
            max(
                1000 * len(self._leases) // self.limits.count_all,
                1000 * self._nbytes // max(1, self.limits.bytes_all),
            ),
        )

    def room(self, peer: bytes) -> int:
        """Bytes that may be pinned for this peer now; 0 also when it has too many leases."""
        held = self._peers.get(peer)
        count, nbytes = (0, 0) if held is None else (held.count, held.nbytes)
        if count >= self.limits.count_each or len(self._leases) >= self.limits.count_all:
            return 0
        return max(0, min(self.limits.bytes_each - nbytes, self.limits.bytes_all - self._nbytes))

    def holds(self, peer: bytes) -> bool:
        return peer in self._peers

    def grant(
        self, peer: bytes, fabric: Fabric, handles: Words, blocks: Sequence[Served], expires: float
    ) -> tuple[int, bytes]:
        """Begin a lease over blocks that we hold pinned; its number, and what the fabric tells the reader.

        When the fabric refuses (an exception of its own), the pins stay the caller's.
        """
        lease_id = secrets.randbits(64) | 1
        granted = fabric.grant(peer, lease_id, blocks, expires)
        nbytes = sum(block.nbytes for block in blocks)
        self._leases[lease_id] = Lease(lease_id, peer, fabric, handles, nbytes, expires)
        held = self._peers.setdefault(peer, _Held())
        held.count += 1
        held.nbytes += nbytes
        self._nbytes += nbytes
        return lease_id, granted.opaque

    def release(self, peer: bytes, lease_id: int) -> bytes | None:
        """End a lease of this peer's; a byte a block, 1 when it is the same as at the beginning. None: it had ended."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.peer != peer:
            return None
        held = _native.generations_hold(self._region, lease.handles)
        self._end(lease)
        return held.astype(np.uint8).tobytes()

    def expire(self, now: float) -> list[Lease]:
        """End those whose time is over, and say which."""
        over = [lease for lease in self._leases.values() if lease.expires <= now]
        for lease in over:
            self._end(lease)
        return over

    def drop(self, peer: bytes) -> int:
        """End all of one peer; how many."""
        over = [lease for lease in self._leases.values() if lease.peer == peer]
        for lease in over:
            self._end(lease)
        return len(over)

    def close(self) -> None:
        for lease in list(self._leases.values()):
            self._end(lease)

    def _end(self, lease: Lease) -> None:
        lease.fabric.revoke(lease.lease_id)
        self._client.unpin(lease.handles)
        del self._leases[lease.lease_id]
        held = self._peers[lease.peer]
        held.count -= 1
        held.nbytes -= lease.nbytes
        if not held.count:
            del self._peers[lease.peer]
        self._nbytes -= lease.nbytes
