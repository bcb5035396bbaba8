"""S3-FIFO: new blocks wait in a small queue; those used twice there move to the main one, the others leave at once.

A ghost queue remembers keys of what left the small queue: one that comes back goes to the main queue directly.
Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023; details (a tenth for the
small queue, nine tenths of keys in the ghost, two uses, and the small queue's overflow into the main one until
something was evicted) as the authors' libCacheSim has them by default.
"""

from __future__ import annotations

from collections import OrderedDict

from bench.policies.base import Policy

__all__ = ["S3Fifo"]

SMALL_SHARE = 0.1
GHOST_SHARE = 0.9
USES_TO_STAY = 2
USES_MOST = 3

Queue = OrderedDict[int, int]  # block -> uses, oldest first


class S3Fifo(Policy):
    """Three queues."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._small: Queue = OrderedDict()
        self._main: Queue = OrderedDict()
        self._ghost: Queue = OrderedDict()
        self._small_size = int(capacity * SMALL_SHARE)
        self._ghost_size = int(capacity * GHOST_SHARE)
        self._main_size = capacity - self._small_size
        self._has_evicted = False

    def __contains__(self, block: int) -> bool:
        return block in self._small or block in self._main

    def access(self, block: int) -> bool:
        if block in self._small:
            self._small[block] += 1
            return True
        known = self._ghost.pop(block, None) is not None
        if block in self._main:
            self._main[block] += 1
            return True
        if self.has_no_room():
            return False
        while len(self._small) + len(self._main) >= self.capacity:
            self._evict()
        full = not self._has_evicted and len(self._small) >= self._small_size
        (self._main if known or full else self._small)[block] = 0
        return False

    def _evict(self) -> None:
        self._has_evicted = True
        if len(self._main) > self._main_size or not self._small:
            self._evict_main()
        else:
            self._evict_small()

    def _evict_small(self) -> None:
        while self._small:
            block, uses = self._small.popitem(last=False)
            if uses >= USES_TO_STAY or block in self.pinned:
                self._main[block] = 0
                continue
            self._remember(block)
            self.evictions += 1
            return

    def _evict_main(self) -> None:
        while self._main:
            block, uses = self._main.popitem(last=False)
            if uses or block in self.pinned:
                self._main[block] = max(min(uses, USES_MOST) - 1, 0)
                continue
            self.evictions += 1
            return

    def _remember(self, block: int) -> None:
        if self._ghost_size == 0:
            return
        if len(self._ghost) >= self._ghost_size:
            self._ghost.popitem(last=False)
        self._ghost[block] = 0
