"""How close do payloads fetched from another process's arena by RDMA come to what ib_read_bw moves, at the same size and depth?

Ours is `Connection.read` of the verbs fabric: batches of blocks under a lease, from random places of the serving arena into
random places of ours, keys checked by memory windows where the device has them. Beside it, in the same rounds and over
the same two devices: `ib_read_bw` with as many READs under way. Latency is one block asked for at a time, beside `ib_read_lat`. CPU is user and system
time of each side's process (soft-RoCE moves bytes in the kernel's own threads, which count for nobody). All bytes are compared
at the end of each size, and their hash is the work hash. With no RDMA device: `make test-rdma RUN="python -m bench.fetch_rdma"`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pegashm.fabric.verbs import VerbsFabric, VerbsOptions
from pegashm.fabric.verbs_device import Port, find_ports

from bench import harness, memory
from bench.fetch import KIB, MIB, Batch, run_for
from bench.iperf import Sample
from bench.perftest import Perftest

__all__ = ["main"]

QUESTION = (
    "How close does a fetch by RDMA come to ib_read_bw, what does one block take, and what CPU?"
)
NOT_SHOWN = (
    "a network card, unless this machine has one: soft-RoCE is the kernel's CPU, and in an emulated machine all is slow",
    "pinning at the peer, claiming and publishing here: this is the fabric",
    "memory traffic of ib_read_bw: it reads one buffer again and again",
)
SIZES_KIB = (64, 256, 1024, 4096)
DEPTH = 128


class Peer:
    """The serving process over the first device, and our side of the fabric over the last."""

    streams = 1  # what Batch expects

    def __init__(self, size: int, folder: str, ports: list[Port]) -> None:
        self.ours = memory.shared_file(folder, size)
        command = [sys.executable, "-m", "bench.fetch_rdma_server"]
        command += [str(size), folder, str(harness.SEED), ports[0].name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._mutex = threading.Lock()
        self._answer()
        self.fabric = VerbsFabric(
            self.ours.address, size, options=VerbsOptions(devices=(ports[-1].name,))
        )
        self.connection = self.fabric.connect(
            bytes.fromhex(self.ask("offers")["offer"]),
            lambda introduction: bytes.fromhex(self.ask("admit", introduction.hex())),
            time.monotonic() + 30,
        )

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
        self.connection.close()
        self.fabric.close()
        self.process.kill()
        self.process.communicate()


def measure(options: harness.Options) -> harness.Findings:
    version = Perftest.version()
    ports = find_ports(())
    yardstick = Perftest(
        (ports[0].device, ports[0].gid_index), (ports[-1].device, ports[-1].gid_index)
    )
    rounds = options.pick(7, 3, 1)
    seconds = options.pick(3.0, 2.0, 0.5)
    sizes = options.pick(SIZES_KIB, SIZES_KIB, (64, 1024))
    count = options.pick(500, 100, 20)
    digest = hashlib.sha256()
    with contextlib.closing(Peer(64 * MIB, "/dev/shm", ports)) as peer:
        chance = np.random.default_rng(harness.SEED)
        rows = []
        for kib in sizes:
            harness.progress(f"{kib} KiB")
            batch = Batch(peer, kib * KIB, chance)  # type: ignore[arg-type] # it asks for these members only
            rows.append(compare(batch, yardstick, rounds, seconds, count))
            came = batch.digest()
            if came != batch.expected():
                raise AssertionError("other bytes came than lie there")
            digest.update(came)
            peer.ask("revoke", batch.grant.lease_id)
        windows = peer.ask("windows")
    figures = {
        "share_median": harness.median([row["share"] for row in rows]),
        "share_min": min(row["share"] for row in rows),
        "cpu_s_gb_serving": harness.median([row["serving_cpu"] for row in rows]),
        "cpu_s_gb_reading": harness.median([row["reading_cpu"] for row in rows]),
        "one_block_us": {row["block_kib"]: row["p50_us"] for row in rows},
        "rounds": rounds,
        "results": rows,
    }
    notes = [
        f"{version}; {ports[0].name} serves, {ports[-1].name} reads; memory windows: {'yes' if windows else 'no'}",
        "share: the median of the rounds' shares, each of one round's two runs",
    ]
    return harness.Findings([table(rows)], figures, digest.hexdigest()[:16], notes)


def compare(
    batch: Batch, yardstick: Perftest, rounds: int, seconds: float, count: int
) -> dict[str, Any]:
    """One size: throughput of both in turns, then latency."""
    batch.fetch()  # chunks are registered, pages are there
    depth = min(DEPTH, len(batch.parts))
    samples: dict[str, list[Sample]] = {"ours": [], "theirs": []}

    def note(name: str, run: Callable[[], Sample]) -> float:
        samples[name].append(run())
        return samples[name][-1].gbs

    # Both run equally long: on a shared machine a short run gets more of it than a long one.
    rate = yardstick.bandwidth(batch.block_bytes, depth, 4 * depth).gbs
    reads = round(rate * 1e9 * seconds / batch.block_bytes)
    harness.interleave(
        rounds,
        {
            "ours": partial(note, "ours", partial(run_for, batch, batch.fetch, seconds)),
            "theirs": partial(
                note,
                "theirs",
                partial(yardstick.bandwidth, batch.block_bytes, depth, reads),
            ),
        },
    )
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        batch.fetch_one()
        taken.append(time.perf_counter() - start)

    def median(name: str, what: str) -> float:
        return harness.median([getattr(sample, what) for sample in samples[name]])

    shares = [a.gbs / b.gbs for a, b in zip(samples["ours"], samples["theirs"], strict=True)]
    return {
        "block_kib": batch.block_bytes // KIB,
        "depth": depth,
        "ours_mbs": round(median("ours", "gbs") * 1e3, 1),
        "ib_read_bw_mbs": round(median("theirs", "gbs") * 1e3, 1),
        "share": round(harness.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
        "serving_cpu": round(median("ours", "send_cpu_s_gb"), 3),
        "reading_cpu": round(median("ours", "receive_cpu_s_gb"), 3),
        "ib_read_bw_cpu": [
            round(median("theirs", "send_cpu_s_gb"), 3),
            round(median("theirs", "receive_cpu_s_gb"), 3),
        ],
        "p50_us": round(harness.percentile(taken, 50) * 1e6, 1),
        "p99_us": round(harness.percentile(taken, 99) * 1e6, 1),
        "p999_us": round(harness.percentile(taken, 99.9) * 1e6, 1),
        "ib_read_lat_us": round(yardstick.latency_us(batch.block_bytes, count), 1),
    }


def table(rows: list[dict[str, Any]]) -> Any:
    return harness.table(
        "Blocks from one arena to another, MB/s, CPU seconds a GB (serving + reading), one block's us",
        (
            "KiB, depth",
            "ours",
            "ib_read_bw",
            "share",
            "CPU",
            "its CPU",
            "p50",
            "p99",
            "p99.9",
            "ib_read_lat",
        ),
        [
            (
                f"{row['block_kib']:5}, {row['depth']:3}",
                row["ours_mbs"],
                row["ib_read_bw_mbs"],
                f"{row['share']:.2f}",
                f"{row['serving_cpu']:.2f} + {row['reading_cpu']:.2f}",
                " + ".join(f"{value:.2f}" for value in row["ib_read_bw_cpu"]),
                row["p50_us"],
                row["p99_us"],
                row["p999_us"],
                row["ib_read_lat_us"],
            )
            for row in rows
        ],
    )


def main() -> None:
    harness.run("fetch_rdma", QUESTION, not_shown=NOT_SHOWN, measure=measure)


if __name__ == "__main__":
    main()
