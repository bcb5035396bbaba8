"""How is an arena emptied under living engines, so that it can be purged or its host be taken down?

One word of the header stops all claims: engines compute and store nothing, nothing comes from SSD or other hosts. What was claimed is still published.
Then blocks on their way to SSD are waited for, and what is in memory is evicted as soon as nobody has it pinned. Engines notice misses, no error; the arena
stays in this state, whoever comes and goes, until `undo`. Killed anywhere, this leaves an arena that is being drained, which another call goes on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pegashm._native import Region, draining_since
from pegashm.admin.drop import evict_rows
from pegashm.cache import Cache
from pegashm.liveness import SUPERVISOR_BYTE, holder_alive
from pegashm.transport.client import worker_alive

__all__ = ["Drained", "drain", "undo"]

_CLAIMED: Final = 1
_READY: Final = 2
_POLL_SECONDS: Final = 0.1
# A call that read the word just before it was set may still claim and publish: over is what stays so for this many looks. A process
# that is stopped right there can be later; a second `drain` takes what it stored.
_LOOKS_IN_A_ROW: Final = 5
_REAP_EVERY_SECONDS: Final = 1.0
# Blocks wait at most 2 s to be written (--spill-backlog-seconds): no news for longer than that is the end of it.
_SETTLED_SECONDS: Final = 3.0
# So long a worker that is being started, or started again, has to open its files.
_WORKER_SECONDS: Final = 10.0
_SPILL_COUNTERS: Final = ("spill_stored", "spill_skipped", "spill_late")


@dataclass(slots=True)
class Drained:
    """How far it is, in blocks. `storing`: claimed; `holders`: clients that have something pinned or claimed."""

    since_ns: int = 0
    step: str = ""
    blocks: int = 0
    blocks_bytes: int = 0
    storing: int = 0
    pinned: int = 0
    evicted: int = 0
    on_ssd: int = 0
    done: bool = False
    holders: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def undo(region: Region) -> bool:
    """Let engines store again; False when the arena was not being drained."""
    was = bool(draining_since(region.header))
    region.set_draining(0)
    return was


def drain(
    cache: Cache,
    *,
    keep: bool = False,
    timeout_seconds: float = float("inf"),
    tick: Callable[[Drained], None] = lambda so_far: None,
) -> Drained:
    """Stop claims and wait until nothing is being stored; unless `keep`, evict everything too. `done` says whether it came to its end in time."""
    region = cache.region
    if not draining_since(region.header):
        region.set_draining(time.time_ns())
    so_far = Drained(since_ns=draining_since(region.header))
    deadline = time.monotonic() + timeout_seconds
    in_time = (
        _until(cache, so_far, "publishing", lambda: not so_far.storing, deadline, tick)
        and _spilled(cache, so_far, deadline, tick)
        and (
            keep or _until(cache, so_far, "evicting", lambda: _evict(cache, so_far), deadline, tick)
        )
    )
    _look(cache, so_far)
    so_far.on_ssd = len(region.spilled())
    so_far.done = in_time and not so_far.storing
    so_far.step = "done" if so_far.done else so_far.step
    tick(so_far)
    return so_far


def _until(
    cache: Cache,
    so_far: Drained,
    step: str,
    over: Callable[[], bool],
    deadline: float,
    tick: Callable[[Drained], None],
) -> bool:
    """Look, and look again, until it is over (True) or too late; reap the dead meanwhile, who would never let go."""
    so_far.step, reap_at, in_a_row = step, 0.0, 0
    while True:
        _look(cache, so_far)
        in_a_row = in_a_row + 1 if over() else 0
        tick(so_far)
        now = time.monotonic()
        if in_a_row >= _LOOKS_IN_A_ROW or now >= deadline:
            return in_a_row > 0
        if now >= reap_at:
            reap_at = now + _REAP_EVERY_SECONDS
            cache.reap_dead(most=4)
        time.sleep(_POLL_SECONDS)


def _spilled(
    cache: Cache, so_far: Drained, deadline: float, tick: Callable[[Drained], None]
) -> bool:
    """What waits to be written to SSD is; at once where there is no SSD, or nobody who starts a worker."""
    region = cache.region
    if not region.header["spill_record_count"]:
        return True
    before, since = _written(region), time.monotonic()
    patience = since + _WORKER_SECONDS

    def at_work() -> bool:
        return bool(region.header["spill_usable"]) and worker_alive(cache.arena)

    def to_come() -> bool:
        return time.monotonic() < patience and holder_alive(cache.arena.control_fd, SUPERVISOR_BYTE)

    def settled() -> bool:
        nonlocal before, since
        if not at_work():
            since = time.monotonic()
            return not to_come()
        if (now := _written(region)) != before:
            before, since = now, time.monotonic()
        return time.monotonic() - since >= _SETTLED_SECONDS

    return _until(cache, so_far, "writing to SSD", settled, deadline, tick)


def _written(region: Region) -> int:
    return sum(int(row["value"]) for row in region.counters() if row["key"] in _SPILL_COUNTERS)


def _evict(cache: Cache, so_far: Drained) -> bool:
    blocks = cache.region.blocks()
    evicted, _, _ = evict_rows(cache, blocks[blocks["state"] == _READY])
    so_far.evicted += evicted
    _look(cache, so_far)
    return not so_far.blocks and not so_far.storing


def _look(cache: Cache, so_far: Drained) -> None:
    from pegashm.tools.holders import (
        held_by_slot,
    )  # numpy over all blocks: only who drains pays for it

    blocks = cache.region.blocks()
    ready = blocks["state"] == _READY
    so_far.blocks = int(ready.sum())
    so_far.blocks_bytes = int(blocks["payload_bytes"][ready].sum())
    so_far.storing = int((blocks["state"] == _CLAIMED).sum())
    so_far.pinned = int((blocks["pins"] != 0).any(axis=1).sum())
    held = held_by_slot(blocks)
    so_far.holders = [
        f"{client['label'] or client['engine_id']} (pid {client['pid']}, slot {client['slot']}): {held[client['slot']].pins} pinned, "
        f"{held[client['slot']].claims} being stored"
        for client in cache.region.clients()
        if client["slot"] in held and client["slot"] != cache.slot
    ]
