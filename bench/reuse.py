"""How far is the reuse ceiling that an arena estimates from one that is counted, and what does counting cost a request?

The recorded conversation and the two synthetic workloads of `policies/workload.py` are played into a region by their own
clocks, without a cache: only what requests ask for matters. At many moments each window's estimate is
compared with a count of everything, and so again with other keys for the same blocks, since an estimate's error depends on
the keys. A day is made from the recorded hour: 24 times, half of its blocks being new in each. The cost is measured
beside a lookup of the same keys.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pegashm import _native
from pegashm.reuse import WINDOWS, read_window

from bench import harness
from bench.policies.workload import CONVERSATION, Request, Workload, agents, read_trace, scans
from bench.sparse_region import SparseRegion

__all__ = ["measure"]

REGISTERS = 1 << 14
NAMESPACE = 1 << 16
START_S = 1_700_000_010 // 15 * 15
TICK_S = _native.REUSE_TICK_SECONDS
QUESTION = "How far is the estimated reuse ceiling from the counted one, and what does it cost?"
NOT_SHOWN = (
    "engines that count at the same time: tests/test_reuse.py does, and the words are spread over two MiB",
    "the ceiling of a window that is longer than the arena is old: known_seconds says so",
)


@dataclass(slots=True)
class Counted:
    """Everything that was asked for, counted by tick."""

    last: dict[int, int] = field(default_factory=dict)  # block -> tick
    asked: deque[tuple[int, int]] = field(default_factory=deque)

    def add(self, tick: int, chain: Sequence[int]) -> None:
        self.asked.append((tick, len(chain)))
        self.last.update(dict.fromkeys(chain, tick))

    def window(self, tick: int, ticks: int) -> tuple[int, int]:
        """N and U of the `ticks` up to this one."""
        asked = sum(count for at, count in self.asked if tick - at < ticks)
        at = np.fromiter(self.last.values(), np.int64, len(self.last))
        return asked, int((tick - at < ticks).sum())


def measure(options: harness.Options) -> harness.Findings:
    requests = options.pick(None, 6000, 300)
    day = options.pick(24, 4, 0)
    salts = options.pick(5, 2, 1)
    workloads = [
        read_trace(CONVERSATION, requests),
        scans(requests or 6000),
        agents(requests or 6000),
    ]
    rows = []
    digest = hashlib.sha256()
    for workload in workloads:
        digest.update(workload.digest.encode())
        rows += errors(workload.name, lambda w=workload: iter(w.requests), salts, 300)
    if day:
        name = f"conversation, {day} h"
        rows += errors(name, lambda: a_day(workloads[0], day), options.pick(3, 2, 1), 2 * 3600)
    cost = costs(workloads[0], options)
    columns = (
        "workload, window", "moments", "asked at most", "different", "ceiling %",
        "error, points: mean", "p95", "max", "of U, %: mean, signed", "p95", "max",
    )  # fmt: skip
    figures = {
        "error_points_max": max(row["points_max"] for row in rows),
        "error_unique_p95_percent": max(row["unique_p95"] for row in rows),
        "registers": REGISTERS,
        "cost": cost,
        "results": rows,
    }
    tables = [
        harness.table(
            f"estimate against count; {REGISTERS} registers, standard error {104 / REGISTERS**0.5:.2f} % of U",
            columns,
            [
                (
                    f"{row['workload']}, {row['window']}", row["moments"], f"{row['asked']:,}",
                    f"{row['unique']:,}", row["ceiling"], row["points_mean"], row["points_p95"],
                    row["points_max"], row["unique_mean"], row["unique_p95"], row["unique_max"],
                )
                for row in rows
            ],
        ),
        harness.table(
            "ns a key, batches as the trace's requests",
            ("", "median"),
            [(name, value) for name, value in cost.items()],
        ),
    ]  # fmt: skip
    return harness.Findings(tables, figures, digest.hexdigest()[:16])


def errors(name: str, requests: Any, salts: int, every_s: int) -> list[dict[str, Any]]:
    """For each window the errors at moments `every_s` apart, with several sets of keys."""
    seen: dict[str, list[tuple[int, int, float]]] = {window: [] for window in WINDOWS}
    for salt in range(salts):
        harness.progress(f"{name}: keys {salt + 1} of {salts}")
        with SparseRegion(64, 64, reuse_registers=REGISTERS) as sparse:
            for window, moment in play(sparse.region, requests(), salt, every_s):
                seen[window].append(moment)
    return [summary(name, window, moments) for window, moments in seen.items() if moments]


def play(
    region: _native.Region, requests: Iterator[Request], salt: int, every_s: int
) -> Iterator[tuple[str, tuple[int, int, float]]]:
    """Asks for it all; at every moment, each window's N, U and estimate of U."""
    counted = Counted()
    keys: dict[int, bytes] = {}
    look_at = every_s
    for request in requests:
        at_s = request.at_ms // 1000
        while at_s >= look_at:
            yield from look(region, counted, START_S + look_at - TICK_S)
            look_at += every_s
        for block in request.chain:
            if block not in keys:
                keys[block] = hashlib.blake2b(b"%d %d" % (salt, block), digest_size=32).digest() + bytes(4)  # fmt: skip
        region.count_asked([keys[block] for block in request.chain], NAMESPACE, at_s=START_S + at_s)
        counted.add((START_S + at_s) // TICK_S, request.chain)
    yield from look(region, counted, START_S + look_at - TICK_S)


def look(
    region: _native.Region, counted: Counted, at_s: int
) -> Iterator[tuple[str, tuple[int, int, float]]]:
    for name, seconds in WINDOWS.items():
        asked, unique = counted.window(at_s // TICK_S, seconds // TICK_S)
        window = read_window(region, name, seconds, at_s=at_s)
        if window.asked != asked:
            raise AssertionError(f"{name} at {at_s}: counted {asked}, the region {window.asked}")
        if asked:
            yield name, (asked, unique, window.unique)


def summary(
    workload: str, window: str, moments: Sequence[tuple[int, int, float]]
) -> dict[str, Any]:
    asked, unique, estimated = np.array(moments).T
    points = 100 * np.abs(estimated - unique) / asked
    signed = 100 * (estimated - unique) / unique
    relative = np.abs(signed)
    largest = int(np.argmax(asked))
    return {
        "workload": workload,
        "window": window,
        "moments": len(moments),
        "asked": int(asked[largest]),
        "unique": int(unique[largest]),
        "ceiling": round(float(100 * (1 - unique[largest] / asked[largest])), 2),
        "points_mean": round(float(points.mean()), 3),
        "points_p95": round(float(np.percentile(points, 95)), 3),
        "points_max": round(float(points.max()), 3),
        "unique_mean": round(float(signed.mean()), 2),
        "unique_p95": round(float(np.percentile(relative, 95)), 2),
        "unique_max": round(float(relative.max()), 2),
    }


def a_day(workload: Workload, hours: int) -> Iterator[Request]:
    """The hour again and again; of each pair of blocks one is new every time."""
    span_ms = 3_600_000
    for hour in range(hours):
        for request in workload.requests:
            chain = [block + 10_000_000 * hour * (block % 2) for block in request.chain]
            yield Request(hour * span_ms + request.at_ms, request.tokens, chain)


def costs(workload: Workload, options: harness.Options) -> dict[str, float]:
    """Nanoseconds a key of counting it, and of looking it up in an arena that holds it not."""
    batches = [
        [hashlib.blake2b(b"%d" % block, digest_size=32).digest() + bytes(4) for block in r.chain]
        for r in workload.requests[: options.pick(3000, 1500, 100)]
    ]
    total = sum(map(len, batches))
    with SparseRegion(1 << 16, 1 << 10, reuse_registers=REGISTERS) as sparse:
        client = _native.Client(sparse.region, 1, sparse.attach(1))
        tick = 0

        def count() -> float:
            nonlocal tick
            tick += TICK_S  # each round is another tick: every word has to be written again
            began = time.perf_counter()
            for keys in batches:
                sparse.region.count_asked(keys, sparse.namespace_id, at_s=START_S + tick)
            return (time.perf_counter() - began) / total * 1e9

        def find() -> float:
            began = time.perf_counter()
            for keys in batches:
                client.find(keys, sparse.namespace_id)
            return (time.perf_counter() - began) / total * 1e9

        rounds = harness.interleave(
            options.pick(15, 7, 2), {"count_asked": count, "find (misses)": find}
        )
    return {name: round(harness.median(samples), 1) for name, samples in rounds.items()}


if __name__ == "__main__":
    harness.run("reuse", QUESTION, not_shown=NOT_SHOWN, measure=measure)
