"""How does a test get two hosts with a fabric between them, and say what each shall do?

Two arenas in shared memory, a process of its own for each host (`host.py`), and the test between them, which maps both
arenas itself: it judges the bytes even when their owner is stopped or dead. What is stopped or alive at the end
is killed, and nothing is left in /dev/shm.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

from pegashm.arena import Arena, open_arena
from pegashm.fabric.interface import ReadOutcome
from pegashm.liveness import holder_alive, owner_byte
from pegashm.units import KIB, MIB

from tests.arenas import Shape, make_arena, remove_arena
from tests.fabric.kinds import KINDS, READING, SERVING
from tests.fabric.payloads import holds, poison, poisoned

__all__ = ["GRACE_SECONDS", "PATIENCE_SECONDS", "HostProcess", "Lease", "Pair", "RefusedError"]

PATIENCE_SECONDS = 60.0
# `Connection.read` promises 0.25 s; the rest is for a machine that runs other things.
GRACE_SECONDS = 5.0
SHAPE = Shape(segment_bytes=4 * MIB, block_bytes_min=4 * KIB, segments_per_arena=(8,))
ROOT = Path(__file__).parents[2]
OK = ReadOutcome.OK


class RefusedError(Exception):
    """What an order raised in the other process; its first word is the exception's name."""


