"""What happened between two readings? Counters become rates, and lookups shares by tier.

Counters are of the arena: of all engines on it together. A purged arena's successor begins anew: then there are no rates until the next reading. Pure.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pegashm.exporter.reading import Reading

__all__ = ["Moment", "Shares", "moment"]

# Name here: counter of the region.
_RATES: Final = {
    "lookups": "lookups",
    "stored": "publishes",
    "stored_bytes": "bytes_stored",
    "loaded_bytes": "bytes_loaded",
    "evicted": "evictions",
    "spilled": "spill_stored",
    "spilled_bytes": "spill_payload_bytes",
    "promoted": "spill_promoted",
    "ssd_read_bytes": "spill_bytes_read",
    "fetched": "remote_fetched",
    "fetched_bytes": "remote_bytes_fetched",
    "served": "remote_served",
    "served_bytes": "remote_bytes_served",
    "refused": "claims_no_space",
    "over_quota": "claims_quota",
}


@dataclass(frozen=True, slots=True)
class Shares:
    """Where the blocks that were looked up were found, as shares of 1; all 0 where nothing was looked up."""

    memory: float = 0.0
    ssd: float = 0.0
    remote: float = 0.0
    pending: float = 0.0
    missed: float = 0.0

    @property
    def hit(self) -> float:
        """Found somewhere."""
        return self.memory + self.ssd + self.remote


@dataclass(frozen=True, slots=True)
class Moment:
    """`seconds` between the two readings; `rates` a second. `shares` of the lookups in between, `ever` of all since the arena was made."""

    reading: Reading
    seconds: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    shares: Shares = Shares()
    ever: Shares = Shares()

    @property
    def has_rates(self) -> bool:
        return bool(self.rates)

    def rate(self, name: str) -> float:
        return self.rates.get(name, math.nan)

    def as_dict(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "rates": {name: round(value, 3) for name, value in self.rates.items()},
            "shares": asdict(self.shares),
            "shares_ever": asdict(self.ever),
        }


def moment(reading: Reading, before: Reading | None) -> Moment:
    """Of the first reading of an arena there are shares of all times, and no rates."""
    ever = _shares(dict(reading.counters))
    same = before is not None and reading.is_open and before.region_id == reading.region_id
    seconds = (reading.taken_at_ns - before.taken_at_ns) / 1e9 if before is not None else 0.0
    if not same or before is None or seconds <= 0:
        return Moment(reading, ever=ever)
    change = {
        key: max(0, value - before.counters.get(key, 0)) for key, value in reading.counters.items()
    }
    rates = {name: change.get(counter, 0) / seconds for name, counter in _RATES.items()}
    rates["events"] = (
        max(0, int(reading.header["journal_head"]) - int(before.header["journal_head"])) / seconds
    )
    return Moment(reading, seconds, rates, _shares(change), ever)


def _shares(counted: dict[str, int]) -> Shares:
    """By what came of the blocks that requests asked for; where nobody counts that, by what single lookups met."""
    if asked := counted.get("asked", 0):
        memory, ssd, remote, pending = (
            min(counted.get(key, 0), asked) / asked
            for key in ("hits_memory", "hits_ssd", "hits_remote", "missed_not_yet")
        )
    elif lookups := counted.get("lookups", 0):
        memory, ssd, remote, pending = (
            min(counted.get(key, 0), lookups) / lookups
            for key in ("hits", "misses_spilled", "misses_remote", "misses_pending")
        )
    else:
        return Shares()
    return Shares(memory, ssd, remote, pending, max(0.0, 1 - memory - ssd - remote - pending))
