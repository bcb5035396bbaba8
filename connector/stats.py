"""What does vLLM's own metrics endpoint say about the cache? Counters of this engine, for Prometheus.

The scheduler's process counts and hands over what came since last time; vLLM carries it to the process that serves
`/metrics`, where `connector.py` has declared the same names. Counters of the arena, of all engines together, are
in its control region (`pegashm-dump`). Used by the manager, in one thread.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingHistogramMetadata,
    OffloadingMetricMetadata,
)

from pegashm import _native

__all__ = ["METRICS", "Tally"]

_ASKED: Final = "vllm:pegashm_asked"
_HITS: Final = "vllm:pegashm_hits"
_MISSES: Final = "vllm:pegashm_misses"
_LOOKUPS: Final = "vllm:pegashm_lookups"
_STORES: Final = "vllm:pegashm_stores"
_LOADS: Final = "vllm:pegashm_loads"
_PROMOTIONS: Final = "vllm:pegashm_promotions"
_FETCHES: Final = "vllm:pegashm_fetches"
_WAITED: Final = "vllm:pegashm_promotion_wait_seconds"

METRICS: Final[Mapping[str, OffloadingMetricMetadata]] = {
    _ASKED: OffloadingCounterMetadata(
        documentation="Blocks that requests asked for, each request's once, counted when it is known what came of them: "
        "the sum of pegashm_hits and pegashm_misses.",
        labelnames=(),
    ),
    _HITS: OffloadingCounterMetadata(
        documentation="Blocks asked for and loaded, by where they were when the request came: memory, ssd or remote "
        "(another host).",
        labelnames=("tier",),
    ),
    _MISSES: OffloadingCounterMetadata(
        documentation="Blocks asked for and not loaded, by reason, which is that of the first block missing from the "
        "chain: never_stored, evicted, other_namespace, not_yet, pinned_out, tier_off, timed_out, checksum, overloaded, "
        "failed, unused (found, and the engine did not want it).",
        labelnames=("reason",),
    ),
    _LOOKUPS: OffloadingCounterMetadata(
        documentation="Blocks looked up in the arena, again in each step that a request waits, by result: hit, miss, pending (another engine is "
        "storing it just now), spilled (on SSD; see promotions for what came of it) or remote (on another host, as far "
        "as is known; see fetches).",
        labelnames=("result",),
    ),
    _STORES: OffloadingCounterMetadata(
        documentation="Blocks offered to the arena, by result: claimed, exists, pending (another engine is "
        "storing it), no_space, quota, too_large, index_full or draining; the last five are dropped.",
        labelnames=("result",),
    ),
    _LOADS: OffloadingCounterMetadata(
        documentation="Blocks that loads took, by where they were when the request came: memory, ssd or remote "
        "(another host).",
        labelnames=("tier",),
    ),
    _PROMOTIONS: OffloadingCounterMetadata(
        documentation="Blocks on SSD that requests waited for, by result: ok, or why it became a miss: missing (not on "
        "SSD any more), no_space, overloaded, failed (the device, or the checksum), late (the deadline passed), lost "
        "(the transport worker ended), evicted (again, before it was used) or not_asked (no worker, too much at once).",
        labelnames=("result",),
    ),
    _FETCHES: OffloadingCounterMetadata(
        documentation="Blocks of other hosts that requests waited for, by result: as promotions, with missing (no host "
        "has it any more) and failed (the connection, the peer, or the checksum).",
        labelnames=("result",),
    ),
    _WAITED: OffloadingHistogramMetadata(
        documentation="Time that requests waited for blocks on SSD or of other hosts, in seconds.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    ),
}
_FOUND: Final = {
    _native.OK: "hit",
    _native.MISSING: "miss",
    _native.PENDING: "pending",
    _native.SPILLED: "spilled",
    _native.REMOTE: "remote",
}
_CLAIMED: Final = {
    _native.OK: "claimed",
    _native.EXISTS: "exists",
    _native.PENDING: "pending",
    _native.NO_SPACE: "no_space",
    _native.QUOTA: "quota",
    _native.TOO_LARGE: "too_large",
    _native.INDEX_FULL: "index_full",
    _native.DRAINING: "draining",
}


class Tally:
    """Counts since vLLM last asked."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._waits: list[float] = []

    def found(self, outcomes: NDArray[np.uint8]) -> None:
        self._add(_LOOKUPS, _FOUND, outcomes)

    def claimed(self, outcomes: NDArray[np.uint8]) -> None:
        self._add(_STORES, _CLAIMED, outcomes)

    def loaded(self, *, memory: int, ssd: int, remote: int) -> None:
        self._count(_LOADS, "memory", memory)
        self._count(_LOADS, "ssd", ssd)
        self._count(_LOADS, "remote", remote)

    def promoted(self, result: str, *, ssd: int, remote: int) -> None:
        self._count(_PROMOTIONS, result, ssd)
        self._count(_FETCHES, result, remote)

    def accounted(self, asked: int, counts: Mapping[str, int]) -> None:
        """What came of `asked` blocks: hits_TIER and missed_REASON, which sum to it."""
        if asked:
            self._counts[_ASKED, ""] += asked
        for name, amount in counts.items():
            kind, _, which = name.partition("_")
            self._count(_HITS if kind == "hits" else _MISSES, which, amount)

    def waited(self, seconds: float) -> None:
        self._waits.append(seconds)

    def take(self) -> OffloadingConnectorStats | None:
        """What there is to report, which is then forgotten."""
        if not self._counts and not self._waits:
            return None
        stats = OffloadingConnectorStats()
        for (metric, result), amount in self._counts.items():
            stats.increase_counter(metric, amount, (result,) if result else ())
        for seconds in self._waits:
            stats.observe_histogram(_WAITED, seconds)
        self._counts.clear()
        self._waits.clear()
        return stats

    def _add(self, metric: str, names: Mapping[int, str], outcomes: NDArray[np.uint8]) -> None:
        for outcome, amount in enumerate(np.bincount(outcomes).tolist()):
            self._count(metric, names.get(outcome, "other"), amount)

    def _count(self, metric: str, result: str, amount: int) -> None:
        if amount:
            self._counts[metric, result] += amount
