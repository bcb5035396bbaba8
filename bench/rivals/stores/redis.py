"""Redis or Valkey over a unix socket: by redis-py with hiredis, or by a bare socket that copies once less.

redis-py is what users have: a pipeline of EXISTS or SET a batch, MGET for gets, whose answers come as bytes objects and are copied
into the caller's buffers. The bare client speaks just enough of the protocol to show what the server itself allows: values are sent
from the caller's buffers by sendmsg, and received right into them.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from bench.rivals.servers import Daemon, connects, wait_for
from bench.rivals.store import POOL_BYTES, Rows, Servers, Store

__all__ = ["RedisServers", "open_store", "server_program"]

START_SECONDS = 20
SENDMSG_PARTS_MAX = 512
HEADER_BYTES = 2048  # asked for at a time when a header is next: so much of a value is copied twice


def server_program() -> str | None:
    """Valkey where there is one, else Redis: they speak the same."""
    return shutil.which("valkey-server") or shutil.which("redis-server")


@final
class RedisServers(Servers):
    """One server on a unix socket, nothing on disk."""

    daemon: Daemon | None = None

    def start(self) -> None:
        program = server_program()
        if program is None:
            raise RuntimeError("no valkey-server and no redis-server")
        self.path = os.path.join(self.folder, "redis.sock")
        command = [program, "--port", "0", "--unixsocket", self.path, "--dir", self.folder]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        command += ["--maxmemory", str(POOL_BYTES), "--maxmemory-policy", "allkeys-lru"]
        self.daemon = Daemon(command, self.folder)
        wait_for("Redis", lambda: connects(self.path), self.daemon, START_SECONDS)

    def config(self, client: int) -> Mapping[str, Any]:
        return {"path": self.path}

    @property
    def victims(self) -> Mapping[str, int]:
        assert self.daemon is not None
        return {"server": self.daemon.pid}

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()


@final
class RedisStore(Store):
    """redis-py."""

    def __init__(self, path: str) -> None:
        import redis

        self.redis = redis.Redis(unix_socket_path=path)

    def exists(self, names: Sequence[Any]) -> int:
        if len(names) == 1:
            return int(self.redis.exists(names[0]))
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.exists(name)
        return sum(pipe.execute())

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for name, row in zip(names, rows, strict=True):
            pipe.set(name, row.data)
        pipe.execute()

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        came = 0
        for value, row in zip(self.redis.mget(names), rows, strict=True):
            if isinstance(value, bytes):
                np.copyto(row, np.frombuffer(value, np.uint8))
                came += 1
        return came

    def delete(self, names: Sequence[Any]) -> None:
        self.redis.delete(*names)

    def close(self) -> None:
        self.redis.close()


@final
class BareRedisStore(Store):
    """Nothing between the socket and the caller's buffers."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.received = b""  # and not used yet: at most a header and the beginning of a value

    def exists(self, names: Sequence[Any]) -> int:
        self.socket.sendall(b"".join(_command(b"EXISTS", name) for name in names))
        answer = bytearray()
        while len(answer) < 4 * len(names):  # each ":0\r\n" or ":1\r\n"
            answer += self._receive(1 << 16)
        return answer.count(b":1")

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        parts: list[Any] = []
        size = b"$%d\r\n" % rows.shape[1]
        for name, row in zip(names, rows, strict=True):
            parts += [
                b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n" % (len(name), name) + size,
                row.data,
                b"\r\n",
            ]
        for at in range(0, len(parts), SENDMSG_PARTS_MAX):
            self._send(parts[at : at + SENDMSG_PARTS_MAX])
        answer = bytearray()
        while len(answer) < 5 * len(names):  # each "+OK\r\n"
            answer += self._receive(1 << 16)
        if answer.count(b"+OK") != len(names):
            raise RuntimeError(f"Redis answered {bytes(answer[:80])!r}")

    def _send(self, parts: Sequence[Any]) -> None:
        sent = self.socket.sendmsg(parts)
        for part in parts:
            if sent < len(part):
                self.socket.sendall(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        self.socket.sendall(_command(b"MGET", *names))
        self._line()
        came = 0
        for row in rows:
            if int(self._line()[1:]) >= 0:
                self._fill(memoryview(row.data))
                self._line()
                came += 1
        return came

    def _fill(self, view: memoryview) -> None:
        begun = min(len(view), len(self.received))
        view[:begun] = self.received[:begun]
        self.received = self.received[begun:]
        while begun < len(view):
            received = self.socket.recv_into(view[begun:])
            if not received:
                raise ConnectionError("Redis closed the connection")
            begun += received

    def delete(self, names: Sequence[Any]) -> None:
        self.socket.sendall(_command(b"DEL", *names))
        self._line()

    def _line(self) -> bytes:
        while b"\r\n" not in self.received:
            self.received += self._receive(HEADER_BYTES)
        line, _, self.received = self.received.partition(b"\r\n")
        if line.startswith(b"-"):
            raise RuntimeError(line.decode())
        return line

    def _receive(self, most: int) -> bytes:
        received = self.socket.recv(most)
        if not received:
            raise ConnectionError("Redis closed the connection")
        return received


def _command(*words: bytes) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def open_store(config: Mapping[str, Any]) -> Store:
    return BareRedisStore(config["path"]) if config.get("bare") else RedisStore(config["path"])
