"""Least recently used: what has not been used for longest goes first. PegaShm's `--eviction lru`, exactly."""

from __future__ import annotations

from collections import OrderedDict

from bench.policies.base import Policy

__all__ = ["Lru"]


class Lru(Policy):
    """Oldest first."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def access(self, block: int) -> bool:
        blocks = self._blocks
        if block in blocks:
            blocks.move_to_end(block)
            return True
        if self.has_no_room():
            return False
        while len(blocks) >= self.capacity:
            oldest = next(iter(blocks))
            if oldest in self.pinned:
                blocks.move_to_end(oldest)  # this very request uses it
                continue
            del blocks[oldest]
            self.evictions += 1
        blocks[block] = None
        return False
