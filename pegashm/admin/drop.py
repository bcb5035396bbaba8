"""How are blocks taken out of a live arena by hand? As any engine evicts: what somebody has pinned stays.

Acts as a client of its own. Engines miss what is dropped and compute it; routers and other hosts hear of it as of any eviction, since it is
journalled alike. What lies on SSD stays there and stays a hit: a spill file is a log that forgets only what is overwritten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.admin.selecting import KEY_BYTES_MAX
from pegashm.cache import Cache

__all__ = ["Dropped", "Wanted", "drop", "evict_rows"]

_CLAIMED: Final = 1
_READY: Final = 2
_BATCH: Final = 4096
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which blocks. `namespace_id` None: of all namespaces; `key` None: all keys; `group` None: all groups."""

    namespace_id: int | None = None
    key: bytes | None = None
    group: int | None = None

    def among(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Those of a structured array with the fields of `Region.blocks` or `Region.spilled`."""
        mask = np.ones(len(rows), dtype=np.bool_)
        if self.namespace_id is not None:
            mask &= rows["namespace_id"] == self.namespace_id
        if self.group is not None:
            mask &= rows["group"] == self.group
        if self.key is not None:
            padded = np.frombuffer(self.key.ljust(KEY_BYTES_MAX, b"\0"), np.uint8)
            mask &= (rows["key_bytes"] == len(self.key)) & (rows["key"] == padded).all(axis=1)
        return rows[mask]


@dataclass(slots=True)
class Dropped:
    """What came of it, in blocks. `stored`: being stored just now, which cannot be dropped; `on_ssd`: still listed there."""

    found: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    pinned: int = 0
    stored: int = 0
    on_ssd: int = 0

    @property
    def left(self) -> int:
        return self.pinned + self.stored

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def drop(
    cache: Cache,
    wanted: Wanted,
    *,
    wait_seconds: float = 0.0,
    tick: Callable[[Dropped], None] = lambda so_far: None,
) -> Dropped:
    """Evict them; wait up to `wait_seconds` for what is pinned or being stored to become evictable."""
    region = cache.region
    so_far = Dropped(found=len(wanted.among(region.blocks())))
    deadline = time.monotonic() + wait_seconds
    while True:
        rows = wanted.among(region.blocks())
        ready = rows[rows["state"] == _READY]
        so_far.stored = int((rows["state"] == _CLAIMED).sum())
        evicted, nbytes, so_far.pinned = evict_rows(cache, ready)
        so_far.evicted += evicted
        so_far.evicted_bytes += nbytes
        tick(so_far)
        if not so_far.left or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    so_far.on_ssd = len(wanted.among(region.spilled()))
    return so_far


def evict_rows(cache: Cache, rows: NDArray[Any]) -> tuple[int, int, int]:
    """(blocks evicted, their payload bytes, blocks that somebody has pinned) of rows of `Region.blocks` that are READY."""
    evicted = nbytes = pinned = 0
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        handles = batch["generation"].astype(np.uint64) << np.uint64(24) | batch["record"].astype(
            np.uint64
        )
        outcomes = cache.evict(np.ascontiguousarray(handles))
        done = outcomes == _native.OK
        evicted += int(done.sum())
        nbytes += int(batch["payload_bytes"][done].sum())
        pinned += int((outcomes == _native.PINNED).sum())
    return evicted, nbytes, pinned
