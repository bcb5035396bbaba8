"""Do the hot paths still take as many instructions as they may? Counted by callgrind, no time measured.

A count of instructions is the same on a busy machine and on a quiet one, so that this can stand among the tests; what it
does not see is the memory (misses, locks, other processes): that is what the benches are for. Skipped where there is no
valgrind, on other processors than x86-64, and with other compilers than g++, whose counts differ by more than
budgets allow for. `python -m tests.instructions.test_instructions` prints what is counted now.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.figures import report
from tests.fuzz.programs import COMPILER, CORE, Program, build, mutated
from tests.instructions.budgets import BUDGETS, Budget

HERE = Path(__file__).parent
SOURCE = HERE / "paths.cpp"
FLAGS = ("-O3", "-fno-lto")  # as pyproject.toml has the native module compiled
PATHS = re.compile(r"^MEASURED\((\w+),", re.MULTILINE)
SECONDS = 100
LAX = 1.5  # a budget that is so many times what is counted guards nothing

pytestmark = pytest.mark.timeout(3 * SECONDS)


def skip_reason() -> str | None:
    """Why nothing can be counted here; None: it can."""
    if platform.machine() != "x86_64":
        return f"budgets are for x86-64, this is {platform.machine()}"
    if shutil.which("valgrind") is None:
        return "no valgrind here: apt install valgrind"
    if not _has_header():
        return (
            "no valgrind/callgrind.h here: it comes with valgrind, or with its development package"
        )
    version = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=False)
    if "Free Software Foundation" not in version.stdout:
        return f"budgets are for g++, {COMPILER} is another compiler"
    return None


def _has_header() -> bool:
    probe = "#include <valgrind/callgrind.h>\n"
    command = [COMPILER, "-x", "c++", "-fsyntax-only", "-"]
    with contextlib.suppress(OSError):
        return not subprocess.run(
            command, input=probe, text=True, capture_output=True, check=False
        ).returncode
    return False


def count_paths(core: Path = CORE) -> dict[str, float]:
    """Instructions of each path for one of its operations."""
    program = build(Program(source=SOURCE, flags=FLAGS, core=core))
    with tempfile.TemporaryDirectory(prefix="pegashm-callgrind-") as folder:
        command = [
            "valgrind",
            "--tool=callgrind",
            "--quiet",
            "--collect-atstart=no",
            f"--callgrind-out-file={folder}/out",
            str(program),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "GLIBC_TUNABLES": ""},
        )
        assert 0 == done.returncode, f"{' '.join(command)}\n{done.stdout}{done.stderr[-4000:]}"
        operations = {
            name: int(count) for name, count in (line.split() for line in done.stdout.splitlines())
        }
        counted = dict(parts(Path(folder)))
    assert counted.keys() == operations.keys() == set(PATHS.findall(SOURCE.read_text()))
    empty = counted.pop("nothing")
    return {path: (total - empty) / operations[path] for path, total in counted.items()}


def parts(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, instructions) of each of callgrind's files that was written at the end of a path."""
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        trigger = re.search(r"^desc: Trigger: Client Request: (\w+)", text, re.MULTILINE)
        total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
        if trigger is not None and total is not None:
            yield trigger[1], int(total[1])


@pytest.fixture(scope="module")
def counts() -> dict[str, float]:
    if reason := skip_reason():
        pytest.skip(reason)
    counted = count_paths()
    report("instructions", **{path: round(count) for path, count in counted.items()})
    return counted


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.path)
def test_path_keeps_its_budget(counts: dict[str, float], budget: Budget) -> None:
    counted = counts[budget.path]
    assert counted <= budget.most, (
        f"{budget.path} takes {counted:.1f} instructions, {budget.most} are allowed ({budget.why}): make it shorter, or "
        "raise the budget in tests/instructions/budgets.py with the reason"
    )
    assert budget.most <= LAX * counted + 1, (
        f"{budget.path} takes {counted:.1f} instructions: lower its budget of {budget.most}, so that this stays so"
    )


def test_every_path_has_a_budget_and_a_reason() -> None:
    paths = [budget.path for budget in BUDGETS]
    assert len(paths) == len(set(paths))
    assert set(paths) == set(PATHS.findall(SOURCE.read_text())) - {"nothing"}
    assert all(budget.why for budget in BUDGETS)


def test_work_added_to_a_path_is_seen(counts: dict[str, float], tmp_path: Path) -> None:
    """An event of the journal written eight times over: what publishes and evicts is above its budget, nothing else."""
    words = "store_release(entry.key[i], key.words[i]);"
    core = mutated(tmp_path / "core", "journal.hpp", words, "{ " + words * 8 + " }")
    slower = count_paths(core)
    above = {
        budget.path
        for budget in BUDGETS
        if counts[budget.path] <= budget.most < slower[budget.path]
    }
    assert "publish" in above
    assert all(path.startswith(("publish", "evict", "claim_full")) for path in above), above
    assert counts["find_hits"] == slower["find_hits"]


if __name__ == "__main__":
    if reason := skip_reason():
        raise SystemExit(reason)
    for path, count in sorted(count_paths().items()):
        print(f"{path:24} {count:10.1f}")
