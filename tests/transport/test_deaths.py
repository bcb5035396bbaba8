"""May the transport worker die anywhere? A real SIGKILL at each line of Python that it passes.

Spill, promotion, turning around, opening, ending: which lines a life passes is asked of a life that nobody ends. What it
does in the native core is stopped at crash points (`tests/crash`). The short form takes a sample by seed,
PEGASHM_LONG=1 a larger one, PEGASHM_LINES=all every line (a quarter of an hour).
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests import flavours
from tests.crash.forker import Forker
from tests.crash.tracing import Line
from tests.figures import LONG, report
from tests.transport.life import Judgement, Life, template

SAMPLE = 100 if LONG else 16
EVERY = os.environ.get("PEGASHM_LINES") == "all"
AT_ONCE = min(4, os.cpu_count() or 1)  # a life waits more than it works

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def forkers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Forker]]:
    if (reason := flavours.missing_tool()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("forkers")
    made = [Forker(folder / f"{number}.log") for number in range(AT_ONCE)]
    yield made
    for forker in made:
        forker.close()


@pytest.fixture(scope="module")
def found(forkers: list[Forker], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template(tmp_path_factory.mktemp("found") / "life", forkers[0])


@pytest.fixture(scope="module")
def lines(
    forkers: list[Forker], found: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, int]]:
    """What a life passes that nobody ends; it must end well, and be judged well."""
    folder = tmp_path_factory.mktemp("whole")
    life = Life(folder / "life", forkers[0], found=found)
    try:
        life.begin(passes=str(folder / "passes"))
        life.live()
        assert life.end() == ("exited", 0), forkers[0].last_words()
        judgement = life.judge()
    finally:
        life.close()
    assert not judgement.complaints, judgement
    assert judgement.promoted > 20
    passed = json.loads((folder / "passes").read_text())
    return sorted((file, number) for file, number, _ in passed)


def die(folder: Path, forker: Forker, found: Path, line: Line) -> tuple[bool, Judgement]:
    """Whether it died there, and what came of it."""
    life = Life(folder, forker, found=found)
    try:
        life.begin(line)
        life.live()
        ended = life.end()
        return ended == ("killed", signal.SIGKILL), life.judge()
    except AssertionError as error:
        return True, Judgement([f"{error}"])
    finally:
        life.close()


def test_killed_at_each_line(
    forkers: list[Forker],
    found: Path,
    lines: list[tuple[str, int]],
    chance: random.Random,
    tmp_path: Path,
) -> None:
    """The engine goes on, the files open again, every block found is right, nothing is claimed or pinned for good."""
    chosen = [Line(*line) for line in (lines if EVERY else chance.sample(lines, SAMPLE))]
    numbers = count()
    idle: SimpleQueue[Forker] = SimpleQueue()
    for forker in forkers:
        idle.put(forker)

    def one(line: Line) -> tuple[Line, bool, Judgement]:
        forker = idle.get()
        try:
            return line, *die(tmp_path / str(next(numbers)), forker, found, line)
        finally:
            idle.put(forker)

    with ThreadPoolExecutor(len(forkers)) as pool:
        deaths = list(pool.map(one, chosen))
    missed = [line for line, died, _ in deaths if not died]
    failures = [f"{line}: {said.complaints}" for line, _, said in deaths if said.complaints]
    report(
        "worker",
        lines=len(chosen),
        kills=len(chosen) - len(missed),
        promoted=sum(said.promoted for *_, said in deaths),
        judged=sum(said.judged for *_, said in deaths),
        wrong_bytes=0 if not failures else len(failures),
    )
    assert not failures, f"{len(failures)} deaths:\n" + "\n".join(failures[:20])
    # A line that depends on timing is not passed in every life.
    assert len(missed) <= len(chosen) // 8, missed
