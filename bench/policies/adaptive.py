"""PegaShm's own: one number a block that says when it is due, by recency and frequency, with their balance learned.

A use at time t adds 1 to a block's worth, which halves every H: `worth = 2^((due - t) / H)`. So `due` alone is the
state, the order of eviction is the order of `due`, and a use makes it `t + H * log2(1 + 2^((due - t) / H))`. H near 0
is LRU, a long H is LFU. That is LRFU (Lee, Choi, Kim, Noh, Min, Cho, Kim, "LRFU: A Spectrum of Policies that Subsumes the Least
Recently Used and Least Frequently Used Policies", IEEE ToC 2001).

Two things are added. Evicted blocks leave their `due` in a table of ghosts (a word each, four times as many as blocks,
overwritten at will): who returns goes on where it was. And ghosts teach H, as they teach ARC its balance (Megiddo,
Modha, FAST 2003): one that had been used only once says that new blocks went too early, and H shrinks; one that had been
used more says that frequency counts for too little, and H grows; each by the more, the rarer its kind is among
what is evicted. For chains: uses count from tail to head, and nobody is due before a block that needs it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from bench.policies.base import Policy

__all__ = ["Adaptive"]

SPAN_LEAST, SPAN_FIRST, SPAN_MOST = 0.25, 1.0, 6.0  # H in capacities
STEP = 2.0  # of H in blocks, a ghost that returns
GHOSTS = 4
GHOST_AGE = 16  # in capacities: older ones are none
RATIO_MOST = 64.0
RARE_SHARE = 1 / 1024  # weight of one eviction in the share of those used again


class Adaptive(Policy):
    """As in `_core/adaptive.hpp`, but for the hash of the ghosts' table."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.span = SPAN_FIRST
        self._due: dict[int, float] = {}
        self._again: set[int] = set()  # used more than once
        self._heap: list[tuple[float, int]] = []  # some of them out of date
        self._ghosts: list[tuple[int, float, bool] | None] = [None] * (GHOSTS * capacity)
        self._clock = 0
        self._again_share = 0.5  # of evictions

    def __contains__(self, block: int) -> bool:
        return block in self._due

    def access(self, block: int) -> bool:
        return self.request([block]) == 1

    def request(self, chain: Sequence[int]) -> int:
        hits = self.prefix(chain)
        self.pinned = set(chain[:hits])
        after = 0.0
        for block in reversed(chain):
            self._clock += 1
            if block in self._due:
                self._again.add(block)
                due = self._used(self._due[block])
            elif self.has_no_room():
                continue
            else:
                due = self._returned(block)
                while len(self._due) >= self.capacity:
                    self._evict()
            after = max(due, math.nextafter(after, math.inf))
            self._due[block] = after
            heapq.heappush(self._heap, (after, block))
        self.pinned = ()
        return hits

    def gone(self, block: int) -> None:
        """A block has been evicted: for who puts something below this cache."""

    def _used(self, due: float) -> float:
        span = self.span * self.capacity
        exponent = (due - self._clock) / span
        return self._clock + span * math.log2(1 + 2.0**exponent) if exponent < 40 else due

    def _returned(self, block: int) -> float:
        """Due of a block that comes in, by its ghost if there is one."""
        place = hash((block * 0x9E3779B97F4A7C15) & ((1 << 61) - 1)) % len(self._ghosts)
        ghost = self._ghosts[place]
        if ghost is None or ghost[0] != block:
            return self._clock
        self._ghosts[place] = None
        _, due, again = ghost
        if self._clock - due > GHOST_AGE * self.capacity:
            return self._clock
        share = min(max(self._again_share, 1e-6), 1 - 1e-6)
        rarity = (1 - share) / share if again else share / (1 - share)
        step = STEP / self.capacity * min(max(rarity, 1.0), RATIO_MOST)
        self.span = min(max(self.span + (step if again else -step), SPAN_LEAST), SPAN_MOST)
        self._again.add(block)
        return self._used(due)

    def _evict(self) -> None:
        kept = []
        while True:
            due, block = heapq.heappop(self._heap)
            if self._due.get(block) != due:
                continue
            if block not in self.pinned:
                break
            kept.append((due, block))
        for entry in kept:
            heapq.heappush(self._heap, entry)
        del self._due[block]
        self.gone(block)
        again = block in self._again
        self._again.discard(block)
        self._again_share += ((1.0 if again else 0.0) - self._again_share) * RARE_SHARE
        place = hash((block * 0x9E3779B97F4A7C15) & ((1 << 61) - 1)) % len(self._ghosts)
        self._ghosts[place] = (block, due, again)
        self.evictions += 1
