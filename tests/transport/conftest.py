"""What the transport worker's tests share: rigs that are taken down whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.transport.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes rigs; all are taken down when the test ends, and the worker's log is shown when it failed."""
    with contextlib.ExitStack() as down:

        def make(**options: Any) -> Rig:
            made = Rig(tmp_path, **options)
            down.callback(lambda: print(made.said()))
            down.callback(made.close)
            return made

        yield make
