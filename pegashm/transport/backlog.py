"""Which blocks wait to be written to SSD?

Handles, oldest first, bounded in bytes and in seconds. A block that leaves memory another way is dropped, so that
what is counted as late really was in memory only. Used by one thread, the planner (`spiller`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Backlog", "Waiting"]


class Waiting(NamedTuple):
    """A block that is to be written; `since` by the caller's monotonic clock, in seconds."""

    handle: int
    nbytes: int
    since: float


class Backlog:
    """At most `bytes_max` bytes, none of them older than `seconds_max` when `expire` is called."""

    def __init__(self, bytes_max: int, seconds_max: float) -> None:
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Of all that wait."""
        return self._bytes

    def add(self, handle: int, nbytes: int, now: float) -> bool:
        """False when there is no room for it; True also when it waits already."""
        if handle in self._waiting:
            return True
        if self._bytes + nbytes > self._bytes_max:
            return False
        self._waiting[handle] = Waiting(handle, nbytes, now)
        self._bytes += nbytes
        return True

    def take(self, bytes_about: int, blocks_max: int) -> list[Waiting]:
        """The oldest, in order: until they have `bytes_about` bytes, or are `blocks_max`."""
        taken: list[Waiting] = []
        nbytes = 0
        while self._waiting and nbytes < bytes_about and len(taken) < blocks_max:
            taken.append(self._waiting.popitem(last=False)[1])
            nbytes += taken[-1].nbytes
        self._bytes -= nbytes
        return taken

    def put_back(self, taken: Iterable[Waiting]) -> None:
        """They are the oldest again, in the order given."""
        for waiting in reversed(list(taken)):
            self._waiting[waiting.handle] = waiting
            self._waiting.move_to_end(waiting.handle, last=False)
            self._bytes += waiting.nbytes

    def drop(self, handles: Iterable[int]) -> None:
        """These need not be written any more; most of them may never have waited."""
        for handle in handles:
            if (waiting := self._waiting.pop(handle, None)) is not None:
                self._bytes -= waiting.nbytes

    def expire(self, now: float) -> int:
        """How many had waited too long, and wait no more."""
        expired = 0
        while self._waiting and next(iter(self._waiting.values())).since < now - self._seconds_max:
            self._bytes -= self._waiting.popitem(last=False)[1].nbytes
            expired += 1
        return expired
