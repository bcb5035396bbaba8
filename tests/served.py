"""How does a test run `pegashm serve` as an operator does, and read what it says?

A supervisor in a process of its own, other `pegashm` commands, and a few blocks that can be told from
any others. Called by the supervisor's tests and by those of the real world.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from pegashm.cache import Cache
from pegashm.cli import main
from pegashm.keys import Namespace
from pegashm.names import SHM_DIRECTORY
from pegashm.units import KIB

__all__ = [
    "KEYS",
    "NAMESPACE",
    "PATIENCE_SECONDS",
    "Served",
    "assert_stored",
    "evict_stored",
    "objects",
    "pegashm",
    "refused",
    "status",
    "store",
]

NAMESPACE = Namespace(fingerprint=b"f" * 32, label="supervisor test")
KEYS = [bytes([i]) * 32 + b"\0\0\0\0" for i in range(1, 9)]
PATIENCE_SECONDS = 60.0


class Served:
    """A supervisor in a process of its own, and what it said."""

    def __init__(
        self,
        name: str,
        *arguments: str,
        prefix: Sequence[str] = (),
        python: str = sys.executable,
        **options: Any,
    ) -> None:
        self.name = name
        command = [*prefix, python, "-m", "pegashm", "serve", "--name", name, *arguments]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self.log = ""

    def wait_ready(self) -> Served:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while status(self.name)["state"] != "ready":
            assert self.process.poll() is None, f"ended: {self.rest()}"
            assert time.monotonic() < deadline, "not ready in time"
            time.sleep(0.02)
        return self

    def wait_log(self, pattern: str) -> str:
        """Read its log up to a line that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line matches {pattern!r}:\n{self.log}")

    def rest(self) -> str:
        """All it said; waits for its end."""
        assert self.process.stdout is not None
        self.log += self.process.stdout.read()
        self.process.wait(PATIENCE_SECONDS)
        return self.log

    def end(self, sent: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(sent)
        self.rest()
        return self.process.returncode


def pegashm(
    *arguments: str, prefix: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "pegashm", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, **options
    )


def status(name: str) -> dict[str, Any]:
    """As `pegashm status --json`, without the price of a process."""
    result = CliRunner().invoke(main, ["status", "--name", name, "--json"])
    report: dict[str, Any] = json.loads(result.stdout)
    return report | {"exit_status": result.exit_code}


def objects(name: str, directory: str = SHM_DIRECTORY) -> set[str]:
    return {path.name for path in Path(directory).glob(f"pegashm.{name}.*")}


def store(name: str, keys: list[bytes] = KEYS) -> None:
    with Cache.attach(name, namespace=NAMESPACE) as cache:
        handles, outcomes = cache.claim(keys, 4 * KIB)
        assert not outcomes.any()
        offsets, sizes = cache.locate(handles)
        for key, offset, nbytes in zip(keys, offsets, sizes, strict=True):
            view = cache.region.payload(int(offset), int(nbytes))
            view[:] = key[:1] * len(view)
            view.release()
        assert not cache.publish(handles).any()


def assert_stored(name: str, keys: list[bytes] = KEYS) -> None:
    with Cache.attach(name, namespace=NAMESPACE) as cache:
        handles, outcomes = cache.find(keys, pin=True)
        assert not outcomes.any(), f"missing: {outcomes}"
        offsets, sizes = cache.locate(handles)
        for key, offset, nbytes in zip(keys, offsets, sizes, strict=True):
            view = cache.region.payload(int(offset), int(nbytes))
            assert bytes(view) == key[:1] * len(view)
            view.release()
        cache.unpin(handles)


def evict_stored(cache: Cache, keys: list[bytes] = KEYS) -> None:
    """Out of memory with them. Who has just written them to SSD pins them for a moment longer."""
    left = len(keys)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := left - cache.evict_lru(4 * KIB, left):
        assert time.monotonic() < deadline, f"{left} blocks are still pinned"
        time.sleep(0.005)


def refused(name: str, *arguments: str, exit_status: int, **options: Any) -> str:
    """What `serve` says when it does not start: one line, no traceback."""
    result = pegashm("serve", "--name", name, *arguments, **options)
    assert exit_status == result.returncode, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr
