"""What is a cache policy to the simulators? Which blocks are there, and which goes when another comes.

A simulated cache holds `capacity` blocks of one size. `access` is one reference, as other simulators have it: a hit,
or a store that evicts. `request` is what an engine does with the blocks of one prompt: a block hits only if all
before it do, the hits are pinned while the rest is stored, and uses count from tail to head, so that a block never
goes before one that needs it. Policies say how in `access`; those that look at whole chains have a `request` of
their own. No processes, no payload: bench/replay.py has both, and says how far the two agree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

__all__ = ["Policy"]


class Policy(ABC):
    """One simulated cache."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a cache of {capacity} blocks: at least one is needed")
        self.capacity = capacity
        self.evictions = 0
        self.pinned: Collection[int] = ()

    @abstractmethod
    def __contains__(self, block: int) -> bool:
        """Whether the block is there now."""

    @abstractmethod
    def access(self, block: int) -> bool:
        """Use a block, store it when it is not there; whether it was. What is `pinned` stays."""

    def request(self, chain: Sequence[int]) -> int:
        """Serve a prompt; how many of its first blocks were there."""
        hits = self.prefix(chain)
        self.pinned = set(chain[:hits])
        for block in reversed(chain):
            self.access(block)
        self.pinned = ()
        return hits

    def prefix(self, chain: Sequence[int]) -> int:
        for hits, block in enumerate(chain):
            if block not in self:
                return hits
        return len(chain)

    def has_no_room(self) -> bool:
        """Whether nothing may go: then a store is dropped, as the broker does it."""
        return len(self.pinned) >= self.capacity
