"""The soak's short form: a quarter of a minute of random work and random SIGKILLs."""

from __future__ import annotations

from tests.children import run_child


def test_short_soak(seed: int) -> None:
    """No wrong byte, no lost block, no hang; and that there was something to go wrong."""
    summary = run_child("tests.soak", "--minutes", 0.25, "--seed", seed)
    print(summary)
    assert [] == summary["problems"]
    assert summary["kills"]["worker"] > 5
    for counter in ("published", "verified", "unpinned_right", "evicted", "reaped"):
        assert summary[counter] > 50 or (counter == "reaped" and summary[counter] > 0), counter
