"""What happened to these keys lately, and when? The journal's events, with such times as can be had.

The journal is a ring of hints: its oldest events are overwritten, a process killed in between leaves none, and an event has no time of its own. But the
blocks of its publish events that are still there say when they were published, and events are in order: so each event lies between two of these times.
Reads only.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm._native import Region

__all__ = ["Event", "Journal", "read_journal"]

_AT_ONCE: Final = 65536
_READY: Final = 2
_KINDS: Final = ("publish", "evict")


@dataclass(frozen=True, slots=True)
class Event:
    """`after_ns`, `before_ns`: it happened between these; 0: not known (at that end)."""

    sequence: int
    kind: str
    namespace_id: int
    group: int
    key: bytes
    handle: int
    after_ns: int
    before_ns: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "sequence": self.sequence,
            "event": self.kind,
            "namespace_id": self.namespace_id,
            "group": self.group,
            "key": self.key.hex(),
            "after_ns": self.after_ns,
            "before_ns": self.before_ns,
        }


@dataclass(frozen=True, slots=True)
class Journal:
    """All events that can be read, oldest first. `first`: the oldest number that was not overwritten; `since_ns`: about when that was."""

    first: int
    head: int
    since_ns: int
    events: tuple[Event, ...]


def read_journal(region: Region, blocks: NDArray[Any] | None = None) -> Journal:
    """The whole ring. `blocks`: `Region.blocks()`, where the caller has it already."""
    header = region.header
    head, size = int(header["journal_head"]), int(header["journal_entry_count"])
    first = max(1, head - size + 1)
    rows: list[dict[str, Any]] = []
    seen = first - 1
    while seen < head:
        last, some = region.journal(seen, _AT_ONCE)
        if last <= seen:
            break
        rows += some
        seen = last
    clock = _Clock(region.blocks() if blocks is None else blocks, rows)
    return Journal(
        first=rows[0]["sequence"] if rows else head + 1,
        head=head,
        since_ns=clock.earliest,
        # Of memory; what was spilled and forgotten is told by what is on SSD now.
        events=tuple(
            Event(
                row["sequence"],
                row["event"],
                row["namespace_id"],
                row["group"],
                bytes(row["key"]),
                row["handle"],
                *clock.around(row["sequence"]),
            )
            for row in rows
            if row["event"] in _KINDS
        ),
    )


class _Clock:
    """When numbers of events were: known for those whose block is still there."""

    def __init__(self, blocks: NDArray[Any], rows: list[dict[str, Any]]) -> None:
        ready = blocks[blocks["state"] == _READY]
        handles = ready["generation"].astype(np.uint64) << np.uint64(24) | ready["record"].astype(
            np.uint64
        )
        published = dict(zip(handles.tolist(), ready["published_at_ns"].tolist(), strict=True))
        known = [
            (row["sequence"], published[row["handle"]])
            for row in rows
            if row["event"] == "publish" and row["handle"] in published
        ]
        self._sequences = [sequence for sequence, _ in known]
        # Several processes append: their times may be a little out of order.
        self._times = np.maximum.accumulate([time for _, time in known]).tolist() if known else []

    @property
    def earliest(self) -> int:
        return int(self._times[0]) if self._times else 0

    def around(self, sequence: int) -> tuple[int, int]:
        place = bisect.bisect_left(self._sequences, sequence)
        exact = place < len(self._sequences) and self._sequences[place] == sequence
        if exact:
            return int(self._times[place]), int(self._times[place])
        after = int(self._times[place - 1]) if place else 0
        before = int(self._times[place]) if place < len(self._times) else 0
        return after, before
