"""How does a test get an arena with a real transport worker, and blocks whose every byte can be judged?

A worker in a process of its own on files in a folder of the test's, an attached client, and the engine's side of
the conversation. Whatever is killed on the way is cleaned up at the end; nothing is left in /dev/shm or /run.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pegashm._native import OK, SPILLED
from pegashm.arena import Arena, open_arena
from pegashm.cache import Cache
from pegashm.config import SpillConfig
from pegashm.keys import Namespace, namespace_of
from pegashm.transport.client import TransportClient
from pegashm.transport.messages import Answer, Done
from pegashm.transport.options import WorkerOptions
from pegashm.units import KIB, MIB

from tests.arenas import Shape, make_arena, remove_arena
from tests.soak.stamp import payload_for, verify

__all__ = [
    "BYTES",
    "FENCE",
    "MACHINE",
    "NAMESPACE",
    "PATIENCE_SECONDS",
    "Rig",
    "eventually",
    "judge",
    "key_of",
]

NAMESPACE = namespace_of({"model": "transport"}, label="transport test")
FENCE = 7
BYTES = 4 * KIB
SHAPE = Shape(spill_records=2000)
MACHINE = float(
    os.environ.get("PEGASHM_PATIENCE", "1")
)  # how many times as long things take: emulated
PATIENCE_SECONDS = 30.0 * MACHINE


def key_of(number: int) -> bytes:
    """As engines make them: a hash, so that the index spreads them."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest() + bytes(4)


def judge(cache: Cache, keys: Sequence[bytes]) -> int:
    """How many of these are in memory. AssertionError where one is and any byte of it is wrong."""
    handles, outcomes = cache.find(keys, pin=True)
    offsets, sizes = cache.locate(handles)
    for key, outcome, offset, nbytes in zip(keys, outcomes, offsets, sizes, strict=True):
        if outcome != OK:
            continue
        view = cache.region.payload(int(offset), int(nbytes))
        wrong = verify(np.frombuffer(view, np.uint8), key, FENCE)
        assert wrong is None, wrong
        del view
    cache.unpin(handles)
    return int((outcomes == OK).sum())


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """What `holds` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"never came true: {holds}"
        time.sleep(0.01)
    return value


class Rig:
    """An arena, spill files in `folder`, one worker at a time, one client."""

    def __init__(
        self,
        folder: Path,
        *,
        shape: Shape = SHAPE,
        paths: Sequence[str] | None = None,
        files: int = 1,
        file_bytes: int = 16 * MIB,
        stall_seconds: float = 30.0,
        namespace: Namespace = NAMESPACE,
        **spill: Any,
    ) -> None:
        self.shape = shape
        self.name = make_arena(shape)
        self.namespace = namespace
        self.paths = tuple(paths or (str(folder / f"spill{n}") for n in range(files)))
        spill = {"backlog_seconds": 60.0, "low": 0.0, "high": 0.0} | spill
        self.options = WorkerOptions(
            name=self.name,
            spill=SpillConfig(paths=self.paths, file_bytes=file_bytes, **spill),
            parent_pid=os.getpid(),
            stall_seconds=stall_seconds,
            lock_seconds=5.0,
        )
        self.runtime = tempfile.TemporaryDirectory(prefix="pegashm-")
        self.log = folder / "worker.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.arena: Arena
        self.cache: Cache
        self.client: TransportClient
        self.attach()

    def attach(self) -> None:
        self.arena = open_arena(self.name)
        self.cache = Cache.attach(self.name, namespace=self.namespace)
        self.client = TransportClient(self.arena)

    def detach(self) -> None:
        self.client.close()
        self.cache.close()
        self.arena.close()

    # -- the worker ------------------------------------------------------------------------------

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start a worker and wait for nothing."""
        command = [sys.executable, "-m", "pegashm.transport.worker", self.options.to_json()]
        environment = os.environ | {"RUNTIME_DIRECTORY": self.runtime.name}
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, stderr=log, env=environment)
        self.processes.append(process)
        return process

    def start(self, files: int | None = None) -> Rig:
        """Start a worker and wait until `files` of its files are in use (None: all)."""
        process = self.spawn()
        wanted = len(self.paths) if files is None else files

        def up() -> bool:
            assert process.poll() is None, self.said()
            header = self.arena.region.header
            mine = int(header["transport_pid"]) == process.pid
            return mine and int(header["spill_usable"]).bit_count() >= wanted

        eventually(up)
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.processes[-1]

    def kill(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def reboot(self) -> None:
        """All processes and the shared memory go; the spill files stay."""
        self.kill()
        self.detach()
        remove_arena(self.name)
        make_arena(self.shape, self.name)
        self.attach()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.send_signal(signal.SIGCONT)
                process.wait()
        self.detach()
        remove_arena(self.name)
        self.runtime.cleanup()

    # -- blocks ----------------------------------------------------------------------------------

    def store(
        self, numbers: Iterable[int], nbytes: int = BYTES, *, sums: bool = False
    ) -> list[bytes]:
        """Store those that are not there; their keys."""
        keys = [key_of(number) for number in numbers]
        for key in keys:
            handles, outcomes = self.cache.claim([key], nbytes)
            if outcomes[0] != OK:
                continue
            offsets, _ = self.cache.locate(handles)
            view = self.cache.region.payload(int(offsets[0]), nbytes)
            np.frombuffer(view, np.uint8)[:] = payload_for(key, FENCE, nbytes, nonce=1)
            del view
            if sums:
                self.cache.store_sums(handles)
            self.cache.publish(handles)
        return keys

    def counter(self, key: str) -> int:
        return next(
            int(entry["value"]) for entry in self.arena.region.counters() if entry["key"] == key
        )

    def wait_stored(self, count: int) -> None:
        """Until the worker has written so many blocks."""
        eventually(lambda: self.counter("spill_stored") >= count)

    def evict(self, keys: Sequence[bytes]) -> None:
        def gone() -> bool:  # the worker may have some of them pinned just now
            handles, _ = self.cache.find(keys)
            return not self.cache.evict(handles[handles != 0]).any()

        eventually(gone)

    def outcomes(self, keys: Sequence[bytes]) -> list[int]:
        return self.cache.find(keys)[1].tolist()

    def spilled(self, keys: Sequence[bytes]) -> int:
        """How many are on SSD and not in memory."""
        return self.outcomes(keys).count(SPILLED)

    def judge(self, keys: Sequence[bytes]) -> int:
        return judge(self.cache, keys)

    def promote(self, keys: Sequence[bytes], deadline_ms: int = 20_000) -> list[Answer]:
        """Ask, and wait for the answer."""
        ticket = self.ask(keys, deadline_ms)
        done: Done = eventually(
            lambda: next((r for r in self.client.replies() if r.request_id == ticket), None)
        )
        return [Answer(outcome) for outcome in done.outcomes]

    def ask(self, keys: Sequence[bytes], deadline_ms: int = 20_000) -> int:
        ticket: int = eventually(
            lambda: self.client.promote(keys, self.cache.namespace_id, deadline_ms)
        )
        return ticket
