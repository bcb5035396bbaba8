"""What does a noisy neighbour cost a tenant, and what of that does a reserve give back?

One real region, two clients in two namespaces. The tenant plays the recorded conversation with an engine's prefix semantics
(a block hits only if all before it do; what missed is stored; all is touched at the end, tail first). After each of its requests the
neighbour stores blocks that nobody will ever ask for, in proportion to the tenant's. The tenant's hit rate is
compared with those that it has alone, in all of the arena and in one as large as its reserve.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from pegashm import _native

from bench import harness
from bench.policies.workload import CONVERSATION, Workload, read_trace
from bench.sparse_region import BLOCK_BYTES, SparseRegion

__all__ = ["measure"]

SEGMENT_BLOCKS = 1000
QUESTION = (
    "What does a noisy neighbour cost a tenant's hit rate, and what does a reserve give back?"
)
NOT_SHOWN = (
    "neighbours that evict at the same time: tests/model/test_reserves.py has them, and none gets below the reserve",
    "payload bytes: none are copied, since a hit rate does not depend on them",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`noise`: blocks that the neighbour stores for each of the tenant's. Sizes in blocks."""

    arena: int
    reserve: int = 0
    noise: int = 0


def measure(options: harness.Options) -> harness.Findings:
    workload = read_trace(CONVERSATION, options.pick(None, 3000, 400))
    arena = options.pick(40_000, 12_000, 4_000)
    reserve = arena * 3 // 4
    cases = [
        Case(arena=arena),
        Case(arena=reserve),
        *(
            Case(arena=arena, reserve=kept, noise=noise)
            for noise in options.pick((1, 4, 16), (1, 4), (4,))
            for kept in (0, reserve)
        ),
    ]
    rows = []
    for case in cases:
        harness.progress(str(case))
        rows.append(play(workload, case))
    alone = rows[0]["hit_rate"]
    columns = (
        "arena, reserve, noise", "hit rate %", "of alone", "tenant holds", "neighbour stored %",
        "neighbour: us a block",
    )  # fmt: skip
    figures = {
        "lost_without": round(alone - min(r["hit_rate"] for r in rows[2:] if not r["reserve"]), 4),
        "lost_with": round(alone - min(r["hit_rate"] for r in rows[2:] if r["reserve"]), 4),
        "hit_rate_alone": alone,
        "hit_rate_alone_in_reserve": rows[1]["hit_rate"],
        "results": rows,
    }
    title = f"{workload.name}: {len(workload.requests):,} requests, {workload.references:,} blocks asked for"
    made = harness.table(
        title,
        columns,
        [
            (
                f"{row['arena']:,} blocks, {row['reserve']:,} reserved, noise {row['noise']}x",
                f"{100 * row['hit_rate']:.2f}",
                f"{row['hit_rate'] / alone:.3f}",
                f"{row['held']:,}",
                "-" if row["stored"] is None else f"{100 * row['stored']:.1f}",
                "-" if row["store_us"] is None else row["store_us"],
            )
            for row in rows
        ],
    )
    return harness.Findings([made], figures, workload.digest)


def play(workload: Workload, case: Case) -> dict[str, Any]:
    keys: dict[int, bytes] = {}
    strangers = noise_keys()
    hits = 0
    tried = stored = 0
    seconds = 0.0
    with SparseRegion(case.arena, SEGMENT_BLOCKS) as sparse:
        region, now = sparse.region, time.time_ns()
        tenant = region.register_namespace(
            b"t" * 32, label="tenant", reserved_bytes=case.reserve * BLOCK_BYTES, now_ns=now
        )
        neighbour = region.register_namespace(b"n" * 32, label="neighbour", now_ns=now)
        ours = _native.Client(region, 1, sparse.attach(1))
        theirs = _native.Client(region, 2, sparse.attach(2))
        for request in workload.requests:
            for block in request.chain:
                if block not in keys:
                    keys[block] = hashlib.blake2b(b"%d" % block, digest_size=32).digest() + bytes(4)
            chain = [keys[block] for block in request.chain]
            hits += ask(ours, tenant, chain)
            if case.noise:
                some = [next(strangers) for _ in range(case.noise * len(chain))]
                began = time.perf_counter()
                stored += store(theirs, neighbour, some)
                seconds += time.perf_counter() - began
                tried += len(some)
        held = {row["label"]: row["blocks"] for row in region.namespaces()}["tenant"]
    return {
        "arena": case.arena,
        "reserve": case.reserve,
        "noise": case.noise,
        "hit_rate": round(hits / workload.references, 4),
        "held": held,
        "stored": round(stored / tried, 4) if tried else None,
        "store_us": round(seconds / tried * 1e6, 2) if tried else None,
    }


def ask(client: _native.Client, namespace_id: int, chain: Sequence[bytes]) -> int:
    """One request of an engine; how many of its blocks hit."""
    handles, outcomes = client.find_prefix(chain, namespace_id, pin=True)
    hits = int((outcomes == _native.OK).sum())
    store(client, namespace_id, chain[hits:])
    client.touch_keys(chain[::-1], namespace_id)
    client.unpin(handles)
    return hits


def store(client: _native.Client, namespace_id: int, keys: Sequence[bytes]) -> int:
    handles, _ = client.claim(keys, namespace_id, BLOCK_BYTES)
    claimed = handles[handles != 0]
    client.publish(claimed)
    return len(claimed)


def noise_keys() -> Iterator[bytes]:
    for number in count():
        yield hashlib.blake2b(b"noise %d" % number, digest_size=32).digest() + bytes(4)


if __name__ == "__main__":
    harness.run("reserve", QUESTION, not_shown=NOT_SHOWN, measure=measure)
