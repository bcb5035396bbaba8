"""How does the bench talk to clients in other environments, and what does it do when one does not answer?

A `Client` is a worker process (worker.py) and a line of JSON each way. Every wait has a deadline, since hanging is one of the things to be
found out: `SilentError` says that it passed. A client can be killed at any moment; its log is shown when it ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

__all__ = [
    "ROOT",
    "Client",
    "EndedError",
    "SilentError",
    "processes_of",
    "resident_bytes",
    "without_paths",
]

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 90
END_SECONDS = 10


class SilentError(Exception):
    """No answer in time."""


class EndedError(Exception):
    """The client's process is gone."""


@final
class Client:
    """A client of a store, in its own process."""

    def __init__(
        self,
        python: str,
        module: str,
        config: Mapping[str, Any],
        *,
        buffer_bytes: int,
        log: str,
        environment: Mapping[str, str],
    ) -> None:
        self.log = log
        setup = {"module": module, "config": dict(config), "buffer_bytes": buffer_bytes}
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [python, "-m", "bench.rivals.worker", json.dumps(setup)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
            )
        self._read = b""

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        self.hear(seconds)

    def tell(self, do: str, **command: Any) -> None:
        """Ask without waiting for the answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps({"do": do, **command}) + "\n").encode())
            self.process.stdin.flush()
        except OSError:
            raise EndedError(self._last_words()) from None

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next answer."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            self._read_more(deadline)
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read_more(self, deadline: float) -> None:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        if not select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
            raise SilentError
        read = os.read(pipe, 1 << 20)
        if not read:
            raise EndedError(self._last_words())
        self._read += read

    def ask(self, do: str, *, seconds: float = 60, **command: Any) -> dict[str, Any]:
        """Ask, and wait for an answer that is no error."""
        self.tell(do, **command)
        answer = self.hear(seconds)
        if "error" in answer:
            raise RuntimeError(f"{do}: {answer['error']}; log: {self._last_words()}")
        return answer

    def heard(self) -> list[dict[str, Any]]:
        """All answers of a process that is gone."""
        with contextlib.suppress(EndedError):
            while True:
                self._read_more(time.monotonic() + END_SECONDS)
        whole = self._read.rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Let it leave in good order; kill it if it does not."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        self.kill()

    def _last_words(self) -> str:
        return " | ".join(Path(self.log).read_text("utf-8", "replace").splitlines()[-8:])[-1500:]


def processes_of(mark: str, session: int) -> list[int]:
    """Processes that a server of ours started: those of its session, and those whose environment has this word (daemons; but
    some write over their environment, as Redis does for its title)."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_bytes().rsplit(b")", 1)[1].split()
                if fields[0] != b"Z" and (
                    int(fields[3]) == session or mark.encode() in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
    return found


def without_paths(text: str) -> str:
    """A rival's words without places of this machine: they go into results."""
    return re.sub(r"(?:/[\w.@+-]+){2,}", "<path>", text)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process that is no shared memory."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
