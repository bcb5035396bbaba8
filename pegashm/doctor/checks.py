"""Which checks are there, and what do they come to? All of them, in the order in which an operator would look.

A check that fails in a way that nobody foresaw is an error finding itself: one thing that cannot be looked at does not hide the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pegashm import __version__
from pegashm.doctor import arenas, disk, engine, fabric, kernel, memory
from pegashm.doctor.finding import Finding, Level, error
from pegashm.names import SHM_DIRECTORY

__all__ = ["Asked", "Report", "examine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the machine is to be judged for. `name`: only this arena; else all that are here."""

    name: str | None = None
    size_bytes: int | None = None
    directory: str | None = None
    spill: Sequence[str] = ()
    spill_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    findings: tuple[Finding, ...]

    @property
    def exit_status(self) -> int:
        return int(max((finding.level for finding in self.findings), default=Level.OK))

    def count(self, level: Level) -> int:
        return sum(1 for finding in self.findings if finding.level is level)

    def as_dict(self) -> dict[str, Any]:
        return {
            "tool": "pegashm-doctor",
            "version": __version__,
            "exit_status": self.exit_status,
            "warnings": self.count(Level.WARNING),
            "errors": self.count(Level.ERROR),
            "findings": [finding.as_dict() for finding in self.findings],
        }


def examine(asked: Asked) -> Report:
    """Run every check that what was asked gives reason for."""
    names = [asked.name] if asked.name is not None else arenas.arena_names()
    payload = asked.directory if asked.directory is not None else SHM_DIRECTORY
    size = asked.size_bytes
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("kernel", kernel.check_kernel),
        ("clock", lambda: kernel.check_clock(arenas.newest_ns(names))),
        ("memory", lambda: memory.check_memory(size)),
        ("shm", lambda: memory.check_shm(size if asked.directory is None else None)),
        ("huge pages, control", memory.check_huge_control),
        ("huge pages, payload", lambda: memory.check_huge_payload(payload)),
        ("huge pages, reserved", memory.check_hugetlb),
        ("memlock", lambda: memory.check_memlock(size)),
        ("numa", memory.check_numa),
        ("io_uring", kernel.check_io_uring),
        ("rdma", fabric.check_rdma),
        ("vllm", engine.check_vllm),
        ("hashes", engine.check_hashes),
        ("runtime folder", lambda: arenas.check_runtime(asked.name or "kv0")),
        ("leftovers", arenas.check_leftovers),
        *((f"spill {path}", _spill(path, asked.spill_bytes)) for path in asked.spill),
        *((f"arena {name}", _arena(name)) for name in names),
    ]
    if payload == SHM_DIRECTORY:  # one mount: the control region's line says it
        checks = [each for each in checks if each[0] != "huge pages, payload"]
    return Report(tuple(finding for name, check in checks for finding in _guarded(name, check)))


def _spill(path: str, nbytes: int | None) -> Callable[[], list[Finding]]:
    return lambda: disk.check_spill(path, nbytes)


def _arena(name: str) -> Callable[[], list[Finding]]:
    return lambda: arenas.check_arena(name)


def _guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as problem:  # noqa: BLE001 - one check that fails must not hide the others
        return [error(name, f"could not be checked: {problem!r}", "report this, with --json")]
