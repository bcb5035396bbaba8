"""Belady's optimum: what is used again last, or never, goes first. It knows the future, so it is a bound and no policy.

Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966. Of two blocks
that the same request will use next the later one goes, so that what stays is always whole prefixes: every request that
uses a block uses those before it, no later. Hits of prefixes are then as many as hits of blocks at all, and no policy
has more. A block that is used no more than others need not be stored at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from bench.policies.base import Policy

__all__ = ["Belady"]

NEVER = 1 << 60
DEPTH_BITS = 24


class Belady(Policy):
    """Replays `requests`, in this order, each once."""

    def __init__(self, capacity: int, requests: Sequence[Sequence[int]]) -> None:
        super().__init__(capacity)
        self._next_uses = _next_uses(requests)
        self._turn = 0
        self._use: dict[int, int] = {}  # of blocks that are there: when next, and how deep
        self._heap: list[tuple[int, int]] = []  # (-use, block), some of them out of date

    def __contains__(self, block: int) -> bool:
        return block in self._use

    def access(self, block: int) -> bool:
        return self.request([block]) == 1

    def request(self, chain: Sequence[int]) -> int:
        hits = self.prefix(chain)
        for depth, (block, use) in enumerate(zip(chain, self._next_uses[self._turn], strict=True)):
            when = use << DEPTH_BITS | depth
            self._use[block] = when
            heapq.heappush(self._heap, (-when, block))
        self._turn += 1
        while len(self._use) > self.capacity:
            when, block = heapq.heappop(self._heap)
            if self._use.get(block) == -when:
                del self._use[block]
                self.evictions += 1
        return hits


def _next_uses(requests: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each block of each request, the number of the next request that uses it."""
    last: dict[int, int] = {}
    uses: list[list[int]] = []
    for number in range(len(requests) - 1, -1, -1):
        chain = requests[number]
        uses.append([last.get(block, NEVER) for block in chain])
        last.update(dict.fromkeys(chain, number))
    return uses[::-1]
