"""What the tests of the contract share: an engine's calls, hostages, and the figures of all of them together."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pegashm.arena import open_arena

from tests.figures import report

if TYPE_CHECKING:
    from tests.contract.hostages import Keeper
    from tests.contract.rig import Figures, Rig

if importlib.util.find_spec("vllm") is None:
    collect_ignore = ["test_copies.py", "test_gone.py", "test_stopped.py"]


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """What all calls of all tests took; one line at the end."""
    from tests.contract.rig import Figures

    total = Figures()
    yield total
    if total.calls:
        report("contract", **total.line())
        print(total.table())


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    """Makes hostages."""
    from tests.contract.hostages import Keeper

    with Keeper() as one:
        yield one


@pytest.fixture
def rig(figures: Figures, seed: int) -> Iterator[Callable[..., Rig]]:
    """Makes engines of the given arena; shut down at the end of the test, their calls counted."""
    from tests.contract.rig import Rig

    made: list[Rig] = []

    def make(name: str, **options: object) -> Rig:
        made.append(Rig(name, figures, seed, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.shutdown()


@pytest.fixture
def nothing_left() -> Callable[[str, Figures], None]:
    """Asserts that every claim, eviction, pin and segment change of an arena is over."""

    def check(name: str, figures: Figures) -> None:
        with open_arena(name) as arena:
            from pegashm.reaper import reap_dead_clients

            reap_dead_clients(arena)
            tally, blocks = arena.region.tally(), arena.region.blocks()
            left = {
                "claimed": tally["claimed"],
                "evicting": tally["evicting"],
                "damaged": tally["damaged"],
                "pinned": int((blocks["pins"] != 0).any(axis=1).sum()),
                "changing": sum(s["state"] == "changing" for s in arena.region.segments()),
                "clients": len(arena.region.clients()),
            }
        figures.leaked_blocks += sum(left.values())
        assert not any(left.values()), left

    return check
