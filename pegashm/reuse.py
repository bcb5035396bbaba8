"""How far is the hit rate from the best possible? The reuse ceiling of the last 15 minutes, hour and day.

Of N blocks that requests asked for in a window, U of them different, a cache that keeps everything could have
answered N - U: the ceiling is (N - U) / N. A hit rate far below it says that more memory, or another policy,
would help; one near it says that neither would. Blocks of before the window may lift a hit rate above it.

The control region counts N, and what was served, by ticks of 15 s; U is estimated by a HyperLogLog that it keeps for any
window (`_core/reuse.hpp`). The estimate is Ertl's, unbiased for few and many alike and without tables: "New cardinality
estimation algorithms for HyperLogLog sketches" (2017), algorithm 6. Its standard error is 1.04 / sqrt(registers).
Reads only. Called by `pegashm-dump` and by whoever exports metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pegashm._native import Region

__all__ = ["WINDOWS", "ReuseWindow", "estimate_unique", "read_reuse", "read_window"]

WINDOWS: Final = {"15 min": 15 * 60, "1 h": 3600, "24 h": 24 * 3600}
_ALPHA: Final = 1 / (2 * math.log(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseWindow:
    """What was asked for in one window. `known_seconds`: of how much of it anything is known.

    `unique` is an estimate, never above `asked`; `ceiling` and `hit_rate` are None where nothing was asked for.
    """

    window: str
    seconds: int
    known_seconds: int
    asked: int
    served: int
    unique: float

    @property
    def ceiling(self) -> float | None:
        return (self.asked - self.unique) / self.asked if self.asked else None

    @property
    def hit_rate(self) -> float | None:
        return min(self.served / self.asked, 1.0) if self.asked else None

    def as_dict(self) -> dict[str, str | int | float | None]:
        return {
            "window": self.window,
            "seconds": self.seconds,
            "known_seconds": self.known_seconds,
            "asked": self.asked,
            "served": self.served,
            "unique": round(self.unique, 1),
            "ceiling": self.ceiling,
            "hit_rate": self.hit_rate,
        }


def read_reuse(region: Region, *, at_s: int = 0) -> list[ReuseWindow]:
    """All windows, the shortest first; none in an arena that was made without. `at_s`: as of then (0: now)."""
    if not region.header["reuse_register_count"]:
        return []
    return [read_window(region, name, seconds, at_s=at_s) for name, seconds in WINDOWS.items()]


def read_window(region: Region, name: str, seconds: int, *, at_s: int = 0) -> ReuseWindow:
    """The last `seconds`, at most a day."""
    counted = region.reuse(seconds, at_s=at_s)
    return ReuseWindow(
        window=name,
        seconds=seconds,
        known_seconds=min(counted["seconds"], seconds),
        asked=counted["asked"],
        served=counted["served"],
        # Words are read one by one while others count: an estimate can be of a little more than N.
        unique=min(estimate_unique(counted["ranks"]), float(counted["asked"])),
    )


def estimate_unique(ranks: Sequence[int]) -> float:
    """How many different keys there were. `ranks[k]`: registers whose largest rank is k, 0 for none."""
    registers = sum(ranks)
    if not registers or ranks[0] == registers:
        return 0.0
    last = len(ranks) - 1
    total = registers * _tau(1 - ranks[last] / registers)
    for count in reversed(ranks[1:last]):
        total = 0.5 * (total + count)
    total += registers * _sigma(ranks[0] / registers)
    # Nothing is left when the last rank is every register's: more than can be told apart.
    return _ALPHA * registers * registers / total if total else math.inf


def _sigma(x: float) -> float:
    """For registers that no key has met: x + sum of x^(2^k) 2^(k-1)."""
    total, power = x, 1.0
    while True:
        x *= x
        before = total
        total += x * power
        power += power
        if total == before:
            return total


def _tau(x: float) -> float:
    """For registers whose rank is the last that is told apart."""
    if x in (0.0, 1.0):
        return 0.0
    total, power = 1 - x, 1.0
    while True:
        x = math.sqrt(x)
        before = total
        power *= 0.5
        total -= (1 - x) ** 2 * power
        if total == before:
            return total / 3
