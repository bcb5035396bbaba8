"""What do all benches share? Options, rounds, medians, the machine's description, and the way results are said.

A bench is a function `measure(options) -> Findings`; `run` prints its question, the machine and the command, its
tables, what it does not show and a hash of the work done, and as the last line of standard output one JSON object
with all of it. Progress goes to standard error. Contenders are measured in interleaved rounds (`interleave`), in
another order each time, because this kind of machine drifts: compare within one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

__all__ = [
    "SEED",
    "Findings",
    "Options",
    "cpu_seconds",
    "free_bytes",
    "interleave",
    "median",
    "percentile",
    "progress",
    "run",
    "table",
]

SEED = 20261124


@dataclass(frozen=True, slots=True)
class Options:
    """How much to do: all of it, what fits in 50 seconds, or just enough to see that it runs."""

    quick: bool = False
    smoke: bool = False

    @property
    def extent(self) -> str:
        return "smoke" if self.smoke else "quick" if self.quick else "full"

    def pick(self, full: Any, quick: Any, smoke: Any) -> Any:
        """The value for this extent."""
        return smoke if self.smoke else quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Findings:
    """What a bench found: tables for people, figures for programs, and a hash of the work it did."""

    tables: Sequence[Table]
    figures: Mapping[str, Any]
    work_hash: str
    notes: Sequence[str] = field(default=())


def run(
    name: str, question: str, *, not_shown: Sequence[str], measure: Callable[[Options], Findings]
) -> None:
    """The whole of a bench's command line."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=question)
    parser.add_argument("--quick", action="store_true", help="within 50 seconds")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: only that it runs")
    arguments = parser.parse_args()
    options = Options(quick=arguments.quick, smoke=arguments.smoke)
    # Whoever ends us gets the mounts and children cleaned up, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    machine = describe_machine()
    command = " ".join(["python", "-m", f"bench.{name}", *sys.argv[1:]])
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    console.print(f"[bold]{question}[/bold]")
    console.print(f"machine: {sentence(machine)}")
    console.print(f"command: {command}")
    started = time.monotonic()
    findings = measure(options)
    seconds = round(time.monotonic() - started, 1)
    for each in findings.tables:
        console.print(each)
    for note in findings.notes:
        console.print(f"note: {note}")
    for line in not_shown:
        console.print(f"not shown: {line}")
    console.print(
        f"work done: {findings.work_hash}; load {machine['load']} -> {load()}; {seconds} s"
    )
    result = {
        "bench": name,
        "extent": options.extent,
        "command": command,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": {**machine, "load_after": load()},
        "work_hash": findings.work_hash,
        "question": question,
        "not_shown": list(not_shown),
        "notes": list(findings.notes),
        **findings.figures,
        "tables": [_plain(each) for each in findings.tables],
    }
    sys.stdout.flush()
    print(json.dumps(result, separators=(",", ":")), flush=True)


def interleave(
    rounds: int, contenders: Mapping[str, Callable[[], float]]
) -> dict[str, list[float]]:
    """Call every contender once a round, each round in another order; what each returned."""
    order = list(contenders)
    shuffle = random.Random(SEED).shuffle
    results: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            results[name].append(contenders[name]())
    return results


def median(samples: Sequence[float]) -> float:
    return percentile(samples, 50)


def percentile(samples: Sequence[float], percent: float) -> float:
    return float(np.percentile(np.asarray(samples), percent))


def progress(text: str) -> None:
    """One line on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose first column is text and whose others are figures."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


def _plain(shown: Table) -> dict[str, Any]:
    """A table's text, for documents that show it (page.py)."""
    columns = [[str(cell) for cell in column.cells] for column in shown.columns]
    return {
        "title": str(shown.title or ""),
        "columns": [str(column.header) for column in shown.columns],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def free_bytes() -> int:
    """Memory that may be had now without swapping."""
    return meminfo()["MemAvailable"]


def load() -> float:
    return round(os.getloadavg()[0], 2)


def describe_machine() -> dict[str, Any]:
    """What a reader needs in order to judge the figures; nothing that names the machine."""
    cpu = _cpuinfo()
    thp = Path("/sys/kernel/mm/transparent_hugepage")
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "l3": _text(Path("/sys/devices/system/cpu/cpu0/cache/index3/size")),
        "isa": [
            flag for flag in ("avx2", "avx512f", "erms") if flag in cpu.get("flags", "").split()
        ],
        "memory_gib": round(meminfo()["MemTotal"] / 2**30, 1),
        "kernel": platform.release(),
        "hypervisor": "hypervisor" in cpu.get("flags", "").split(),
        "thp": _chosen(thp / "enabled"),
        "shmem_thp": _chosen(thp / "shmem_enabled"),
        "python": platform.python_version(),
        "load": load(),
    }


def sentence(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores{' (virtual)' * machine['hypervisor']}, "
        f"L3 {machine['l3']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"THP {machine['thp']}, Python {machine['python']}, load {machine['load']}"
    )


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that these processes took so far, in user and kernel mode, all their threads; the dead took none."""
    ticks = 0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            continue
        user, kernel = stat.rsplit(b")", 1)[1].split()[11:13]
        ticks += int(user) + int(kernel)
    return ticks / os.sysconf("SC_CLK_TCK")


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    facts = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, value = line.split(":")
        facts[name] = int(value.split()[0]) * (1024 if value.endswith("kB") else 1)
    return facts


def _cpuinfo() -> dict[str, str]:
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _chosen(path: Path) -> str:
    """The word in brackets: `always [madvise] never` -> `madvise`."""
    words = _text(path).split()
    return next((word[1:-1] for word in words if word.startswith("[")), "unknown")
