"""May whoever creates, adopts, removes or attaches die anywhere? A real SIGKILL at each line it passes.

For each (procedure, line, pass), and in the checked build for each crash point on the way: nobody waits, no lock
and no file is left, who lives on goes on, the next supervisor or the next purge finishes what was begun
(`aftermath.py`). Which lines a procedure passes is asked of the procedure itself. The short form takes each line
once, in the procedure that passes fewest; PEGASHM_LONG=1 takes every line of every procedure, in its first two
passes and its last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests import figures, flavours
from tests.crash.aftermath import NEXT
from tests.crash.forker import Forker
from tests.crash.lines import CREATOR, Death, die, passed
from tests.crash.points import crash_points
from tests.crash.procedures import PROCEDURES, Procedure
from tests.crash.tracing import Line

pytestmark = pytest.mark.timeout(600)

CREATION = {number for number, point in crash_points().items() if point.row in (21, 34)}
PASSES = 2  # of each line, and the last: a loop over 128 slots is the same in between
FIGURES = ("kills", "reads", "wrong_bytes", "hangs")


@dataclass(slots=True)
class Plan:
    """What each procedure passes when nobody kills it, and what came of the deaths."""

    lines: dict[str, dict[tuple[str, int], int]] = field(default_factory=dict)
    points: dict[str, Counter[int]] = field(default_factory=dict)
    figures: Counter[str] = field(default_factory=Counter)

    def deaths(self, procedure: str) -> list[Death]:
        """Where it dies in this run; who comes next takes turns from place to place."""
        places: list[tuple[Line | None, str]] = [
            (Line(*line, number), "")
            for line, passes in self.lines[procedure].items()
            if figures.LONG or self._first(line) == procedure
            for number in sorted({*range(1, PASSES + 1), passes} if figures.LONG else {1})
            if number <= passes
        ]
        places += [
            (None, f"{point}:1")
            for point in self.points[procedure]
            if figures.LONG or (point in CREATION and procedure == CREATOR.name)
        ]
        return [
            Death(line, crash, NEXT[number % len(NEXT)])
            for number, (line, crash) in enumerate(places)
        ]

    def _first(self, line: tuple[str, int]) -> str:
        """The shortest procedure that passes it."""
        passing = [name for name, lines in self.lines.items() if line in lines]
        return min(passing, key=lambda name: sum(self.lines[name].values()))


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    if (reason := flavours.missing_tool()) is not None:
        pytest.skip(reason)
    with Forker(tmp_path_factory.mktemp("lines") / "children.log") as started:
        yield started


@pytest.fixture(scope="module")
def plan(
    forker: Forker, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Plan]:
    made = Plan()
    folder = tmp_path_factory.mktemp("lines")
    for procedure in PROCEDURES:
        made.lines[procedure.name], made.points[procedure.name] = passed(procedure, forker, folder)
    yield made
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        figures.report(
            "crash",
            procedures=len(PROCEDURES),
            lines=len({line for lines in made.lines.values() for line in lines}),
            **{name: made.figures[name] for name in FIGURES},
        )


@pytest.mark.parametrize("procedure", PROCEDURES, ids=lambda procedure: procedure.name)
def test_killed_at_each_line_of(procedure: Procedure, plan: Plan, forker: Forker) -> None:
    """Wherever it dies, nothing is wrong, nothing is left, and nobody waits."""
    failures = []
    for death in plan.deaths(procedure.name):
        verdict = die(procedure, death, forker)
        plan.figures["kills"] += 1
        for name in FIGURES[1:]:
            plan.figures[name] += getattr(verdict, name)
        if verdict.complaints:
            failures.append(f"{death}: " + "; ".join(verdict.complaints))
    assert not failures, f"{len(failures)} deaths:\n" + "\n".join(failures[:20])


def test_a_creator_passes_every_point_of_creation(plan: Plan) -> None:
    """Rows 21 and 34 of the death table, which no operation of `test_deaths.py` passes."""
    assert CREATION
    assert CREATION <= plan.points[CREATOR.name].keys()
