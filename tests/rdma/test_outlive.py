"""Is the lock of a killed process free only when its devices are closed? The kernel's own tracer says in which order.

Needs root and tracefs, as in the virtual machine. Also shown: the reason for `outlive.py`, that a copy of the descriptor with a higher
number would be released *before* the device.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegashm.liveness import OWNER_BYTE, holder_alive

TRACING = Path("/sys/kernel/tracing")
LOCKS = TRACING / "events/filelock/locks_remove_posix/enable"
RELEASED = "ib_uverbs_release_file"
CHILD = """
import ctypes, fcntl, mmap, os, sys, time
from pegashm.fabric.outlive import Outliving
from pegashm.fabric.verbs import VerbsFabric
from pegashm.liveness import OWNER_BYTE, try_lock
path, manner = sys.argv[1:]
lock = os.open(path, os.O_RDWR)
assert try_lock(lock, OWNER_BYTE)
memory = mmap.mmap(-1, 1 << 24)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fabric = VerbsFabric(address, 1 << 24, lock_fd=lock if manner == "outliving" else None)
if manner == "copy above":
    copy = fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, 500)
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def tracing() -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("needs root, to trace the kernel")
    with contextlib.suppress(OSError):
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACING)], check=False)
    if not LOCKS.exists():
        pytest.skip("needs a kernel with tracefs and its events of file locks")
    try:
        (TRACING / "set_ftrace_filter").write_text(RELEASED)
        (TRACING / "current_tracer").write_text("function")
    except OSError:
        pytest.skip("needs a kernel with the function tracer")
    LOCKS.write_text("1")
    yield TRACING
    LOCKS.write_text("0")
    (TRACING / "current_tracer").write_text("nop")
    (TRACING / "set_ftrace_filter").write_text("")


@pytest.mark.parametrize(("manner", "lock_goes_last"), [("outliving", True), ("copy above", False)])
def test_order_of_ends_at_sigkill(
    tracing: Path, tmp_path: Path, manner: str, lock_goes_last: bool
) -> None:
    path = tmp_path / "lock"
    path.touch()
    inode = path.stat().st_ino
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), manner], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
        (tracing / "trace").write_text("")
        child.kill()
        child.wait()
    asking = os.open(path, os.O_RDWR)
    assert not holder_alive(asking, OWNER_BYTE)
    os.close(asking)
    # Whichever of its threads is the last closes everything.
    mine = (tracing / "trace").read_text().splitlines()
    released = [n for n, line in enumerate(mine) if RELEASED in line]
    unlocked = [
        n for n, line in enumerate(mine) if f"ino=0x{inode:x} " in line and "locks_rem" in line
    ]
    assert released, "the devices were closed at its end"
    assert unlocked, "and the lock was taken back"
    assert lock_goes_last == (max(unlocked) > max(released)), "\n".join(mine)
