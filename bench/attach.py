"""How long does a fresh process take to attach to a populated arena, and does the arena's size matter?

A real `pegashm serve` populates and locks an arena of 1, 4 and 16 GiB in turn; fresh processes then open, map and
validate it (`open_arena`) and attach as a client (`Cache.attach`). It is full of blocks. The rival, before and after in the same run, is
what an engine with a pool of its own does at start: allocate, fault in (MADV_POPULATE_WRITE) and lock as much
anonymous memory, in 4 KiB pages as they come and in transparent huge pages. Sizes that do not fit are left out and
named. attach_worker.py does the measuring, one process a sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pegashm._native import OK
from pegashm.cache import Cache
from pegashm.keys import namespace_of

from bench import harness, memory
from bench.lookup_keys import KeySet
from bench.served import served_arena

__all__ = ["measure"]

MIB, GIB = 1 << 20, 1 << 30
SPARE_BYTES = 2 * GIB  # left to the rest of the machine beside what is measured
FILL_BATCH = 4096
QUICK_SECONDS = 40  # in a quick run, later sizes are left out after this
Samples: TypeAlias = dict[str, list[dict[str, float]]]
KINDS = {"own_small": "small", "own_huge": "huge"}
QUESTION = (
    "How long does attaching to a populated arena take, against making as much memory of one's own?"
)
NOT_SHOWN = (
    "the minor faults of the first touch of each page, unless all are taken at once (fault in, lock): they depend on the page size",
    "registering memory with a GPU driver, which costs both sides the same",
    "memory that a virtual machine's host has yet to give: its first touch costs ten times more; the rival gets a run beforehand that is not counted",
)


def measure(options: harness.Options) -> harness.Findings:
    sizes = options.pick((1 * GIB, 4 * GIB, 16 * GIB), (1 * GIB, 4 * GIB), (64 * MIB, 256 * MIB))
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    started = time.monotonic()
    for size in sizes:
        label = f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"
        free = harness.free_bytes()
        if size + SPARE_BYTES > free:
            notes.append(f"{label} left out: it does not fit ({free / GIB:.1f} GiB are free)")
        elif options.quick and rows and time.monotonic() - started > QUICK_SECONDS / 2:
            notes.append(f"{label} left out: --quick has used its time")
        else:
            rows.append(measure_size(size, label, options, notes, digest))
    if not rows:
        raise SystemExit("no size fits into the free memory: free at least 3 GiB")
    if any(each["pages"] != "huge" for each in rows):
        notes.append("the arena has 4 KiB pages: mounting a tmpfs with huge=always needs root")
    figures = {
        "attach_ms": {each["gib"]: each["attach_ms_p50"] for each in rows},
        "largest_over_smallest": round(rows[-1]["attach_ms_p50"] / rows[0]["attach_ms_p50"], 2),
        "ratio_largest": rows[-1]["ratio_small"],
        "results": rows,
    }
    return harness.Findings([summary(rows)], figures, digest.hexdigest()[:16], notes)


def measure_size(
    size: int, label: str, options: harness.Options, notes: list[str], digest: Any
) -> dict[str, Any]:
    """One arena, and as much memory of one's own before it and after it is gone."""
    samples: Samples = {kind: [] for kind in (*KINDS, "attach")}
    runs = options.pick(2, 1, 1)
    make_own(size, label, runs, samples)
    with memory.huge_tmpfs(size + SPARE_BYTES) as directory:
        pages = "huge" if directory is not None else "4 KiB"
        harness.progress(f"{label}: pegashm serve populates {pages} pages")
        with served_arena("attach", size, directory) as name:
            blocks = fill(name)
            for _ in range(options.pick(25, 11, 3)):
                samples["attach"].append(sample("attach", name))
    if not options.quick:
        make_own(size, label, runs, samples)
    if not all(each["is_locked"] for taken in samples.values() for each in taken):
        notes.append(f"{label}: could not lock memory (see ulimit -l), which spares the rival most")
    found = [each["found"] for each in samples["attach"]]
    digest.update(json.dumps([size, pages, blocks, found]).encode())
    return row(size, pages, blocks, samples)


