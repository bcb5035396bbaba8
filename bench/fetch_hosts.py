"""What does a block of another host cost from end to end: asked for, pinned there, read, verified, published, answered?

Two real brokers (`pegashm serve --listen`) on loopback, each with its transport worker; a client of one stores, a client of
the other finds by hints and asks its own worker, as an engine does. Throughput: 64 MiB asked for in one request. Latency:
one block asked for at a time, beside a ping of the worker (what a round trip of messages costs on this machine). Every
block that came is copied out and compared, outside the time taken. What TCP itself could do is bench.fetch.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pegashm._native import REMOTE

from bench import harness, memory
from bench.served import served_arena
from bench.tier_client import Client, key_of

__all__ = ["measure"]

KIB, MIB = 1 << 10, 1 << 20
QUESTION = "What does a block of another host cost, from the request to the answer?"
NOT_SHOWN = (
    "a network, and hosts with cores of their own: both brokers and the client share two cores",
    "an engine, which polls once a step",
)
SIZES_KIB = (64, 256, 1024, 4096)
BATCH_BYTES = 64 * MIB
SEGMENT_BYTES = 16 * MIB
DEADLINE_MS = 20_000
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 20e-6


def measure(options: harness.Options) -> harness.Findings:
    rounds = options.pick(15, 5, 1)
    count = options.pick(500, 100, 10)
    sizes = options.pick(SIZES_KIB, SIZES_KIB, (64, 1024))
    size = 4 * BATCH_BYTES
    rows = []
    # Twice what two hosts take: the next pair comes while the last one goes.
    with memory.huge_tmpfs(5 * size) as folder:
        for kib in sizes:
            harness.progress(f"{kib} KiB")
            with hosts(size, kib * KIB, folder) as (there, here):
                rows.append(row_of(there, here, kib, rounds, count))
    figures = {
        "gbs_best": max(row["gbs"] for row in rows),
        "one_block_us": {row["block_kib"]: row["p50_us"] for row in rows},
        "rounds": rounds,
        "results": rows,
    }
    pages = "2 MiB pages" if folder else "4 KiB pages"
    return harness.Findings(
        [table(rows)],
        figures,
        f"{sum(row['blocks'] for row in rows)} blocks compared",
        [f"arenas on {pages}; every block that came was compared"],
    )


def row_of(there: Client, here: Client, kib: int, rounds: int, count: int) -> dict[str, Any]:
    blocks = range(BATCH_BYTES // (kib * KIB))
    keys = [key_of(block) for block in blocks]
    there.store(blocks, keys)
    together = []
    for _ in range(rounds):
        wait_for_hints(here, keys)
        began = time.perf_counter()
        ask(here, keys)
        together.append(time.perf_counter() - began)
        forget(here, keys, compare(here, keys, blocks))
    alone = []
    for number in range(count):
        one = [keys[number % len(keys)]]
        wait_for_hints(here, one)
        began = time.perf_counter()
        ask(here, one)
        alone.append(time.perf_counter() - began)
        forget(here, one, compare(here, one, [number % len(keys)]))
    seconds = harness.median(together)
    return {
        "block_kib": kib,
        "blocks": rounds * len(keys) + count,
        "gbs": round(BATCH_BYTES / seconds / 1e9, 2),
        "us_a_block": round(seconds / len(keys) * 1e6, 1),
        **{
            name: round(harness.percentile(alone, percent) * 1e6, 1)
            for name, percent in (("p50_us", 50), ("p99_us", 99))
        },
        "ping_us": round(harness.median([ping(here) for _ in range(50)]) * 1e6, 1),
    }


def wait_for_hints(client: Client, keys: Sequence[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (client.cache.find(list(keys))[1] != REMOTE).any():
        if time.monotonic() > deadline:
            raise SystemExit("the other host's blocks are not known here in time; its log is above")
        time.sleep(0.002)


def ask(client: Client, keys: Sequence[bytes]) -> None:
    """Ask for all of them, and wait for the answer."""
    ticket = client.transport.promote(keys, client.cache.namespace_id, DEADLINE_MS)
    until = time.perf_counter() + DEADLINE_MS / 1e3 + 1.0
    while time.perf_counter() < until:
        for done in client.transport.replies():
            if done.request_id == ticket:
                if any(done.outcomes):
                    raise SystemExit(f"not all blocks came: outcomes {sorted(set(done.outcomes))}")
                return
        time.sleep(POLL_SECONDS)
    raise SystemExit("the transport worker did not answer")


def ping(client: Client) -> float:
    """Of a key that nobody has: the worker answers by itself."""
    began = time.perf_counter()
    ticket = client.transport.promote(
        [key_of(0, "nobody's")], client.cache.namespace_id, DEADLINE_MS
    )
    while not any(done.request_id == ticket for done in client.transport.replies()):
        time.sleep(POLL_SECONDS)
    return time.perf_counter() - began


def compare(client: Client, keys: Sequence[bytes], blocks: Sequence[int]) -> Any:
    handles, outcomes = client.cache.find(list(keys), pin=True)
    wrong = client.wrong(handles, blocks)
    client.cache.unpin(handles)
    if outcomes.any() or wrong:
        raise AssertionError(f"{wrong} blocks are wrong, outcomes {set(outcomes.tolist())}")
    return handles


def forget(client: Client, keys: Sequence[bytes], handles: Any) -> None:
    if client.cache.evict(handles).any():
        raise AssertionError(f"of {len(keys)} blocks some were not evicted")


@contextlib.contextmanager
def hosts(size: int, block_bytes: int, folder: str | None) -> Iterator[tuple[Client, Client]]:
    """A client of each of two hosts that know each other."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    with contextlib.ExitStack() as stack:
        clients = []
        for address in addresses:
            options = ["--listen", address, "--peers", ",".join(addresses), "--fabric", "tcp"]
            options += ["--remote-blocks", "20000", "--segment-size", str(SEGMENT_BYTES)]
            options += ["--block-min", str(min(block_bytes, 64 * KIB)), "--no-lock"]
            name = stack.enter_context(
                served_arena("fetch", size + 32 * MIB, folder, options=options)
            )
            client = Client(name, block_bytes, BATCH_BYTES // block_bytes)
            clients.append(stack.enter_context(contextlib.closing(client)))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all(client.transport.alive for client in clients):
            if time.monotonic() > deadline:
                raise SystemExit("a transport worker does not listen; it says why above")
            time.sleep(0.05)
        yield clients[0], clients[1]


def free_ports(count: int) -> list[int]:
    """Each with two free ones behind it, as a worker wants them."""
    found: list[int] = []
    while len(found) < count:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            for more in (1, 2):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port + more))
            if all(abs(port - other) > 2 for other in found):
                found.append(port)
    return found


def table(rows: Sequence[dict[str, Any]]) -> Any:
    return harness.table(
        f"Blocks of another host through both brokers: {BATCH_BYTES // MIB} MiB in one request; one block",
        ("KiB", "GB/s", "us a block", "one block: p50 us", "p99", "a worker's answer, us"),
        [
            (
                row["block_kib"],
                row["gbs"],
                row["us_a_block"],
                row["p50_us"],
                row["p99_us"],
                row["ping_us"],
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    harness.run("fetch_hosts", QUESTION, not_shown=NOT_SHOWN, measure=measure)
