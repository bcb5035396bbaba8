"""How does a test get an engine without waiting for the import of vLLM? From a fork of a Python that has done it.

One server (`warm_server.py`) a test session, started when first asked for. `Fork` is to its caller what a
subprocess.Popen is.
"""

from __future__ import annotations

import array
import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["Fork"]

NUMBER_BYTES = 8
IMPORT_SECONDS = 400.0


@functools.cache
def server() -> socket.socket:
    """Whom to ask. It ends when this process does, however that is."""
    asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = tempfile.TemporaryDirectory(prefix="pegashm-warm-")
    # Away from the sources, as an engine: the installed package is what its forks import.
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("warm_server.py")), str(asked.fileno())],
        pass_fds=[asked.fileno()],
        stdin=subprocess.DEVNULL,
        env={key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"},
        cwd=folder.name,
    )  # fmt: skip
    asked.close()

    def end() -> None:
        asking.close()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return asking


class Fork:
    """`python arguments...` with pipes to its stdin and from its stdout, in a session of its own."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        errors: IO[bytes],
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        order = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
        }
        its_input, to_it = os.pipe()
        from_it, its_output = os.pipe()
        self._told, told = os.pipe()
        theirs = [its_input, its_output, errors.fileno(), told]
        socket.send_fds(server(), [json.dumps(order).encode()], theirs)
        for descriptor in (its_input, its_output, told):
            os.close(descriptor)
        self.args = [sys.executable, *arguments]
        self.stdin: IO[bytes] | None = os.fdopen(to_it, "wb")
        self.stdout: IO[bytes] | None = os.fdopen(from_it, "rb")
        self.returncode: int | None = None
        pid = self._number(IMPORT_SECONDS)
        assert pid is not None, "there is no fork: the server of warm engines is gone or hangs"
        self.pid = pid

    def poll(self) -> int | None:
        if self.returncode is None and self._is_told(0):
            status = self._number(0)
            self.returncode = -signal.SIGKILL if status is None else status
            os.close(self._told)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not self._is_told(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _is_told(self, seconds: float | None) -> bool:
        return bool(select.select([self._told], [], [], seconds)[0])

    def _number(self, seconds: float) -> int | None:
        """None: not in time, or whoever would tell it is gone."""
        told = os.read(self._told, NUMBER_BYTES) if self._is_told(seconds) else b""
        return array.array("q", told)[0] if len(told) == NUMBER_BYTES else None
