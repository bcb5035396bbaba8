"""How close do spilling to SSD and promoting from it come to the best this device can do, and how long does opening take?

Spill is `SpillFile.append` of blocks from random places of an arena, as the transport worker calls it: checksums, frames,
ring, syncs and all. Promote is `SpillFile.fetch` of random records back to random places, verified, by two callers. In the same
rounds `fio` writes another file on the same file system sequentially, or reads our own file at random, at the
same block size: psync with several jobs and io_uring at several depths, from 4 KiB pages and, where the arena has them,
from huge ones; the limit is the best of these at that size. fio uses the same few buffers again and again, which stay
in the caches of whoever fills them; a cache of blocks cannot. So besides, `plain`: a few threads of C that call pread
or pwrite block by block, at the same random places of the arena as ours, and check nothing. All files are overwritten
before they are measured: fresh space writes slower. CPU is user and system time of the process. Every fetch checks every byte's
checksum; the work hash is over the arena at the end and the figures of the writers.

The file lies in a folder of its own in the temporary directory: TMPDIR=/mnt/nvme names the device to be measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pegashm.spill.file import Advance, Append, Fetch, SpillFile
from pegashm.spill.format import BLOCK_FIELDS, RECORD_FIELDS, SpillNamespace

from bench import harness, memory
from bench.fio import Fio, Sample
from bench.reference import Reference

__all__ = ["measure"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
QUESTION = "How close do spill and promote come to fio's best, and how long does opening take?"
NOT_SHOWN = (
    "a device of its own, an NVMe drive with deep queues, several files: one virtual disk was measured",
    "what spilling costs engines on the same cores, and the way through the worker: bench of the tier",
    "the device's own write amplification; ours is bytes handed to it for bytes of payload",
)
CALLERS = 2
PLAIN_THREADS = 8
BATCH_BYTES = 32 * MIB
NAMESPACE = SpillNamespace(hashlib.sha256(b"bench.spill").digest(), "bench.spill")

Rows = NDArray[Any]


@dataclass(slots=True)
class Bench:
    """An arena, the files, and which records are in ours now."""

    arena: memory.Mapping
    folder: str
    file_bytes: int
    sample_bytes: int
    random: np.random.Generator
    reference: Reference

    @property
    def fio_path(self) -> str:
        return os.path.join(self.folder, "fio.dat")

    @contextlib.contextmanager
    def filled(self, block_bytes: int) -> Iterator[Filled]:
        """A spill file whose every region was written once."""
        path = os.path.join(self.folder, f"spill-{block_bytes}")
        with SpillFile.open_or_create(path, self.file_bytes) as file:
            filled = Filled(self, file, block_bytes)
            while file.regions_used < file.superblock.region_count:
                filled.append(filled.blocks(max(1, 256 * MIB // block_bytes)))
            yield filled
        os.unlink(path)


class Filled:
    """A spill file of blocks of one size, and the rows of what is in it."""

    def __init__(self, bench: Bench, file: SpillFile, block_bytes: int) -> None:
        self.bench = bench
        self.file = file
        self.block_bytes = block_bytes
        self.rows: list[Rows] = []
        self.gone: list[int] = []
        self.number = 0

    def blocks(self, count: int) -> Rows:
        """Rows to append: new keys, random places of the arena."""
        bench = self.bench
        places = bench.random.integers(0, len(bench.arena.bytes) // self.block_bytes, count)
        rows = np.zeros(count, BLOCK_FIELDS)
        rows["key"][:, :8] = (
            np.arange(self.number, self.number + count, dtype=np.uint64)
            .view(np.uint8)
            .reshape(-1, 8)
        )
        self.number += count
        rows["key_bytes"] = 32
        rows["address"] = bench.arena.address + places * self.block_bytes
        rows["payload_bytes"] = self.block_bytes
        return rows

    def append(self, blocks: Rows) -> None:
        done = 0
        while done < len(blocks):
            appended = self.file.append(NAMESPACE, blocks[done:])
            if appended.outcome is Append.FAILED:
                raise SystemExit(f"a write failed: {os.strerror(appended.errno)}")
            self.rows.append(appended.records)
            done += len(appended.records)
            if appended.outcome is Append.REGION_FULL:
                self.gone.append(self.file.next_region().sequence)
                if self.file.advance() is not Advance.DONE:
                    raise SystemExit("a region could not be taken")

    def there(self) -> Rows:
        """What is in the file now."""
        rows = np.concatenate(self.rows, dtype=RECORD_FIELDS)
        self.rows = [rows[~np.isin(rows["sequence"], self.gone)]]
        return self.rows[0]

    def spill(self) -> Sample:
        blocks = self.blocks(max(1, self.bench.sample_bytes // self.block_bytes))
        return timed(partial(self.append, blocks), len(blocks) * self.block_bytes)

    def promote(self) -> Sample:
        """Random records to random places, in batches by two callers."""
        bench = self.bench
        count = max(CALLERS, bench.sample_bytes // self.block_bytes)
        there = self.there()
        chosen = there[bench.random.integers(0, len(there), count)]
        # Each caller has its half of the arena, each batch distinct places in it.
        slots = len(bench.arena.bytes) // self.block_bytes // CALLERS
        a_batch = max(1, min(BATCH_BYTES // self.block_bytes, slots))
        problems: list[BaseException] = []

        def call(caller: int, rows: Rows) -> None:
            chance = np.random.default_rng(caller)
            try:
                for at in range(0, len(rows), a_batch):
                    batch = rows[at : at + a_batch]
                    places = caller * slots + chance.permutation(slots)[: len(batch)]
                    addresses = (bench.arena.address + places * self.block_bytes).astype(np.uint64)
                    outcomes = self.file.fetch(batch, addresses, NAMESPACE.fingerprint)
                    if (outcomes != Fetch.OK).any():
                        raise AssertionError(f"{outcomes} of {batch}")
            except BaseException as error:  # noqa: BLE001 - raised again by the caller of threads
                problems.append(error)

        def all_callers() -> None:
            threads = [
                threading.Thread(target=call, args=(caller, rows))
                for caller, rows in enumerate(np.array_split(chosen, CALLERS))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if problems:
                raise problems[0]

        return timed(all_callers, count * self.block_bytes)

    def plain(self, *, write: bool) -> Sample:
        """As much as ours, by threads of C: another file one block after the other, or ours at random."""
        bench = self.bench
        count = max(CALLERS, bench.sample_bytes // self.block_bytes)
        places = len(bench.arena.bytes) // self.block_bytes
        addresses = bench.arena.address + bench.random.integers(0, places, count) * self.block_bytes
        if write:
            blocks = bench.file_bytes // self.block_bytes
            numbers = (int(bench.random.integers(blocks)) + np.arange(count)) % blocks
            offsets = numbers * self.block_bytes
        else:
            there = self.there()
            offsets = there["file_offset"][bench.random.integers(0, len(there), count)]
        path = bench.fio_path if write else self.file.path
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            move = partial(
                bench.reference.disk,
                descriptor,
                PLAIN_THREADS,
                offsets.astype(np.uint64),
                addresses.astype(np.uint64),
                np.full(count, self.block_bytes, np.uint64),
                write=write,
            )
            return timed(move, count * self.block_bytes)
        finally:
            os.close(descriptor)


def timed(work: Callable[[], object], nbytes: int) -> Sample:
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(nbytes / seconds / 1e9, busy / (nbytes / 1e9))


def measure(options: harness.Options) -> harness.Findings:
    file_bytes = options.pick(16 * GIB, 2 * GIB, 64 * MIB)
    arena_bytes = options.pick(1 * GIB, 512 * MIB, 32 * MIB)
    rounds = options.pick(5, 3, 1)
    seconds = options.pick(1.0, 0.4, 0.05)
    sizes_kib = options.pick((64, 256, 1024, 4096), (64, 1024, 4096), (64, 1024))
    ways = options.pick(
        [
            ("psync", 1),
            ("psync", 4),
            ("psync", 8),
            ("io_uring", 1),
            ("io_uring", 4),
            ("io_uring", 16),
        ],
        [("psync", 4), ("io_uring", 4), ("io_uring", 16)],
        [("psync", 2), ("io_uring", 4)],
    )
    record_count = options.pick(1_000_000, 100_000, 2_000)

    notes = [f"{Fio.version()}; {ways_text(ways)}"]
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pegashm-bench-"))
        need = 2 * file_bytes + 5500 * record_count
        if shutil.disk_usage(folder).free < need:
            raise SystemExit(
                f"this bench needs {need / 1e9:.0f} GB of disk, and {folder} has less: name another place "
                "with TMPDIR=..."
            )
        huge = stack.enter_context(memory.huge_tmpfs(arena_bytes + 256 * MIB))
        arena = memory.shared_file(huge or "/dev/shm", arena_bytes)
        notes.append(f"arena: {arena.huge_share:.0%} in huge pages; {file_system(folder)}")
        random = np.random.default_rng(harness.SEED)
        arena.bytes[:] = np.frombuffer(random.bytes(arena_bytes), np.uint8)
        sample_bytes = options.pick(1 * GIB, 384 * MIB, 16 * MIB)
        bench = Bench(arena, folder, file_bytes, sample_bytes, random, Reference())
        contenders = [Fio(*way) for way in ways]
        huge_file = make_huge_file(huge)
        if huge_file and arena.huge_share > 0.5:
            contenders += [Fio(*way, huge_file) for way in ways if way[1] > 1]
        harness.progress("filling the file of fio")
        fill(bench.fio_path, file_bytes)
        for size_kib in sizes_kib:
            with bench.filled(size_kib * KIB) as filled:
                rows += [
                    compare(filled, contenders, rounds, seconds, direction)
                    for direction in ("spill", "promote")
                ]
        opening = measure_opening(bench, record_count, notes)
        digest = hashlib.sha256(arena.bytes.data)
    shares = [row["share"] for row in rows]
    figures = {
        "share_spill_median": side_median(rows, "spill"),
        "share_promote_median": side_median(rows, "promote"),
        "share_plain_spill_median": side_median(rows, "spill", "share_plain"),
        "share_plain_promote_median": side_median(rows, "promote", "share_plain"),
        "share_min": min(shares),
        "amplification_max": max(row["amplification"] for row in rows),
        **opening,
        "rounds": rounds,
        "results": rows,
    }
    digest.update(repr(sorted({row["amplification"] for row in rows})).encode())
    return harness.Findings([summary(rows)], figures, digest.hexdigest()[:16], notes)


def compare(
    filled: Filled, contenders: list[Fio], rounds: int, seconds: float, direction: str
) -> dict[str, Any]:
    """One direction at one block size."""
    harness.progress(f"{filled.block_bytes // KIB} KiB, {direction}")
    write = direction == "spill"
    path = filled.bench.fio_path if write else filled.file.path
    samples: dict[str, list[Sample]] = {}

    def note(name: str, run: Callable[[], Sample]) -> float:
        samples.setdefault(name, []).append(run())
        return samples[name][-1].gbs

    runs: dict[str, Callable[[], float]] = {}
    for fio in contenders:
        once = partial(fio.run, path, write=write, block_bytes=filled.block_bytes, seconds=seconds)
        runs[fio.name] = partial(note, fio.name, once)
    runs["plain"] = partial(note, "plain", partial(filled.plain, write=write))
    runs["ours"] = partial(note, "ours", filled.spill if write else filled.promote)
    speeds = harness.interleave(rounds, runs)
    medians = {name: harness.median(values) for name, values in speeds.items()}
    ours, plain = medians.pop("ours"), medians.pop("plain")
    best = max(medians, key=lambda name: medians[name])

    def cpu(name: str) -> float:
        return round(harness.median([sample.cpu_s_gb for sample in samples[name]]), 3)

    return {
        "block_kib": filled.block_bytes // KIB,
        "direction": direction,
        "ours_gbs": round(ours, 2),
        "fio_gbs": round(medians[best], 2),
        "fio_by": best,
        "share": round(ours / medians[best], 3),
        "plain_gbs": round(plain, 2),
        "share_plain": round(ours / plain, 3),
        "cpu_s_gb": cpu("ours"),
        "fio_cpu_s_gb": cpu(best),
        "plain_cpu_s_gb": cpu("plain"),
        "amplification": round(filled.file.amplification, 4),
        "fio_all_gbs": {name: round(speed, 2) for name, speed in medians.items()},
    }


def measure_opening(bench: Bench, record_count: int, notes: list[str]) -> dict[str, Any]:
    """Write many small records, then open and read all their headers, three times."""
    harness.progress(f"a file of {record_count} records")
    path = os.path.join(bench.folder, "records")
    size = int(record_count * 4096 * 1.05) + 600 * MIB if record_count > 50_000 else 64 * MIB
    with SpillFile.open_or_create(path, size) as file:
        filled = Filled(bench, file, 4 * KIB)
        start = time.perf_counter()
        for _ in range(0, record_count, 1000):
            filled.append(filled.blocks(1000))
        written = time.perf_counter() - start
        frames = file.counters["frames"]
    seconds, ready = [], []
    for _ in range(3):
        start = time.perf_counter()
        with SpillFile.open_or_create(path, size) as file:
            ready.append(time.perf_counter() - start)
            found = sum(len(lot.records) for lot in file.records())
            seconds.append(time.perf_counter() - start)
        if found != record_count:
            raise AssertionError(f"{found} records found of {record_count}")
    os.unlink(path)
    notes.append(
        f"{record_count} records of 4 KiB in {frames} frames: opened in {harness.median(ready) * 1e3:.0f} ms, all "
        f"read in {harness.median(seconds):.2f} s (written in {written:.1f} s)"
    )
    return {
        "open_records": record_count,
        "open_s": round(harness.median(seconds), 3),
        "open_first_ms": round(harness.median(ready) * 1e3, 1),
    }


def fill(path: str, size: int) -> None:
    """Written once, so that fio overwrites."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    chunk = memory.anonymous(16 * MIB, huge=True)
    chunk.bytes[:] = np.frombuffer(os.urandom(16 * MIB), np.uint8)
    try:
        os.posix_fallocate(descriptor, 0, size)
        for at in range(0, size, len(chunk.bytes)):
            os.pwrite(descriptor, chunk.bytes.data, at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_huge_file(folder: str | None) -> str | None:
    """A file of huge pages for fio's buffers."""
    if folder is None:
        return None
    path = os.path.join(folder, "fio-buffers")
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 192 * MIB)
    return path


