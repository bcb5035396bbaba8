"""What every test folder shares: arenas of its own, a seed that is printed, a clean /dev/shm.

The watchdog on every test is pytest-timeout, set in pyproject.toml: a hang is a failure with every thread's
stack, and the run goes on. What a run that was killed leaves in shared memory is swept by the next.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from pegashm.arena import Arena, open_arena

from tests.arenas import PREFIX, Shape, make_arena, remove_arena, sweep
from tests.served import Served

# Time says nothing on a shared machine; a failing example prints how to run it again.
settings.register_profile(
    "pegashm",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("pegashm")

SEED_VARIABLE = "PEGASHM_TEST_SEED"


def pytest_configure(config: pytest.Config) -> None:
    sweep()
    # Started in the background by a shell, we ignore SIGINT and so would every child that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def arena_name() -> Iterator[Callable[[Shape], str]]:
    """Makes arenas of a given shape; all are removed when the test ends."""
    names: list[str] = []

    def make(shape: Shape | None = None) -> str:
        names.append(make_arena(shape or Shape()))
        return names[-1]

    yield make
    for name in names:
        remove_arena(name)


@pytest.fixture
def arena(arena_name: Callable[..., str]) -> Iterator[Arena]:
    """A small arena, opened for writing."""
    with open_arena(arena_name()) as opened:
        yield opened


@pytest.fixture
def name() -> Iterator[str]:
    """The name of an arena that is not there yet; whatever comes to be under it is removed at the end."""
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    remove_arena(name)


@pytest.fixture
def serve(name: str) -> Iterator[Callable[..., Served]]:
    """Starts supervisors of `name`, 32 MiB unless said otherwise; those that still run at the end are killed."""
    started: list[Served] = []

    def start(*arguments: str, **options: Any) -> Served:
        started.append(Served(name, *(arguments or ("--size", "32M")), **options))
        return started[-1]

    yield start
    for served in started:
        served.process.kill()
        served.rest()


@pytest.fixture
def seed() -> int:
    """Where a test's chance comes from: new each run and shown when it fails, or as the variable says."""
    value = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(32))
    print(f"to run this again: {SEED_VARIABLE}={value}")
    return value


@pytest.fixture
def chance(seed: int) -> random.Random:
    return random.Random(seed)
