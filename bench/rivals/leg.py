"""What is measured in one leg: one rival, PegaShm and the yardstick, side by side in the same rounds, and nothing else running.

Each rival has a leg of its own because several keep threads busy while nobody asks them anything. In each round every contender does
the same, in another order: look up 1, 64 and 1,000 keys (all there, none there), put and get blocks of each size by one client and
by two at once. The yardstick says what a memcpy of the same blocks costs meanwhile; compare shares of it between legs, not rates.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import harness
from bench.rivals.contenders import Contender

__all__ = ["KEY_COUNTS", "Extent", "copies", "idle", "lookups"]

KEY_COUNTS = (1, 64, 1000)
CALLS = {1: 100, 64: 30, 1000: 5}
A_CALL = 32
IDLE_SECONDS = 2.0
KIB = 1 << 10


@dataclass(frozen=True, slots=True)
class Extent:
    """How much to do."""

    rounds: int
    sizes_kib: Sequence[int]
    pass_bytes: int
    kills: int

    @classmethod
    def of(cls, options: harness.Options) -> Extent:
        return cls(
            rounds=options.pick(5, 3, 1),
            sizes_kib=options.pick((64, 256, 1024, 2048), (64, 1024), (64,)),
            pass_bytes=options.pick(64 << 20, 64 << 20, 4 << 20),
            kills=options.pick(5, 1, 1),
        )


def lookups(contenders: Sequence[Contender], extent: Extent) -> list[dict[str, Any]]:
    """A row for each contender, number of keys, and hit or miss: microseconds a call."""
    samples: dict[tuple[str, int, bool], list[int]] = {}
    for contender in contenders:
        contender.fill_chains()
    order = list(contenders)
    shuffle = random.Random(harness.SEED).shuffle
    for round_ in range(extent.rounds + 1):
        shuffle(order)
        for contender in order:
            for count in KEY_COUNTS:
                for hit in (True, False):
                    taken = contender.lookups(count, hit=hit, calls=CALLS[count])
                    if round_:  # the first is not counted: connections, page faults, caches
                        samples.setdefault((contender.title, count, hit), []).extend(taken)
    for contender in contenders:
        contender.empty_chains()
    return [
        {
            "store": title,
            "keys": count,
            "hit": hit,
            "us_p50": round(harness.percentile(taken, 50) / 1e3, 2),
            "us_p99": round(harness.percentile(taken, 99) / 1e3, 2),
        }
        for (title, count, hit), taken in samples.items()
    ]


def copies(contenders: Sequence[Contender], extent: Extent) -> list[dict[str, Any]]:
    """A row for each contender, block size and number of clients."""
    rows = []
    for size_kib in extent.sizes_kib:
        block_bytes = size_kib * KIB
        count = extent.pass_bytes // block_bytes
        for contender in contenders:
            contender.prepare(block_bytes)
        for clients in (1, 2):
            samples = rounds(contenders, extent, clients, block_bytes, count)
            rows += [row(samples, title, clients, size_kib) for title in samples]
    return rows


def rounds(
    contenders: Sequence[Contender], extent: Extent, clients: int, block_bytes: int, count: int
) -> dict[str, list[dict[str, Any]]]:
    """What each contender's passes came to, without the first round, which brings memory and connections."""
    samples: dict[str, list[dict[str, Any]]] = {each.title: [] for each in contenders}
    order = list(contenders)
    shuffle = random.Random(harness.SEED).shuffle
    for round_ in range(extent.rounds + 1):
        shuffle(order)
        for contender in order:
            passed = contender.passes(clients, block_bytes, count, A_CALL)
            if passed["wrong"] or passed["missing"]:
                raise AssertionError(
                    f"{contender.title}: {passed['wrong']} blocks wrong, {passed['missing']} missing"
                )
            if round_:
                samples[contender.title].append(passed)
    return samples


def row(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], title: str, clients: int, size_kib: int
) -> dict[str, Any]:
    """Medians, and the share of the yardstick's medians."""
    made: dict[str, Any] = {"store": title, "clients": clients, "block_kib": size_kib}
    for way in ("put", "get"):
        rate = harness.median([passed[way] for passed in samples[title]])
        limit = harness.median([passed[way] for passed in samples["memcpy"]])
        calls = [ns for passed in samples[title] for ns in passed[f"{way}_ns"]]
        made |= {
            f"{way}_gbs": round(rate, 3),
            f"{way}_share": round(rate / limit, 3),
            f"{way}_call_us_p50": round(harness.percentile(calls, 50) / 1e3, 1),
            f"{way}_call_us_p99": round(harness.percentile(calls, 99) / 1e3, 1),
        }
    return made


def idle(pids: Sequence[int]) -> float:
    """What share of a core these processes take while nobody asks them anything."""
    before = harness.cpu_seconds(pids)
    time.sleep(IDLE_SECONDS)
    return round((harness.cpu_seconds(pids) - before) / IDLE_SECONDS, 4)