def file_system(folder: str) -> str:
    """What kind of file system the measured files are on."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, where, kind, *_ = line.split()
        if folder.startswith(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return f"files on {best[1]}"


def ways_text(ways: list[tuple[str, int]]) -> str:
    return "psync by jobs, io_uring by depth: " + ", ".join(
        f"{name} {count}" for name, count in ways
    )


def side_median(rows: list[dict[str, Any]], direction: str, share: str = "share") -> float:
    return round(harness.median([row[share] for row in rows if row["direction"] == direction]), 3)


def summary(rows: list[dict[str, Any]]) -> Table:
    columns = (
        "KiB, direction",
        "ours GB/s",
        "fio's best GB/s",
        "by",
        "share",
        "plain GB/s",
        "of plain",
        "CPU s/GB",
        "fio's",
        "plain's",
        "written/payload",
    )
    return harness.table(
        "spill and promote; share of the best way of fio at that size, and of plain threads at the same places",
        columns,
        [
            (
                f"{row['block_kib']:5} {row['direction']}",
                row["ours_gbs"],
                row["fio_gbs"],
                row["fio_by"],
                f"{row['share']:.2f}",
                row["plain_gbs"],
                f"{row['share_plain']:.2f}",
                row["cpu_s_gb"],
                row["fio_cpu_s_gb"],
                row["plain_cpu_s_gb"],
                row["amplification"],
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    harness.run("spill", QUESTION, not_shown=NOT_SHOWN, measure=measure)
