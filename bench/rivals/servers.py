"""How does the bench start a rival's server, and find and end all that it started?

`Daemon` is one command in a session of its own whose environment carries a mark, so that children which detach are found as well (workers.processes_of).
EndedError by SIGTERM, then SIGKILL; only processes of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

from bench.rivals.workers import processes_of

__all__ = ["Daemon", "connects", "free_port", "wait_for"]

MARK = "PEGASHM_BENCH_RIVAL"
END_SECONDS = 10.0
POLL_SECONDS = 0.02


@final
class Daemon:
    """A server's command, and all processes that come of it."""

    def __init__(
        self, command: Sequence[str], folder: str, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = Path(folder) / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
        self.mark = f"{MARK}={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **(environment or {}), name: value},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End it and whatever it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + END_SECONDS
            for pid in self.processes():
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            while self.processes() and time.monotonic() < deadline:
                self.process.poll()
                time.sleep(POLL_SECONDS)
        self.process.kill()
        self.process.wait()

    def processes(self) -> list[int]:
        """It and whatever it started."""
        return processes_of(self.mark, self.pid)

    def last_words(self) -> str:
        return " | ".join(self.log.read_text("utf-8", "replace").splitlines()[-5:])


def wait_for(what: str, ready: Callable[[], bool], daemon: Daemon, seconds: float) -> None:
    """Until `ready` says so; RuntimeError with the daemon's last words when it ends first or time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and daemon.alive():
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(POLL_SECONDS)
    state = "does not answer" if daemon.alive() else f"ended with {daemon.process.returncode}"
    raise RuntimeError(f"{what} {state}: {daemon.last_words()}")


def free_port() -> int:
    """A TCP port of the loopback device that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def connects(path: str) -> bool:
    """Whether somebody listens at a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        return True
