"""How close do payloads fetched from another process's arena over TCP come to what iperf3 moves with as many streams?

Ours is `Connection.read` of the TCP fabric: batches of blocks under a lease, from random places of the serving arena
into random places of ours, each piece's XXH3 computed by who sends and compared by who receives, all streams
authenticated. Beside it, in the same rounds and over the same loopback: `iperf3 -P` with as many streams; a process of iperf3 a stream;
and bare sockets of ours that send the same blocks and check nothing (what Python, memory and the kernel alone cost).
Latency is one block asked for at a time. CPU is user and system time of each side's process. All bytes are compared at
the end of each size, and their hash is the work hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import xxhash

from pegashm.fabric.interface import Grant, Part, ReadOutcome
from pegashm.fabric.tcp import TcpFabric

from bench import harness, memory
from bench.fetch_server import BARE_REQUEST, cpu_seconds
from bench.iperf import Iperf, Sample

__all__ = ["measure"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
QUESTION = "How close does a fetch over TCP come to iperf3, what does one block take, and what CPU?"
NOT_SHOWN = (
    "a network: over loopback both sides, and what a NIC would do, share the same cores",
    "pinning at the peer, claiming and publishing here: this is the fabric; nor RDMA, which is bench.fetch_rdma",
    "memory traffic of iperf3: it sends one small buffer again and again",
)
BATCH_BYTES = 64 * MIB
SIZES_KIB = (64, 256, 1024, 4096)


class Peer:
    """The serving process, and our side of the fabric."""

    def __init__(self, size: int, folder: str, streams: int) -> None:
        self.ours = memory.shared_file(folder, size)
        command = [sys.executable, "-m", "bench.fetch_server", str(size), folder, str(harness.SEED)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._mutex = threading.Lock()
        self._answer()
        offers = self.ask("offers")
        self.bare_port = offers["bare"]
        self.fabric = TcpFabric(self.ours.address, size, streams=streams)
        self.connection = self.fabric.connect(
            bytes.fromhex(offers["offer"]),
            lambda introduction: bytes.fromhex(self.ask("admit", introduction.hex())),
            time.monotonic() + 30,
        )
        self.streams = streams
        self.bare = [
            socket.create_connection(("127.0.0.1", self.bare_port)) for _ in range(streams)
        ]
        self.threads = ThreadPoolExecutor(streams)

    def ask(self, *order: Any) -> Any:
        with self._mutex:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the serving process has ended; it says why above")
        return json.loads(line)

    def close(self) -> None:
        self.threads.shutdown()
        for sock in self.bare:
            sock.close()
        self.connection.close()
        self.fabric.close()
        self.process.kill()
        self.process.communicate()


class Batch:
    """Blocks of one size: where they lie there, and where they go here."""

    def __init__(self, peer: Peer, block_bytes: int, chance: np.random.Generator) -> None:
        self.peer = peer
        self.block_bytes = block_bytes
        places = len(peer.ours.bytes) // block_bytes
        count = max(1, min(BATCH_BYTES // block_bytes, places))
        self.sources = (chance.permutation(places)[:count] * block_bytes).tolist()
        self.targets = (chance.permutation(places)[:count] * block_bytes).tolist()
        lease, opaque = peer.ask("grant", [(source, block_bytes) for source in self.sources])
        self.grant = Grant(lease, bytes.fromhex(opaque))
        self.parts = [
            Part(source, block_bytes, peer.ours.address + target)
            for source, target in zip(self.sources, self.targets, strict=True)
        ]
        self.bytes = count * block_bytes
        self.base = places * block_bytes // peer.streams  # bare streams: runs of their own

    def fetch(self) -> None:
        outcomes = self.peer.connection.read(self.grant, self.parts, time.monotonic() + 60)
        if any(outcome is not ReadOutcome.OK for outcome in outcomes):
            raise SystemExit(f"a fetch failed: {sorted(set(outcomes))}")

    def fetch_one(self) -> None:
        self.peer.connection.read(self.grant, self.parts[:1], time.monotonic() + 60)

    def fetch_bare(self) -> None:
        count = len(self.parts) // self.peer.streams or 1
        for done in [
            self.peer.threads.submit(self._bare, n, count) for n in range(self.peer.streams)
        ]:
            done.result()

    def fetch_one_bare(self) -> None:
        self._bare(0, 1)

    def _bare(self, number: int, count: int) -> None:
        sock = self.peer.bare[number]
        size = count * self.block_bytes
        start = min(number * size, len(self.peer.ours.bytes) - size)
        sock.sendall(BARE_REQUEST.pack(start, self.block_bytes, count))
        payload = self.peer.ours.bytes.data
        end = start + size
        while start < end:
            stop = min(end, start + max(512 * KIB, self.block_bytes))
            start += sock.recv_into(payload[start:stop], 0, socket.MSG_WAITALL)

    def digest(self) -> bytes:
        """Of the blocks as they came."""
        self.fetch()
        seen = xxhash.xxh3_64()
        for target in self.targets:
            seen.update(self.peer.ours.bytes[target : target + self.block_bytes].data)
        return seen.digest()

    def expected(self) -> bytes:
        words = np.random.default_rng(harness.SEED).integers(
            0, 1 << 63, len(self.peer.ours.bytes) // 8, np.uint64
        )
        there = words.view(np.uint8)
        seen = xxhash.xxh3_64()
        for source in self.sources:
            seen.update(there[source : source + self.block_bytes].data)
        return seen.digest()


def measure(options: harness.Options) -> harness.Findings:
    version = Iperf.version()
    rounds = options.pick(9, 3, 1)
    seconds = options.pick(1.0, 1.0, 1.0)
    size = options.pick(512, 256, 128) * MIB
    sizes = options.pick(SIZES_KIB, SIZES_KIB, (64, 1024))
    stream_counts = options.pick((1, 2, 4), (1, 4), (1,))
    rows: list[dict[str, Any]] = []
    latencies: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    with arena_folder(size) as (folder, pages):
        for streams in stream_counts:
            count = options.pick(2000, 400, 50) if streams == stream_counts[0] else 0
            with contextlib.closing(Peer(size, folder, streams)) as peer:
                latencies += together(peer, sizes, rounds, seconds, count, rows, digest)
        hash_row = hashing(folder)
    figures = {
        "share_median": harness.median([row["share"] for row in rows]),
        "share_min": min(row["share"] for row in rows),
        "share_processes_median": harness.median([row["share_processes"] for row in rows]),
        "cpu_s_gb_serving": harness.median([row["serving_cpu"] for row in rows]),
        "cpu_s_gb_reading": harness.median([row["reading_cpu"] for row in rows]),
        "one_block_us": {row["block_kib"]: row["p50_us"] for row in latencies},
        "rounds": rounds,
        "results": rows,
        "latencies": latencies,
        "hashing": hash_row,
    }
    notes = [
        f"{version}; arenas on {pages}; batches of {BATCH_BYTES // MIB} MiB",
        f"XXH3 of one 256 KiB piece: {hash_row['hot_gbs']} GB/s in cache, {hash_row['cold_gbs']} GB/s from memory",
        "share: of iperf3 -P; of n x: of as many processes of iperf3; of bare: without checks and authentication",
    ]
    return harness.Findings(
        [throughput_table(rows), latency_table(latencies)], figures, digest.hexdigest()[:16], notes
    )


def together(
    peer: Peer,
    sizes: Sequence[int],
    rounds: int,
    seconds: float,
    latency_count: int,
    rows: list[dict[str, Any]],
    digest: Any,
) -> list[dict[str, Any]]:
    """All there is to measure with so many streams; the latencies, when they are asked for."""
    chance = np.random.default_rng(harness.SEED)
    batches = [Batch(peer, kib * KIB, chance) for kib in sizes]
    rows += throughput(batches, peer.streams, rounds, seconds)
    for batch in batches:
        came = batch.digest()
        if came != batch.expected():
            raise AssertionError("other bytes came than lie there")
        digest.update(came)
    return [latency(batch, latency_count) for batch in batches] if latency_count else []


@contextlib.contextmanager
def arena_folder(size: int) -> Iterator[tuple[str, str]]:
    """Huge pages where they can be had, as operators should have them."""
    # Twice what a pair takes: the next one comes while the last one goes.
    with memory.huge_tmpfs(4 * size) as folder:
        if folder is not None:
            yield folder, "2 MiB pages"
        else:
            yield "/dev/shm", "4 KiB pages"


def throughput(
    batches: list[Batch], streams: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """All sizes of one number of streams, beside iperf3, which knows no blocks, in the same rounds."""
    harness.progress(f"{streams} streams")
    samples: dict[str, list[Sample]] = {}

    def note(name: str, run: Callable[[], Sample]) -> float:
        samples.setdefault(name, []).append(run())
        return samples[name][-1].gbs

    one, many = Iperf(streams), Iperf(streams, processes=streams)
    runs: dict[str, Callable[[], float]] = {
        "iperf3": partial(note, "iperf3", partial(one.run, seconds))
    }
    if streams > 1:
        runs["processes"] = partial(note, "processes", partial(many.run, seconds))
    for batch in batches:
        kib = batch.block_bytes // KIB
        for name, once in (("ours", batch.fetch), ("bare", batch.fetch_bare)):
            once()  # streams are open, pages are there
            key = f"{name} {kib}"
            runs[key] = partial(note, key, partial(run_for, batch, once, seconds))
    harness.interleave(rounds, runs)

    def median(name: str, what: str) -> float:
        return harness.median([getattr(sample, what) for sample in samples[name]])

    rows = []
    for batch in batches:
        kib = batch.block_bytes // KIB
        ours = median(f"ours {kib}", "gbs")
        by_processes = median("processes" if streams > 1 else "iperf3", "gbs")
        rows.append(
            {
                "streams": streams,
                "block_kib": kib,
                "ours_gbs": round(ours, 2),
                "iperf3_gbs": round(median("iperf3", "gbs"), 2),
                "processes_gbs": round(by_processes, 2),
                "bare_gbs": round(median(f"bare {kib}", "gbs"), 2),
                "share": round(ours / median("iperf3", "gbs"), 3),
                "share_processes": round(ours / by_processes, 3),
                "share_bare": round(ours / median(f"bare {kib}", "gbs"), 3),
                "serving_cpu": round(median(f"ours {kib}", "send_cpu_s_gb"), 3),
                "reading_cpu": round(median(f"ours {kib}", "receive_cpu_s_gb"), 3),
                "iperf3_cpu": [
                    round(median("iperf3", "send_cpu_s_gb"), 3),
                    round(median("iperf3", "receive_cpu_s_gb"), 3),
                ],
                "bare_cpu": [
                    round(median(f"bare {kib}", "send_cpu_s_gb"), 3),
                    round(median(f"bare {kib}", "receive_cpu_s_gb"), 3),
                ],
            }
        )
    return rows


def run_for(batch: Batch, once: Callable[[], None], seconds: float) -> Sample:
    there, here = batch.peer.ask("cpu"), cpu_seconds()
    start = time.perf_counter()
    count = 0
    while (took := time.perf_counter() - start) < seconds:
        once()
        count += 1
    gigabytes = count * batch.bytes / 1e9
    return Sample(
        gigabytes / took,
        (batch.peer.ask("cpu") - there) / gigabytes,
        (cpu_seconds() - here) / gigabytes,
    )


def latency(batch: Batch, count: int) -> dict[str, Any]:
    """One block at a time, ours and bare in turns."""
    taken: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(count):
        for name, once in (("ours", batch.fetch_one), ("bare", batch.fetch_one_bare)):
            start = time.perf_counter()
            once()
            taken[name].append(time.perf_counter() - start)
    row: dict[str, Any] = {"block_kib": batch.block_bytes // KIB}
    for percent, name in ((50, "p50_us"), (99, "p99_us"), (99.9, "p999_us")):
        row[name] = round(harness.percentile(taken["ours"], percent) * 1e6, 1)
        row[f"bare_{name}"] = round(harness.percentile(taken["bare"], percent) * 1e6, 1)
    return row


def hashing(folder: str) -> dict[str, float]:
    """What XXH3 costs where the data is in cache, as the fabric arranges it, and where it is not."""
    data = memory.shared_file(folder, 64 * MIB).bytes
    piece = 256 * KIB

    def gbs(pieces: list[memoryview]) -> float:
        start = time.perf_counter()
        for view in pieces:
            xxhash.xxh3_64_intdigest(view, 7)
        return round(len(pieces) * piece / (time.perf_counter() - start) / 1e9, 1)

    cold = [data[at : at + piece].data for at in range(0, len(data), piece)]
    return {
        "hot_gbs": harness.median([gbs(cold[:1] * 256) for _ in range(5)]),
        "cold_gbs": harness.median([gbs(cold) for _ in range(5)]),
    }


def throughput_table(rows: list[dict[str, Any]]) -> Any:
    return harness.table(
        "Blocks from one arena to another, GB/s and CPU seconds a GB (serving + reading)",
        (
            "streams, KiB",
            "ours",
            "iperf3 -P",
            "n x iperf3",
            "bare",
            "share",
            "of n x",
            "of bare",
            "CPU",
            "iperf3's",
            "bare's",
        ),
        [
            (
                f"{row['streams']}, {row['block_kib']:5}",
                row["ours_gbs"],
                row["iperf3_gbs"],
                row["processes_gbs"],
                row["bare_gbs"],
                f"{row['share']:.2f}",
                f"{row['share_processes']:.2f}",
                f"{row['share_bare']:.2f}",
                f"{row['serving_cpu']:.2f} + {row['reading_cpu']:.2f}",
                " + ".join(f"{value:.2f}" for value in row["iperf3_cpu"]),
                " + ".join(f"{value:.2f}" for value in row["bare_cpu"]),
            )
            for row in rows
        ],
    )


def latency_table(rows: list[dict[str, Any]]) -> Any:
    return harness.table(
        "One block at a time, us (bare sockets: p50, p99)",
        ("KiB", "p50", "p99", "p99.9", "bare p50", "bare p99"),
        [
            (
                row["block_kib"],
                row["p50_us"],
                row["p99_us"],
                row["p999_us"],
                row["bare_p50_us"],
                row["bare_p99_us"],
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    harness.run("fetch", QUESTION, not_shown=NOT_SHOWN, measure=measure)
