"""Does any order of steps break a promise? The core's own headers under an explorer of interleavings.

What meets stands in living, damage, segments_change, deaths and tables.hpp, what a load may return in memory.hpp,
how all orders are walked in engine.hpp. The short form keeps bounds low where three threads meet; the long form
(PEGASHM_LONG=1) raises them. The planted mistakes show that what is looked for would be found.
`python -m tests.explore FILE.md` writes the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.explore import build
from tests.explore.mutants import MUTANTS, Mutant
from tests.explore.walk import explore, plant
from tests.figures import LONG, report
from tests.fuzz.programs import CORE

LIMIT_S = 900 if LONG else 200

pytestmark = pytest.mark.timeout(2 * LIMIT_S)


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.program(tmp_path_factory.mktemp("explored") / "core")


@pytest.fixture(scope="module")
def caught() -> Iterator[list[Mutant]]:
    seen: list[Mutant] = []
    yield seen
    report("explore", mistakes_planted=len(MUTANTS), mistakes_caught=len(seen))


def test_no_interleaving_breaks_a_promise(explorer: Path, tmp_path: Path) -> None:
    """Each scenario holds in all orders within its bound; those that must not hold are seen to break."""
    scenarios = explore(explorer, tmp_path, longer=LONG, seconds=LIMIT_S)
    assert len(scenarios) > 40
    assert len({each.scenario for each in scenarios}) == len(scenarios)
    for each in scenarios:
        assert each.violation == bool(each.expected), each
        assert each.bound != "CUT", each
    report(
        "explore",
        scenarios=len(scenarios),
        exhaustive=sum(each.bound == "none" for each in scenarios),
        interleavings=f"{sum(each.interleavings for each in scenarios):.2g}",
        states=sum(each.states for each in scenarios),
        executions=sum(each.runs for each in scenarios),
        seconds=round(sum(each.seconds for each in scenarios)),
        violations=0,  # one is a failed test
    )


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_mistake_is_caught(mutant: Mutant, explorer: Path, caught: list[Mutant]) -> None:
    """Each scenario that is named for a mistake shows it."""
    for scenario in mutant.caught_by:
        assert plant(explorer, mutant, scenario, LIMIT_S).said, f"{scenario} does not show it"
    caught.append(mutant)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Order::acquire", "Order::relaxed"),
        ("uint64_t amount, Site", "uint32_t amount, Site"),
        ("inline uint64_t or_seq", "inline uint64_t or_sequential"),
    ],
)
def test_swapped_atomics_must_match(before: str, after: str, tmp_path: Path) -> None:
    """An atomics.hpp with another order, parameter or name than the core's is refused."""
    swapped = build.HERE / "swapped" / "atomics.hpp"
    build.compare(CORE / "atomics.hpp", swapped)
    text = swapped.read_text(encoding="utf-8")
    assert before in text
    other = tmp_path / "atomics.hpp"
    other.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(AssertionError, match="differ"):
        build.compare(CORE / "atomics.hpp", other)


def test_mistake_whose_text_is_gone() -> None:
    """A core that has moved on does not make a mistake vanish unnoticed."""
    with pytest.raises(AssertionError, match="0 times"):
        build.planted("// nothing of it is left", MUTANTS[0].header)
