"""How long did requests take that brought blocks from SSD or from other hosts? Histograms in the control region.

`NAME_le_BOUND` counts those that took at most so many seconds and more than the bound before it, `NAME_sum_us` sums
all of them: they outlive the worker, and any reader of the region has them. Used by the worker's main thread.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from pegashm import _native

__all__ = ["BOUNDS", "observe"]

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_NAMES: Final = (*(f"{bound:g}" for bound in BOUNDS), "inf")


def observe(region: _native.Region, name: str, seconds: float) -> None:
    """One request. `name`: promote or fetch."""
    region.count(f"{name}_le_{_NAMES[bisect_left(BOUNDS, seconds)]}")
    region.count(f"{name}_sum_us", int(seconds * 1e6))
