"""How many instructions may each hot path take, and why that many?

For one operation of a batch of 1,000 (of `find_1` for the whole call, of `rebuild_hints` for one record), on
x86-64, compiled as the native module is. A budget is what was counted when it was set and about a tenth more, since compilers
differ; a path that gets above it has become slower, or does something more: then either the code is
changed, or the budget here, with the reason in the same commit. One that gets a third below has become better than its
budget says: lower it, so that the gain is kept.
Read by `test_instructions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BUDGETS", "Budget"]


@dataclass(frozen=True, slots=True)
class Budget:
    """`most`: instructions for one operation. `why`: what they are for."""

    path: str
    most: int
    why: str


BUDGETS = (
    Budget("find_1", 680, "a lookup alone: setting up three lots, the counters, then as find_hits"),
    Budget(
        "find_hits", 315, "hash of 40 bytes, two buckets compared at once, asking ahead, whole key"
    ),
    Budget(
        "find_misses", 205, "hash, two buckets compared at once, asking ahead; no record is read"
    ),
    Budget(
        "find_misses_hinted",
        505,
        "as find_misses, then another hash, and sixteen hints of other hosts",
    ),
    Budget(
        "find_pinned",
        360,
        "as find_hits, and one bit set, the state and the mark of damage read again",
    ),
    Budget("unpin", 34, "a private count, and one bit cleared when it reaches 0"),
    Budget("locate", 45, "state, offset and length of a record, and their bounds"),
    Budget(
        "touch", 35, "state of a record, one store; the clock, and the way to evict, once a batch"
    ),
    Budget("touch_keys", 210, "a lookup without asking ahead, one store"),
    Budget(
        "claim_free",
        760,
        "a lookup, a free bit, the record and its checksums cleared, its key, its entry in the emptier bucket",
    ),
    Budget(
        "claim_full",
        2450,
        "as claim_free, an eviction, and its share of a pass over all touches for 512 candidates",
    ),
    Budget(
        "claim_full_reserved",
        3090,
        "as claim_full, asking each candidate of the pass whose it is, and the reserve at each eviction",
    ),
    Budget("publish", 182, "state and parts, time, touch, state again, an event of the journal"),
    Budget(
        "evict",
        505,
        "two states, the namespace's bytes, its entry found and erased, an event, the free bit; how long it was there",
    ),
    Budget("report_part", 30, "what a worker pays for each block: state, one addition"),
    Budget("count_asked", 100, "hash of 40 bytes, one word of a register"),
    Budget("rebuild_hints", 70, "for one record: touch, state, free bit, and whose bytes they are"),
    Budget(
        "claim_full_adaptive", 3050, "as claim_full, and the ghost that the evicted block leaves"
    ),
    Budget(
        "publish_adaptive",
        285,
        "as publish, and the ghost of the same key, from whose worth the block goes on",
    ),
    Budget("touch_keys_adaptive", 260, "as touch_keys, and a block's worth with one use more"),
)
