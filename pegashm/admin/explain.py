"""Why did this key miss? What the region, and its journal as far as it reaches, know of a key.

No lookup is recorded anywhere, so this tells where the key is now and what became of it, not what a lookup found at its time. In the order of what an engine
would find: it is in memory; marked as damaged; claimed and not published; on SSD; at another host, as far as is known; in another namespace, with
other facts; evicted, and about when; evicted before the journal's reach (adaptive eviction remembers some of these); never seen.
Reads only; a chain of keys is judged as an engine does, which stops at the first that nobody has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm._native import RemoteTable, remote_hashes_of
from pegashm.admin.drop import Wanted
from pegashm.admin.journal import Event, Journal, read_journal
from pegashm.arena import Arena
from pegashm.keys import differing_facts
from pegashm.liveness import close_lock_file, copiers_byte, holder_alive, open_lock_file, owner_byte

__all__ = ["AVAILABLE", "Explained", "Explainer", "clock_text"]

_STATES: Final = {1: "claimed", 2: "ready", 3: "evicting"}
# What an engine of the namespace would have found.
AVAILABLE: Final = ("ready", "on_ssd", "other_host")


@dataclass(slots=True)
class Explained:
    """`reason`: ready, damaged, storing, evicting, on_ssd, other_host, other_namespace, evicted, evicted_long_ago or never_seen; `says`: the same in a sentence."""

    key: str
    group: int | None
    reason: str = "never_seen"
    says: str = ""
    places: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def available(self) -> bool:
        return self.reason in AVAILABLE

    def as_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "group": self.group,
            "reason": self.reason,
            "says": self.says,
            "places": self.places,
            "events": [event.as_dict() for event in self.events],
        }


class Explainer:
    """One look at an arena, for any number of keys."""

    def __init__(self, arena: Arena, namespace_id: int | None = None) -> None:
        """`namespace_id`: of the engine that missed; None: any."""
        region = arena.region
        self._arena = arena
        self._wanted_id = namespace_id
        self._namespaces = {row["id"]: row for row in region.namespaces(counted=False)}
        self._clients = {row["slot"]: row for row in region.clients()}
        self._blocks = _ByKey(region.blocks())
        self._spilled = _ByKey(region.spilled())
        self._ssd_usable = int(region.header["spill_usable"])
        self._hosts = {row["number"]: row for row in region.remote_hosts()}
        self._hints = RemoteTable(region) if region.writable and self._hosts else None
        self.journal: Journal = read_journal(region, self._blocks.rows)
        self._events: dict[bytes, list[Event]] = {}
        for event in self.journal.events:
            self._events.setdefault(event.key, []).append(event)
        self._adaptive = int(region.header["eviction"]) == 1
        self._lock_fd = open_lock_file(arena.name, writable=False)

    def close(self) -> None:
        self._hints = None
        close_lock_file(self._lock_fd)

    def __enter__(self) -> Explainer:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def explain(self, key: bytes, group: int | None = None) -> Explained:
        told = Explained(key=key.hex(), group=group)
        wanted = Wanted(key=key, group=group)
        told.places += [self._block(row) for row in wanted.among(self._blocks.like(key))]
        told.places += [self._on_ssd(row) for row in wanted.among(self._spilled.like(key))]
        told.places += self._hinted(key, group)
        told.events = [
            event for event in self._events.get(key, ()) if group is None or event.group == group
        ]
        told.reason, told.says = self._judged(told, key, group)
        return told

    # -- where it is -----------------------------------------------------------------------------------

    def _block(self, row: Any) -> dict[str, Any]:
        state = _STATES.get(int(row["state"]), "damaged")
        if state == "ready" and row["damaged"]:
            state = "damaged"
        pins = [slot for slot in self._clients if int(row["pins"][slot // 64]) >> (slot % 64) & 1]
        since = int(row["claimed_at_ns"] if state == "claimed" else row["published_at_ns"])
        return {
            "where": "memory",
            "state": state,
            **self._whose(int(row["namespace_id"])),
            "group": int(row["group"]),
            "bytes": int(row["payload_bytes"]),
            "since_ns": since,
            "owner": self._client(int(row["owner"])) if state in ("claimed", "evicting") else None,
            "pinned_by": [self._client(slot) for slot in pins],
        }

    def _on_ssd(self, row: Any) -> dict[str, Any]:
        usable = bool(self._ssd_usable >> int(row["file"]) & 1)
        return {
            "where": "ssd",
            "state": "stored" if usable else "out of use",
            **self._whose(int(row["namespace_id"])),
            "group": int(row["group"]),
            "bytes": int(row["payload_bytes"]),
            "since_ns": int(row["published_at_ns"]),
            "file": int(row["file"]),
        }

    def _hinted(self, key: bytes, group: int | None) -> list[dict[str, Any]]:
        """At which hosts it is, as they have told."""
        if self._hints is None:
            return []
        found = []
        for row in self._namespaces.values():
            for number in range(8) if group is None else (group,):
                hashes = remote_hashes_of(row["fingerprint"], [key + number.to_bytes(4, "big")])
                hosts, tiers = self._hints.find(hashes)
                found += [
                    {
                        "where": "host",
                        "state": "hinted",
                        **self._whose(row["id"]),
                        "group": number,
                        "host": self._hosts.get(int(host), {}).get("address") or f"number {host}",
                        "tier": "memory" if int(tier) & 1 else "ssd",
                    }
                    for host, tier in zip(hosts[0], tiers[0], strict=True)
                    if host >= 0
                ]
        return found

    def _whose(self, namespace_id: int) -> dict[str, Any]:
        row = self._namespaces.get(namespace_id)
        return {
            "namespace_id": namespace_id,
            "namespace": row["label"] if row else "(recycled: nobody can find it)",
        }

    def _client(self, slot: int) -> dict[str, Any]:
        client = self._clients.get(slot, {})
        alive = holder_alive(self._lock_fd, owner_byte(slot))
        return {
            "slot": slot,
            "pid": client.get("pid"),
            "label": client.get("label", "(gone)"),
            "alive": alive,
            "copiers_alive": alive or holder_alive(self._lock_fd, copiers_byte(slot)),
        }

    # -- what that means -------------------------------------------------------------------------------

    def _judged(self, told: Explained, key: bytes, group: int | None) -> tuple[str, str]:
        live = [place for place in told.places if place["namespace_id"] in self._namespaces]
        ours = [place for place in live if self._wanted_id in (None, place["namespace_id"])]
        for judge in (_in_memory, _on_ssd, _at_host):
            if (judged := judge(ours)) is not None:
                return judged
        others = [place for place in live if place not in ours]
        if others:
            return "other_namespace", self._other(others)
        own_events = [
            event
            for event in told.events
            if self._wanted_id in (None, event.namespace_id) and event.kind in ("publish", "evict")
        ]
        if own_events and own_events[-1].kind == "evict":
            return "evicted", f"evicted {_when(own_events[-1])}, and not stored again since"
        if own_events:
            return "evicted", (
                f"published {_when(own_events[-1])}, and gone since; the event of its end is missing (its evictor was killed, or it is just happening)"
            )
        if self._is_ghost(key, group):
            return "evicted_long_ago", (
                f"it was here and was evicted, {self._before_reach()} (adaptive eviction remembers it; by chance, one time in 65,000, another one)"
            )
        if told.events:
            event = told.events[-1]
            whose = self._whose(event.namespace_id)["namespace"]
            return (
                "other_namespace",
                f"only namespace {whose!r} has ever had it here: last event {event.kind} {_when(event)}",
            )
        return (
            "never_seen",
            f"nobody has stored it here {self._since_reach()}, or it was forgotten before",
        )

    def _other(self, others: list[dict[str, Any]]) -> str:
        ids = sorted({place["namespace_id"] for place in others})
        named = ", ".join(f"{self._namespaces[id_]['label']!r} ({id_:#x})" for id_ in ids)
        if self._wanted_id is None or self._wanted_id not in self._namespaces:
            return f"it is there, in namespace {named}"
        return f"it is there, but in another namespace: {named}. " + "; ".join(
            f"{id_:#x} {self.difference(id_)}" for id_ in ids
        )

    def difference(self, namespace_id: int, from_id: int | None = None) -> str:
        """In which facts two namespaces differ, as far as their engines have told."""
        own = self._namespaces[self._wanted_id if from_id is None else from_id]
        differing, untold = differing_facts(own["facts"], self._namespaces[namespace_id]["facts"])
        if differing:
            return "differs in " + ", ".join(differing)
        if untold or not any(own["facts"]):
            return "differs in what is not told (it was not registered by an engine yet)"
        return "differs in none of the facts that are told: their digests are alike by chance"

    def _is_ghost(self, key: bytes, group: int | None) -> bool:
        if not self._adaptive:
            return False
        ids = [self._wanted_id] if self._wanted_id in self._namespaces else list(self._namespaces)
        groups = (0,) if group is None else (group,)
        return any(
            self._arena.region.ghosts([key + number.to_bytes(4, "big")], id_)[0]
            for id_ in ids
            if id_ is not None
            for number in groups
        )

    def _before_reach(self) -> str:
        return f"before event {self.journal.first}" + (
            f" ({clock_text(self.journal.since_ns)})" if self.journal.since_ns else ""
        )

    def _since_reach(self) -> str:
        if self.journal.first <= 1:
            return "since the arena was made"
        return (
            "as far as the journal reaches: since event "
            + str(self.journal.first)
            + (f" (about {clock_text(self.journal.since_ns)})" if self.journal.since_ns else "")
        )


class _ByKey:
    """Rows that can be asked for many keys without a pass over all of them for each."""

    def __init__(self, rows: NDArray[Any]) -> None:
        words = np.ascontiguousarray(rows["key"][:, :8]).view(np.uint64).reshape(-1)
        self.rows = rows
        self._order = np.argsort(words, kind="stable")
        self._words = words[self._order]

    def like(self, key: bytes) -> NDArray[Any]:
        """Those whose key begins with the same eight bytes."""
        word = np.frombuffer(key[:8].ljust(8, b"\0"), np.uint64)[0]
        first, last = (int(np.searchsorted(self._words, word, side)) for side in ("left", "right"))
        found: NDArray[Any] = self.rows[self._order[first:last]]
        return found


def _in_memory(places: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    by_state = {place["state"]: place for place in places if place["where"] == "memory"}
    if ready := by_state.get("ready"):
        return "ready", (
            f"it is in memory, namespace {ready['namespace']!r}, since {clock_text(ready['since_ns'])}: a hit. An engine that asked before that missed"
        )
    if damaged := by_state.get("damaged"):
        return "damaged", (
            f"it is in memory of {damaged['namespace']!r} and marked as damaged (its checksum did not hold): nobody can have it; who stores it again replaces it"
        )
    if claimed := by_state.get("claimed"):
        owner = claimed["owner"]
        state = "" if owner["alive"] else ", which is dead: it is taken back when that is reaped"
        return "storing", (
            f"{owner['label']} (pid {owner['pid']}, slot {owner['slot']}{state}) has claimed it {age_text(claimed['since_ns'])} ago and not published it yet"
        )
    if by_state.get("evicting"):
        return "evicting", "it is being evicted just now"
    return None


def _on_ssd(places: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    rows = [place for place in places if place["where"] == "ssd"]
    for row in rows:
        if row["state"] == "stored":
            return "on_ssd", (
                f"it is on SSD (file {row['file']}), not in memory: a request waits for it up to its spill_deadline_ms, and misses after that, or while the "
                "transport worker is overloaded"
            )
    if rows:
        return "on_ssd_out_of_use", (
            "it is on SSD, in a file that is out of use (its device failed, or the transport worker does not run): a miss until that is mended"
        )
    return None


def _at_host(places: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    for row in places:
        if row["where"] == "host":
            return "other_host", (
                f"host {row['host']} has it, in {row['tier']}, as it has told: a request waits for the fetch as for SSD, and misses when that fails or comes too late"
            )
    return None


def _when(event: Event) -> str:
    if event.after_ns and event.after_ns == event.before_ns:
        return f"at {clock_text(event.after_ns)} (event {event.sequence})"
    if event.after_ns and event.before_ns:
        return f"between {clock_text(event.after_ns)} and {clock_text(event.before_ns)} (event {event.sequence})"
    if event.after_ns:
        return f"after {clock_text(event.after_ns)} (event {event.sequence})"
    if event.before_ns:
        return f"before {clock_text(event.before_ns)} (event {event.sequence})"
    return f"at a time that cannot be told (event {event.sequence})"


def clock_text(time_ns: int) -> str:
    """Local time; with the day when that is another one."""
    seconds = time_ns / 1e9
    same_day = time.localtime(seconds)[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def age_text(since_ns: int) -> str:
    seconds = max(0.0, (time.time_ns() - since_ns) / 1e9)
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
