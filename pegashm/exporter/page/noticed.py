"""What happened? Two readings in, the events between them out, each a line worth a human's time.

Only what a look every few seconds can tell: who came, died or was reaped, what became wrong or well again, another arena
under the same name, and counters of trouble that moved. The same trouble again soon is one event that grows. Bounded;
called by the thread that samples.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pegashm.exporter.judging import Health
from pegashm.exporter.reading import ClientReading, Reading

__all__ = ["TROUBLES", "Notice", "Noticed"]

_KEPT: Final = 200
_AGAIN_SECONDS: Final = 300.0

# Counters that should not move, and what it means when they do.
TROUBLES: Final[Mapping[str, str]] = {
    "payloads_damaged": "blocks in memory held other bytes than were stored; they are misses",
    "loads_failed": "blocks changed while an engine copied them out; it computed them again",
    "claims_no_space": "stores were skipped: all memory was pinned or being written",
    "claims_quota": "stores were skipped: their namespace is at its maximum",
    "spill_write_errors": "writes were refused by an SSD",
    "spill_failed": "blocks could not be read from SSD",
    "spill_damaged": "blocks on SSD held other bytes than were written; they are misses",
    "remote_damaged": "blocks from other hosts arrived with other bytes than were stored; they are misses",
    "remote_failed": "fetches from other hosts failed",
    "remote_messages_bad": "messages from other hosts were none, or not theirs to send",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """`level`: good, info, warn or bad. `at`: seconds since 1970; `amount`: of a trouble that is counted."""

    at: float
    level: str
    kind: str
    text: str
    amount: int = 0


class Noticed:
    """The last events, newest first in `rows`. Thread-safe."""

    def __init__(self) -> None:
        self._kept: deque[Notice] = deque(maxlen=_KEPT)
        self._mutex = threading.Lock()

    def compare(
        self, at: float, before: tuple[Reading, Health] | None, now: tuple[Reading, Health]
    ) -> None:
        """Notice what is different in `now`; `before` None: all of it is new, and only how it stands is said."""
        fresh = list(_changes(before, now)) if before else list(_first(*now))
        with self._mutex:
            for notice in fresh:
                self._add(replace(notice, at=at))

    def rows(self) -> list[dict[str, Any]]:
        with self._mutex:
            return [asdict(notice) for notice in reversed(self._kept)]

    def _add(self, notice: Notice) -> None:
        if notice.amount:
            for earlier in self._kept:
                if earlier.kind == notice.kind and earlier.at > notice.at - _AGAIN_SECONDS:
                    self._kept.remove(earlier)
                    notice = replace(notice, amount=notice.amount + earlier.amount)
                    break
        self._kept.append(notice)


def _notice(level: str, kind: str, text: str, amount: int = 0) -> Notice:
    return Notice(0.0, level, kind, text, amount)


def _first(reading: Reading, health: Health) -> Iterator[Notice]:
    yield _notice("info", "exporter_started", "the exporter began to look")
    for reason in health.reasons:
        yield _notice(_level(health), reason.name, reason.text)


def _changes(before: tuple[Reading, Health], now: tuple[Reading, Health]) -> Iterator[Notice]:
    old, new = before[0], now[0]
    if old.region_id != new.region_id:
        yield from _another(old, new)
        yield from _reasons(before[1], now[1])
        return
    if not new.is_open:
        yield from _reasons(before[1], now[1])
        return
    if old.header["supervisor_pid"] != new.header["supervisor_pid"]:
        yield _notice(
            "info",
            "supervisor_took_over",
            f"another supervisor took over: pid {new.header['supervisor_pid']}",
        )
    yield from _clients(old, new)
    yield from _namespaces(old, new)
    yield from _peers(old, new)
    yield from _reasons(before[1], now[1])
    for counter, meaning in TROUBLES.items():
        amount = new.counters.get(counter, 0) - old.counters.get(counter, 0)
        if amount > 0:
            yield _notice("warn", counter, meaning, amount)


def _another(old: Reading, new: Reading) -> Iterator[Notice]:
    if not new.is_open:
        yield _notice("bad", "arena_gone", "the arena is gone: purged, or its memory was removed")
    elif not old.is_open:
        yield _notice("good", "arena_found", f"the arena is there: region {new.region_id[:12]}")
    else:
        yield _notice(
            "warn",
            "arena_replaced",
            f"another arena under the same name: region {old.region_id[:12]} was purged, {new.region_id[:12]} made",
        )


def _reasons(old: Health, new: Health) -> Iterator[Notice]:
    had = {reason.name: reason for reason in old.reasons}
    has = {reason.name: reason for reason in new.reasons}
    for name in has.keys() - had.keys():
        yield _notice(_level(new), name, has[name].text)
    if old.reasons and not new.reasons:
        yield _notice("good", "healthy", "all is well again")
    elif new.reasons:
        for name in had.keys() - has.keys():
            yield _notice("good", f"{name}_over", f"over: {had[name].text}")


def _level(health: Health) -> str:
    return "bad" if health.status == "down" else "warn"


def _clients(old: Reading, new: Reading) -> Iterator[Notice]:
    had = {(client.slot, client.incarnation): client for client in old.clients}
    has = {(client.slot, client.incarnation): client for client in new.clients}
    for key, client in has.items():
        if key not in had:
            yield _notice("info", "client_attached", f"{_who(client)} attached")
        elif had[key].alive and not client.alive:
            yield _notice("warn", "client_died", f"{_who(client)} died, and is not reaped yet")
    for key, client in had.items():
        if key not in has:
            if client.alive:  # between two looks nobody can tell the one from the other
                how = "detached, or died and was reaped"
                yield _notice("info", "client_gone", f"{_who(client)} {how}")
            else:
                yield _notice("info", "client_reaped", f"{_who(client)} was reaped")


def _who(client: ClientReading) -> str:
    label = f" ({client.label})" if client.label else ""
    return f"client {client.slot}, pid {client.pid}{label}"


def _namespaces(old: Reading, new: Reading) -> Iterator[Notice]:
    had = {namespace.id for namespace in old.namespaces}
    for namespace in new.namespaces:
        if namespace.id not in had:
            label = namespace.label or namespace.fingerprint[:12]
            yield _notice(
                "info", "namespace_registered", f"namespace {namespace.id} ({label}) registered"
            )


def _peers(old: Reading, new: Reading) -> Iterator[Notice]:
    if old.peers is None or new.peers is None:
        return
    had = {peer["incarnation"]: peer for peer in old.peers.as_dict()["peers"]}
    has = {peer["incarnation"]: peer for peer in new.peers.as_dict()["peers"]}
    for key, peer in has.items():
        was = had.get(key)
        if was is None:
            yield _notice("good", "peer_met", f"host {peer['address']} joined")
        elif was["breaker"] != "open" and peer["breaker"] == "open":
            yield _notice(
                "warn",
                "peer_left_alone",
                f"host {peer['address']}: fetches from it failed, it is left alone",
            )
        elif was["usable"] and not peer["usable"]:
            yield _notice(
                "warn", "peer_unsynchronised", f"host {peer['address']} cannot be asked now"
            )
        elif not was["usable"] and peer["usable"]:
            yield _notice("good", "peer_usable", f"host {peer['address']} can be asked")
    for key, peer in had.items():
        if key not in has:
            yield _notice("warn", "peer_gone", f"host {peer['address']} is gone")
