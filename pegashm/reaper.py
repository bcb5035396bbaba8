"""Which clients are dead, and what did they leave?

A client is dead when nobody holds its OWNER byte *and* nobody holds its COPIERS byte: its engine's
workers may be copying long after its scheduler died. Both are taken exclusively, never waited for, so
that no other reaper and no new client has the slot meanwhile; what the slot left is then undone and
the locks are dropped. A reaper that dies half way leaves the slot attached and its locks to the kernel:
the next one begins again. Called by the supervisor every second, and by engines that need space; whoever reaps says
so in its own log.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from pegashm.arena import Arena
from pegashm.liveness import SLOT_COUNT, copiers_byte, owner_byte, try_lock, unlock
from pegashm.logs import tell
from pegashm.notices import CLIENT_REAPED

__all__ = ["ReapReport", "reap_dead_clients"]


@dataclass(frozen=True, slots=True)
class ReapReport:
    """One dead client and what was undone for it: claims, evictions, pins, segments."""

    slot: int
    pid: int
    label: str
    undone: dict[str, int]

    def __str__(self) -> str:
        work = ", ".join(f"{count} {what}" for what, count in self.undone.items() if count)
        name = f' "{self.label}"' if self.label else ""
        return f"reaped client {self.slot}{name} (pid {self.pid}): {work or 'nothing left behind'}"


def reap_dead_clients(
    arena: Arena, skip_slot: int | None = None, *, most: int = SLOT_COUNT
) -> list[ReapReport]:
    """Reap every client that is proven dead, at most `most` of them: each costs a pass over the records.

    `skip_slot`: the caller's own slot, whose locks are held through this very `control_fd` and so
    would not stop us. Returns at once when another thread is reaping through the same arena.
    """
    if not arena.reaping.acquire(blocking=False):
        return []
    try:
        candidates = (c for c in arena.region.clients() if c["slot"] != skip_slot)
        reports = (_reap(arena, client) for client in candidates)
        return list(islice((report for report in reports if report is not None), most))
    finally:
        arena.reaping.release()


def _reap(arena: Arena, client: dict[str, Any]) -> ReapReport | None:
    slot = int(client["slot"])
    owner, copiers = owner_byte(slot), copiers_byte(slot)
    if not try_lock(arena.control_fd, owner):
        return None
    try:
        if not try_lock(arena.control_fd, copiers):
            return None
        try:
            # Looked at again under the locks: another reaper may have been here first.
            if arena.region.client_incarnation(slot) != int(client["incarnation"]):
                return None
            undone = arena.region.reap_client(slot)
        finally:
            unlock(arena.control_fd, copiers)
    finally:
        unlock(arena.control_fd, owner)
    report = ReapReport(slot, int(client["pid"]), _text(client["label"]), undone)
    tell(
        CLIENT_REAPED,
        "%s",
        report,
        slot=report.slot,
        pid=report.pid,
        label=report.label,
        undone=report.undone,
    )
    return report


def _text(label: str | bytes) -> str:
    return label if isinstance(label, str) else label.decode(errors="replace")
