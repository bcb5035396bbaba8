"""What the tests of other hosts share: hosts that are taken down whatever happens, and their logs when one failed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.rig import Host, connect


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts, not started yet."""
    numbers = itertools.count(1)
    with contextlib.ExitStack() as down:

        def make(**options: Any) -> Host:
            number = next(numbers)
            made = Host(tmp_path / f"host{number}", **options)
            down.callback(lambda: print(f"-- host {number}\n{made.said()}"))
            down.callback(made.close)
            return made

        yield make


@pytest.fixture
def pair(host: Callable[..., Host]) -> Callable[..., tuple[Host, Host]]:
    """Two hosts that have met."""

    def make(**options: Any) -> tuple[Host, Host]:
        one, other = host(**options), host(**options)
        connect([one, other])
        return one, other

    return make
