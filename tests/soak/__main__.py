"""python -m tests.soak --minutes 10: does anything break when processes are killed all the time?

Six processes claim, publish, find, pin, copy, verify and evict at random on a small arena while one random
process at a time is killed and restarted. Prints a summary as JSON on its last line; exit status 1 when a
byte was wrong, a block was lost or a process hung. What it does not show: power loss, other hosts.
"""

from __future__ import annotations

import json
import secrets
import sys

import click

from tests.soak.plan import SoakPlan
from tests.soak.referee import run_soak


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.01), default=10.0, show_default=True)
@click.option("--processes", type=click.IntRange(min=2, max=64), default=6, show_default=True)
@click.option(
    "--seed", type=int, default=None, help="Of kills and actions; timing is not repeatable."
)
def main(minutes: float, processes: int, seed: int | None) -> None:
    """Soak a small arena with SIGKILL."""
    plan = SoakPlan(
        seconds=minutes * 60,
        seed=secrets.randbits(32) if seed is None else seed,
        processes=processes,
    )
    print(f"seed {plan.seed}, {plan.processes} processes, {plan.seconds:.0f} s", flush=True)
    summary = run_soak(plan)
    for problem in summary["problems"]:
        print(f"PROBLEM: {problem}", flush=True)
    print(json.dumps(summary))
    sys.exit(0 if summary["ok"] else 1)


if __name__ == "__main__":
    main()
