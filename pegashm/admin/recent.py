"""Why were blocks computed lately? What was stored in the journal's reach, by what had become of the same key before.

Who stores a block has computed it, and has computed it because it missed. So each publish of the journal is a miss with a name, and what the journal says of the
same key before that is why: evicted meanwhile (memory is too small for what comes back), there in another namespace (engines that could share do not), or
nothing: new, or older than the journal. What missed and was not stored again leaves no trace here; counters of lookups stand beside it. Reads only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from pegashm.admin.journal import Event, Journal, read_journal
from pegashm.arena import Arena
from pegashm.keys import differing_facts

__all__ = ["Recent", "recent"]

_EXAMPLES: Final = 10
_COUNTERS: Final = (
    "lookups",
    "hits",
    "misses",
    "misses_pending",
    "misses_spilled",
    "misses_remote",
    "claims_no_space",
    "claims_quota",
    "claims_draining",
    "payloads_damaged",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """`reasons`: evicted, other_namespace or new, how many publishes; `pairs`: (namespace that stored, the one that had it, facts): how many."""

    journal: Journal
    publishes: int
    evictions: int
    reasons: dict[str, int]
    pairs: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    counters: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {
            "first_event": self.journal.first,
            "last_event": self.journal.head,
            "since_ns": self.journal.since_ns,
            "publishes": self.publishes,
            "evictions": self.evictions,
            "reasons": self.reasons,
            "pairs": self.pairs,
            "examples": self.examples,
            "counters": self.counters,
        }


def recent(arena: Arena, namespace_id: int | None = None) -> Recent:
    """All that the journal can tell, of one namespace or of all."""
    region = arena.region
    journal = read_journal(region)
    labels = {row["id"]: row for row in region.namespaces(counted=False)}
    last: dict[tuple[bytes, int, int], Event] = {}
    holders: dict[tuple[bytes, int], set[int]] = {}  # who has it, as far as was seen
    reasons: Counter[str] = Counter(evicted=0, other_namespace=0, new=0)
    pairs: Counter[tuple[int, int]] = Counter()
    examples: list[dict[str, Any]] = []
    for event in journal.events:
        own, key = (event.key, event.group, event.namespace_id), (event.key, event.group)
        mine = namespace_id in (None, event.namespace_id)
        having = holders.setdefault(key, set())
        if event.kind == "publish":
            if mine:
                reason, other = _reason(last.get(own), having - {event.namespace_id})
                reasons[reason] += 1
                if other is not None:
                    pairs[event.namespace_id, other] += 1
                if reason != "new":
                    examples.append(
                        {**event.as_dict(), "reason": reason, "other_namespace_id": other}
                    )
            having.add(event.namespace_id)
        elif event.kind == "evict":
            having.discard(event.namespace_id)
        else:
            continue  # to SSD or away from it: in memory it is as it was
        last[own] = event
    counters = {
        row["key"]: int(row["value"]) for row in region.counters() if row["key"] in _COUNTERS
    }
    return Recent(
        journal=journal,
        publishes=sum(reasons.values()),
        evictions=sum(
            1
            for e in journal.events
            if e.kind == "evict" and namespace_id in (None, e.namespace_id)
        ),
        reasons=dict(reasons),
        pairs=[_pair(labels, *ids, count) for ids, count in pairs.most_common(_EXAMPLES)],
        examples=examples[-_EXAMPLES:],
        counters=counters,
    )


def _reason(before: Event | None, others: set[int]) -> tuple[str, int | None]:
    if before is not None and before.kind == "evict":
        return "evicted", None
    if others:
        return "other_namespace", min(others)
    return "new", None


def _pair(labels: dict[int, dict[str, Any]], own: int, other: int, count: int) -> dict[str, Any]:
    differing, untold = (
        differing_facts(labels[own]["facts"], labels[other]["facts"])
        if own in labels and other in labels
        else ([], [])
    )
    return {
        "stored_in": own,
        "stored_in_label": labels.get(own, {}).get("label", ""),
        "was_in": other,
        "was_in_label": labels.get(other, {}).get("label", ""),
        "blocks": count,
        "differing_facts": differing,
        "untold_facts": untold,
    }
