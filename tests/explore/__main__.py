"""`python -m tests.explore FILE.md`: explores at length and writes down what was explored and what was found.

The long form of test_explore.py as a page: each scenario with its bound and figures, each planted mistake with
the scenarios that show it, and what the model leaves out.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
import tempfile
from pathlib import Path

from tests.explore import build
from tests.explore.mutants import MUTANTS
from tests.explore.walk import Caught, Explored, explore, plant

__all__ = ["page"]

HEAD = """# Interleavings explored, {date}

The core's own headers (`pegashm/_core`) over a table of one to three records, with their atomics swapped for modelled ones (`tests/explore`), walked through every order of steps and every value that
C++20's memory model lets a load return. Command: `python -m tests.explore`, {seconds:.0f} s of one core ({machine}).

{count} scenarios, {exhaustive} of them without a bound; {interleavings:.1e} interleavings, {states:,} states, {runs:,} executions, no violation but the {unsafe} that are shown on purpose;
{caught} of {planted} planted mistakes caught.

| scenario | what meets | threads | bound | shared words | interleavings | states | executions | s | result |
|---|---|---|---|---|---|---|---|---|---|
"""

NOTES = """
**Threads** are clients (or reapers, workers), each of its own slot, running the same functions that the engine's processes run. "killed anywhere": one of them ends before or after any write, and the
reaper comes when it is gone. **Bound**: context switches away from a thread that could go on (preemptions); "none" is all of them. **Interleavings** counts whole executions, those below a
state met before without running them again; of one that stops at a violation, only what was finished. **Held** in each: no wrong byte, no payload access that is not ordered after the other's,
no living claim taken away; and in the end no record held by nobody, free without its free bit, READY and not findable, at another stride's place or never to be evicted.

## Planted mistakes

Each is one change in the core, chosen when the program starts; the scenarios named must all show it.

| mistake | header | shown by | as |
|---|---|---|---|
"""

GAPS = """
## What it found in the core

Each is fixed, and its scenario stays.

- `rebuild_hints` (every reap) beside a living client: it read a record as FREE, and then the touch of the block that was claimed and published there meanwhile, and cleared it. That block was no candidate
  for eviction until the next reap (I22). Now the touch is read first. Scenario: rebuild_claims.
- `read_sums` of a pinned block, just while an evictor tried it (EVICTING, and back since it is pinned), said "no checksums": such a hit would have been used unverified. Scenario: reuse_sums.

Seen and left: two who claim one key at once may both publish (I21 says so; same_key shows that either is found and can go). Two who give one fresh segment to the same size at once may both be
told "no space": the second marks it CHANGING again, and the first gives its record back. A store less, nothing lost.

## What the model leaves out

- **Load buffering**: no load sees a store that comes later in the execution. C++20 allows it for relaxed accesses (litmus test LB); the core has no relaxed load followed by a relaxed store that decides
  anything. AArch64 could show it, x86 cannot.
- **seq_cst** is RC11's for single words: a seq_cst access does not see less than an earlier one of the same word. Executions whose seq_cst order goes against the order of their reads are not built. There are no
  fences and no seq_cst stores, since the core has none; 13 classic litmus programs are compared with the outcomes that C++20 allows, before every run.
- **Payload** is two words of each block, checked for order, not for tearing. The copies themselves (`copy.hpp`, non-temporal stores) are not run here.
- **Kernel locks** are modelled as "the holder is gone, and what it wrote is in memory"; creation, namespaces and the registry are not run against each other, since a lock keeps them apart.
- **Small tables**: what needs more than three records, a full bucket, several segments, a wrapped generation (2^16 in an index entry), or more than three at once is not seen. `tests/race`, `tests/fuzz` and
  `tests/soak` run those, without enumerating.
- **Blocks on SSD** (spill records) are not explored.
- Counters, bytes of namespaces without limits, times and a journal that nobody reads are written in passing. States are told apart by 128-bit digests.
"""


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def page(scenarios: list[Explored], caught: list[Caught], date: str) -> str:
    """The whole page."""
    lines = [
        HEAD.format(
            date=date,
            machine=machine(),
            seconds=sum(each.seconds for each in scenarios),
            count=len(scenarios),
            exhaustive=sum(each.bound == "none" for each in scenarios),
            interleavings=sum(each.interleavings for each in scenarios),
            states=sum(each.states for each in scenarios),
            runs=sum(each.runs for each in scenarios),
            unsafe=sum(bool(each.expected) for each in scenarios),
            caught=len(MUTANTS) - len({each.mutant.name for each in caught if not each.said}),
            planted=len(MUTANTS),
        )
    ]
    lines += [row(each) for each in scenarios]
    lines.append(NOTES)
    for mutant in MUTANTS:
        shown = [each for each in caught if each.mutant is mutant and each.said]
        names = ", ".join(each.scenario for each in shown)
        said = shown[0].said.split(":")[0] if shown else "NOT CAUGHT"
        lines.append(f"| {mutant.name} | `{mutant.header}` | {names} | {said} |\n")
    lines.append(GAPS)
    return "".join(lines)


def row(each: Explored) -> str:
    bound = each.bound.replace(" preempt", "")
    result = "holds"
    if each.violation:
        result = f"unsafe, as known: {each.expected}" if each.expected else f"**{each.outcome}**"
    meets = each.meets.replace("|", "/")
    return (
        f"| {each.scenario} | {meets} | {each.threads} | {bound} | {each.words} "
        f"| {each.interleavings:.3g} | {each.states:,} | {each.runs:,} | {each.seconds:.1f} | {result} |\n"
    )


def main() -> int:
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".md"):
        print("usage: python -m tests.explore FILE.md", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        program = build.program(Path(folder) / "core")
        scenarios = explore(program, Path(folder), longer=True, seconds=1800)
        caught = [plant(program, each, name, 300) for each in MUTANTS for name in each.caught_by]
    date = dt.datetime.now(dt.timezone.utc).date().isoformat()
    Path(sys.argv[1]).write_text(page(scenarios, caught, date), encoding="utf-8")
    return 0 if all(each.said for each in caught) else 1


if __name__ == "__main__":
    sys.exit(main())
