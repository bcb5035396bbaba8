"""A transport worker whose every word the test decides: its lock, its socket, its table; no files and no haste.

The real worker is in `pegashm/transport`; how it behaves is tested there and in `tests/e2e/test_spill.py`. Here the
questions are what an engine asks, when, and what it makes of each answer, so the answers must come when the test says so.
Reads and writes of shared memory are the real ones: what is "on SSD" stands in the real table, and what is brought
into memory is claimed and published by a client of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import zmq

from pegashm import _native
from pegashm.cache import Cache
from pegashm.keys import Namespace
from pegashm.liveness import (
    TRANSPORT_BYTE,
    close_lock_file,
    holder_alive,
    open_lock_file,
    try_lock,
)
from pegashm.transport.messages import Answer, Done, Ping, Pong, Promote, pack, parse

__all__ = ["PATIENCE_S", "Clerk", "until"]

PATIENCE_S = 20.0
# One for all, never destroyed: one that the garbage collector met before its socket, after a test failed, would wait for it.
CONTEXT: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
HOST = 5


class Clerk:
    """Serves the arena `name`, for blocks of `block_bytes` of one namespace."""

    def __init__(self, name: str, namespace: Namespace, block_bytes: int) -> None:
        self.cache = Cache.attach(name, namespace=namespace, label="clerk")
        self.block_bytes = block_bytes
        self.lock = open_lock_file(name)
        assert try_lock(self.lock, TRANSPORT_BYTE)
        self.table = _native.SpillTable(self.cache.region)
        self.table.clear()
        self.table.set_usable(1)
        self.hints = _native.RemoteTable(self.cache.region)
        self.hints.clear()
        self.hints.set_usable(HOST, usable=True)
        self.router = CONTEXT.socket(zmq.ROUTER)
        # Not in a folder of pytest's: a socket's path has 107 bytes at most.
        self.folder = tempfile.TemporaryDirectory(prefix="pegashm-")
        path = f"{self.folder.name}/clerk.sock"
        self.router.bind(f"ipc://{path}")
        self.cache.region.set_transport(path, 1, time.time_ns())
        self.taken_from: list[tuple[Promote, bytes]] = []

    def spill(self, keys: Sequence[bytes]) -> None:
        """From now on they are on SSD."""
        rows = np.zeros(len(keys), dtype=_native.SPILL_FIELDS)
        for number, (row, key) in enumerate(zip(rows, keys, strict=True)):
            row["key"][: len(key) - 4] = np.frombuffer(key[:-4], np.uint8)
            row["key_bytes"], row["group"] = len(key) - 4, int.from_bytes(key[-4:], "big")
            row["file_offset"] = 4096 * number
        rows["namespace_id"], rows["payload_bytes"] = self.cache.namespace_id, self.block_bytes
        assert self.table.store(rows).all()

    def hold_elsewhere(self, keys: Sequence[bytes]) -> None:
        """From now on another host has them."""
        region, namespace_id = self.cache.region, self.cache.namespace_id
        self.hints.add(HOST, _native.remote_hashes(region, list(keys), namespace_id))

    def bring(self, keys: Sequence[bytes]) -> None:
        """Into memory."""
        handles = self.begin(keys)
        self.publish(handles)

    def begin(self, keys: Sequence[bytes]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """They are on their way into memory."""
        handles, outcomes = self.cache.claim(list(map(bytes, keys)), self.block_bytes)
        assert not outcomes.any(), outcomes
        return handles

    def publish(self, handles: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        assert not self.cache.publish(handles).any()

    def take(self, wait_s: float = 0.0) -> list[Promote]:
        """What was asked since the last call; waits for the first, if there is to be one."""
        taken = []
        while self.router.poll(0 if taken else wait_s * 1e3):
            peer, frame = self.router.recv_multipart()
            message = parse(frame)
            if isinstance(message, Ping):
                self.router.send_multipart([peer, pack(Pong(message.request_id, 1, 1))])
                continue
            assert isinstance(message, Promote), message
            self.taken_from.append((message, peer))
            taken.append(message)
        return taken

    def taken(self) -> Promote:
        """The one request there is."""
        (request,) = self.take(PATIENCE_S)
        return request

    def answer(self, request: Promote, *answers: Answer) -> None:
        """One for all keys, or one for each."""
        each = answers * len(request.keys) if len(answers) == 1 else answers
        peer = next(peer for message, peer in self.taken_from if message is request)
        self.router.send_multipart([peer, pack(Done(request.request_id, bytes(each)))])

    def end(self) -> None:
        """It is dead, as the kernel says it."""
        close_lock_file(self.lock)
        assert not holder_alive(self.cache.arena.control_fd, TRANSPORT_BYTE)

    def close(self) -> None:
        close_lock_file(self.lock)
        self.router.close(linger=0)
        self.folder.cleanup()
        self.cache.close()


def until(what: Callable[[], object]) -> None:
    """Until it is so; an assertion when it is not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.002)
