"""May a process die anywhere? A real child, a real SIGKILL, at every crash point of every operation.

For each (operation, point, pass): the living go on at once, one repair restores everything, a second finds
nothing, no block is lost, every byte found is right (`judge.py`). Which points an operation passes, and how
often, is asked of the checked build itself; a point that nothing passes fails the suite. The short form
takes each point once, in the operation that passes fewest; PEGASHM_LONG=1 takes all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import figures, flavours
from tests.crash.forker import Forker
from tests.crash.lines import CREATOR
from tests.crash.lines import passed as passed_by_procedure
from tests.crash.operations import OPERATIONS
from tests.crash.points import crash_points, death_rows, used_points
from tests.crash.run import Death, die, passed

pytestmark = pytest.mark.timeout(600)

POINTS = crash_points()
NAMES = [operation.name for operation in OPERATIONS]


@dataclass(slots=True)
class Plan:
    """What is to be killed where, and what came of it."""

    passes: dict[str, Counter[int]] = field(default_factory=dict)  # by operation
    figures: Counter[str] = field(default_factory=Counter)

    def reached(self) -> set[int]:
        return {point for passes in self.passes.values() for point in passes}

    def deaths(self, operation: str) -> list[Death]:
        """All deaths of an operation; in the short form the points for which it is the cheapest."""
        return [
            Death(operation, point, number, probe)
            for point, passes in sorted(self.passes[operation].items())
            if figures.LONG
            or operation == min(self.passes, key=lambda name: self._cost(name, point))
            for number in range(1, (passes if figures.LONG else 1) + 1)
            for probe in (True, False)
        ]

    def _cost(self, operation: str, point: int) -> tuple[bool, int]:
        passes = self.passes[operation]
        return point not in passes, passes.total()


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    if (reason := flavours.missing_tool()) is not None:
        pytest.skip(reason)
    with Forker(tmp_path_factory.mktemp("crash") / "children.log") as started:
        yield started


@pytest.fixture(scope="module")
def plan(
    forker: Forker, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Plan]:
    log = tmp_path_factory.mktemp("crash") / "passed"
    made = Plan({operation.name: passed(operation, forker, log) for operation in OPERATIONS})
    yield made
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        figures.report(
            "crash",
            points=len(made.reached()),
            operations=len(OPERATIONS),
            triples=sum(passes.total() for passes in made.passes.values()),
            **{name: made.figures[name] for name in FIGURES},
        )


FIGURES = ("kills", "reads", "wrong_bytes", "leaked_blocks", "hangs")


def test_every_point_is_passed(plan: Plan, forker: Forker, tmp_path: Path) -> None:
    """A crash point that nothing reaches is one whose death nobody has looked at.

    Those of creation are passed by a procedure of `test_lines.py`, which kills it there.
    """
    _, creation = passed_by_procedure(CREATOR, forker, tmp_path)
    missed = [str(POINTS[number]) for number in POINTS.keys() - plan.reached() - creation.keys()]
    assert not sorted(missed)


def test_every_point_is_used_and_has_a_row() -> None:
    """The list, the headers and the death table name the same things."""
    assert {point.name for point in POINTS.values()} == used_points()
    rows = death_rows()
    assert len(rows) == len(set(rows)), "a row's number is used twice"
    # Row 17 is the kernel's doing: a lock taken, nothing stored. Rows 50 on are Python's: see test_lines.py.
    in_python = {row for row in rows if row >= 50}
    assert {point.row for point in POINTS.values()} | {17} | in_python == set(rows)


@pytest.mark.parametrize("operation", NAMES)
def test_killed_anywhere_in(operation: str, plan: Plan, forker: Forker) -> None:
    """Whatever step it dies at, nothing is wrong, nothing is lost, and nobody waits."""
    failures = []
    for death in plan.deaths(operation):
        verdict = die(death, forker)
        plan.figures["kills"] += 1
        for name in FIGURES[1:]:
            plan.figures[name] += getattr(verdict, name)
        if verdict.complaints:
            point = POINTS[death.point]
            failures.append(f"{death} ({point.text}): " + "; ".join(verdict.complaints))
    assert not failures, "\n".join(failures)
