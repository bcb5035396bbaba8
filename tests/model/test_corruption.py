"""Can damaged control bytes do worse than cost hits?

Each table of the control region is damaged at random, and all of it at once, while two clients go on
using the arena; in child processes, so that a crash or a hang is a failure with a stack and a seed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.children import run_child
from tests.model.vandal import TABLES

STROKES = 400


@pytest.mark.parametrize("table", [*TABLES, "header", "all"])
def test_damage_never_crashes_or_hangs(
    arena_name: Callable[..., str], seed: int, table: str
) -> None:
    done = run_child("tests.model.vandal", arena_name(), seed, STROKES, table)
    assert done["calls"] > 0
