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
from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingMetricMetadata

from pegashm import _native

__all__ = ["METRICS", "Tally"]

_LOOKUPS: Final = "vllm:pegashm_lookups"
_STORES: Final = "vllm:pegashm_stores"

METRICS: Final[Mapping[str, OffloadingMetricMetadata]] = {
    _LOOKUPS: OffloadingCounterMetadata(
        documentation="Blocks looked up in the arena, by result: hit, miss, or pending (another engine is "
        "storing it just now).",
        labelnames=("result",),
    ),
    _STORES: OffloadingCounterMetadata(
        documentation="Blocks offered to the arena, by result: claimed, exists, pending (another engine is "
        "storing it), no_space, quota, too_large or index_full; the last four are dropped.",
        labelnames=("result",),
    ),
}
_FOUND: Final = {_native.OK: "hit", _native.MISSING: "miss", _native.PENDING: "pending"}
_CLAIMED: Final = {
    _native.OK: "claimed",
    _native.EXISTS: "exists",
    _native.PENDING: "pending",
    _native.NO_SPACE: "no_space",
    _native.QUOTA: "quota",
    _native.TOO_LARGE: "too_large",
    _native.INDEX_FULL: "index_full",
}


class Tally:
    """Counts since vLLM last asked."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def found(self, outcomes: NDArray[np.uint8]) -> None:
        self._add(_LOOKUPS, _FOUND, outcomes)

    def claimed(self, outcomes: NDArray[np.uint8]) -> None:
        self._add(_STORES, _CLAIMED, outcomes)

    def take(self) -> OffloadingConnectorStats | None:
        """What there is to report, which is then forgotten."""
        if not self._counts:
            return None
        stats = OffloadingConnectorStats()
        for (metric, result), amount in self._counts.items():
            stats.increase_counter(metric, amount, (result,))
        self._counts.clear()
        return stats

    def _add(self, metric: str, names: Mapping[int, str], outcomes: NDArray[np.uint8]) -> None:
        for outcome, amount in enumerate(np.bincount(outcomes).tolist()):
            if amount:
                self._counts[metric, names.get(outcome, "other")] += amount
