"""What the tests of the real world share: actors that are always ended, and the figures of the suite.

Most need root, for a PID or mount namespace or another user; each says so and skips where it cannot be
had. Nothing here touches the machine's clock, its /dev/shm beyond small arenas, or any process not started here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.figures import report
from tests.world.actors import IN_PID_NAMESPACE, Actor

FIGURES: Counter[str] = Counter()


@pytest.fixture(scope="session", autouse=True)
def _figures(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        names = ("scenarios", "actors", "kills", "stops", "races", "refusals")
        report(
            "world",
            **{name: FIGURES[name] for name in names},
            wrong_bytes=FIGURES["wrong"],
            leaked_blocks=FIGURES["leaked"],
            hangs=0,  # a hang is a failed test: each has a watchdog
        )


@pytest.fixture(autouse=True)
def figures() -> Counter[str]:
    """Where a test counts what it did; each test is a scenario."""
    FIGURES["scenarios"] += 1
    return FIGURES


@pytest.fixture
def start() -> Iterator[Callable[..., Actor]]:
    """Starts actors; all are killed at the end, with whatever they forked."""
    with contextlib.ExitStack() as started:

        def start_one(*arguments: Any, **options: Any) -> Actor:
            FIGURES["actors"] += 1
            return started.enter_context(Actor(*arguments, **options))

        yield start_one


@pytest.fixture
def pid_namespace() -> tuple[str, ...]:
    """The command to start something in a PID namespace of its own; skips where there can be none."""
    return _usable(IN_PID_NAMESPACE)


def _usable(prefix: tuple[str, ...]) -> tuple[str, ...]:
    if os.geteuid() != 0 or shutil.which(prefix[0]) is None:
        pytest.skip(f"needs root and {prefix[0]}")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"`{' '.join(prefix)}` is not allowed here")
    return prefix
