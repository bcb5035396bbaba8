"""May either side of a fetch die, or stand still, anywhere? SIGKILL and SIGSTOP at lines of Python that a fetch passes.

Which lines those are is asked of a fetch that nobody disturbs; the short form takes a sample by seed, PEGASHM_LONG=1 a larger
one, PEGASHM_LINES=2/8 the second eighth of all lines. What has to be so is in `dying.py`.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.figures import LONG
from tests.peers.dying import PART, chosen_of, die_at_each, lines_of
from tests.peers.rig import Host, connect

SAMPLE = 60 if LONG else 5
SAMPLES_FEW = 10  # so few may by chance be such that are hardly ever passed

pytestmark = pytest.mark.timeout(4 * 3600 if PART else 1800)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda one: one.name)
@pytest.mark.parametrize("side", [0, 1], ids=["server", "reader"])
def test_at_each_step(
    host: Callable[..., Host],
    chance: random.Random,
    tmp_path: Path,
    side: int,
    number: signal.Signals,
) -> None:
    hosts = (host(), host())
    connect(hosts, start=False)
    lines = lines_of(hosts, side, tmp_path)
    chosen = chosen_of(lines, chance, SAMPLE)
    died, fetched = die_at_each(hosts, side, number, chosen)
    print(
        f"{len(chosen)} of {len(lines)} lines, {died} stood still there, {fetched} fetched all the same"
    )
    assert died > (len(chosen) // 2 if len(chosen) > SAMPLES_FEW else 0)
