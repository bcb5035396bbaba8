"""Does the doctor see an old kernel and a wrong clock?"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm.doctor import kernel

from tests.arenas import Shape
from tests.doctor.conftest import told, worst

CLOCK_SOURCE = Path(__file__).parents[1] / "world" / "clock.c"


@pytest.fixture
def clock(tmp_path: Path) -> Callable[[int], dict[str, str]]:
    """The environment of a process whose wall clock is so many seconds off."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "clock.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(CLOCK_SOURCE)], check=True
    )
    return lambda off: {**os.environ, "LD_PRELOAD": str(library), "PEGASHM_TEST_CLOCK": str(off)}


def test_kernel_of_long_ago() -> None:
    if not shutil.which("setarch"):
        pytest.skip("needs setarch")
    prefix = ("setarch", platform.machine(), "--uname-2.6")
    level, says, do = worst(told(prefix=prefix)["kernel"])
    assert ("warning", "upgrade the kernel") == (level, do)
    assert "Linux 2.6" in says


def test_this_kernel() -> None:
    assert "ok" == worst(kernel.check_kernel())[0]
    assert "ok" == worst(kernel.check_io_uring())[0]  # for information only


def test_clock_that_cannot_be(clock: Callable[[int], dict[str, str]]) -> None:
    level, says, _ = worst(told(env=clock(1 - int(time.time())))["clock"])
    assert ("error", True) == (level, "1970" in says)


def test_clock_that_was_set_back(
    arena_name: Callable[[Shape | None], str], clock: Callable[[int], dict[str, str]]
) -> None:
    """An arena that was made an hour from now."""
    name = arena_name(None)
    level, says, do = worst(told("--name", name, env=clock(-3600))["clock"])
    assert ("error", True) == (level, "set back" in says)
    assert "set-ntp" in do
    assert "error" != worst(told("--name", name)["clock"])[0]
