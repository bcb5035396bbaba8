"""The serving host of `bench.fetch`, a process of its own: `python -m bench.fetch_server BYTES FOLDER SEED`.

Memory of the bench's own kind filled with bytes that follow from the seed, and over it the fabric's serving side; or,
for the yardstick, plain threads that send the same bytes over accepted sockets and check nothing. Orders and answers are
lines of JSON. It says how much CPU it has used, so that both sides can be told apart.
"""

from __future__ import annotations

import json
import resource
import socket
import struct
import sys
import threading
import time
from typing import Any

import numpy as np

from pegashm.fabric.interface import Served
from pegashm.fabric.tcp import TcpFabric

from bench import memory

__all__ = ["BARE_REQUEST", "Server", "cpu_seconds", "main"]

BARE_REQUEST = struct.Struct("<QQQ")  # first offset, bytes of a block, blocks
_IOV_BYTES = 512 << 10
PEER = b"bench reader 16b"


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Server:
    def __init__(self, size: int, folder: str, seed: int) -> None:
        self.memory = memory.shared_file(folder, size)
        words = self.memory.bytes.view(np.uint64)
        words[:] = np.random.default_rng(seed).integers(0, 1 << 63, len(words), np.uint64)
        self.fabric = TcpFabric(self.memory.address, size)
        self.leases = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept_bare, daemon=True).start()

    def offers(self) -> dict[str, Any]:
        return {"offer": self.fabric.offer().hex(), "bare": self.listener.getsockname()[1]}

    def admit(self, introduction: str) -> str:
        return self.fabric.admit(PEER, bytes.fromhex(introduction)).hex()

    def grant(self, blocks: list[tuple[int, int]]) -> tuple[int, str]:
        self.leases += 1
        served = [Served(*block) for block in blocks]
        grant = self.fabric.grant(PEER, self.leases, served, time.monotonic() + 3600)
        return grant.lease_id, grant.opaque.hex()

    def revoke(self, lease: int) -> None:
        self.fabric.revoke(lease)

    def cpu(self) -> float:
        return cpu_seconds()

    # -- the yardstick ---------------------------------------------------------------------------

    def _accept_bare(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve_bare, args=(sock,), daemon=True).start()

    def _serve_bare(self, sock: socket.socket) -> None:
        """Runs of blocks, as asked, and nothing else."""
        payload = self.memory.bytes.data
        with sock:
            while request := sock.recv(BARE_REQUEST.size, socket.MSG_WAITALL):
                offset, nbytes, count = BARE_REQUEST.unpack(request)
                end = offset + nbytes * count
                while offset < end:
                    stop = min(end, offset + max(_IOV_BYTES, nbytes))
                    sock.sendall(payload[offset:stop])
                    offset = stop


def main(size: str, folder: str, seed: str) -> None:
    server = Server(int(size), folder, int(seed))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        print(json.dumps(getattr(server, order)(*arguments)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
