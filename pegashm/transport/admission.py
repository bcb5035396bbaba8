"""Which blocks are worth a write to SSD? `all`, `evicted`, or only those that are used a second time.

`all` writes each block soon after it was published, and what was missed when it is evicted. `evicted` writes only
then: less wear, but a reboot loses what was in memory. `second-touch` writes a block only when it proved useful: used
again after the request that stored it, or computed again after it was evicted. Engines touch what a request used
when the request ends, so the first touch after publishing is its own and the second is somebody's who found it.
Touches between two looks count as one; a block looked at for the first time when it is evicted was used once.

Hints in private memory, bounded; a new worker begins with none. Used by the spiller's thread alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["Admission"]

_WATCHED_MAX: Final = 1 << 16
_SEEN_SLOTS: Final = 1 << 20
_TOUCHES: Final = 2


class Admission:
    """One of `config.SPILL_ADMISSIONS`, and what it remembers."""

    def __init__(self, policy: str) -> None:
        self.writes_behind = policy == "all"
        self.selective = policy == "second-touch"
        self._watched: dict[int, tuple[int, int]] = {}  # handle -> (last touch seen, advances)
        self._seen = np.zeros(_SEEN_SLOTS if self.selective else 0, np.uint64)

    def watch(self, handle: int, touch: int, namespace_id: int, key: bytes) -> bool:
        """A block was published. True when it is worth writing at once: it had been here before."""
        if not self.selective:
            return self.writes_behind
        if self._was_seen(namespace_id, key):
            return True
        if len(self._watched) >= _WATCHED_MAX:  # the oldest is judged by its key alone from now on
            self._watched.pop(next(iter(self._watched)))
        self._watched[handle] = (touch, 0)
        return False

    def watched(self) -> NDArray[np.uint64]:
        return np.fromiter(self._watched, np.uint64, len(self._watched))

    def look(self, handles: Sequence[int], touches: Sequence[int]) -> list[int]:
        """What watched blocks' touches are now (0: gone). Those that proved worth a write; watched no longer."""
        proved = []
        for handle, touch in zip(handles, touches, strict=True):
            before = self._watched.get(handle)
            if before is None:
                continue
            if touch == 0:
                del self._watched[handle]
            elif touch != before[0]:
                self._watched[handle] = (touch, before[1] + 1)
                if before[1] + 1 >= _TOUCHES:
                    del self._watched[handle]
                    proved.append(handle)
        return proved

    def admits_victim(self, handle: int, touch: int, namespace_id: int, key: bytes) -> bool:
        """Whether a block that is being evicted is to be written first. If not, its key is remembered."""
        if not self.selective:
            return True
        last, advances = self._watched.pop(handle, (touch, 0))
        if advances + (touch != last) >= _TOUCHES or self._was_seen(namespace_id, key):
            return True
        self.gone(handle, namespace_id, key)
        return False

    def gone(self, handle: int, namespace_id: int, key: bytes) -> None:
        """Somebody evicted it: should it be computed again, that is its second touch."""
        if self.selective:
            self._watched.pop(handle, None)
            mark = _mark(namespace_id, key)
            self._seen[mark % _SEEN_SLOTS] = mark

    def _was_seen(self, namespace_id: int, key: bytes) -> bool:
        mark = _mark(namespace_id, key)
        return bool(self._seen[mark % _SEEN_SLOTS] == mark)


def _mark(namespace_id: int, key: bytes) -> int:
    return xxhash.xxh3_64_intdigest(key, namespace_id) or 1
