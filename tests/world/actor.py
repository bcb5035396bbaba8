"""What does an engine do in these tests? Whatever it is told, one line of JSON at a time, in a process of its own.

`python -m tests.world.actor ARENA` reads commands from standard input and answers each on standard output. It
is a client of the arena by the same `Cache` and `Copyist` that engines use; nothing in it is a stand-in. What
the commands do is said at each. Payloads are their key, repeated, so that a wrong byte is seen wherever it is.
Run by `actors.py`, which gives it a PID namespace, a limit, a user or a clock of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Cache, Copyist
from pegashm.keys import Namespace
from pegashm.liveness import REGISTRY_BYTE, open_lock_file, try_lock
from pegashm.units import KIB

__all__ = ["NAMESPACE", "PAYLOAD_BYTES", "key_of", "payload_of"]

NAMESPACE = Namespace(fingerprint=b"w" * 32, label="world")
PAYLOAD_BYTES = 16 * KIB

Handles = NDArray[np.uint64]


def key_of(number: int) -> bytes:
    return f"world {number:026d}".encode() + bytes(4)


def payload_of(key: bytes) -> bytes:
    return key[:32] * (PAYLOAD_BYTES // 32)


class Actor:
    """One process's cache and what it holds there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cache: Cache | None = None
        self.copyist: Copyist | None = None
        self.held: dict[int, int] = {}  # key number -> handle of a claim not published yet
        self.pinned: dict[int, int] = {}
        self.locks: list[int] = []
        self.children: list[int] = []

    @property
    def attached(self) -> Cache:
        assert self.cache is not None, "attach first"
        return self.cache

    # -- as a client -----------------------------------------------------------------------------------

    def attach(self, label: str = "", wait_s: float = 5.0) -> dict[str, Any]:
        self.cache = Cache.attach(self.name, namespace=NAMESPACE, label=label, wait_s=wait_s)
        return self.who()

    def who(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "slot": self.attached.slot,
            "incarnation": self.attached.incarnation,
            "region_id": self.attached.region_id.hex(),
        }

    def claim(self, numbers: list[int]) -> list[str]:
        handles, outcomes = self.attached.claim([key_of(n) for n in numbers], PAYLOAD_BYTES)
        self.held.update({n: h for n, h in zip(numbers, handles.tolist(), strict=True) if h})
        return [_native.STATUS_NAMES[outcome] for outcome in outcomes.tolist()]

    def write(self, numbers: list[int]) -> None:
        handles = np.array([self.held[n] for n in numbers], dtype=np.uint64)
        write(self.attached.region, self.attached.locate(handles)[0].tolist(), numbers)

    def publish(self, numbers: list[int], parts: int = 0) -> list[str]:
        handles = np.array([self.held.pop(n) for n in numbers], dtype=np.uint64)
        return [_native.STATUS_NAMES[o] for o in self.attached.publish(handles, parts).tolist()]

    def store(self, numbers: list[int]) -> int:
        """Claim, write and publish what is not there; how many of them were stored by us."""
        self.claim(numbers)
        mine = [n for n in numbers if n in self.held]
        self.write(mine)
        return self.publish(mine).count("ok")

    def check(self, numbers: list[int]) -> dict[str, int]:
        """Find, pin, read and judge each block."""
        counts = {"right": 0, "missing": 0, "wrong": 0}
        keys = [key_of(n) for n in numbers]
        handles, _ = self.attached.find(keys, pin=True)
        there = handles[handles != 0]
        offsets = dict(zip(there.tolist(), self.attached.locate(there)[0].tolist(), strict=True))
        for key, handle in zip(keys, handles.tolist(), strict=True):
            if not handle:
                counts["missing"] += 1
                continue
            view = self.attached.region.payload(int(offsets[handle]), PAYLOAD_BYTES)
            counts["right" if view == payload_of(key) else "wrong"] += 1
            view.release()
        self.attached.unpin(there)
        return counts

    def pin(self, numbers: list[int]) -> int:
        handles, _ = self.attached.find([key_of(n) for n in numbers], pin=True)
        self.pinned.update({n: h for n, h in zip(numbers, handles.tolist(), strict=True) if h})
        return len(self.pinned)

    def read_pinned(self) -> dict[str, int]:
        """Judge what is pinned, without looking it up again, and let go of it."""
        counts = {"right": 0, "wrong": 0}
        handles = np.array(list(self.pinned.values()), dtype=np.uint64)
        offsets, _ = self.attached.locate(handles)
        for number, offset in zip(self.pinned, offsets.tolist(), strict=True):
            view = self.attached.region.payload(offset, PAYLOAD_BYTES)
            counts["right" if view == payload_of(key_of(number)) else "wrong"] += 1
            view.release()
        self.attached.unpin(handles)
        self.pinned.clear()
        return counts

    def evict(self, count: int) -> int:
        return self.attached.evict_lru(PAYLOAD_BYTES, count)

    def reap(self) -> int:
        return self.attached.reap_dead()

    def tally(self) -> dict[str, int]:
        return self.attached.region.tally()

    def offsets(self) -> dict[int, int]:
        """Where each held claim lies, for a worker."""
        handles = np.array(list(self.held.values()), dtype=np.uint64)
        return dict(zip(self.held.values(), self.attached.locate(handles)[0].tolist(), strict=True))

    def close(self) -> None:
        self.attached.close()
        self.cache = None

    def linked(self) -> bool:
        return self.attached.arena.is_linked()

    def churn(self, seed: int, keys: int) -> None:
        """Store, pin, check and evict at random for ever, from the next command's arrival on nobody is answered.

        Written to be stopped anywhere by SIGSTOP and ended by SIGKILL. SIGUSR1 asks for one more line
        of figures and the end of the work.
        """
        chance = random.Random(seed)
        ended: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: ended.append(number))
        figures = {"stored": 0, "right": 0, "missing": 0, "wrong": 0, "evicted": 0, "refused": 0}
        answer("churning")
        parent = os.getppid()
        while not ended and os.getppid() == parent:
            some = chance.sample(range(keys), 8)
            figures["stored"] += self.store(some)
            for outcome, count in self.check(chance.sample(range(keys), 8)).items():
                figures[outcome] += count
            if chance.random() < 0.2:
                figures["evicted"] += self.evict(4)
            if chance.random() < 0.1:
                self.reap()
        answer(figures)

    # -- as a worker -----------------------------------------------------------------------------------

    def serve_for(self, region_id: str, slot: int, incarnation: int) -> bool:
        if self.copyist is None:
            self.copyist = Copyist.open(self.name)
        return self.copyist.serve(bytes.fromhex(region_id), slot, incarnation)

    def scribble(self, blocks: dict[str, int], numbers: list[int], seconds: float) -> int:
        """Write our blocks over and over, as a copy that takes long would; how often."""
        assert self.copyist is not None
        rounds, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            write(self.copyist.region, list(blocks.values()), numbers)
            rounds += 1
        self.copyist.part_done(np.array([int(h) for h in blocks], dtype=np.uint64), ok=True)
        return rounds

    def stop_serving(self) -> None:
        assert self.copyist is not None
        self.copyist.close()
        self.copyist = None

    # -- as what goes wrong ------------------------------------------------------------------------------

    def hold_registry(self) -> bool:
        self.locks.append(open_lock_file(self.name))
        return try_lock(self.locks[-1], REGISTRY_BYTE)

    def fork(self) -> int:
        """A child by fork alone that sleeps; its pid."""
        pid = os.fork()
        if pid == 0:
            signal.alarm(120)  # it is meant to outlive its parent, but not the test
            signal.pause()
            os._exit(0)
        self.children.append(pid)
        return pid

    def fork_and_use(self, numbers: list[int]) -> list[str]:
        """A forked child tries all that its parent could do; what it was told each time."""
        cache = self.attached
        handles = np.array(list(self.held.values()), dtype=np.uint64)
        uses: dict[str, Callable[[], object]] = {
            "find": lambda: cache.find([key_of(n) for n in numbers], pin=True),
            "claim": lambda: cache.claim([key_of(10**6)], PAYLOAD_BYTES),
            "publish": lambda: cache.publish(handles),
            "abandon": lambda: cache.abandon(handles),
            "pin": lambda: cache.pin(handles),
            "unpin": lambda: cache.unpin(np.array(list(self.pinned.values()), dtype=np.uint64)),
            "touch": lambda: cache.touch(handles),
            "evict": lambda: cache.evict_lru(PAYLOAD_BYTES, 1),
            "locate": lambda: cache.locate(handles),
            "payload": lambda: cache.region.payload(0, 16),
            "tally": cache.region.tally,
            "part_done": lambda: _native.part_done(cache.region, handles, True),
            "repair": cache.region.repair,
            "reap": lambda: cache.region.reap_client(cache.slot),
        }
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = []
            for name, use in uses.items():
                try:
                    use()
                    said.append(f"{name}: done")
                except Exception as error:  # noqa: BLE001 - what it says is what the test reads
                    said.append(f"{name}: {type(error).__name__}: {error}")
            cache.close()
            with Cache.attach(self.name, namespace=NAMESPACE, label="forked") as own:
                said.append(f"own slot {own.slot}")
            os.write(write_end, json.dumps(said).encode())
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            said = json.loads(pipe.read())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return [*said, f"exit status {status}"]

    def spawn_as(self, pid: int) -> int:
        """A forked actor-less client whose process number is `pid`: only in a PID namespace of our own."""
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1), encoding="ascii")
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            with Cache.attach(self.name, namespace=NAMESPACE, label="number taken again") as own:
                own.claim([key_of(2_000_000 + own.slot)], PAYLOAD_BYTES)
                os.write(write_end, str(own.slot).encode())
                signal.pause()
            os._exit(0)
        self.children.append(child)
        os.close(write_end)
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            slot = pipe.read(3)
        assert child == pid, f"the kernel gave {child}, wanted {pid}"
        return int(slot)

    def kill_child(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.children.remove(pid)

    def attach_many(self, count: int) -> list[int]:
        """So many forked clients, each with a slot; their pids."""
        waiting = []
        for _ in range(count):
            read_end, write_end = os.pipe()
            pid = os.fork()
            if pid == 0:
                die_with_parent()
                said = b"-"
                try:
                    own = Cache.attach(
                        self.name, namespace=NAMESPACE, label="one of many", wait_s=60
                    )
                    said = str(own.slot).encode()
                finally:
                    os.write(write_end, said)
                signal.pause()
                os._exit(0)
            os.close(write_end)
            self.children.append(pid)
            waiting.append(read_end)
        slots = []
        for read_end in waiting:
            with os.fdopen(read_end, "rb", buffering=0) as pipe:
                slots.append(pipe.read(3).decode())
        assert sorted(map(int, slots)) == list(range(count)), slots
        return self.children[-count:]

    # -- the clock ---------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return time.time_ns()

    def shift_clock(self, seconds: int) -> int:
        """Move this process's CLOCK_REALTIME, through the preloaded library; the year it is now."""
        ctypes.CDLL(None).pegashm_test_shift_clock(ctypes.c_longlong(seconds))
        return time.gmtime().tm_year

    # -- reading only --------------------------------------------------------------------------------------

    def read_only_tally(self) -> dict[str, int]:
        with open_arena(self.name, writable=False) as arena:
            return arena.region.tally()


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def write(region: _native.Region, offsets: list[int], numbers: list[int]) -> None:
    for number, offset in zip(numbers, offsets, strict=True):
        view = region.payload(offset, PAYLOAD_BYTES)
        view[:] = payload_of(key_of(number))
        view.release()


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def main(name: str) -> None:
    actor = Actor(name)
    answer({"pid": os.getpid()})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            value = getattr(actor, command.pop("do"))(**command)
        except Exception as error:  # noqa: BLE001 - told to the test, which decides
            answer({"error": type(error).__name__, "said": str(error)})
        else:
            answer({"value": value})
    for pid in actor.children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
