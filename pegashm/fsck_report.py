"""What did a check or a repair find? The report, for programs (`as_json`) and for people (`lines`).

Plain frozen values; made by `fsck`, shown by the command and by `dump`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pegashm.invariants import INVARIANTS
from pegashm.units import format_bytes

__all__ = ["Account", "Finding", "Report"]

_LINES_MAX: Final = 5
_SCHEMA: Final = 1
_USES: Final = {
    "free": "free",
    "lost": "free, but nobody would use it (I23)",
    "claimed": "being written",
    "claimed_dead": "being written by somebody dead (I15)",
    "ready": "ready",
    "ready_held": "ready, pinned by somebody dead (I16)",
    "unreachable": "ready, not in the index (I20)",
    "duplicate": "ready twice (I21)",
    "evicting": "being evicted",
    "evicting_dead": "being evicted by somebody dead (I15)",
    "damaged": "damaged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that does not hold. `repairable`: whether a repair could put it right now."""

    invariant: int
    name: str
    kind: str  # "damage" | "debris" | "drift"
    where: str
    message: str
    repair: str
    repairable: bool

    def __str__(self) -> str:
        return f"I{self.invariant} {self.kind}: {self.where}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What each record and each payload byte is used for; every one is counted exactly once."""

    record_count: int
    payload_bytes: int
    blocks: dict[str, int]
    bytes: dict[str, int]
    records_spare: int
    records_stray: int
    segment_tail_bytes: int
    unassigned_bytes: int

    @classmethod
    def of(cls, counted: dict[str, Any], header: dict[str, Any]) -> Account:
        return cls(
            record_count=header["record_count"], payload_bytes=header["payload_bytes"], **counted
        )

    @property
    def adds_up(self) -> bool:
        records = sum(self.blocks.values()) + self.records_spare + self.records_stray
        total = sum(self.bytes.values()) + self.segment_tail_bytes + self.unassigned_bytes
        return records == self.record_count and total == self.payload_bytes

    def lines(self) -> list[str]:
        rows = [
            f"  {self.blocks[use]:>10}  {format_bytes(self.bytes[use]):>10}  {words}"
            for use, words in _USES.items()
            if self.blocks[use] or use in ("free", "ready")
        ]
        for count, nbytes, words in (
            (self.records_stray, 0, "ready where their segment has no block (I17)"),
            (0, self.segment_tail_bytes, "ends of segments, shorter than a block"),
            (0, self.unassigned_bytes, "in segments that no block size has yet"),
        ):
            if count or nbytes:
                rows.append(f"  {count or '':>10}  {format_bytes(nbytes):>10}  {words}")
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`findings` is what does not hold now, `repaired` what a repair has put right just before.

    Both list the first thousand; `counts` and `repaired_counts`, by invariant, count all.
    """

    name: str
    live: bool
    passes: int
    seconds: float
    findings: tuple[Finding, ...]
    counts: dict[int, int]
    repaired: tuple[Finding, ...]
    repaired_counts: dict[int, int]
    account: Account

    @property
    def clean(self) -> bool:
        """Everything holds (after a repair: by now)."""
        return not self.counts and self.account.adds_up

    @property
    def found_nothing(self) -> bool:
        """Everything held already: a repair had nothing to do."""
        return self.clean and not self.repaired_counts

    @property
    def exit_status(self) -> int:
        return 0 if self.clean else 1

    def as_json(self) -> dict[str, Any]:
        return {
            "tool": "pegashm-fsck",
            "schema": _SCHEMA,
            "exit_status": self.exit_status,
            "clean": self.clean,
            **asdict(self),
            "counts": {f"I{number}": count for number, count in self.counts.items()},
            "repaired_counts": {f"I{n}": count for n, count in self.repaired_counts.items()},
        }

    def lines(self) -> list[str]:
        """For a terminal; what shared memory says in it is numbers only."""
        walks = "1 walk" if self.passes == 1 else f"{self.passes} walks"
        state = "in use" if self.live else "at rest"
        lines = [f'arena "{self.name}", {state}: {walks} in {self.seconds:.2f} s']
        lines += self.account.lines()
        if not self.account.adds_up:
            lines.append("  the sums do not add up to the region")
        lines += self.summary_lines()
        if not self.counts:
            lines.append("clean" if not self.repaired_counts else "clean now")
        return lines

    def summary_lines(self) -> list[str]:
        """What was repaired and what is left; nothing when all held."""
        lines = []
        if self.repaired_counts:
            lines += ["repaired:", *_listed(self.repaired, self.repaired_counts, done=True)]
        if self.counts:
            lines += ["findings:", *self.finding_lines()]
        return lines

    def finding_lines(self) -> list[str]:
        """What does not hold, a few of each kind, and what to type; nothing when all holds."""
        if not self.counts:
            return []
        return [*_listed(self.findings, self.counts, done=False), *self._advice()]

    def without_drift(self) -> Report:
        """For who asks whether somebody has to act: hints that are off are put right by the way."""
        return replace(
            self,
            findings=tuple(found for found in self.findings if found.kind != "drift"),
            counts={n: c for n, c in self.counts.items() if INVARIANTS[n].kind != "drift"},
        )

    def _advice(self) -> list[str]:
        if any(finding.repairable for finding in self.findings):
            return [f"repair with: pegashm fsck --name {self.name} --repair"]
        if any(finding.invariant == 2 for finding in self.findings):
            return [f"start anew: pegashm purge --name {self.name} --yes"]
        return [
            "what is left waits until nobody is attached (`pegashm dump` shows who is); then type:",
            f"  pegashm fsck --name {self.name} --repair",
        ]


def _listed(findings: tuple[Finding, ...], counts: dict[int, int], *, done: bool) -> list[str]:
    lines = []
    for number, count in sorted(counts.items()):
        invariant = INVARIANTS[number]
        what = f": {invariant.repair}" if done else ""
        lines.append(f"  I{number} {invariant.name} ({invariant.kind}), {count}{what}")
        mine = [finding for finding in findings if finding.invariant == number][:_LINES_MAX]
        lines += [f"      {finding.where}: {finding.message}" for finding in mine]
        if count > len(mine):
            lines.append(f"      and {count - len(mine)} more")
    return lines
