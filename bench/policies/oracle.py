"""What does libCacheSim say of the same sequence of blocks? The oracle for policies that have a name.

Its Python package is asked one reference at a time, all of one size, so that its hit rate is to be compared with
`simulate.replay_references`. None where the package is not installed (pip install libcachesim): a bench says so and a
test skips. https://github.com/1a1a11a/libCacheSim; Yang et al., S3-FIFO's authors.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from bench.policies.base import Policy
from bench.policies.lru import Lru
from bench.policies.s3fifo import S3Fifo
from bench.policies.sieve import Sieve
from bench.policies.tinylfu import WTinyLfuPlain

__all__ = ["BELADY", "TWINS", "Twin", "available", "hit_rate"]


@dataclass(frozen=True, slots=True)
class Twin:
    """A policy of ours, and what is the same there."""

    ours: Callable[[int], Policy]
    theirs: str
    options: Mapping[str, Any] = field(default_factory=dict)


TWINS: Final = MappingProxyType(
    {
        "LRU": Twin(Lru, "LRU"),
        "S3-FIFO": Twin(S3Fifo, "S3FIFO"),
        "SIEVE": Twin(Sieve, "Sieve"),
        "W-TinyLFU, LRU": Twin(WTinyLfuPlain, "WTinyLFU", {"main_cache": "LRU"}),
    }
)
BELADY: Final = Twin(Lru, "Belady")  # `ours` is `simulate.optimum`, which takes whole requests
NEVER: Final = (1 << 63) - 1


def available() -> bool:
    return importlib.util.find_spec("libcachesim") is not None


def hit_rate(twin: Twin, capacity: int, references: Sequence[int]) -> float:
    """Theirs, of `capacity` blocks."""
    library = importlib.import_module("libcachesim")
    cache = getattr(library, twin.theirs)(cache_size=capacity, **twin.options)
    request = library.Request()
    request.obj_size = 1
    hits = 0
    for block, then in zip(references, _next_uses(references), strict=True):
        request.obj_id = block + 1  # 0 is no object to it
        request.next_access_vtime = then
        hits += bool(cache.get(request))
    return hits / max(len(references), 1)


def _next_uses(references: Sequence[int]) -> list[int]:
    last: dict[int, int] = {}
    uses = [NEVER] * len(references)
    for place in range(len(references) - 1, -1, -1):
        uses[place] = last.get(references[place], NEVER)
        last[references[place]] = place
    return uses
