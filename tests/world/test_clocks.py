"""Does anything go wrong when the wall clock does? Nothing decides by it; it only tells people when.

Each process here has a wall clock of its own (`clock.c`, preloaded): of 1970, of a hundred years from now, one
that is set back and forth while it works, or one that leaps by years each time it is looked at. The machine's own
clock is not touched. The order of use that eviction follows is a counter, and deadlines are monotonic.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.figures import LONG
from tests.served import Served, pegashm
from tests.world.actors import SMALL, Actor

CENTURY_S = 100 * 365 * 86400
NUMBERS = list(range(24))


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | str], dict[str, str]]:
    """The environment of a process with a clock that is so many seconds off, or "wild"."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True
    )
    return lambda off: {"LD_PRELOAD": str(library), "PEGASHM_TEST_CLOCK": str(off)}


def test_clocks_that_disagree_by_centuries_share_one_cache(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    clock: Callable[[int | str], dict[str, str]],
    figures: Counter[str],
) -> None:
    served = serve(*SMALL, env=os.environ | clock("wild")).wait_ready()
    epoch = 1 - int(time.time())
    actors = {
        "right": start(name, label="right"),
        "1970": start(name, label="1970", environment=clock(epoch)),
        "future": start(name, label="future", environment=clock(CENTURY_S)),
        "wild": start(name, label="wild", environment=clock("wild")),
    }
    assert actors["1970"].do("now_ns") < 60e9
    assert actors["future"].do("now_ns") > time.time_ns() + 99 * 365 * 86400 * 10**9
    for number, (label, actor) in enumerate(actors.items()):
        own = [1000 * number + n for n in NUMBERS]
        assert 24 == actor.do("store", numbers=own), label
        for reader in actors.values():
            judged = reader.do("check", numbers=own)
            figures["wrong"] += judged["wrong"]
            assert {"right": 24, "missing": 0, "wrong": 0} == judged
    # The oldest *use* goes first, whatever its date: what "future" stored before "wild" did.
    actors["1970"].do("check", numbers=NUMBERS)
    assert 24 == actors["future"].do("evict", count=24)
    lost = {
        label: actors["right"].do("check", numbers=[1000 * number + n for n in NUMBERS])["missing"]
        for number, label in enumerate(actors)
    }
    assert 24 == sum(lost.values())
    assert 24 == lost["right"], f"first stored, so first to go: {lost}"

    # Death is told by locks: nobody is taken for dead by his date, nor for alive.
    for actor in actors.values():
        actor.do("claim", numbers=[5000 + actor.slot])
    assert 0 == actors["future"].do("reap")
    actors["1970"].kill()
    figures["kills"] += 1
    served.wait_log("reaped client .*1970.*1 claims")
    assert 3 == actors["right"].do("tally")["claimed"]

    # Dates in tools: as they are, or as what they cannot be; never an error.
    for environment in ({}, clock(epoch), clock(CENTURY_S), clock("wild")):
        text = pegashm("dump", "--name", name, env=os.environ | environment)
        assert 0 == text.returncode, text.stderr + text.stdout
        report = pegashm("dump", "--name", name, "--json", "--blocks", env=os.environ | environment)
        assert 0 == report.returncode, report.stderr
        assert "ready" in json.loads(report.stdout)["ages"]
    assert "in the future" in pegashm("dump", "--name", name).stdout

    # A supervisor whose clock is a century late takes over from one whose clock leapt.
    served.end(signal.SIGKILL)
    figures["kills"] += 1
    again = serve(*SMALL, env=os.environ | clock(-CENTURY_S // 4)).wait_ready()
    again.wait_log("re-adopted")
    assert {"right": 24, "missing": 0, "wrong": 0} == actors["wild"].do(
        "check", numbers=[3000 + n for n in NUMBERS]
    )
    assert 0 == again.end()


def test_a_clock_that_is_set_while_an_engine_works_changes_nothing(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    clock: Callable[[int | str], dict[str, str]],
    figures: Counter[str],
) -> None:
    """Between claim, copy and publish, and between two stores, the clock goes back and forth by years."""
    serve(*SMALL).wait_ready()
    moving, other = start(name, environment=clock(0)), start(name)
    year = time.gmtime().tm_year
    stored = 0
    for step in range(200 if LONG else 12):
        numbers = [100 * step + n for n in range(10)]
        assert ["ok"] * 10 == moving.do("claim", numbers=numbers)
        assert abs(moving.do("shift_clock", seconds=-(step % 7) * 200 * 86400) - year) < 6
        moving.do("write", numbers=numbers)
        moving.do("shift_clock", seconds=(step % 5) * CENTURY_S // 10)
        assert ["ok"] * 10 == moving.do("publish", numbers=numbers)
        stored += 10
        for reader in (moving, other):
            judged = reader.do("check", numbers=numbers)
            figures["wrong"] += judged["wrong"]
            assert {"right": 10, "missing": 0, "wrong": 0} == judged
    assert stored >= 120
    assert 0 == other.do("tally")["claimed"]
