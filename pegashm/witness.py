"""Which process here is the one that called itself 17?

Clients and supervisors leave their process number in the control region as a label, and each means it in its
own PID namespace: in containers nearly all are 1. Who lives is told by locks, never by this; but whoever is
to be stopped needs a number of *ours*. The kernel lists every process that we see with its number in its
innermost namespace (NSpid), and when it started (the same in all of them), or what it has open.
Called by tools and messages, for people. Reads /proc only; answers None when nothing there fits.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pegashm.names import control_path

__all__ = ["pid_of_holder", "pids_by_start"]

_PROC = Path("/proc")


def pids_by_start() -> dict[tuple[int, int], int]:
    """Every process we see: (number in its own namespace, start in clock ticks since boot) -> number here."""
    found = {}
    for pid, own in _processes():
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (_PROC / str(pid) / "stat").read_bytes()
            found[own, int(text.rsplit(b")", 1)[1].split()[19])] = pid
    return found


def pid_of_holder(name: str, own: int) -> int | None:
    """Our number of the process that calls itself `own` and has the control object of `name` open."""
    try:
        control = os.stat(control_path(name))
    except OSError:
        return None
    for pid, number in _processes():
        if number == own and _has_open(pid, control):
            return pid
    return None


def _processes() -> Iterator[tuple[int, int]]:
    """(number here, number in its innermost namespace) of every process that we see."""
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = (entry / "status").read_text(encoding="utf-8", errors="replace")
            yield int(entry.name), int(status.split("\nNSpid:", 1)[1].split("\n", 1)[0].split()[-1])


def _has_open(pid: int, control: os.stat_result) -> bool:
    with contextlib.suppress(OSError):  # another user's, or gone
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                facts = entry.stat()
                if (facts.st_dev, facts.st_ino) == (control.st_dev, control.st_ino):
                    return True
    return False
