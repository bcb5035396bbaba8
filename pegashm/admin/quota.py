"""How much may a namespace have, and how is that changed on a live arena?

By the registry's own rules, as an engine that registers again would: under the registry lock; a maximum of more than there is means all there
is; all reserves together are at most the payload, so that what is granted may be less than what was asked for, after reserves of namespaces that nobody
uses have lapsed. An engine that attaches later with settings of its own (`reserved_bytes`, `maximum_bytes`) says it anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pegashm.admin.drop import evict_rows
from pegashm.admin.selecting import namespace_of
from pegashm.arena import Arena
from pegashm.cache import Cache, lock_registry
from pegashm.errors import ConfigError
from pegashm.liveness import REGISTRY_BYTE, unlock

__all__ = ["Granted", "set_quota", "trim"]

_READY: Final = 2
_WAIT_SECONDS: Final = 2.0
_BATCH: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What a namespace has now, in bytes; `asked_reserve`: what was asked for."""

    row: dict[str, Any]
    asked_reserve: int

    @property
    def in_full(self) -> bool:
        return int(self.row["reserved_bytes"]) >= self.asked_reserve


def set_quota(
    arena: Arena, said: str, *, reserved_bytes: int | None, maximum_bytes: int | None
) -> Granted:
    """Set one or both (None: as it is; 0: none). Raises ConfigError for what cannot be, ArenaBusyError when somebody registers too long."""
    region = arena.region
    payload = int(region.header["payload_bytes"])
    lock_registry(arena, _WAIT_SECONDS)
    try:
        row = namespace_of(region, said)
        reserved = (
            int(row["reserved_bytes"]) if reserved_bytes is None else min(reserved_bytes, payload)
        )
        maximum = (
            int(row["maximum_bytes"]) if maximum_bytes is None else min(maximum_bytes, payload)
        )
        if maximum and reserved > maximum:
            raise ConfigError(
                f"a reserve of {reserved} bytes is above the maximum of {maximum}: set both, or --reserved 0"
            )
        region.register_namespace(
            row["fingerprint"],
            label=row["label"],
            reserved_bytes=reserved,
            maximum_bytes=maximum,
            now_ns=int(row["attached_at_ns"]),  # nobody has attached
            in_use=[client["namespace_id"] for client in region.clients()],
        )
        return Granted(row=namespace_of(region, f"{row['id']:#x}"), asked_reserve=reserved)
    finally:
        unlock(arena.control_fd, REGISTRY_BYTE)


def trim(cache: Cache, namespace_id: int, maximum_bytes: int) -> tuple[int, int]:
    """Evict a namespace's blocks that would go first until it is within its maximum: (blocks, bytes still above it).

    Without this it keeps what it has: at its maximum each block it stores evicts one of its own.
    """
    blocks = cache.region.blocks()
    own = blocks[(blocks["namespace_id"] == namespace_id) & (blocks["state"] == _READY)]
    own = own[np.argsort(own["touched"], kind="stable")]
    evicted = place = 0
    while place < len(own) and (excess := _resident(cache, namespace_id) - maximum_bytes) > 0:
        some = own[place : place + _BATCH]
        needed = int(np.searchsorted(np.cumsum(some["payload_bytes"]), excess)) + 1
        evicted += evict_rows(cache, some[:needed])[0]
        place += needed
    return evicted, max(0, _resident(cache, namespace_id) - maximum_bytes)


def _resident(cache: Cache, namespace_id: int) -> int:
    rows = cache.region.namespaces(counted=False)
    return next((int(row["resident_bytes"]) for row in rows if row["id"] == namespace_id), 0)
