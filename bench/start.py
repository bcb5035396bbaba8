"""How long is a fresh arena in the making, when is its first hit, and what would an engine's own pool have cost?

`pegashm serve` on nothing, with 8 and 16 GiB, on 4 KiB pages in /dev/shm and on a tmpfs with huge pages: until its first
segment can be used, until a client that waits for just that has stored a block and found it again, and until all is
populated and locked. Beside it, in the same rounds and on the same mount, the kernel's own way to as much shared memory, without
us (`start_limit`: fallocate, map, populate by as many threads, lock), and an engine with a pool of its own (`attach_worker own`:
allocate, fault in, lock), which it pays at each start; ours it pays once, and `bench.attach` says what a start costs after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pegashm._native import OK
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.errors import PegaShmError
from pegashm.keys import namespace_of

from bench import harness, memory
from bench.served import END_SECONDS, run_pegashm

__all__ = ["measure"]

MIB, GIB = 1 << 20, 1 << 30
SPARE_BYTES = 256 * MIB
POLL_SECONDS = 0.002
DEADLINE_SECONDS = 600
QUESTION = "How long is a fresh arena in the making, and when is its first hit?"
NOT_SHOWN = (
    "several NUMA nodes, whose threads fill their own; hugetlbfs",
    "registering memory with a GPU driver",
    "memory that a virtual machine's host has yet to give: as much is taken and given back before, uncounted",
)
Moments = dict[str, float]


def measure(options: harness.Options) -> harness.Findings:
    sizes = options.pick((8 * GIB, 16 * GIB), (1 * GIB,), (64 * MIB,))
    rounds = options.pick(3, 2, 1)
    digest = hashlib.sha256()
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    for size in sizes:
        if size + SPARE_BYTES > harness.free_bytes():
            notes.append(
                f"{size / GIB:g} GiB left out: {harness.free_bytes() / GIB:.1f} GiB are free"
            )
            continue
        with memory.huge_tmpfs(size + SPARE_BYTES) as huge:
            places: dict[str, str | None] = {"4 KiB": None, "huge": huge}
            if huge is None:
                places.pop("huge")
                notes.append("huge pages left out: a tmpfs of its own needs root")
            rows += [
                measure_place(size, pages, folder, rounds, digest)
                for pages, folder in places.items()
            ]
    if not rows:
        raise SystemExit("no size fits into the free memory")
    figures = {
        "of_kernel": {f"{each['gib']:g} {each['pages']}": each["of_kernel"] for each in rows},
        "results": rows,
    }
    return harness.Findings([summary(rows)], figures, digest.hexdigest()[:16], notes)


def measure_place(
    size: int, pages: str, folder: str | None, rounds: int, digest: Any
) -> dict[str, Any]:
    """Medians of one size on one kind of pages."""
    harness.progress(f"{size / GIB:g} GiB, {pages} pages")
    child(["start_limit", folder or "/dev/shm", str(size)])  # makes the host give the memory
    samples: dict[str, list[Moments]] = {"ours": [], "kernel": [], "own": []}
    runs: dict[str, Callable[[], Moments]] = {
        "ours": partial(start, size, folder),
        "kernel": partial(child, ["start_limit", folder or "/dev/shm", str(size)]),
        "own": partial(child, ["attach_worker", "own", str(size), "huge" if folder else "small"]),
    }

    def once(name: str) -> float:
        samples[name].append(runs[name]())
        return samples[name][-1]["all"]

    harness.interleave(rounds, {name: partial(once, name) for name in runs})
    digest.update(json.dumps([size, pages, rounds]).encode())

    def median(name: str, moment: str) -> float:
        return round(harness.median([each[moment] for each in samples[name]]), 3)

    row = {
        "gib": size / GIB,
        "pages": pages,
        **{moment: median("ours", moment) for moment in ("ready", "first_hit", "all")},
        "kernel": median("kernel", "all"),
        "own": median("own", "all"),
        "samples": samples,
    }
    return {
        **row,
        "s_per_gib": round(row["all"] / row["gib"], 3),
        "of_kernel": round(row["all"] / row["kernel"], 2),
    }


def start(size: int, folder: str | None) -> Moments:
    """Seconds from `pegashm serve` to each moment; the arena is purged after."""
    name = f"bench-start-{os.getpid()}-{time.monotonic_ns()}"
    told = ["serve", "--name", name, "--size", str(size), "--ephemeral"]
    began = time.monotonic()
    server = run_pegashm([*told, "--directory", folder] if folder else told)
    try:
        until(server, partial(segments_ready, name), "its first segment")
        ready = time.monotonic()
        first_hit(name)
        hit = time.monotonic()
        until(server, partial(all_ready, name), "all of it")
        return {"ready": ready - began, "first_hit": hit - began, "all": time.monotonic() - began}
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)
        server.kill()
        run_pegashm(["purge", "--name", name, "--yes"]).wait()


def first_hit(name: str) -> None:
    """Store a block with bytes in it, and find it again."""
    key = [b"the first block" + bytes(21)]
    with Cache.attach(name, namespace=namespace_of({"bench": "start"}, label="bench")) as cache:
        nbytes = int(cache.region.header["block_bytes_min"])
        handles, _ = cache.claim(key, nbytes)
        offsets, _ = cache.locate(handles)
        block = memory.view(cache.region.payload_address + int(offsets[0]), nbytes)
        block[:] = np.arange(nbytes, dtype=np.uint64).astype(np.uint8)
        cache.publish(handles)
        _, outcomes = cache.find(key)
        if outcomes[0] != OK:
            raise AssertionError("the first block was stored and not found")


def segments_ready(name: str) -> bool:
    with (
        contextlib.suppress(PegaShmError),
        open_arena(name, writable=False, map_payload=False) as arena,
    ):
        return int(arena.region.header["segments_ready"]) > 0
    return False


def all_ready(name: str) -> bool:
    with open_arena(name, writable=False, map_payload=False) as arena:
        header = arena.region.header
        return int(header["segments_ready"]) == int(header["segment_count"])


def until(server: subprocess.Popen[bytes], there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not there():
        if server.poll() is not None:
            raise SystemExit(
                f"pegashm serve ended with status {server.returncode}; it says why above"
            )
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come within {DEADLINE_SECONDS} s")
        time.sleep(POLL_SECONDS)


def child(arguments: Sequence[str]) -> Moments:
    """A fresh process's figures."""
    command = [sys.executable, "-m", f"bench.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; its error stands above")
    figures: Moments = json.loads(done.stdout)
    return figures


def summary(rows: Sequence[Mapping[str, Any]]) -> Any:
    return harness.table(
        "seconds from `pegashm serve` on nothing; kernel: as much shared memory by hand; own: an engine's private pool",
        (
            "arena, pages",
            "first segment",
            "first hit",
            "all",
            "s/GiB",
            "kernel",
            "all / kernel",
            "own",
        ),
        [
            (
                f"{each['gib']:g} GiB, {each['pages']}",
                each["ready"],
                each["first_hit"],
                each["all"],
                each["s_per_gib"],
                each["kernel"],
                each["of_kernel"],
                each["own"],
            )
            for each in rows
        ],
    )


if __name__ == "__main__":
    harness.run("start", QUESTION, not_shown=NOT_SHOWN, measure=measure)
