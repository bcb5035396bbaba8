"""What does it cost one host to know what 1,000 others hold, 200,000 blocks each?

One real host: a region with a table of hints, and the directory's follower with a SUB socket for each of the others. The
others are one process that publishes for all of them (directory_hosts.py), over loopback TCP, at the interval that the
publisher takes with so many hosts; each stores and evicts 200 blocks a second, that is, turns its memory over in a
quarter of an hour. Snapshots are handed over as their carrier would.
CPU is user and system time of the measured process, all threads, so that a busy machine changes it little. Then what a
lookup of 1,000 unknown keys costs with the hints of all hosts, without any, and in a region without a table, interleaved.
Checked at the end: hints of blocks stored or evicted while it ran. The work hash is over those answers and what was sent.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq

from pegashm import _native
from pegashm.config import ServeConfig
from pegashm.directory.follower import Follower
from pegashm.directory.messages import CHUNK_HASHES_MAX, Chunk, pack_chunk
from pegashm.directory.publisher import Publisher, interval_seconds

from bench import harness
from bench.directory_hosts import hashes_of, host_id_of, incarnation_of
from bench.sparse_region import SparseRegion

__all__ = ["measure"]

QUESTION = "What does it cost one host to know what 1,000 others hold, 200,000 blocks each?"
NOT_SHOWN = (
    "a network: all of it is loopback TCP, without CURVE; 999 hosts that start at once and all want snapshots of each",
    "hosts that fetch: fetches take the GIL of the same worker process",
    "hints of several thousand namespaces; a table on huge pages (a control region in /dev/shm has small ones)",
)
EVENTS_S = 400.0
LOOKUP_KEYS = 1000
OWNERS = 2  # of each hint, were the directory partitioned


@dataclass(frozen=True, slots=True)
class Other:
    """One of the other hosts, as a follower is told of it."""

    number: int
    host_id: bytes
    incarnation: bytes
    stream: str


def measure(options: harness.Options) -> harness.Findings:
    hosts = options.pick(1000, 1000, 20)
    blocks = options.pick(200_000, 20_000, 1000)
    seconds = options.pick(30.0, 10.0, 2.0)
    hints = hosts * blocks
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    buckets = ServeConfig(name="x", size_bytes=1 << 30, remote_blocks=hints).remote_bucket_count
    with SparseRegion(10_000, 1_024, remote_buckets=buckets) as sparse:
        table = _native.RemoteTable(sparse.region)
        table.clear()
        figures, digest = follow(sparse, table, hosts, blocks, seconds)
        figures |= lookups(sparse, table, options.pick(9, 5, 2))
        figures |= departures(sparse, table)
    figures |= publishing(hosts, options.pick(10.0, 5.0, 1.0))
    # Each hint is kept, told to and asked of its owners alone, chosen by rendezvous hashing.
    share = OWNERS / hosts
    figures |= {
        "hosts": hosts,
        "blocks_a_host": blocks,
        "partitioned": {
            "owners": OWNERS,
            "table_bytes": round(figures["table_bytes"] * share),
            "events_s": round(figures["events_s"] * share),
            "lookup_round_trips": 1,
        },
    }
    figures["results"] = [{name: value for name, value in figures.items() if name != "results"}]
    return harness.Findings([summary(figures)], figures, digest, [])


# -- following -------------------------------------------------------------------------------------------


def follow(
    sparse: SparseRegion, table: _native.RemoteTable, hosts: int, blocks: int, seconds: float
) -> tuple[dict[str, Any], str]:
    """All snapshots, then the streams for a while."""
    interval = interval_seconds(hosts)
    command = [sys.executable, "-m", "bench.directory_hosts"]
    command += [str(argument) for argument in (hosts, blocks, EVENTS_S, interval, seconds)]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * hosts + 16)
    follower = Follower(sparse.region, table, context, lambda _socket, _host: None)
    thread = threading.Thread(target=follower.run, daemon=True)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            ports = json.loads(child.stdout.readline())
            others = [
                Other(host, host_id_of(host), incarnation_of(host), f"tcp://127.0.0.1:{port}")
                for host, port in enumerate(ports)
            ]
            thread.start()
            for other in others:
                follower.joined(other)
            filled = fill(follower, table, others, blocks)
            harness.progress(
                f"{len(table):,} hints of {hosts} hosts; following for {seconds:.0f} s"
            )
            time.sleep(1.5)  # the last connections
            cpu, before = time.process_time(), counted(sparse)
            child.stdin.write("go\n")
            child.stdin.flush()
            sent = json.loads(child.stdout.readline())
            time.sleep(0.5)
            cpu = time.process_time() - cpu
            heard = counted(sparse)["remote_events_received"] - before["remote_events_received"]
            gaps = (
                counted(sparse)["remote_snapshots_received"] - before["remote_snapshots_received"]
            )
            right, answers = check(table, hosts, blocks, sent["moved"])
        finally:
            child.stdin and child.stdin.close()
            follower.stop()
            thread.join()
            context.destroy(linger=0)
    header = sparse.region.header
    figures = {
        "table_bytes": header["control_bytes"] - header["remote_hosts_offset"],
        "hints": len(table),
        "hints_displaced": table.displaced,
        **filled,
        "interval_s": interval,
        "stream_s": round(sent["seconds"], 1),
        "events_s": round(sent["events"] / sent["seconds"]),
        "bytes_s": round(sent["bytes"] / sent["seconds"]),
        "messages_s": round(sent["messages"] / sent["seconds"]),
        "sender_late_s": round(sent["late_s"], 2),
        "events_heard": round(heard / max(sent["events"], 1), 4),
        "snapshots_again": gaps,
        "cpu_share": round(cpu / sent["seconds"], 4),
        "cpu_ns_an_event": round(cpu * 1e9 / max(heard, 1)),
        **right,
    }
    return figures, hashlib.sha256(answers + str(sent["events"]).encode()).hexdigest()[:16]


def fill(
    follower: Follower, table: _native.RemoteTable, others: list[Other], blocks: int
) -> dict[str, float]:
    """Hand over every snapshot that is asked for; what applying them cost."""
    wall, carried_cpu = time.monotonic(), 0.0
    cpu = time.process_time()
    done = 0
    while done < len(others):
        for number in follower.snapshots_wanted():
            making = time.thread_time()
            bodies = list(chunks(number, blocks))
            carried_cpu += time.thread_time() - making
            for place, body in enumerate(bodies):
                follower.chunk(others[number], place, last=place + 1 == len(bodies), body=body)
            done += 1
            if done % 100 == 0:
                harness.progress(f"{done} snapshots")
        time.sleep(0.001)
    while not table.hints(others[-1].number):
        time.sleep(0.01)
    seconds = time.process_time() - cpu - carried_cpu
    return {
        "fill_s": round(time.monotonic() - wall, 2),
        "fill_cpu_s": round(seconds, 2),
        "fill_ns_a_hint": round(seconds * 1e9 / (blocks * len(others)), 1),
    }


def chunks(host: int, blocks: int) -> Iterator[bytes]:
    for first in range(0, blocks, CHUNK_HASHES_MAX):
        held = hashes_of(host, first, min(first + CHUNK_HASHES_MAX, blocks))
        yield pack_chunk(Chunk(0, held, held[:0]))


def counted(sparse: SparseRegion) -> dict[str, int]:
    return {row["key"]: int(row["value"]) for row in sparse.region.counters()}


def check(
    table: _native.RemoteTable, hosts: int, blocks: int, moved: int
) -> tuple[dict[str, float], bytes]:
    """Of blocks of one host in 50: how many that it holds are known, and how many that it evicted are believed."""
    known = held = believed = gone = 0
    digest = hashlib.sha256()
    for host in range(0, hosts, max(1, hosts // 50)):
        for first, end in (
            (blocks, blocks + moved),
            (moved, min(moved + 5000, blocks)),
            (0, moved),
        ):
            asked = hashes_of(host, first, end)
            asked = asked[np.arange(first, end) % 10 != 0]  # of no other host
            found = (table.find(asked)[0] == host).any(axis=1)
            digest.update(np.packbits(found).tobytes() if end == moved else b"")
            if first == 0:
                believed, gone = believed + int(found.sum()), gone + len(found)
            else:
                known, held = known + int(found.sum()), held + len(found)
    return {
        "known_of_held": round(known / max(held, 1), 5),
        "believed_of_evicted": round(believed / max(gone, 1), 5),
    }, digest.digest()


# -- what it costs others ------------------------------------------------------------------------------


def lookups(sparse: SparseRegion, table: _native.RemoteTable, rounds: int) -> dict[str, Any]:
    """ns a key of looking 1,000 unknown keys up: with hints, with the table and no host, and without a table."""
    with SparseRegion(10_000, 1_024) as plain:
        clients = {
            name: (_native.Client(region.region, 0, region.attach(0)), region.namespace_id)
            for name, region in (("with", sparse), ("plain", plain))
        }
        counter = iter(range(1 << 30))

        def batch(name: str) -> float:
            client, namespace_id = clients[name]
            taken = []
            for _ in range(20):
                first = next(counter) * LOOKUP_KEYS
                keys = [
                    hashlib.sha256(number.to_bytes(8, "big")).digest() + bytes(4)
                    for number in range(first, first + LOOKUP_KEYS)
                ]
                began = time.perf_counter_ns()
                _, outcomes = client.find(keys, namespace_id)
                taken.append((time.perf_counter_ns() - began) / LOOKUP_KEYS)
                assert not (outcomes == _native.REMOTE).any(), "a false hit of 50 bits"
            return harness.median(taken)

        def silent() -> float:
            usable = [row["number"] for row in sparse.region.remote_hosts() if row["usable"]]
            table.set_none_usable()
            taken = batch("with")
            for number in usable:
                table.set_usable(number, usable=True)
            return taken

        for number in range(64):
            table.set_usable(number, usable=True)
        samples = harness.interleave(
            rounds,
            {"hints": lambda: batch("with"), "silent": silent, "none": lambda: batch("plain")},
        )
    medians = {name: round(harness.median(values), 1) for name, values in samples.items()}
    return {
        "miss_ns": medians,
        "miss_ns_more": round(medians["hints"] - medians["none"], 1),
    }


def departures(sparse: SparseRegion, table: _native.RemoteTable) -> dict[str, float]:
    """A host is lost: until its hints count no more, and until its number is free."""
    taken = []
    for number in range(16):
        began = time.perf_counter_ns()
        table.set_usable(number, usable=False)
        taken.append((time.perf_counter_ns() - began) / 1e3)
    cpu = time.thread_time()
    table.retire(1)
    dropped = table.drop_retired()
    return {
        "hide_us": round(harness.median(taken), 1),
        "sweep_cpu_s": round(time.thread_time() - cpu, 3),
        "swept_hints": dropped,
    }


def publishing(hosts: int, seconds: float) -> dict[str, Any]:
    """CPU of one host's publisher with all others subscribed, at the rate of one host."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ears: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ears.set(zmq.MAX_SOCKETS, hosts + 16)
    with SparseRegion(10_000, 1_024) as sparse:
        client = _native.Client(sparse.region, 0, sparse.attach(0))
        publisher = Publisher(
            sparse.region,
            context,
            host_id=bytes(16),
            incarnation=bytes(16),
            bind="tcp://127.0.0.1:*",
            configure=lambda _socket: None,
            hosts=lambda: hosts,
        )
        command = [sys.executable, "-c", _EARS, str(hosts), str(publisher.port)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            thread = threading.Thread(target=publisher.run, daemon=True)
            time.sleep(1.0)
            cpu, began = time.process_time(), time.monotonic()
            thread.start()
            own, number = 0.0, 0
            while time.monotonic() < began + seconds:
                storing = time.thread_time()
                keys = [i.to_bytes(32, "big") + bytes(4) for i in range(number, number + 20)]
                handles, _ = client.claim(keys, sparse.namespace_id, 4096)
                client.publish(handles)
                client.evict(handles)
                number += 20
                own += time.thread_time() - storing
                time.sleep(0.1)
            wall = time.monotonic() - began
            cpu = time.process_time() - cpu - own
            publisher.stop()
            thread.join()
            assert child.stdin is not None
            child.stdin.close()
            heard = json.loads(child.stdout.readline())
    context.destroy(linger=0)
    ears.destroy(linger=0)
    return {
        "publish_cpu_share": round(cpu / wall, 4),
        "publish_bytes_s": round(heard["bytes"] / wall),
        "publish_events_s": round(2 * number / wall),
    }


_EARS = """
import json, resource, sys, threading, zmq
hosts, port = int(sys.argv[1]), int(sys.argv[2])
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
context = zmq.Context(); context.set(zmq.MAX_SOCKETS, hosts + 16)
ears = []
for _ in range(hosts):
    ear = context.socket(zmq.SUB); ear.setsockopt(zmq.SUBSCRIBE, b""); ear.connect(f"tcp://127.0.0.1:{port}")
    ears.append(ear)
print("ready", flush=True)
sys.stdin.read()
nbytes = 0
for ear in ears:
    while ear.poll(0): nbytes += len(ear.recv())
print(json.dumps({"bytes": nbytes}), flush=True)
context.destroy(linger=0)
"""


def summary(figures: dict[str, Any]) -> Any:
    gib = figures["table_bytes"] / (1 << 30)
    rows = [
        ("table of hints", f"{gib:.2f} GiB, {figures['table_bytes'] / max(figures['hints'], 1):.1f} bytes a hint kept"),
        ("hints kept / displaced", f"{figures['hints']:,} / {figures['hints_displaced']:,}"),
        ("all snapshots applied", f"{figures['fill_cpu_s']} CPU s, {figures['fill_ns_a_hint']} ns a hint"),
        ("stream heard", f"{figures['events_s']:,} events/s, {figures['bytes_s'] / 1e6:.2f} MB/s, {figures['messages_s']:,} messages/s (one each {figures['interval_s'] * 1e3:.0f} ms)"),
        ("CPU of hearing it", f"{figures['cpu_share']:.1%} of a core, {figures['cpu_ns_an_event']} ns an event"),
        ("heard of what was sent", f"{figures['events_heard']:.2%}; {figures['snapshots_again']} snapshots asked again"),
        ("held and known / evicted and believed", f"{figures['known_of_held']:.3%} / {figures['believed_of_evicted']:.3%}"),
        ("CPU of telling all", f"{figures['publish_cpu_share']:.1%} of a core, {figures['publish_bytes_s'] / 1e6:.2f} MB/s out"),
        ("a miss, ns a key", f"{figures['miss_ns']['hints']} with hints, {figures['miss_ns']['silent']} no host usable, {figures['miss_ns']['none']} no table"),
        ("a host lost", f"hidden in {figures['hide_us']} us; swept out in {figures['sweep_cpu_s']} CPU s"),
        ("partitioned over owners", f"{figures['partitioned']['table_bytes'] / 1e6:.1f} MB, {figures['partitioned']['events_s']:,} events/s, but a round trip a lookup"),
    ]  # fmt: skip
    title = f"{figures['hosts']:,} hosts, {figures['blocks_a_host']:,} blocks each"
    return harness.table(title, ("what", "figure"), rows)


if __name__ == "__main__":
    harness.run("directory", QUESTION, not_shown=NOT_SHOWN, measure=measure)
