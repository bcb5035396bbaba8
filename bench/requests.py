"""Which blocks do requests ask for, one after the other? Those of a recorded trace, or drawn by Zipf's law.

A request is the ids of its blocks in order; the same id is the same block, and an id is always reached by the same
blocks before it, as prefixes are. The trace is `traces/conversation.txt`, which says where it comes from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["block_count", "digest", "hits_at_most", "trace", "zipf"]

TRACE = Path(__file__).parent / "traces" / "conversation.txt"
CHAIN_BLOCKS = 24

Requests = Sequence[Sequence[int]]


def trace(count: int) -> Requests:
    """The first requests of the recorded conversations."""
    lines = [line for line in TRACE.read_text("ascii").splitlines() if not line.startswith("#")]
    return [_ids(line) for line in lines[:count]]


def zipf(count: int, chains: int, seed: int) -> Requests:
    """Prefixes of `chains` chains, the n-th of them asked for in proportion to 1/n."""
    chance = np.random.default_rng(seed)
    weights = 1 / np.arange(1, chains + 1)
    chosen = chance.choice(chains, count, p=weights / weights.sum())
    lengths = chance.integers(CHAIN_BLOCKS // 2, CHAIN_BLOCKS + 1, count)
    return [
        range(chain * CHAIN_BLOCKS, chain * CHAIN_BLOCKS + length)
        for chain, length in zip(chosen.tolist(), lengths.tolist(), strict=True)
    ]


def block_count(requests: Requests) -> int:
    """How many different blocks: the working set."""
    return len({block for request in requests for block in request})


def hits_at_most(requests: Requests) -> int:
    """How many hits a cache without limits has."""
    seen: set[int] = set()
    hits = 0
    for request in requests:
        hits += sum(block in seen for block in request)
        seen.update(request)
    return hits


def digest(requests: Requests) -> str:
    text = "\n".join(",".join(map(str, request)) for request in requests)
    return hashlib.sha256(text.encode()).hexdigest()


def _ids(line: str) -> list[int]:
    ids: list[int] = []
    for run in line.split(","):
        first, _, last = run.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids
