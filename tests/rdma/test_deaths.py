"""As `tests/peers/test_deaths.py`, over real verbs: killed and stopped at lines of the code that reads by RDMA."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.figures import LONG
from tests.peers.dying import PART, chosen_of, die_at_each, lines_of
from tests.peers.rig import Host

SAMPLE = 8

pytestmark = [
    pytest.mark.skipif(
        not (LONG or PART), reason="long form only: a minute a line (PEGASHM_LONG=1)"
    ),
    pytest.mark.timeout(4 * 3600),
]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda one: one.name)
@pytest.mark.parametrize("side", [0, 1], ids=["server", "reader"])
def test_at_each_step(
    pair: Callable[..., tuple[Host, Host]],
    chance: random.Random,
    tmp_path: Path,
    side: int,
    number: signal.Signals,
) -> None:
    hosts = pair(start=False)
    lines = lines_of(hosts, side, tmp_path)
    ours = [line for line in lines if line.file.startswith("fabric/verbs")]
    chosen = chosen_of(ours, chance, SAMPLE)
    died, fetched = die_at_each(hosts, side, number, chosen)
    print(
        f"{len(chosen)} of {len(ours)} lines, {died} stood still there, {fetched} fetched all the same"
    )
