"""What did a suite see? One line for a human, one JSON line for the summary that `make test-crash` prints.

A crash suite calls `report` once, at its end. With PEGASHM_FIGURES=FILE the line is kept there too;
`python -m tests.figures FILE` adds them up and exits with 1 when anything was wrong, lost or hung, or when a
suite that belongs to the long form said nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

__all__ = ["LONG", "report"]

LONG = os.environ.get("PEGASHM_LONG") == "1"  # the long form of every suite: make test-crash

# Every suite of the long form, and the figures that must be there and be 0.
SUITES = (
    "crash", "fsck", "explore", "fuzz", "sums", "world", "contract", "storm", "race", "asan", "soak", "worker",
)  # fmt: skip
FORBIDDEN = ("wrong_bytes", "leaked_blocks", "hangs", "outputs_different")


def report(suite: str, **figures: float | str) -> None:
    """Print what was seen and keep it for the summary."""
    print(f"\n{suite}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    kept = os.environ.get("PEGASHM_FIGURES")
    if kept:
        with Path(kept).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"suite": suite, **figures}) + "\n")


def summarise(lines: list[str]) -> int:
    """The table of all suites and the sums; the exit status."""
    seen = [json.loads(line) for line in lines]
    totals: Counter[str] = Counter()
    for entry in seen:
        suite = entry.pop("suite")
        print(f"{suite:>10}  " + ", ".join(f"{name} {value}" for name, value in entry.items()))
        totals.update({name: value for name, value in entry.items() if isinstance(value, int)})
        totals[f"suite {suite}"] += 1
    silent = [suite for suite in SUITES if not totals[f"suite {suite}"]]
    bad = {name: totals[name] for name in FORBIDDEN if totals[name]}
    print(
        f"{'all':>10}  kills survived {totals['kills']}, wrong bytes {totals['wrong_bytes']}, "
        f"leaked blocks {totals['leaked_blocks']}, hangs {totals['hangs']}"
    )
    if silent:
        print(f"said nothing: {', '.join(silent)}")
    return 1 if silent or bad else 0


if __name__ == "__main__":
    sys.exit(summarise(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
