"""What do we know of one other host, and is it all? Its stream and its snapshots, applied to the table of hints.

Messages are numbered, so that a missing one shows. A snapshot is whole when every change since it was begun has been heard or
is still to come. Its chunks come while the stream goes on: a chunk may speak of a block that has been evicted since it
was read, so that what was heard after that is applied again behind it. All of it adds or removes hints, which may be
repeated. What is missed all the same is a hint too many, and costs a fetch that fails.

No sockets, no clock but what the caller says. Used by one thread, the follower's.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from pegashm import _native
from pegashm.directory.messages import Chunk, Delta, Hashes, Ops

__all__ = ["Stream"]

# Of what was heard during a snapshot; beyond that the oldest are not applied again.
_RECENT_EVENTS_MAX: Final = 1 << 18
_HASHES_MAX: Final = 1 << 24
_RETRY_SECONDS: Final = 1.0
_RETRY_SECONDS_MAX: Final = 30.0
_CHUNK_SECONDS: Final = 10.0


class _Heard(NamedTuple):
    sequence: int
    ops: Ops
    hashes: Hashes


class Stream:
    """One host as we hear it, under its number in the table."""

    def __init__(self, table: _native.RemoteTable, number: int, now: float) -> None:
        self._table = table
        self.number = number
        self.known = False  # a snapshot has come, or is coming: its hints mean something
        self.heard_at = now
        self.sequence = 0
        self.events = 0
        self.gaps = 0
        self.snapshots = 0
        self._follows = False  # `sequence` says something
        self._whole_from = 0  # a snapshot must not be older than this
        self._wanted = True
        self._ask_at = now
        self._tries = 0
        self._coming = False
        self._chunk_at = 0.0
        self._next_chunk = 0
        self._done_at = -_RETRY_SECONDS
        self._hashes = 0  # of this snapshot so far
        self._recent: deque[_Heard] = deque()
        self._recent_events = 0

    # -- the stream ----------------------------------------------------------------------------------

    def hear(self, delta: Delta, now: float) -> None:
        """One message, in the order in which they came."""
        self.heard_at = now
        told = len(delta.ops)
        expected = self.sequence + 1 if told else self.sequence
        before = delta.sequence - 1 if told else delta.sequence  # all up to here is told already
        if not self._follows:
            self._follows, self._whole_from = True, before
        elif delta.sequence < expected:
            return  # again, or from before its snapshot
        elif delta.sequence > expected:
            self._gap(before, now)
        self.sequence = delta.sequence
        if not told:
            return
        self.events += told
        self._table.apply(self.number, delta.ops, delta.hashes)
        if self._wanted or self._coming:
            self._remember(_Heard(delta.sequence, delta.ops, delta.hashes))

    def _gap(self, missed_to: int, now: float) -> None:
        self.gaps += 1
        self._whole_from = missed_to
        self._coming = False
        if not self._wanted:
            self._wanted, self._ask_at = True, max(now, self._done_at + _RETRY_SECONDS)

    def _remember(self, heard: _Heard) -> None:
        self._recent.append(heard)
        self._recent_events += len(heard.ops)
        while self._recent_events > _RECENT_EVENTS_MAX:
            self._recent_events -= len(self._recent.popleft().ops)

    # -- snapshots -----------------------------------------------------------------------------------

    def wants_snapshot(self, now: float) -> bool:
        """Whether to ask for one now."""
        if self._coming and now > self._chunk_at + _CHUNK_SECONDS:
            self._coming = False  # it stopped halfway
            self._wanted = True
        return self._wanted and not self._coming and now >= self._ask_at

    @property
    def is_coming(self) -> bool:
        return self._coming

    def asked(self, now: float) -> None:
        self._coming, self._chunk_at, self._next_chunk = True, now, 0
        self._tries += 1
        self._ask_at = now + min(_RETRY_SECONDS * 2.0**self._tries, _RETRY_SECONDS_MAX)

    def take(self, chunk: Chunk, *, place: int, last: bool, now: float) -> None:
        """A piece of a snapshot: in order from 0, or the rest is not believed."""
        if not self._coming:
            return  # of one that was given up
        if place != self._next_chunk:
            self._coming = False
            return
        self._next_chunk += 1
        self._chunk_at = now
        if place == 0:
            if chunk.as_of < self._whole_from:
                self._coming = False  # begun before the gap: what it lacks may never be told
                return
            if not self._follows:
                self._follows, self.sequence = True, chunk.as_of
            self._hashes = 0
            self._table.begin_anew(self.number)
            self._table.drop_retired()
            self.known = True
        self._hashes += len(chunk.memory) + len(chunk.ssd)
        if self._hashes > _HASHES_MAX:
            self._coming = False  # no arena holds so many
            return
        self._table.add(self.number, chunk.memory, _native.TIER_MEMORY)
        self._table.add(self.number, chunk.ssd, _native.TIER_SSD)
        while self._recent and self._recent[0].sequence <= chunk.as_of:
            self._recent_events -= len(self._recent.popleft().ops)
        for heard in self._recent:
            self._table.apply(self.number, heard.ops, heard.hashes)
        if last:
            self._coming = self._wanted = False
            self._tries = 0
            self._done_at = now
            self.snapshots += 1
            self._recent.clear()
            self._recent_events = 0
