"""Is all well with an arena, and if not, what is wrong and what does one do? One reading in, a verdict out.

Three answers. "ok": nothing needs anybody. "degraded": engines use it, and something costs hits or will.
"down": engines cannot use it; to them every block is a miss. Each reason has a name that stays (it is a label of
`pegashm_health_reason` and what alerts refer to), a sentence, and what to type. Pure: what happened between two readings is
for the alerts (deploy/prometheus/rules.yml), which see time; here is only what one look tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pegashm._native import draining_since
from pegashm.exporter.reading import Reading
from pegashm.units import format_bytes

__all__ = ["REASONS", "Health", "Reason", "judge"]

_OLD_PIN_SECONDS: Final = 600.0
_ORPHANED_SECONDS: Final = 60.0
_FULL_BUDGET: Final = 0.98

# Every reason there can be, and what it means: also the list of docs/metrics.md.
REASONS: Final[Mapping[str, str]] = {
    "missing": "there is no arena of that name",
    "not_ready": "the arena is being created or populated, or its creator died at it",
    "unreadable": "the arena is of another format, damaged, or not ours to read",
    "populating": "part of the memory is not populated yet: what is ready is used",
    "unsupervised": "no supervisor lives: nobody reaps the dead, nothing restarts the transport worker",
    "draining": "`pegashm drain` empties the arena: engines store nothing in it",
    "worker_dead": "the arena has tiers below memory, and no transport worker lives: what lies there is misses",
    "spill_file_unusable": "a spill file failed or does not answer: its blocks are misses",
    "budget_spent": "today's write budget of the SSD tier is spent: blocks evicted now are lost",
    "peers_unusable": "other hosts are known, and none can be asked",
    "claims_orphaned": "an engine died, and one of its workers lives on: its claims cannot be reaped",
    "clients_unreaped": "dead clients hold blocks that nobody has reaped yet",
    "pins_old": "a client has pinned a block for more than ten minutes: it cannot be evicted",
    "payloads_damaged": "blocks in memory hold other bytes than were stored: they are misses until replaced",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why it is not ok. `name` is one of REASONS."""

    name: str
    text: str
    advice: str

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "text": self.text, "advice": self.advice}


@dataclass(frozen=True, slots=True)
class Health:
    """`status`: ok, degraded or down. `ready`: whether engines can use the arena."""

    name: str
    status: str
    ready: bool
    reasons: tuple[Reason, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "arena": self.name,
            "status": self.status,
            "ready": self.ready,
            "reasons": [reason.as_dict() for reason in self.reasons],
        }


def judge(reading: Reading) -> Health:
    """The verdict on one reading."""
    if not reading.is_open or reading.state == "not_ready":
        reason = Reason(reading.state, reading.reason, _START[reading.state](reading))
        return Health(reading.name, "down", False, (reason,))
    reasons = tuple(_reasons(reading))
    return Health(reading.name, "degraded" if reasons else "ok", True, reasons)


_START: Final = {
    "missing": lambda reading: f"pegashm serve --name {reading.name} --size 64G",
    "not_ready": lambda reading: (
        f"wait; pegashm status --name {reading.name}"
        if reading.supervisor_alive
        else f"pegashm serve --name {reading.name}, with its options"
    ),
    "unreadable": lambda reading: f"pegashm-dump --name {reading.name}",
}


def _reasons(reading: Reading) -> Iterator[Reason]:
    name = reading.name
    if not reading.supervisor_alive:
        yield Reason(
            "unsupervised",
            "no supervisor lives: nobody reaps the dead or restarts the transport worker",
            f"pegashm serve --name {name}, with its options",
        )
    ready, count = int(reading.header["segments_ready"]), int(reading.header["segment_count"])
    if ready < count:
        yield Reason("populating", f"{ready} of {count} segments are ready", "wait")
    if draining_since(dict(reading.header)):
        yield Reason(
            "draining",
            "the arena is being drained: engines store nothing in it",
            f"pegashm drain --name {name} --undo",
        )
    yield from _tiers(reading)
    yield from _clients(reading)
    if reading.survey is not None and reading.survey.damaged:
        yield Reason(
            "payloads_damaged",
            f"{reading.survey.damaged} blocks in memory hold other bytes than were stored",
            f"pegashm fsck --name {name}; look at the memory's error counters",
        )


def _tiers(reading: Reading) -> Iterator[Reason]:
    name, spill, peers = reading.name, reading.spill, reading.peers
    if reading.has_worker and not reading.worker_alive:
        yield Reason(
            "worker_dead",
            "no transport worker lives: blocks on SSD and on other hosts are misses",
            f"look at the log of pegashm serve --name {name}, which restarts it",
        )
    if spill is not None and reading.worker_alive:
        if spill.files_usable < spill.files:
            yield Reason(
                "spill_file_unusable",
                f"{spill.files - spill.files_usable} of {spill.files} spill files cannot be used now",
                "dmesg; smartctl -a on its device",
            )
        limit, written = spill.daily_bytes_limit, spill.daily_bytes_written
        if limit and written >= _FULL_BUDGET * limit:
            yield Reason(
                "budget_spent",
                f"{format_bytes(written)} of {format_bytes(limit)} were written in 24 hours",
                "a larger --spill-daily-writes, or --spill-admission second-touch",
            )
    if peers is not None and peers.said.get("peers") and reading.worker_alive:
        usable = [peer for peer in peers.as_dict()["peers"] if peer["usable"]]
        if not usable:
            yield Reason(
                "peers_unusable",
                f"of {len(peers.said['peers'])} other hosts none can be asked",
                f"pegashm peers --name {name}",
            )


def _clients(reading: Reading) -> Iterator[Reason]:
    name = reading.name
    dead = [client for client in reading.clients if not client.alive]
    orphaned = [
        client
        for client in dead
        if client.copiers_alive and client.oldest_claim_seconds > _ORPHANED_SECONDS
    ]
    if orphaned:
        pids = ", ".join(str(client.pid) for client in orphaned[:4])
        yield Reason(
            "claims_orphaned",
            f"{sum(client.claims for client in orphaned)} blocks claimed by dead engines (pid {pids}) wait for the "
            "end of their workers",
            "end the workers that are left of these engines",
        )
    unreaped = [client for client in dead if not client.copiers_alive]
    if unreaped and not reading.supervisor_alive:
        yield Reason(
            "clients_unreaped",
            f"{len(unreaped)} dead clients are not reaped",
            f"pegashm serve --name {name}, with its options",
        )
    old = [client for client in reading.clients if client.oldest_pin_seconds > _OLD_PIN_SECONDS]
    if old:
        oldest = max(old, key=lambda client: client.oldest_pin_seconds)
        yield Reason(
            "pins_old",
            f"client {oldest.slot} (pid {oldest.pid}) has pinned a block for {oldest.oldest_pin_seconds:.0f} s or more",
            f"pegashm-dump --name {name} shows who holds what",
        )
