"""What does one process measure in the lookup bench? Each contender's batches, on command, for lookup.py.

Started by lookup.py as `python -m bench.lookup_worker JSON` with the region's descriptors inherited; one process or
several at the same time. It reads one JSON line for a section (contender, hits or misses, cold or hot, batch count) and
answers with one line: nanoseconds per batch and a hash of what the contender answered. Cold means: all
caches overwritten, then only the keys read once, since an engine has just hashed them. Answers are checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pegashm import _native

from bench import memory
from bench.lookup_keys import KeySet
from bench.redis_server import Prepacked
from bench.reference import Reference

__all__ = ["Setup", "main"]

FLUSH_BYTES = 96 << 20
FAULT_IN_KEYS = 10_000
CACHE_LINE_BYTES, RECORD_BYTES = 64, 128

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything a worker is told."""

    control_fd: int
    arena_fd: int
    slot: int
    incarnation: int
    namespace_id: int
    bucket_count: int
    record_count: int
    key_count: int
    key_seed: int
    miss_count: int
    miss_seed: int
    batch_keys: int
    redis_path: str | None
    huge: bool  # the region's control part, and so the memory's limit, on 2 MiB pages
    with_dict: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys of one lookup, and what the rivals need in place of them, made before the clock runs."""

    keys: list[bytes]
    packed: bytes
    first_lines: Words
    second_lines: Words
    hit: bool

    def touch(self) -> None:
        """Bring the question itself into the caches."""
        b"".join(self.keys)
        self.packed.count(b"\n")
        self.first_lines.sum()
        self.second_lines.sum()


class Contender(Protocol):
    def __call__(self, batch: Batch) -> tuple[int, bytes]:
        """(nanoseconds, answer: one byte a key, 1 = there)"""


class Worker:
    """The contenders of one process and the batches they are asked."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.hits = KeySet(setup.key_count, setup.key_seed)
        self.misses = KeySet(setup.miss_count, setup.miss_seed)
        self.random = np.random.default_rng(setup.slot)
        self.reference = Reference()
        self.flushed = np.zeros(FLUSH_BYTES // 8, np.uint64)
        self.buckets = memory.anonymous(setup.bucket_count * CACHE_LINE_BYTES, huge=setup.huge)
        self.records = memory.anonymous(setup.record_count * RECORD_BYTES, huge=setup.huge)
        self.region = _native.Region(setup.control_fd, [setup.arena_fd])
        self.client = _native.Client(self.region, setup.slot, setup.incarnation)
        self.fault_in()
        self.contenders: dict[str, Contender] = {
            "find": self.find,
            "find, pin": self.find_pin,
            "memory": self.lines,
        }
        if setup.with_dict:
            self.table = dict.fromkeys(self.hits.all(), 1)
            self.contenders["dict"] = self.dictionary
        if setup.redis_path is not None:
            import redis

            self.prepacked = Prepacked(setup.redis_path)
            self.redis = redis.Redis(unix_socket_path=setup.redis_path)
            self.contenders |= {"redis": self.redis_py, "redis, prepacked": self.redis_prepacked}

    def fault_in(self) -> None:
        """Look up every key once: a process pays its page faults once, and they are not the question."""
        for at in range(0, self.hits.count, FAULT_IN_KEYS):
            upto = min(at + FAULT_IN_KEYS, self.hits.count)
            self.client.find(self.hits.keys(range(at, upto)), self.setup.namespace_id)

    def measure(self, contender: str, *, hit: bool, cold: bool, batches: int) -> dict[str, Any]:
        """One section: nanoseconds of each batch."""
        ask = self.contenders[contender]
        nanoseconds: list[int] = []
        digest = hashlib.sha256()
        batch = self.make_batch(hit=hit)
        if not cold:
            ask(batch)
        for _ in range(batches):
            if cold:
                batch = self.make_batch(hit=hit)
                self.reference.walk(self.flushed)
                batch.touch()
            taken, answer = ask(batch)
            nanoseconds.append(taken)
            self.check(contender, answer, hit=hit)
            digest.update(answer)
        return {"ns": nanoseconds, "answers": digest.hexdigest()}

    def make_batch(self, *, hit: bool) -> Batch:
        source = self.hits if hit else self.misses
        count = self.setup.batch_keys
        keys = source.keys(self.random.integers(0, source.count, count).tolist())
        for key in keys:
            hash(key)  # cached in the object: a dict must not pay for it when an engine would not
        setup = self.setup
        return Batch(
            keys,
            Prepacked.pack(keys) if setup.redis_path is not None else b"",
            self.offsets(setup.bucket_count, CACHE_LINE_BYTES),
            # A hit reads a bucket and a record; a miss both of its buckets.
            self.offsets(setup.record_count, RECORD_BYTES)
            if hit
            else self.offsets(setup.bucket_count, CACHE_LINE_BYTES),
            hit,
        )

    def offsets(self, places: int, place_bytes: int) -> Words:
        picked = self.random.integers(0, places, self.setup.batch_keys)
        return (picked * place_bytes).astype(np.uint64)

    def check(self, contender: str, answer: bytes, *, hit: bool) -> None:
        """Hits may lack the few keys that the index had no room for; misses are never there."""
        there = answer.count(1)
        if there < 0.99 * len(answer) if hit else there:
            raise AssertionError(f"{contender} found {there} of {len(answer)} keys, hit={hit}")

    # -- the contenders ----------------------------------------------------------------------

    def find(self, batch: Batch) -> tuple[int, bytes]:
        start = time.perf_counter_ns()
        _, outcomes = self.client.find(batch.keys, self.setup.namespace_id)
        taken = time.perf_counter_ns() - start
        return taken, (outcomes == _native.OK).tobytes()

    def find_pin(self, batch: Batch) -> tuple[int, bytes]:
        start = time.perf_counter_ns()
        handles, outcomes = self.client.find(batch.keys, self.setup.namespace_id, pin=True)
        taken = time.perf_counter_ns() - start
        self.client.unpin(handles)
        return taken, (outcomes == _native.OK).tobytes()

    def lines(self, batch: Batch) -> tuple[int, bytes]:
        second = self.records if batch.hit else self.buckets
        seconds = self.reference.lines(
            self.buckets.bytes.view(np.uint64),
            batch.first_lines,
            second.bytes.view(np.uint64),
            batch.second_lines,
        )
        return round(seconds * 1e9), bytes([batch.hit]) * len(batch.keys)

    def dictionary(self, batch: Batch) -> tuple[int, bytes]:
        start = time.perf_counter_ns()
        found = list(map(self.table.__contains__, batch.keys))
        taken = time.perf_counter_ns() - start
        return taken, bytes(found)

    def redis_py(self, batch: Batch) -> tuple[int, bytes]:
        start = time.perf_counter_ns()
        pipe = self.redis.pipeline(transaction=False)
        for key in batch.keys:
            pipe.exists(key)
        found = pipe.execute()
        taken = time.perf_counter_ns() - start
        return taken, bytes(found)

    def redis_prepacked(self, batch: Batch) -> tuple[int, bytes]:
        count = len(batch.keys)
        start = time.perf_counter_ns()
        there = self.prepacked.exists(batch.packed, count)
        taken = time.perf_counter_ns() - start
        return taken, bytes([1]) * there + bytes(count - there)


def main(arguments: Sequence[str]) -> None:
    worker = Worker(Setup(**json.loads(arguments[0])))
    say: Callable[[object], None] = lambda what: print(json.dumps(what), flush=True)  # noqa: E731
    say({"contenders": list(worker.contenders), "pid": os.getpid()})
    for line in sys.stdin:
        say(worker.measure(**json.loads(line)))


if __name__ == "__main__":
    main(sys.argv[1:])
