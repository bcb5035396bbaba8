"""Who starts, kills, watches and at the end counts? The parent process of a soak.

It holds no arena while it forks, kills one random process at a time with SIGKILL (a worker, or the copyist
of one) and starts a worker in its place, watches that every worker makes progress, and takes any other end
of a worker for what it is: a broken promise. Then it stops everything, reaps, and counts: no claim, no
eviction under way and no pin may be left, all that is READY must verify, all must be evictable, and
every block must be claimable again. Called by `__main__` and by `test_soak.py`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pegashm import _native
from pegashm.cache import Cache

from tests.arenas import make_arena, remove_arena
from tests.soak.plan import FENCES, SHAPE, SIZES, SoakPlan
from tests.soak.stamp import verify
from tests.soak.worker import Board, run_worker

__all__ = ["run_soak"]

REAP_SECONDS_MAX = 20.0
PAUSE_CHANCE = 0.02  # a look, of which there are up to a hundred a second
PAUSE_SECONDS_MAX = 0.5


def run_soak(plan: SoakPlan) -> dict[str, Any]:
    """Run a whole soak; its summary, in which `problems` is empty when all promises were kept."""
    name = make_arena(SHAPE)
    started_at = time.monotonic()
    referee = Referee(name, plan)
    try:
        referee.watch()
        referee.stop()
        summary = referee.summary()
        summary |= settle(name, referee.problems)
    finally:
        referee.stop()
        remove_arena(name)
    summary["seconds"] = round(time.monotonic() - started_at, 1)
    summary["problems"] = referee.problems
    summary["ok"] = not referee.problems
    return summary


class Referee:
    """The workers of one soak, by number."""

    def __init__(self, name: str, plan: SoakPlan) -> None:
        self.name = name
        self.plan = plan
        self.chance = random.Random(plan.seed)
        self.board = Board(plan.processes)
        self.pids: dict[int, int] = {}  # worker number -> pid
        self.moved: dict[int, tuple[int, float]] = {}  # worker number -> steps, when they last grew
        self.problems: list[str] = []
        self.kills = {"worker": 0, "copyist": 0}
        self.paused: tuple[int, float] | None = None  # pid, when it goes on
        self.pauses = 0
        self.lost_engines = 0

    def watch(self) -> None:
        """Kill and restart until the time is over or a promise is broken."""
        ends_at = time.monotonic() + self.plan.seconds
        kill_at = time.monotonic() + 0.5
        for worker in range(self.plan.processes):
            self.start(worker)
        while time.monotonic() < ends_at and not self.problems:
            time.sleep(0.01)
            self.collect()
            self.look_for_hangs()
            self.pause_one()
            if time.monotonic() >= kill_at:
                self.kill_one()
                kill_at = time.monotonic() + self.chance.random() * self.plan.kill_every_seconds_max

    def start(self, worker: int) -> None:
        seed = self.chance.getrandbits(48)
        pid = os.fork()
        if pid == 0:
            run_worker(self.name, worker, seed, self.board)
        self.pids[worker] = pid
        self.moved[worker] = (self.board.steps(worker), time.monotonic())

    def kill_one(self) -> None:
        """SIGKILL one process, wherever it is; a killed worker is replaced at once."""
        worker = self.chance.randrange(self.plan.processes)
        copyists = children_of(self.pids[worker])
        if copyists and self.chance.random() < 0.3:
            with suppress(ProcessLookupError):
                os.kill(copyists[0], signal.SIGKILL)
            self.kills["copyist"] += 1
            return
        os.kill(self.pids[worker], signal.SIGKILL)
        os.waitpid(self.pids[worker], 0)
        self.kills["worker"] += 1
        self.start(worker)

    def pause_one(self) -> None:
        """Stop one worker or copyist in its tracks for a while: it is not dead, and will write again."""
        now = time.monotonic()
        if self.paused is None and self.chance.random() < PAUSE_CHANCE:
            worker = self.chance.choice(list(self.pids.values()))
            pid = self.chance.choice([worker, *children_of(worker)])
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.paused = (pid, now + self.chance.random() * PAUSE_SECONDS_MAX)
                self.pauses += 1
        elif self.paused is not None and now >= self.paused[1]:
            self.resume()

    def resume(self) -> None:
        if self.paused is not None:
            with suppress(ProcessLookupError):
                os.kill(self.paused[0], signal.SIGCONT)
            self.paused = None

    def collect(self) -> None:
        """Notice workers that ended by themselves."""
        for worker, pid in list(self.pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self.lost_engines += 1  # its copyist was killed: it ended itself
                self.start(worker)
            else:
                how = os.waitstatus_to_exitcode(status)
                self.problems.append(f"worker {worker} ended with {how}: see its last words above")
                del self.pids[worker]

    def look_for_hangs(self) -> None:
        now = time.monotonic()
        for worker, pid in self.pids.items():
            steps, since = self.moved[worker]
            if self.board.steps(worker) != steps:
                self.moved[worker] = (self.board.steps(worker), now)
            elif now - since > self.plan.hang_seconds:
                self.problems.append(f"worker {worker} made no step for {now - since:.0f} s")
                os.kill(pid, signal.SIGABRT)  # with -X faulthandler: where
                return

    def stop(self) -> None:
        """Kill all that is left of us, copyists included."""
        self.resume()
        for pid in self.pids.values():
            copyists = children_of(pid)
            for victim in (pid, *copyists):
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self.pids.clear()

    def summary(self) -> dict[str, Any]:
        return {
            "soak": "pegashm",
            "seed": self.plan.seed,
            "processes": self.plan.processes,
            "kills": dict(self.kills),
            "pauses": self.pauses,
            "lost_engines": self.lost_engines,
            **self.board.sums(),
        }


def children_of(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def settle(name: str, problems: list[str]) -> dict[str, Any]:
    """Reap everything, then account for every block; adds to `problems` what does not add up."""

    def expect(what: str, expected: object, found: object) -> None:
        if expected != found:
            problems.append(f"{what}: expected {expected}, found {found}")

    with Cache.attach(name, namespace=FENCES[0], label="referee") as cache:
        region = cache.region
        deadline = time.monotonic() + REAP_SECONDS_MAX
        reaped = cache.reap_dead()
        while len(region.clients()) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
            reaped += cache.reap_dead()
        expect("clients after reaping", 1, len(region.clients()))
        tally = region.tally()
        for state in ("claimed", "evicting", "damaged"):
            expect(f"blocks {state} after reaping", 0, tally[state])
        blocks = region.blocks()
        expect("pinned blocks after reaping", 0, int((blocks["pins"] != 0).any(axis=1).sum()))
        expect("segments changing after reaping", [], [
            segment["index"] for segment in region.segments() if segment["state"] == "changing"
        ])  # fmt: skip
        wrong = verify_all(cache)
        problems.extend(wrong)
        handles = (blocks["generation"] << np.uint64(24)) | blocks["record"].astype(np.uint64)
        outcomes = cache.evict(handles)
        expect("evictions of all blocks", len(handles), int((outcomes == _native.OK).sum()))
        expect("free records", region.tally()["record_count"], region.tally()["free"])
        resident = {row["label"]: row["resident_bytes"] for row in region.namespaces()}
        repaired = region.repair()
        expect("repair again", {"free_bits": 0, "touches": 0}, region.repair())
        for row in region.namespaces():
            expect(f"bytes of namespace {row['label']}", 0, row["resident_bytes"])
        for size in SIZES:
            claimable(cache, size, expect)
    return {
        "reaped_at_end": reaped,
        "ready_at_end": tally["ready"],
        "free_bits_lost": repaired["free_bits"],
        "resident_drift": resident,
    }


def verify_all(cache: Cache) -> list[str]:
    """Check the bytes of every READY block against its key."""
    wrong = []
    fences = {fence.fingerprint: number for number, fence in enumerate(FENCES)}
    numbers = {row["id"]: fences[bytes(row["fingerprint"])] for row in cache.region.namespaces()}
    for block in cache.region.blocks():
        key = bytes(block["key"])[: int(block["key_bytes"])] + int(block["group"]).to_bytes(
            4, "big"
        )
        offset, size = int(block["payload_offset"]), int(block["payload_bytes"])
        payload = np.frombuffer(cache.region.payload(offset, size), dtype=np.uint8)
        complaint = verify(payload.copy(), key, numbers[int(block["namespace_id"])])
        if complaint:
            wrong.append(f"WRONG BYTES at the end in record {int(block['record'])}: {complaint}")
    return wrong


def claimable(cache: Cache, size: int, expect: Any) -> None:
    """Every block of this size that the arena can hold can be claimed, and given back."""
    stride = -(-size // 4096) * 4096
    fits = sum(
        max(0, ((index + 1) * SHAPE.segment_bytes - -(-index * SHAPE.segment_bytes // stride) * stride)
            // stride)
        for index in range(sum(SHAPE.segments_per_arena))
    )  # fmt: skip
    keys = [key + bytes(4) for key in (index.to_bytes(8, "big") for index in range(fits))]
    handles, outcomes = cache.claim(keys, size)
    expect(f"claimable blocks of {size} bytes", fits, int((outcomes == _native.OK).sum()))
    cache.abandon(handles)
