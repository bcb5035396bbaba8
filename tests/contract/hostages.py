"""How does a test stop or kill another process exactly when that hurts most?

`Keeper` starts `hostage.py` in the checked build, so that a hostage can also be made to stop or die at a numbered
crash point; where that cannot be built, in the release build without those. A hostage is always killed at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests import flavours

__all__ = ["Hostage", "Keeper", "crash_points"]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def crash_points() -> list[int]:
    """The numbers of all crash points that an attached process can pass."""
    text = (ROOT / "pegashm" / "_core" / "crash.hpp").read_text()
    numbers = [
        int(number) for number in re.findall(r"^  point\((\d+), (?!create_)", text, re.MULTILINE)
    ]
    assert numbers
    return numbers


class Hostage:
    """One process in a bad position."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def state(self) -> str:
        """As in /proc: T stopped; "-" gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "-"

    def stop(self) -> None:
        """Stand still, all threads of it."""
        os.kill(self.pid, signal.SIGSTOP)
        self.settle("Tt")

    def settle(self, states: str, seconds: float = PATIENCE_S) -> bool:
        deadline = time.monotonic() + seconds
        while self.state() not in states:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def kill(self) -> None:
        """And the processes that copy for it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        pids = [self.pid]
        with contextlib.suppress(OSError):
            pids += [int(child) for child in children.read_text().split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            assert Hostage(pid).settle("-ZX"), f"process {pid} survives SIGKILL"


class Keeper:
    """Makes hostages; a context manager."""

    def __init__(self) -> None:
        self.checked = flavours.missing_tool() is None
        module = "tests.contract.hostage"
        command = (
            flavours.command("checked", module) if self.checked else [sys.executable, "-m", module]
        )
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.hostages: list[Hostage] = []

    def take(self, name: str, position: str, *, seed: int = 0, crash: str = "-") -> Hostage:
        """A process in that position of that arena."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name} {position} {seed} {crash}\n")
        self.process.stdin.flush()
        pid, said = self.line().split(maxsplit=1)
        self.hostages.append(Hostage(int(pid)))
        assert said == "there", said
        return self.hostages[-1]

    def line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        assert ready, "the keeper says nothing"
        line = self.process.stdout.readline().strip()
        assert line, "the keeper has ended"
        return line

    def __enter__(self) -> Keeper:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for hostage in self.hostages:
            hostage.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)
