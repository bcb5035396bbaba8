"""What does the SSD tier bring, and what does it cost those who need only memory?

Through the real broker: `pegashm serve` with its transport worker and one spill file, beside one of the same size without.
Hit rate: the same requests, whose different blocks take three times the arena, are served by one client of each, as an
engine would: hits of the prefix are copied out and compared byte by byte, the rest is stored. A client waits
at most a second for blocks on SSD; what is stored is paced, as computing it would. Once with a recorded trace, once by
Zipf's law. Slowdown: lookup and copy of blocks that are in memory, while another process stores at a steady rate and
nothing is spilled, or all of it is; and with nobody storing. Interleaved rounds; the ratio is of medians of rounds.

The file lies in a folder of its own in the temporary directory: TMPDIR=/mnt/nvme names the device to be measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pegashm._native import plan_region
from pegashm.arena import open_arena
from pegashm.layout import reuse_registers
from pegashm.liveness import TRANSPORT_BYTE, holder_alive

from bench import harness, requests
from bench.served import served_arena
from bench.tier_client import Client, Served, key_of

__all__ = ["measure"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
QUESTION = (
    "What is the hit rate with the SSD tier against without, and what do memory hits pay for it?"
)
NOT_SHOWN = (
    "an engine: what a hit is worth against computing it, and how long requests queue meanwhile",
    "a device of its own: the file shares one virtual disk with everything else on this machine",
    "several engines at once, and cores enough for the worker to have one of its own",
)
BLOCK_BYTES = 64 * KIB
STORE_MBS = 200
SEGMENT_BYTES = 4 * MIB
ARENA_SHARE = 3  # the working set is so many times the arena
HOT_BLOCKS = 512
PASS_BLOCKS = 64
READY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Replay:
    """One workload in one arena."""

    served: Served
    counters: Mapping[str, int]
    seconds: float

    @property
    def hit_rate(self) -> float:
        return (self.served.memory + self.served.ssd) / self.served.asked


def measure(options: harness.Options) -> harness.Findings:
    rate = STORE_MBS * 1e6
    workloads = {
        "trace": requests.trace(options.pick(2000, 500, 200)),
        "zipf": requests.zipf(
            options.pick(3000, 800, 100), options.pick(600, 200, 40), harness.SEED
        ),
    }
    with tempfile.TemporaryDirectory(prefix="pegashm-bench-") as folder:
        rows = [
            row_of(name, work, rate, Path(folder) / f"{name}.spill")
            for name, work in workloads.items()
        ]
        slow = slowdown(options, rate, Path(folder) / "slow.spill")
    digest = hashlib.sha256("".join(map(requests.digest, workloads.values())).encode())
    figures = {
        "hit_rate_with": rows[0]["with"],
        "hit_rate_without": rows[0]["without"],
        "wrong_blocks": sum(row["wrong"] for row in rows),
        "slowdown_p50": slow["ratio_p50"],
        "slowdown_p99": slow["ratio_p99"],
        "store_mbs": rate / 1e6,
        "results": rows,
        "slowdown": slow,
    }
    return harness.Findings(
        [hit_table(rows), slow_table(slow)],
        figures,
        digest.hexdigest()[:16],
        notes=(
            f"blocks of {BLOCK_BYTES // KIB} KiB; at most {rate / 1e6:.0f} MB/s are stored",
            "'at most' is a cache without limits; 'lost' was evicted before it was written",
            "blocks in memory: looked up and copied; that, the storing process and the worker share cores",
        ),
    )


# -- hit rate --------------------------------------------------------------------------------------


def row_of(name: str, work: Sequence[Sequence[int]], rate: float, file: Path) -> dict[str, Any]:
    blocks = requests.block_count(work)
    size = segments(blocks * BLOCK_BYTES // ARENA_SHARE)
    results = {}
    for tier in (False, True):
        harness.progress(f"{name}: {len(work)} requests, {'with' if tier else 'without'} the tier")
        with broker(size, file if tier else None, blocks) as arena:
            results[tier] = replay(arena, work, rate)
    without, with_ = results[False], results[True]
    waits = np.array(with_.served.waits_s or [0.0])
    return {
        "workload": name,
        "requests": len(work),
        "blocks": blocks,
        "arena_mib": size // MIB,
        "without": round(without.hit_rate, 4),
        "with": round(with_.hit_rate, 4),
        "at_most": round(requests.hits_at_most(work) / with_.served.asked, 4),
        "hits_memory": with_.served.memory,
        "hits_ssd": with_.served.ssd,
        "waits": len(with_.served.waits_s),
        "wait_p50_ms": round(float(np.percentile(waits, 50)) * 1e3, 2),
        "wait_p99_ms": round(float(np.percentile(waits, 99)) * 1e3, 2),
        "lost": with_.counters["spill_late"],
        "wrong": with_.served.wrong + without.served.wrong,
        "seconds_without": round(without.seconds, 1),
        "seconds_with": round(with_.seconds, 1),
        "counters": with_.counters,
    }


def replay(arena: str, work: Sequence[Sequence[int]], rate: float) -> Replay:
    longest = max(map(len, work))
    with contextlib.closing(Client(arena, BLOCK_BYTES, longest)) as client:
        time.sleep(0.2)  # until the client is connected
        began = time.perf_counter()
        served = client.served(work, rate)
        seconds = time.perf_counter() - began
        rows = client.cache.region.counters()
    counters = {
        row["key"]: int(row["value"])
        for row in rows
        if row["key"].startswith("spill_")
        or row["key"] in ("evictions", "hits", "misses", "claims_no_space")
    }
    return Replay(served, counters, seconds)


# -- slowdown --------------------------------------------------------------------------------------


def slowdown(options: harness.Options, rate: float, file: Path) -> dict[str, Any]:
    """Seconds of a pass over hot blocks: nobody storing, storing, and storing with all of it spilled."""
    rounds = options.pick(15, 5, 1)
    seconds = options.pick(2.0, 1.0, 0.3)
    size = segments(options.pick(1024, 256, 64) * MIB)
    hot = min(HOT_BLOCKS, size // BLOCK_BYTES // 4)
    with contextlib.ExitStack() as stack:
        sides = {
            tier: stack.enter_context(
                side(broker(size, file if tier else None, 8 * size // BLOCK_BYTES), rate, hot)
            )
            for tier in (False, True)
        }
        for one in sides.values():  # full arenas, where every store evicts
            one.passes(size / rate, True, [])
        harness.progress(f"slowdown: {rounds} rounds")
        spilled = sides[True].counter("spill_stored")
        contenders: dict[str, Callable[[], float]] = {}
        tails: dict[str, list[float]] = {}
        for name, one, storing in (
            ("nobody stores", sides[True], False),
            ("stores, no tier", sides[False], True),
            ("stores, all spilled", sides[True], True),
        ):
            tails[name] = []
            contenders[name] = partial(one.passes, seconds, storing, tails[name])
        medians = harness.interleave(rounds, contenders)
        spilled = sides[True].counter("spill_stored") - spilled
    p50 = {name: harness.median(samples) for name, samples in medians.items()}
    p99 = {name: harness.median(samples) for name, samples in tails.items()}
    base, tier = "stores, no tier", "stores, all spilled"
    return {
        "rounds": rounds,
        "pass_bytes": PASS_BLOCKS * BLOCK_BYTES,
        "p50_us": {name: round(value * 1e6, 1) for name, value in p50.items()},
        "p99_us": {name: round(value * 1e6, 1) for name, value in p99.items()},
        "ratio_p50": round(p50[tier] / p50[base], 3),
        "ratio_p99": round(p99[tier] / p99[base], 3),
        "ratio_p50_to_idle": round(p50[tier] / p50["nobody stores"], 3),
        "spilled_blocks": spilled,
        "refills": sum(one.refills for one in sides.values()),
    }


class Side:
    """One arena with hot blocks in it, a client that loads them and a process that stores others."""

    def __init__(self, client: Client, storer: subprocess.Popen[str], hot: int) -> None:
        self.client = client
        self.storer = storer
        self.keys = [key_of(block, "h") for block in range(hot)]
        self.chance = np.random.default_rng(harness.SEED)
        self.refills = 0
        self.fill()

    def fill(self) -> None:
        """All hot blocks are in memory."""
        for at in range(0, len(self.keys), PASS_BLOCKS):
            keys = self.keys[at : at + PASS_BLOCKS]
            self.client.store(range(at, at + len(keys)), keys)

    def order(self, what: str) -> None:
        assert self.storer.stdin is not None
        assert self.storer.stdout is not None
        self.storer.stdin.write(what + "\n")
        self.storer.stdin.flush()
        if self.storer.stdout.readline().strip() != what:
            raise SystemExit("the storing process has ended; it says why above")

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Somebody stores meanwhile; and the hot blocks are used, so that they stay."""
        self.order("go")
        try:
            until = time.perf_counter() + 0.2
            while time.perf_counter() < until:
                self._pass()
            yield
        finally:
            self.order("stop")

    def passes(self, seconds: float, storing: bool, tails: list[float]) -> float:
        """The median pass of so many seconds; its 99th percentile goes to `tails`."""
        with self.storing() if storing else contextlib.nullcontext():
            if not storing:
                time.sleep(0.3)  # what is still being spilled
            until = time.perf_counter() + seconds
            taken = []
            while time.perf_counter() < until:
                taken.append(self._pass())
        tails.append(harness.percentile(taken, 99))
        return harness.median(taken)

    def _pass(self) -> float:
        chosen = self.chance.choice(len(self.keys), min(PASS_BLOCKS, len(self.keys)), replace=False)
        keys = [self.keys[i] for i in chosen.tolist()]
        while (took := self.client.hot_pass(keys)) is None:  # we were held up, and others stored
            self.refills += 1
            self.fill()
        time.sleep(took)  # an engine does not only load
        return took

    def counter(self, key: str) -> int:
        rows = self.client.cache.region.counters()
        return next(int(row["value"]) for row in rows if row["key"] == key)


