"""What happens in this arena? The journal's events, one by one, as they come.

Polls the ring of the control region, read-only; nobody knows that it is being watched. Two things can
make an event unreadable, and both are reported in the same stream, never passed over in silence:
  overwritten   the ring turned before we read it
  unwritten     its number was taken but it was never written: the process died in between, or is stopped
                there; we wait a moment for it first, since events are written out of order
Ends on Ctrl-C, after `seconds`, or when the arena it watches is purged or replaced. Called by
`dump --follow`; yields dicts, prints nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pegashm import _native

from .plain import plain, shown

__all__ = ["event_line", "events"]

POLL_SECONDS = 0.05
PURGE_CHECK_SECONDS = 1.0
UNWRITTEN_WAIT_SECONDS = 0.5
EVENTS_A_CALL = 1024


@dataclass(slots=True)
class _Follower:
    """Reads a journal in order: what it yields are events and gaps, each sequence number once."""

    region: _native.Region
    ring: int
    seen: int
    gap_since: float | None = None

    def read(self) -> Iterator[dict[str, Any]]:
        """What can be told now; stops before a gap that may yet fill."""
        last, batch = self.region.journal(self.seen, EVENTS_A_CALL)
        for event in batch:
            if event["sequence"] > self.seen + 1 and not self._gap_is_final(event["sequence"]):
                return
            yield from self._gap_before(event["sequence"])
            self.seen = event["sequence"]
            yield plain(event)
        if last > self.seen and self._gap_is_final(last + 1):
            yield from self._gap_before(last + 1)

    def _gap_is_final(self, upto: int) -> bool:
        """Whether what is missing before `upto` will never be read."""
        now = time.monotonic()
        if self.gap_since is None:
            self.gap_since = now
        lost = int(self.region.header["journal_head"]) - self.ring
        return upto - 1 <= lost or now - self.gap_since >= UNWRITTEN_WAIT_SECONDS

    def _gap_before(self, upto: int) -> Iterator[dict[str, Any]]:
        """Account for the numbers between what was seen and `upto`: overwritten, then unwritten."""
        self.gap_since = None
        overwritten = min(upto - 1, int(self.region.header["journal_head"]) - self.ring)
        if overwritten > self.seen:
            yield _gap("overwritten", self.seen + 1, overwritten)
            self.seen = overwritten
        if upto - 1 > self.seen:
            yield _gap("unwritten", self.seen + 1, upto - 1)
            self.seen = upto - 1


def events(
    region: _native.Region, control: str, *, backlog: int, seconds: float | None
) -> Iterator[dict[str, Any]]:
    """The last `backlog` events, then each as it comes, gaps included.

    The last item is {"event": "gone"} when `control` no longer names the region being watched.
    """
    header = region.header
    ring, head = int(header["journal_entry_count"]), int(header["journal_head"])
    follower = _Follower(region, ring, max(0, head - min(backlog, ring)))
    watched = os.stat(control)
    started_at = checked_at = time.monotonic()
    while True:
        told = False
        for event in follower.read():
            told = True
            yield event
        now = time.monotonic()
        if seconds is not None and now - started_at >= seconds:
            return
        if now - checked_at >= PURGE_CHECK_SECONDS:
            checked_at = now
            if not _same_file(control, watched):
                yield {"event": "gone", "path": control}
                return
        if not told:
            time.sleep(POLL_SECONDS)


def event_line(event: dict[str, Any]) -> str:
    """One event, or gap, as a person reads it."""
    kind = event["event"]
    if kind in ("overwritten", "unwritten"):
        why = "overwritten before they could be read" if kind == "overwritten" else "never written"
        return f"-- {event['count']} events {why} (sequence {event['first']} to {event['last']})"
    if kind == "gone":
        return f"-- the arena was purged or replaced: {shown(event['path'])} is another file now"
    return (
        f"{event['sequence']} {shown(kind)} key {shown(event['key'])} group {event['group']}"
        f" namespace {event['namespace_id']:#x} handle {event['handle']:#x}"
    )


def _gap(kind: str, first: int, last: int) -> dict[str, Any]:
    return {"event": kind, "first": first, "last": last, "count": last - first + 1}


def _same_file(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False
