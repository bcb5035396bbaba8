"""Do the core's operations race? `race.cpp`, run under each sanitizer that this compiler has.

Thread sanitizer judges the memory orders, address and undefined-behaviour sanitizers the rest; the program itself
checks that no payload, checksum or event was wrong, and that in the end nothing was left held, lost or against
an invariant. The planted mistakes show that what these runs look for is what they would find.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.figures import LONG, report
from tests.fuzz.programs import ADDRESS, THREAD, Program, build, mutated, run

SOURCE = Path(__file__).parent / "race.cpp"
SANITIZERS = {"thread": THREAD, "address,undefined": ADDRESS}
SECONDS = float(os.environ.get("PEGASHM_RACE_SECONDS", "20" if LONG else "3"))
CONTROL_SECONDS = {"thread": 60, "address,undefined": 3}  # at most: see below

# Mistakes planted in the core: header, what stands there, what is put there. Orders that only some interleavings need
# are planted in tests/explore, which tries them all; here each sanitizer is shown to see what it is run for.
MISTAKES = {
    "evictors do not look at pins": (
        "pins.hpp",
        "return (load_seq(block.pins[0]) | load_seq(block.pins[1])) != 0;",
        "return (load_seq(block.pins[0]) | load_seq(block.pins[1])) == 0xFFFF;",
    ),
}
SEEN = {"thread": "data race", "address,undefined": "WRONG: "}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.timeout(300)
def test_core_under_a_sanitizer(sanitizer: str, seed: int, tmp_path: Path) -> None:
    """Four clients on a dozen blocks, who die and are reaped: no data race, nothing wrong, nothing left."""
    program = build(Program(source=SOURCE, flags=SANITIZERS[sanitizer]))
    out = run(program, SECONDS, seed, folder=tmp_path, seconds=SECONDS + 90)
    figures = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", out)}
    wrong, left = figures.pop("wrong"), figures.pop("left")
    for name, count in figures.items():
        assert count > 10, f"{name}: there was nothing to go wrong"
    report(
        "race",
        sanitizer=sanitizer,
        seconds=SECONDS,
        **figures,
        races=0,  # one is a failed test
        wrong_bytes=wrong,
        leaked_blocks=left,
        hangs=0,
    )
    assert (0, 0) == (wrong, left)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.timeout(200)
def test_planted_mistake_is_found(mistake: str, sanitizer: str, seed: int, tmp_path: Path) -> None:
    """The same program over a core with one mistake ends at once and says what was wrong."""
    core = mutated(tmp_path / "core", *MISTAKES[mistake])
    flags = (*SANITIZERS[sanitizer], "-Wno-error")
    program = build(Program(source=SOURCE, flags=flags, core=core))
    # Where few threads meet, on a busy machine, it takes longer to be seen; the first race that is seen ends it.
    env = {"TSAN_OPTIONS": "halt_on_error=1"}
    with pytest.raises(AssertionError, match=SEEN[sanitizer]):
        run(program, CONTROL_SECONDS[sanitizer], seed, folder=tmp_path, env=env, keep=False)
