"""How does a test start an engine of its own, tell it what to do, stop it, and kill it?

Each is a real process running `actor.py`; `prefix` is what it is started under (`unshare`, `setpriv`). Under
`unshare --fork` the process that matters is a child of the one we started, and it has another number in
its own namespace: signals go to the number that *we* see. Called by the tests of this folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["IN_PID_NAMESPACE", "SMALL", "Actor", "ActorError", "wait_until"]

ROOT = Path(__file__).resolve().parents[2]
IN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")
PATIENCE_SECONDS = 60.0
# Options of a supervisor whose arena holds some hundred blocks of the actors.
SMALL = ("--size", "6M", "--segment-size", "256K", "--block-min", "16K", "--no-lock")


class ActorError(Exception):
    """What an actor's command raised: `kind` is the exception's class."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(f"{kind}: {said}")
        self.kind = kind
        self.said = said


class Actor:
    """One engine process. `do` runs a command of `actor.py` in it; kill it, or close it, at the end."""

    def __init__(
        self,
        name: str,
        *,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        attached: bool = True,
        label: str = "",
        python: str = sys.executable,
    ) -> None:
        command = [*prefix, python, "-X", "faulthandler", "-m", "tests.world.actor", name]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that whatever it forked can be ended with it
        )
        self.pid_inside: int = self.listen()["pid"]
        self.pid = self._pid_here() if "unshare" in prefix else self.process.pid
        self.slot = -1
        self.who: dict[str, Any] = {}
        if attached:
            self.who = self.do("attach", label=label)
            self.slot = self.who["slot"]

    def _pid_here(self) -> int:
        for _ in range(1000):
            for entry in Path("/proc").iterdir():
                if entry.name.isdecimal() and self.process.pid == parent_of(int(entry.name)):
                    return int(entry.name)
        raise AssertionError("unshare has no child")

    def tell(self, command: str, **arguments: Any) -> None:
        """Send a command without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self.process.stdin.flush()

    def listen(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the actor ended with status {self.process.wait()}"
        return json.loads(line)

    def do(self, command: str, **arguments: Any) -> Any:
        self.tell(command, **arguments)
        return self.answered()

    def answered(self) -> Any:
        said = self.listen()
        if "error" in said:
            raise ActorError(said["error"], said["said"])
        return said["value"]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
        if number == signal.SIGSTOP:
            wait_until(lambda: "T" == state_of(self.pid), "stopped")

    def kill(self) -> None:
        """SIGKILL, and wait: when this returns the kernel has dropped its locks."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Actor:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.kill()


def wait_until(condition: Any, what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """What `condition` answers once that is true; AssertionError when it never is."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not {what} after {seconds:g} s"
        time.sleep(0.005)
    return value


def stat_of(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def parent_of(pid: int) -> int:
    fields = stat_of(pid)
    return int(fields[1]) if fields else 0


def state_of(pid: int) -> str:
    fields = stat_of(pid)
    return fields[0] if fields else "gone"
