"""SIEVE: one queue, one bit a block, and a hand that walks from the oldest block to the newest and takes the first unused.

Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web
Caches", NSDI 2024.
"""

from __future__ import annotations

from bench.policies.base import Policy

__all__ = ["Sieve"]


class Sieve(Policy):
    """The queue is a doubly linked list in two dicts; 0 in them is no block, so blocks are kept as block + 1."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._used: dict[int, bool] = {}
        self._newer: dict[int, int] = {}
        self._older: dict[int, int] = {}
        self._newest = 0
        self._oldest = 0
        self._hand = 0

    def __contains__(self, block: int) -> bool:
        return block + 1 in self._used

    def access(self, block: int) -> bool:
        node = block + 1
        if node in self._used:
            self._used[node] = True
            return True
        if self.has_no_room():
            return False
        while len(self._used) >= self.capacity:
            self._evict()
        self._used[node] = False
        self._older[node] = self._newest
        self._newer[node] = 0
        if self._newest:
            self._newer[self._newest] = node
        else:
            self._oldest = node
        self._newest = node
        return False

    def _evict(self) -> None:
        node = self._hand or self._oldest
        while self._used[node] or node - 1 in self.pinned:
            self._used[node] = False
            node = self._newer[node] or self._oldest
        newer, older = self._newer.pop(node), self._older.pop(node)
        if newer:
            self._older[newer] = older
        else:
            self._newest = older
        if older:
            self._newer[older] = newer
        else:
            self._oldest = newer
        del self._used[node]
        self._hand = newer
        self.evictions += 1
