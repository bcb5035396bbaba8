"""Run benches and keep what was seen: results/NAME-DATE.md (as printed) and results/NAME-DATE.json (the figures).

`python -m bench.record [--quick] [NAME ...]` runs each bench as its own process, all of them when none is named, and
overwrites the results of the same day. Wait for a quiet machine first: the load before and after is in each file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import harness

__all__ = ["main"]

BENCHES = (
    "admission",
    "attach",
    "checksum",
    "copy",
    "directory",
    "fetch",
    "fetch_hosts",
    "lookup",
    "operations",
    "overhead",
    "reserve",
    "reuse",
    "replay",
    "rivals",
    "scheduler",
    "spill",
    "start",
    "tier",
    "watching",
)
RESULTS = Path(__file__).resolve().parent.parent / "results"


def record(name: str, options: Sequence[str]) -> bool:
    """One bench, one pair of files; False when it ended with an error, which stands above."""
    command = [sys.executable, "-m", f"bench.{name}", *options]
    harness.progress(" ".join(command[1:]))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        harness.progress(f"bench.{name} ended with status {done.returncode}; nothing recorded")
        return False
    *printed, last = done.stdout.splitlines()
    figures = json.loads(last)
    stem = RESULTS / f"{name}-{figures['at'][:10]}"
    body = "\n".join(line.rstrip() for line in printed)
    stem.with_suffix(".md").write_text(
        f"# bench.{name}, {figures['at']}\n\n```text\n{body}\n```\n", encoding="utf-8"
    )
    stem.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    harness.progress(f"wrote {stem.name}.md and .json")
    return True


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.record",
        description="Run benches and keep what was seen in results/.",
        epilog="Other options go to the benches: --quick, --smoke.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"all when none is named: {', '.join(BENCHES)}"
    )
    parsed, options = parser.parse_known_intermixed_args(arguments)
    names = parsed.names or list(BENCHES)
    if unknown := set(names) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    RESULTS.mkdir(exist_ok=True)
    failed = [name for name in names if not record(name, options)]
    if failed:
        raise SystemExit(f"not recorded: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