class HostProcess:
    """One host: `ask` for an answer now, `begin` for one later."""

    def __init__(self, kind: str, role: str) -> None:
        self.peer = secrets.token_bytes(16)  # its host id
        self.arena_name = make_arena(SHAPE)
        self.arena: Arena = open_arena(self.arena_name)
        self.region = self.arena.region
        self.on_introduce: Callable[[bytes], bytes] | None = None
        self._numbers = itertools.count(1)
        self._futures: dict[int, Future[Any]] = {}
        self._ready: Future[bool] = Future()
        self._gone = False
        command = [sys.executable, "-m", "tests.fabric.host", kind, role, self.arena_name]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait_ready(self) -> HostProcess:
        self._ready.result(PATIENCE_SECONDS)
        (client,) = self.region.clients()
        self.slot = int(client["slot"])
        return self

    def begin(self, do: str, **order: Any) -> Future[Any]:
        number = next(self._numbers)
        future: Future[Any] = Future()
        self._futures[number] = future
        self._write({"do": do, "id": number, **order})
        if self._gone:  # what was written goes to nobody, and who says so has been here
            self._end_all()
        return future

    def ask(self, do: str, **order: Any) -> Any:
        return self.begin(do, **order).result(PATIENCE_SECONDS)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has taken its locks: from here on its claims may go to others."""
        self.process.kill()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while holder_alive(self.arena.control_fd, owner_byte(self.slot)):
            assert time.monotonic() < deadline, "killed, and its lock is held"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.arena.close()
        remove_arena(self.arena_name)

    def _write(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "ready" in said:
                self._ready.set_result(True)
            elif "introduce" in said:
                threading.Thread(target=self._introduce, args=(said,), daemon=True).start()
            elif "error" in said:
                future = self._futures.pop(said["id"])
                future.set_exception(RefusedError(f"{said['error']}: {said['text']}"))
            else:
                self._futures.pop(said["id"]).set_result(said["value"])
        self._gone = True
        self._end_all()

    def _end_all(self) -> None:
        gone = RefusedError("EOFError: the process has ended")
        for future in [self._ready, *list(self._futures.values())]:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(gone)

    def _introduce(self, said: dict[str, Any]) -> None:
        answer: dict[str, str] = {}
        try:
            assert self.on_introduce is not None
            answer["bytes"] = self.on_introduce(bytes.fromhex(said["bytes"])).hex()
        except Exception as error:  # noqa: BLE001 - the other side hears of it
            answer["refused"] = str(error)
        with contextlib.suppress(BrokenPipeError):
            self._write({"do": "answer", "introduce": said["introduce"], **answer})


class Lease:
    """Blocks granted to the reader, and the blocks claimed for them there: numbers, offsets, bytes."""

    def __init__(
        self, pair: Pair, number: int, grant: Any, sources: list[int], to: list[int], nbytes: int
    ) -> None:
        self.pair = pair
        self.number = number
        self.grant = grant
        self.sources = sources
        self.to = to
        self.nbytes = nbytes
        self.poison()

    def parts(self, which: Sequence[int] | None = None) -> list[tuple[int, int, int]]:
        chosen = range(len(self.sources)) if which is None else which
        return [(self.sources[n], self.nbytes, self.to[n]) for n in chosen]

    def poison(self) -> None:
        """Make every byte of the destinations one that no block has."""
        for offset in self.to:
            poison(self.pair.reading.region, offset, self.nbytes)

    def judge(self, outcomes: Sequence[int], which: Sequence[int] | None = None) -> int:
        """How many parts are OK; AssertionError where a byte of one of them is wrong."""
        chosen = range(len(self.sources)) if which is None else which
        region = self.pair.reading.region
        for n, outcome in zip(chosen, outcomes, strict=True):
            if outcome == OK:
                wrong = holds(region, self.number * 10_000 + n, self.to[n], self.nbytes)
                assert wrong is None, f"part {n} is OK and wrong: {wrong}"
        return sum(outcome == OK for outcome in outcomes)

    def assert_untouched(self, seconds: float = 0.3) -> None:
        """From now on nobody writes into the destinations."""
        self.poison()
        time.sleep(seconds)
        region = self.pair.reading.region
        written = [n for n, to in enumerate(self.to) if not poisoned(region, to, self.nbytes)]
        assert not written, f"written after the read was over: parts {written}"


class Pair:
    """A serving and a reading host."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.serving = HostProcess(kind, SERVING)
        self.hosts = [self.serving]
        self.readings: list[HostProcess] = []
        self._leases = itertools.count(1)
        try:
            self.reading = self.add_reader(wait=False)
            for host in self.hosts:
                host.wait_ready()
        except BaseException:
            self.close()
            raise

    def add_reader(self, *, wait: bool = True) -> HostProcess:
        host = HostProcess(self.kind, READING)
        self.hosts.append(host)
        return host.wait_ready() if wait else host

    def connect(
        self, reader: HostProcess | None = None, *, offer: bytes | None = None, seconds: float = 20
    ) -> int:
        """A connection of the reader to the server, by its number."""
        reader = reader or self.reading
        reader.on_introduce = reader.on_introduce or self.admitting(reader)
        offered = offer.hex() if offer is not None else self.serving.ask("offer")
        connection: int = reader.ask("connect", offer=offered, seconds=seconds)
        return connection

    def admitting(self, reader: HostProcess) -> Callable[[bytes], bytes]:
        """Carries an introduction to the server, as the authenticated channel does."""

        def introduce(introduction: bytes) -> bytes:
            answer = self.serving.ask(
                "admit", peer=reader.peer.hex(), introduction=introduction.hex()
            )
            return bytes.fromhex(answer)

        return introduce

    def lease(
        self,
        count: int,
        nbytes: int,
        *,
        seconds: float = 60,
        reader: HostProcess | None = None,
        peer: bytes | None = None,
    ) -> Lease:
        """Store blocks at the server and lease them; claim as many at the reader."""
        reader = reader or self.reading
        number = next(self._leases)
        sources = self.serving.ask("store", first=number * 10_000, count=count, nbytes=nbytes)
        grant = self.serving.ask(
            "grant",
            peer=(peer or reader.peer).hex(),
            lease=number,
            blocks=[(offset, nbytes) for offset in sources],
            seconds=seconds,
        )
        to = reader.ask("claim", first=number * 10_000, count=count, nbytes=nbytes)
        return Lease(self, number, grant, sources, to, nbytes)

    def mended(self, connection: int, lease: Lease) -> tuple[int, Lease]:
        """The same two, or after a failure of the connection a new one, with a lease that can be read over it."""
        if not self.reading.ask("broken", connection=connection):
            return connection, lease
        connection = self.connect()
        if not KINDS[self.kind].leases_outlive_connections:
            lease = self.lease(len(lease.sources), lease.nbytes)
        return connection, lease

    def begin_read(
        self,
        connection: int,
        lease: Lease,
        which: Sequence[int] | None = None,
        *,
        seconds: float = 30,
        parts: Sequence[tuple[int, int, int]] | None = None,
        reader: HostProcess | None = None,
    ) -> Future[Any]:
        return (reader or self.reading).begin(
            "read",
            connection=connection,
            grant=lease.grant,
            parts=parts if parts is not None else lease.parts(which),
            seconds=seconds,
        )

    def read(self, connection: int, lease: Lease, *args: Any, **options: Any) -> list[int]:
        """The outcomes; AssertionError when the deadline was overstepped."""
        return in_time(self.begin_read(connection, lease, *args, **options))

    def revoke(self, lease: Lease) -> None:
        self.serving.ask("revoke", lease=lease.number)

    def close(self) -> None:
        for host in self.hosts:
            with contextlib.suppress(ProcessLookupError):
                os.kill(host.process.pid, signal.SIGCONT)
            host.close()


def in_time(reading: Future[Any]) -> list[int]:
    """The outcomes of a read that kept its deadline."""
    done = reading.result(PATIENCE_SECONDS)
    assert done["over"] < GRACE_SECONDS, f"returned {done['over']:.2f} s after its deadline"
    outcomes: list[int] = done["outcomes"]
    return outcomes
