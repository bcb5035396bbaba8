"""memcached over a unix socket, by pymemcache: the plain cache server that many start from.

Items of 2 MiB need `-I`; two threads serve. Gets come as bytes objects and are copied into the caller's buffers. A lookup is the
protocol's own question for it, a meta get without the value, pipelined over a bare socket: pymemcache has no call for that.
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

__all__ = ["MemcachedServers", "open_store"]

START_SECONDS = 20


@final
class MemcachedServers(Servers):
    """One server on a unix socket."""

    daemon: Daemon | None = None

    def start(self) -> None:
        program = shutil.which("memcached")
        if program is None:
            raise RuntimeError("no memcached")
        self.path = os.path.join(self.folder, "memcached.sock")
        command = [program, "-s", self.path, "-m", str(POOL_BYTES >> 20), "-I", "8m", "-t", "2"]
        command += ["-u", "root"] if os.geteuid() == 0 else []
        self.daemon = Daemon(command, self.folder)
        wait_for("memcached", lambda: connects(self.path), self.daemon, START_SECONDS)

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
class MemcachedStore(Store):
    """pymemcache, and a bare socket for lookups."""

    def __init__(self, path: str) -> None:
        from pymemcache.client.base import Client

        self.client = Client(path, no_delay=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)

    def name(self, block: int) -> Any:
        return super().name(block).hex().encode()

    def exists(self, names: Sequence[Any]) -> int:
        self.socket.sendall(b"".join(b"mg %b\r\n" % name for name in names) + b"mn\r\n")
        answer = bytearray()
        while not answer.endswith(b"MN\r\n"):
            received = self.socket.recv(1 << 16)
            if not received:
                raise ConnectionError("memcached closed the connection")
            answer += received
        return answer.count(b"HD")

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        values = {name: row.tobytes() for name, row in zip(names, rows, strict=True)}
        failed = self.client.set_many(values, noreply=False)
        if failed:
            raise RuntimeError(f"memcached refused {len(failed)} of {len(names)}")

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        values = self.client.get_many(names)
        came = 0
        for name, row in zip(names, rows, strict=True):
            value = values.get(name)
            if value is not None:
                np.copyto(row, np.frombuffer(value, np.uint8))
                came += 1
        return came

    def delete(self, names: Sequence[Any]) -> None:
        self.client.delete_many(names, noreply=False)

    def close(self) -> None:
        self.client.close()
        self.socket.close()


def open_store(config: Mapping[str, Any]) -> Store:
    return MemcachedStore(config["path"])