def make_own(size: int, label: str, runs: int, samples: Samples) -> None:
    """Samples of memory of one's own, of each kind in turn."""
    harness.progress(f"{label}: memory of one's own")
    # Discarded: makes the host give the memory, so that the rival pays the least it can.
    sample("own", str(size), "huge")
    for kind in [*KINDS] * runs:
        samples[kind].append(sample("own", str(size), KINDS[kind]))


def fill(name: str) -> int:
    """Publish as many blocks of the smallest size as the arena holds; what is in them does not matter."""
    with Cache.attach(name, namespace=namespace_of({"bench": "attach"}, label="bench")) as cache:
        header = cache.region.header
        keys = KeySet(int(header["record_count"]), harness.SEED)
        published = 0
        for at in range(0, keys.count, FILL_BATCH):
            some = keys.keys(range(at, min(at + FILL_BATCH, keys.count)))
            handles, _ = cache.claim(some, int(header["block_bytes_min"]))
            published += int((cache.publish(handles[handles != 0]) == OK).sum())
    return published


def sample(*arguments: str) -> dict[str, float]:
    """One fresh process's figures."""
    command = [sys.executable, "-m", "bench.attach_worker", *arguments]
    with contextlib.suppress(subprocess.CalledProcessError):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, float] = json.loads(done.stdout)
        return result
    raise SystemExit(f"{' '.join(command)} failed; its error stands above")


def row(
    size: int, pages: str, blocks: int, samples: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, Any]:
    """Medians in milliseconds, and how many times longer memory of one's own takes."""

    def milliseconds(kind: str, step: str, percent: float = 50) -> float:
        taken = [each[step] * 1e3 for each in samples[kind]]
        return round(harness.percentile(taken, percent), 3)

    attach = milliseconds("attach", "attach")
    own = {kind: milliseconds(kind, "all") for kind in KINDS}
    ready = attach + milliseconds("attach", "fault_in") + milliseconds("attach", "lock")
    return {
        "gib": round(size / GIB, 3),
        "pages": pages,
        "blocks": blocks,
        "open_ms_p50": milliseconds("attach", "open"),
        "open_ms_p99": milliseconds("attach", "open", 99),
        "attach_ms_p50": attach,
        "attach_ms_p99": milliseconds("attach", "attach", 99),
        "first_find_ms_p50": milliseconds("attach", "first_find"),
        "fault_in_ms_p50": milliseconds("attach", "fault_in"),
        "lock_ms_p50": milliseconds("attach", "lock"),
        "own_small_ms": own["own_small"],
        "own_huge_ms": own["own_huge"],
        "own_small_ms_all": [round(each["all"] * 1e3, 1) for each in samples["own_small"]],
        "own_huge_ms_all": [round(each["all"] * 1e3, 1) for each in samples["own_huge"]],
        "ratio_small": round(own["own_small"] / attach),
        "ratio_huge": round(own["own_huge"] / attach),
        "ratio_small_all_mapped_and_locked": round(own["own_small"] / ready, 1),
        "attaches": len(samples["attach"]),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> Any:
    columns = (
        "arena, pages, blocks",
        "open p50 ms",
        "p99",
        "attach p50 ms",
        "p99",
        "first find of 500",
        "(+ fault in all)",
        "(+ lock all)",
        "own memory, 4 KiB, ms",
        "own memory, THP, ms",
        "own / attach",
        "THP / attach",
        "own / (attach + fault in + lock)",
    )
    return harness.table(
        "a fresh process gets its cache memory; open = open, map, validate; attach = open and take a client slot",
        columns,
        [
            (
                f"{each['gib']:g} GiB, {each['pages']}, {each['blocks']:,} blocks",
                each["open_ms_p50"],
                each["open_ms_p99"],
                each["attach_ms_p50"],
                each["attach_ms_p99"],
                each["first_find_ms_p50"],
                each["fault_in_ms_p50"],
                each["lock_ms_p50"],
                f"{each['own_small_ms']:,.0f}",
                f"{each['own_huge_ms']:,.0f}",
                f"{each['ratio_small']:,}",
                f"{each['ratio_huge']:,}",
                each["ratio_small_all_mapped_and_locked"],
            )
            for each in rows
        ],
    )


if __name__ == "__main__":
    harness.run("attach", QUESTION, not_shown=NOT_SHOWN, measure=measure)
