"""The processes of the demo, seen from outside: an engine that answers, a supervisor that says lines.

Both can be killed with SIGKILL and are always reaped. Every wait has a deadline and ends early when the
process dies; either way the error carries the end of its log. Called by the story in `__main__`.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Answer", "DemoError", "Engine", "Janitor", "Supervisor", "command_path"]

HERE = Path(__file__).parent
QUIET_VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


class DemoError(Exception):
    """The demo cannot go on, or what it shows is not so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one engine said to one prompt."""

    tokens: list[int]
    cached: int
    ttft_ms: float


def command_path(name: str) -> str:
    """A console script of the environment that runs us, PATH or not."""
    return str(Path(sys.executable).parent / name)


class Janitor:
    """Purges the arena and removes the folder when the demo ends, even by a SIGKILL of its own.

    A shell that waits on a pipe: closing it, or dying, is the signal. In a session of its own, so that a
    Ctrl-C in the terminal does not reach it.
    """

    SCRIPT = 'read -r _; "$1" purge --name "$2" --yes --force >/dev/null 2>&1; rm -rf "$3"'

    def __init__(self, arena_name: str, folder: Path) -> None:
        command = ["sh", "-c", self.SCRIPT, "sh", command_path("pegashm"), arena_name, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def work(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Child:
    """A process with a log file; stdout is ours to read when `talks`."""

    def __init__(
        self, title: str, command: list[str], log: Path, environment: dict[str, str], *, talks: bool
    ) -> None:
        self.title = title
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else file,
                stderr=file,
                env=environment,
                cwd=log.parent,  # away from the sources, so that the installed package is what runs
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def fail(self, what: str) -> DemoError:
        lines = self.log.read_text(errors="replace").splitlines()[-25:]
        return DemoError(f"{self.title} {what}. The end of its log:\n  " + "\n  ".join(lines))

    def kill(self) -> None:
        """SIGKILL: no handler, no farewell."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 10) -> None:
        """End it, politely first. Nothing to do when it is gone."""
        if self.process.stdin:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        if self.process.stdout:
            self.process.stdout.close()


class Engine(Child):
    """`engine.py`, attached to an arena or (None) on its own. Ready after `wait_ready`."""

    def __init__(self, title: str, model: Path, arena_name: str | None, log: Path) -> None:
        # vLLM leaves files in TMPDIR when it is killed: they go with the demo's folder.
        environment = {**os.environ, **QUIET_VLLM, "TMPDIR": str(log.parent)}
        environment.pop("PEGASHM_ARENA", None)
        if arena_name is not None:
            environment |= {"PEGASHM_ARENA": arena_name, "PEGASHM_REQUIRED": "1"}
        command = [sys.executable, str(HERE / "engine.py"), str(model)]
        super().__init__(title, command, log, environment, talks=True)
        self.attach_ms: float | None = None

    def wait_ready(self, seconds: float = 600) -> None:
        self.attach_ms = self._read(seconds)["attach_ms"]

    def ask(self, token_ids: list[int], seconds: float = 90) -> Answer:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(token_ids).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.fail("is gone") from None
        return Answer(**self._read(seconds))

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            raise self.fail(f"did not answer within {seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise self.fail(f"ended (exit status {self.process.wait()})")
        said: dict[str, Any] = json.loads(line)
        return said


class Supervisor(Child):
    """`pegashm serve`. `wait_ready` asks `pegashm status`, as a process manager would."""

    def __init__(self, arena_name: str, size: str, log: Path) -> None:
        self.arena_name = arena_name
        self.log_offset = log.stat().st_size if log.exists() else 0
        command = [command_path("pegashm"), "serve", "--name", arena_name, "--size", size]
        command += [
            "--segment-size",
            "32M",
        ]  # few segments, so that the dump at the end stays short
        super().__init__("the supervisor", command, log, dict(os.environ), talks=False)

    def said(self) -> str:
        """What this one (not its predecessor) has logged so far."""
        return self.log.read_bytes()[self.log_offset :].decode(errors="replace")

    def wait_ready(self, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        status = [command_path("pegashm"), "status", "--name", self.arena_name]
        while subprocess.run(status, capture_output=True, check=False).returncode != 0:
            if self.process.poll() is not None:
                raise self.fail(f"ended (exit status {self.process.returncode})")
            if time.monotonic() > until:
                raise self.fail(f"was not ready within {seconds:.0f} s")
            time.sleep(0.1)
