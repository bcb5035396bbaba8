"""How were blocks answered, stored and lost? The region's counters in the few terms that the page has.

Cumulative numbers in and out: who samples takes differences. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pegashm.exporter.definitions import MISS_REASONS

__all__ = ["MISSES", "PLOTTED", "amounts_of"]

# What is plotted. The first four add up to the blocks that requests asked for.
PLOTTED: Final = ("memory", "ssd", "hosts", "missed", "stored", "evicted", "spilled")
# What is counted beside it: the misses by reason, which add up to `missed`.
MISSES: Final = tuple(f"missed_{reason}" for reason in MISS_REASONS)


def amounts_of(counters: Mapping[str, int]) -> dict[str, int]:
    """By the names of PLOTTED and MISSES, since the arena was made."""
    misses = {name: counters.get(name, 0) for name in MISSES}
    return misses | {
        "memory": counters.get("hits_memory", 0),
        "ssd": counters.get("hits_ssd", 0),
        "hosts": counters.get("hits_remote", 0),
        "missed": sum(misses.values()),
        "stored": counters.get("publishes", 0),
        "evicted": counters.get("evictions", 0),
        "spilled": counters.get("spill_stored", 0),
    }
