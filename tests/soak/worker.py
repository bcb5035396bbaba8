"""What does one process of the soak do until it is killed?

Attaches, then does random things: claims, writes and publishes; finds, pins, copies out and verifies;
copies without a pin and asks the generation afterwards; evicts, touches, abandons, changes namespace,
reaps the dead, detaches and attaches anew. Every second worker is an engine of two processes: a copyist
does its writing, late, and goes on when its owner is killed, as a worker of an engine would.
Counts its steps in shared memory, so that the referee sees a hang. Ends with status 3 and a line of text
when it has seen a wrong byte or a broken promise; never returns otherwise.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache, Copyist
from pegashm.errors import ClientsFullError

from tests.soak.plan import FENCES, KEYS, SIZES
from tests.soak.stamp import HEAD_BYTES, payload_for, verify

__all__ = ["BROKEN", "COUNTERS", "Board", "run_worker"]

BROKEN = 3
COUNTERS = ("steps", "published", "verified", "unpinned_right", "unpinned_stale", "evicted", "reaped",
            "refused", "attached")  # fmt: skip
Handles = NDArray[np.uint64]
JOB = struct.Struct(
    "<QQQ36sxxxxQ"
)  # handle, offset, payload bytes, key, namespace; nonce is the handle
WRITE_DELAY_SECONDS_MAX = 0.02


class Board:
    """Counters of every worker in one anonymous shared page; survives any of them."""

    def __init__(self, workers: int) -> None:
        self.memory = mmap.mmap(
            -1, mmap.PAGESIZE * (1 + workers * len(COUNTERS) * 8 // mmap.PAGESIZE)
        )
        self.cells = np.frombuffer(self.memory, dtype=np.uint64)[: workers * len(COUNTERS)].reshape(
            workers, len(COUNTERS)
        )

    def add(self, worker: int, counter: str, amount: int = 1) -> None:
        self.cells[worker, COUNTERS.index(counter)] += np.uint64(amount)

    def steps(self, worker: int) -> int:
        return int(self.cells[worker, 0])

    def sums(self) -> dict[str, int]:
        return dict(zip(COUNTERS, (int(total) for total in self.cells.sum(axis=0)), strict=True))


class BrokenPromiseError(Exception):
    """A wrong byte, or an answer that cannot be."""


def run_worker(name: str, worker: int, seed: int, board: Board) -> None:
    """Work until killed. Runs in a forked child and never returns."""
    try:
        Worker(name, worker, random.Random(seed), board).work()
    except BrokenPromiseError as error:
        print(f"worker {worker} (seed {seed}): {error}", file=sys.stderr, flush=True)
        os._exit(BROKEN)
    finally:  # a forked child must not go on in its parent's code, whatever happened
        traceback.print_exc()
        print(f"worker {worker} (seed {seed}) failed", file=sys.stderr, flush=True)
        os._exit(BROKEN + 1)


class Worker:
    """One engine: its cache, its private memory, its copyist if it has one."""

    def __init__(self, name: str, worker: int, chance: random.Random, board: Board) -> None:
        self.name = name
        self.worker = worker
        self.chance = chance
        self.board = board
        self.copyist: int | None = None
        self.copyist_pid = 0
        self.fence = 0
        self.cache = self.attach()

    def work(self) -> None:
        steps = (
            (self.store, 40), (self.load, 40), (self.load_without_pin, 15), (self.evict, 8),
            (self.evict_lru, 4), (self.touch, 10), (self.hold_pins, 6), (self.claim_and_abandon, 5),
            (self.change_namespace, 2), (self.reap, 2), (self.reattach, 1),
        )  # fmt: skip
        actions, weights = zip(*steps, strict=True)
        while True:
            self.chance.choices(actions, weights)[0]()
            self.board.add(self.worker, "steps")

    # -- storing -----------------------------------------------------------------------------------

    def store(self) -> None:
        keys, size = self.some_keys(6), self.chance.choice(SIZES)
        handles, outcomes = self.cache.claim(keys, size)
        self.board.add(self.worker, "refused", int((outcomes == _native.NO_SPACE).sum()))
        mine = [(key, handle) for key, handle, outcome in zip(keys, handles, outcomes, strict=True)
                if outcome == _native.OK]  # fmt: skip
        if not mine:
            return
        taken = np.array([handle for _, handle in mine], dtype=np.uint64)
        if self.copyist is None:
            self.write_all(mine, taken)
            parts = self.chance.choice((0, 1))
            if parts:
                _native.part_done(self.cache.region, taken, True)
        else:
            parts = 1
            self.have_written(mine, taken)
        self.expect(self.cache.publish(taken, parts), {_native.OK}, "publish")
        self.board.add(self.worker, "published", len(mine))

    def write_all(self, mine: list[tuple[bytes, np.uint64]], taken: Handles) -> None:
        offsets, sizes = self.cache.locate(taken)
        for (key, handle), offset, size in zip(mine, offsets.tolist(), sizes.tolist(), strict=True):
            if not size:
                raise BrokenPromiseError(f"our claim {handle:#x} has no place")
            target = np.frombuffer(self.cache.region.payload(offset, size), dtype=np.uint8)
            source = payload_for(key, self.fence, size, int(handle))
            half = size // 2 // 8 * 8
            target[:half] = source[:half]
            target[half:] = source[half:]

    def have_written(self, mine: list[tuple[bytes, np.uint64]], taken: Handles) -> None:
        """Let the copyist write and wait for it; if it was killed, the engine is lost: end with it."""
        assert self.copyist is not None
        offsets, sizes = self.cache.locate(taken)
        for (key, handle), offset, size in zip(mine, offsets.tolist(), sizes.tolist(), strict=True):
            try:
                os.write(self.copyist, JOB.pack(int(handle), offset, size, key, self.fence))
            except BrokenPipeError:
                break
        while int(_native.parts_total(self.cache.region, taken).sum()) < len(mine):
            self.board.add(self.worker, "steps")
            time.sleep(0.001)
            ended, status = os.waitpid(self.copyist_pid, os.WNOHANG)
            if ended:
                self.copyist_ended(status)

    def claim_and_abandon(self) -> None:
        handles, outcomes = self.cache.claim(self.some_keys(4), self.chance.choice(SIZES))
        self.cache.abandon(handles[outcomes == _native.OK])

    # -- loading -----------------------------------------------------------------------------------

    def load(self) -> None:
        keys = self.some_keys(8)
        find = self.chance.choice((self.cache.find, self.cache.find_prefix))
        handles, outcomes = find(keys, pin=True)
        self.expect(outcomes, {_native.OK, _native.MISSING, _native.PENDING}, "find")
        found = [
            (key, handle) for key, handle in zip(keys, handles.tolist(), strict=False) if handle
        ]
        copies = self.copy_out([handle for _, handle in found])
        for (key, handle), copy in zip(found, copies, strict=True):
            if copy is None:
                raise BrokenPromiseError(f"pinned block {handle:#x} has no place")
            self.check(copy, key, handle, "pinned")
        self.cache.unpin(handles)
        self.board.add(self.worker, "verified", len(found))

    def load_without_pin(self) -> None:
        """Copy at one's own risk: what still has its generation afterwards must be right."""
        keys = self.some_keys(8)
        handles, _ = self.cache.find(keys)
        found = [
            (key, handle) for key, handle in zip(keys, handles.tolist(), strict=True) if handle
        ]
        if self.chance.random() < 0.3:
            time.sleep(self.chance.random() * 0.003)
        copies = self.copy_out([handle for _, handle in found])
        hold = _native.generations_hold(
            self.cache.region, np.array([handle for _, handle in found], dtype=np.uint64)
        )
        for (key, handle), copy, holds in zip(found, copies, hold.tolist(), strict=True):
            if holds and copy is not None:
                self.check(copy, key, handle, "unpinned, generation held")
            self.board.add(self.worker, "unpinned_right" if holds else "unpinned_stale")

    def hold_pins(self) -> None:
        """Pin for a while, nested, and look again."""
        keys = self.some_keys(4)
        handles, _ = self.cache.find(keys, pin=True)
        found = [
            (key, handle) for key, handle in zip(keys, handles.tolist(), strict=True) if handle
        ]
        held = np.array([handle for _, handle in found], dtype=np.uint64)
        self.expect(self.cache.pin(held), {_native.OK}, "pin of a pinned block")
        self.cache.unpin(held)
        time.sleep(self.chance.random() * 0.01)
        for (key, handle), copy in zip(found, self.copy_out(held.tolist()), strict=True):
            if copy is None:
                raise BrokenPromiseError(f"block {handle:#x}, pinned for a while, has no place")
            self.check(copy, key, handle, "pinned for a while")
        self.expect(self.cache.evict(held), {_native.PINNED}, "evict of a pinned block")
        self.cache.unpin(held)

    def copy_out(self, handles: list[int]) -> list[NDArray[np.uint8] | None]:
        offsets, sizes = self.cache.locate(np.array(handles, dtype=np.uint64))
        copies: list[NDArray[np.uint8] | None] = []
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            if size < HEAD_BYTES:
                copies.append(None)
                continue
            view = np.frombuffer(self.cache.region.payload(offset, size), dtype=np.uint8)
            copies.append(view.copy())
        return copies

    def check(self, copy: NDArray[np.uint8], key: bytes, handle: int, how: str) -> None:
        wrong = verify(copy, key, self.fence)
        if wrong:
            raise BrokenPromiseError(f"WRONG BYTES in block {handle:#x} ({how}): {wrong}")

    # -- everything else -----------------------------------------------------------------------------

    def evict(self) -> None:
        handles, _ = self.cache.find(self.some_keys(6))
        outcomes = self.cache.evict(handles[handles != 0])
        self.expect(outcomes, {_native.OK, _native.PINNED, _native.MISSING}, "evict")
        self.board.add(self.worker, "evicted", int((outcomes == _native.OK).sum()))

    def evict_lru(self) -> None:
        evicted = self.cache.evict_lru(self.chance.choice(SIZES), self.chance.randrange(1, 4))
        self.board.add(self.worker, "evicted", evicted)

    def touch(self) -> None:
        handles, _ = self.cache.find_prefix(self.some_keys(8))
        self.cache.touch(handles[::-1])

    def change_namespace(self) -> None:
        self.fence = self.chance.randrange(len(FENCES))
        self.cache.enter(FENCES[self.fence])

    def reap(self) -> None:
        self.board.add(self.worker, "reaped", self.cache.reap_dead())

    def reattach(self) -> None:
        self.stop_copyist()
        self.cache.close()
        self.cache = self.attach()

    def attach(self) -> Cache:
        while True:
            try:
                cache = Cache.attach(
                    self.name,
                    namespace=FENCES[self.fence],
                    engine_id=f"soak-{self.worker}".encode(),
                    label=f"soak worker {self.worker}",
                )
                break
            except (
                ClientsFullError
            ):  # engines whose workers still live keep their slots: not for long
                time.sleep(0.05)
        self.cache = cache
        self.board.add(self.worker, "attached")
        if self.worker % 2:
            self.start_copyist()
        return cache

    def some_keys(self, most: int) -> list[bytes]:
        """Distinct keys, some far more popular than others."""
        count = self.chance.randint(1, most)
        picked = {int(self.chance.random() ** 2 * len(KEYS)) for _ in range(count)}
        return [KEYS[index] for index in picked]

    def expect(self, outcomes: NDArray[np.uint8], allowed: set[int], what: str) -> None:
        odd = set(outcomes.tolist()) - allowed
        if odd:
            names = ", ".join(_native.STATUS_NAMES[outcome] for outcome in sorted(odd))
            raise BrokenPromiseError(f"{what} answered {names}")

    # -- the second process of an engine ---------------------------------------------------------------

    def start_copyist(self) -> None:
        """Fork a writer; it serves before we go on, so that it keeps what we claim from being reaped."""
        jobs, self.copyist = os.pipe()
        answers, answer = os.pipe()
        about = (self.cache.region_id, self.cache.slot, self.cache.incarnation)
        self.copyist_pid = os.fork()
        if self.copyist_pid == 0:
            os.close(self.copyist)
            os.close(answers)
            copy_for(self.name, jobs, answer, about, self.chance)
        os.close(jobs)
        os.close(answer)
        said = os.read(answers, 1)
        if not said:
            self.copyist_ended(os.waitpid(self.copyist_pid, 0)[1])
        if said != b"y":
            raise BrokenPromiseError("our own copyist may not serve us")
        os.close(answers)

    def copyist_ended(self, status: int) -> None:
        """An engine that lost a worker to the referee dies like one; any other end is a finding."""
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise BrokenPromiseError(f"the copyist ended with status {status:#x}")

    def stop_copyist(self) -> None:
        if self.copyist is not None:
            os.close(self.copyist)
            os.waitpid(self.copyist_pid, 0)
            self.copyist = None


def copy_for(name: str, jobs: int, answer: int, about: tuple[bytes, int, int], chance: Any) -> None:
    """The copyist: writes what it is told, late. Its owner's death does not hurry it."""
    status = BROKEN
    try:
        with Copyist.open(name) as copyist:
            os.write(answer, b"y" if copyist.serve(*about) else b"n")
            while job := os.read(jobs, JOB.size):
                handle, offset, size, key, fence = JOB.unpack(job)
                time.sleep(chance.random() ** 4 * WRITE_DELAY_SECONDS_MAX)
                target = np.frombuffer(copyist.region.payload(offset, size), dtype=np.uint8)
                source = payload_for(key, fence, size, handle)
                target[: size // 2] = source[: size // 2]
                time.sleep(chance.random() ** 8 * WRITE_DELAY_SECONDS_MAX)
                target[size // 2 :] = source[size // 2 :]
                copyist.part_done(np.array([handle], dtype=np.uint64), True)
        status = 0
    finally:
        os._exit(status)
