"""The soak in the suite: random work and random SIGKILLs, a quarter of a minute, or two and a half in the long form."""

from __future__ import annotations

import pytest

from tests.children import run_child
from tests.figures import LONG, report

MINUTES = 2.5 if LONG else 0.25


@pytest.mark.timeout(MINUTES * 60 + 120)
def test_soak(seed: int) -> None:
    """No wrong byte, no lost block, no hang; and that there was something to go wrong."""
    summary = run_child(
        "tests.soak", "--minutes", MINUTES, "--seed", seed, seconds=MINUTES * 60 + 90
    )
    problems = summary["problems"]
    report(
        "soak",
        kills=sum(summary["kills"].values()),
        published=summary["published"],
        verified=summary["verified"],
        evicted=summary["evicted"],
        wrong_bytes=sum("WRONG" in problem for problem in problems),
        leaked_blocks=sum(": expected " in problem for problem in problems),
        hangs=sum("made no step" in problem for problem in problems),
        problems=len(problems),
    )
    assert [] == problems
    assert summary["kills"]["worker"] > 5
    for counter in ("published", "verified", "unpinned_right", "evicted", "reaped"):
        assert summary[counter] > 50 or (counter == "reaped" and summary[counter] > 0), counter
