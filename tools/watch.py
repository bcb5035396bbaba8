"""What happens in this arena? The journal's publish and evict events, one line each, as they come.

Polls the ring of the control region, read-only; nobody knows that it is being watched. The ring is
finite: events that were overwritten before they could be read leave a gap in the sequence numbers, and
the gap is reported in the same stream, never passed over. Ends on Ctrl-C, after `seconds`, or when the
arena it watches is purged or replaced. Called by `dump --follow`; yields dicts, prints nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from pegashm import _native

from .plain import plain, shown

__all__ = ["event_line", "events"]

POLL_SECONDS = 0.05
PURGE_CHECK_SECONDS = 1.0
EVENTS_A_CALL = 1024


def events(
    region: _native.Region, control: str, *, backlog: int, seconds: float | None
) -> Iterator[dict[str, Any]]:
    """Events from the last `backlog` on, then as they come; {"event": "overwritten"} where some are lost.

    The last item is {"event": "gone"} when `control` no longer names the region being watched.
    """
    ends_at = None if seconds is None else time.monotonic() + seconds
    watched = os.stat(control)
    checked_at = time.monotonic()
    seen = max(0, int(region.header["journal_head"]) - backlog)
    first = True
    while True:
        last, batch = region.journal(seen, EVENTS_A_CALL)
        for event in batch:
            # Before the first one stands history that nobody asked for, not a loss.
            if not first and event["sequence"] > seen + 1:
                yield _overwritten(seen + 1, event["sequence"] - 1)
            first = False
            seen = event["sequence"]
            yield plain(event)
        if last > seen:
            if not first:
                yield _overwritten(seen + 1, last)
            seen = last
        if ends_at is not None and time.monotonic() >= ends_at and not batch:
            return
        if time.monotonic() - checked_at >= PURGE_CHECK_SECONDS:
            checked_at = time.monotonic()
            if not _same_file(control, watched):
                yield {"event": "gone", "path": control}
                return
        if len(batch) < EVENTS_A_CALL:
            time.sleep(POLL_SECONDS)


def event_line(event: dict[str, Any]) -> str:
    """One event as a person reads it."""
    if event["event"] == "overwritten":
        return (
            f"-- {event['count']} events overwritten before they could be read"
            f" (sequence {event['first']} to {event['last']})"
        )
    if event["event"] == "gone":
        return f"-- the arena was purged or replaced: {shown(event['path'])} is another file now"
    return (
        f"{event['sequence']} {shown(event['event'])} key {shown(event['key'])} group {event['group']}"
        f" namespace {event['namespace_id']:#x} handle {event['handle']:#x}"
    )


def _overwritten(first: int, last: int) -> dict[str, Any]:
    return {"event": "overwritten", "first": first, "last": last, "count": last - first + 1}


def _same_file(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False
