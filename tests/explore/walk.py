"""What did the explorer print? Runs the compiled program and reads its answer.

Called by test_explore.py and by the writer of the table (`python -m tests.explore`).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.explore.mutants import MUTANTS, Mutant

__all__ = ["Caught", "Explored", "explore", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """One scenario, as explore.cpp writes it."""

    scenario: str
    meets: str
    threads: int
    bound: str
    words: int
    interleavings: float
    states: int
    runs: int
    steps: int
    seconds: float
    violation: bool
    expected: str  # why a violation is right here, empty: there must be none
    outcome: str  # what was violated


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """One planted mistake in one scenario: what was said of it, empty when it went unseen."""

    mutant: Mutant
    scenario: str
    said: str


def explore(program: Path, folder: Path, *, longer: bool, seconds: float) -> list[Explored]:
    """All litmus tests and scenarios. AssertionError with the trace when one shows what it should not."""
    kept = folder / "explored.jsonl"
    command = [str(program), "--json", str(kept), *(["--long"] if longer else [])]
    done = run(command, seconds)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}\n{told(done)}"
    lines = kept.read_text(encoding="utf-8").splitlines()
    return [Explored(**json.loads(line)) for line in lines]


def plant(program: Path, mutant: Mutant, scenario: str, seconds: float) -> Caught:
    """The same scenario over a core with one mistake."""
    number = MUTANTS.index(mutant) + 1
    done = run([str(program), "--planted", str(number), scenario], seconds)
    assert done.returncode in {0, 1}, f"{mutant.name}: ended with {done.returncode}\n{told(done)}"
    said = re.search(r"VIOLATION\n +(.*)\n", done.stdout)
    return Caught(mutant=mutant, scenario=scenario, said=said.group(1) if said else "")


def run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Done within the time, or an AssertionError with what it had printed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"hung: {' '.join(command)}\n{late.stdout!r}") from None


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Its last words: a trace is long, and its beginning matters as much as its end."""
    out = (
        done.stdout
        if len(done.stdout) < 24_000
        else f"{done.stdout[:12_000]}\n…\n{done.stdout[-12_000:]}"
    )
    return f"{out}\n{done.stderr[-2000:]}"