@contextlib.contextmanager
def side(served: contextlib.AbstractContextManager[str], rate: float, hot: int) -> Iterator[Side]:
    with served as arena:
        command = [sys.executable, "-m", "bench.tier_client", arena, str(BLOCK_BYTES), str(rate)]
        storer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert storer.stdout is not None
            if storer.stdout.readline().strip() != "ready":
                raise SystemExit("the storing process did not start; it says why above")
            with contextlib.closing(Client(arena, BLOCK_BYTES, PASS_BLOCKS)) as client:
                yield Side(client, storer, hot)
        finally:
            storer.kill()
            storer.communicate()


# -- arenas ----------------------------------------------------------------------------------------


def segments(nbytes: int) -> int:
    """So many bytes in whole segments."""
    return max(nbytes // SEGMENT_BYTES, 4) * SEGMENT_BYTES


@contextlib.contextmanager
def broker(size: int, file: Path | None, blocks: int) -> Iterator[str]:
    """A supervisor's arena; with a spill file that holds `blocks` blocks and more, its worker listens."""
    options = ["--segment-size", str(SEGMENT_BYTES), "--block-min", str(BLOCK_BYTES), "--no-lock"]
    records = 2 * blocks if file is not None else 0
    if file is not None:
        room = -(-blocks * (BLOCK_BYTES + 4 * KIB) * 5 // 4 // GIB) * GIB
        options += ["--spill", str(file), "--spill-size", str(room)]
        options += ["--spill-records", str(records)]
    plan = plan_region(
        segment_bytes=SEGMENT_BYTES,
        block_bytes_min=BLOCK_BYTES,
        segments_per_arena=[size // SEGMENT_BYTES],
        spill_records=records,
        reuse_registers=reuse_registers(size),
    )
    whole = size + plan["control_bytes"] + MIB  # --size is all of it
    with served_arena("tier", whole, None, options=options) as name:
        with open_arena(name) as arena:
            if arena.region.payload_bytes != size:
                raise AssertionError(f"{arena.region.payload_bytes} bytes, asked for {size}")
        if file is not None:
            wait_for_worker(name)
        yield name
    if file is not None:
        file.unlink()


def wait_for_worker(name: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with open_arena(name) as arena:
        while not (
            arena.region.header["transport_path"]
            and arena.region.header["spill_usable"]
            and holder_alive(arena.control_fd, TRANSPORT_BYTE)
        ):
            if time.monotonic() > deadline:
                raise SystemExit("the transport worker does not listen; it says why above")
            time.sleep(0.05)


# -- what is printed -------------------------------------------------------------------------------


def hit_table(rows: Sequence[dict[str, Any]]) -> Any:
    return harness.table(
        "Hit rate of blocks, the arena a third of the working set",
        (
            "requests",
            "blocks",
            "arena MiB",
            "without",
            "with",
            "at most",
            "hits: memory",
            "SSD",
            "wait p50 ms",
            "p99",
            "lost",
            "wrong",
        ),
        [
            (
                f"{row['workload']} {row['requests']}",
                row["blocks"],
                row["arena_mib"],
                f"{row['without']:.3f}",
                f"{row['with']:.3f}",
                f"{row['at_most']:.3f}",
                row["hits_memory"],
                row["hits_ssd"],
                row["wait_p50_ms"],
                row["wait_p99_ms"],
                row["lost"],
                row["wrong"],
            )
            for row in rows
        ],
    )


def slow_table(slow: dict[str, Any]) -> Any:
    rows = [(name, slow["p50_us"][name], slow["p99_us"][name]) for name in slow["p50_us"]]
    rows.append(("spilled / not", slow["ratio_p50"], slow["ratio_p99"]))
    return harness.table(f"{PASS_BLOCKS} blocks in memory, us", ("meanwhile", "p50", "p99"), rows)


if __name__ == "__main__":
    harness.run("tier", QUESTION, not_shown=NOT_SHOWN, measure=measure)
