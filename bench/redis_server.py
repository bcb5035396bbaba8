"""How do benches run their Redis? A server of their own on a unix socket, nothing on disk, ended with the bench.

`redis_server` yields the socket's path, or None where server or client library is not installed. `fill` and `Prepacked` speak the
protocol directly: filling that way takes a second for a million keys, and a lookup made of ready bytes shows
what the server itself costs when no client library stands before it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

__all__ = ["INSTALL_HINT", "Prepacked", "fill", "redis_server"]

INSTALL_HINT = (
    "redis-server or redis-py is not installed, so Redis was left out. "
    "Type: apt install redis-server && pip install -r bench/requirements.txt"
)
START_SECONDS = 10
FILL_BATCH = 10_000


@contextlib.contextmanager
def redis_server() -> Iterator[str | None]:
    """A running server's socket, or None."""
    program = shutil.which("redis-server")
    if program is None or importlib.util.find_spec("redis") is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pegashm-bench-") as folder:
        path = os.path.join(folder, "redis.sock")
        command = [program, "--port", "0", "--unixsocket", path, "--dir", folder]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        try:
            _wait_until_up(server, path)
            yield path
        finally:
            server.terminate()
            server.wait()


def fill(path: str, keys: Sequence[bytes]) -> None:
    """Replace everything that the server holds by these keys."""
    with _connect(path) as connection:
        _ask(connection, b"*1\r\n$8\r\nFLUSHALL\r\n", b"+OK\r\n")
        for at in range(0, len(keys), FILL_BATCH):
            batch = keys[at : at + FILL_BATCH]
            parts = [b"*%d\r\n$4\r\nMSET\r\n" % (1 + 2 * len(batch))]
            parts += [b"$%d\r\n%b\r\n$1\r\n1\r\n" % (len(key), key) for key in batch]
            _ask(connection, b"".join(parts), b"+OK\r\n")


class Prepacked:
    """EXISTS of a batch of keys, as bytes made beforehand; the answer is read and counted, no more."""

    def __init__(self, path: str) -> None:
        self.connection = _connect(path)

    @staticmethod
    def pack(keys: Sequence[bytes]) -> bytes:
        return b"".join(b"*2\r\n$6\r\nEXISTS\r\n$%d\r\n%b\r\n" % (len(key), key) for key in keys)

    def exists(self, packed: bytes, key_count: int) -> int:
        self.connection.sendall(packed)
        answer = bytearray()
        while len(answer) < 4 * key_count:  # each ":0\r\n" or ":1\r\n"
            answer += self.connection.recv(1 << 16)
        return answer.count(b":1")


def _wait_until_up(server: subprocess.Popen[bytes], path: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), _connect(path) as connection:
            _ask(connection, b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n")
            return
        time.sleep(0.02)
    raise SystemExit(f"redis-server did not answer within {START_SECONDS} s on its unix socket")


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _ask(connection: socket.socket, request: bytes, expected: bytes) -> None:
    connection.sendall(request)
    answer = b""
    while len(answer) < len(expected):
        received = connection.recv(1 << 16)
        if not received:
            raise ConnectionError("redis-server closed the connection")
        answer += received
    if answer != expected:
        raise RuntimeError(f"redis-server answered {answer[:80]!r}, expected {expected!r}")
