"""How do the tier bench's clients use the cache? As an engine does, without one.

`Client.serve` is a request: look its blocks up, wait for those on SSD, copy the hits out and compare them, store the
rest. `Client.hot_pass` is a load that memory alone serves. Run as `python -m bench.tier_client NAME BLOCK_BYTES RATE`,
it stores new blocks at a steady rate between the lines "go" and "stop" on its input, and answers each.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pegashm._native import OK, SPILLED, Copier
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.transport.client import TransportClient

__all__ = ["NAMESPACE", "Client", "Served", "key_of"]

NAMESPACE = namespace_of({"bench": "tier"}, label="bench.tier")
DEADLINE_MS = 1000
POLL_S = 0.0002
STORE_BLOCKS = 8
GROUP = bytes(4)

Words = NDArray[np.uint64]


def key_of(block: int, kind: str = "t") -> bytes:
    """As engines make them: a hash."""
    return hashlib.blake2b(f"{kind}{block}".encode(), digest_size=32).digest() + GROUP


@dataclass(slots=True)
class Served:
    """What a row of requests came to, in blocks."""

    asked: int = 0
    memory: int = 0
    ssd: int = 0
    wrong: int = 0
    stored: int = 0
    waits_s: list[float] = field(default_factory=list)


class Client:
    """One attached client; its own memory has room for `blocks` blocks."""

    def __init__(self, name: str, block_bytes: int, blocks: int) -> None:
        self.cache = Cache.attach(name, namespace=NAMESPACE, label="bench")
        self.block_bytes = block_bytes
        self.transport = TransportClient(self.cache.arena)
        self.copier = Copier(1)
        self.own = np.zeros((blocks, block_bytes // 8), np.uint64)
        self.pattern = np.random.default_rng(1).integers(0, 1 << 63, block_bytes // 8, np.uint64)

    def close(self) -> None:
        self.transport.close()
        self.copier.close()
        self.cache.close()

    def served(self, requests: Sequence[Sequence[int]], rate: float) -> Served:
        """All requests, no faster than `rate` bytes a second are stored."""
        total = Served()
        began = time.perf_counter()
        for request in requests:
            self._serve(request, total)
            ahead = total.stored * self.block_bytes / rate - (time.perf_counter() - began)
            if ahead > 0:
                time.sleep(ahead)
        return total

    def _serve(self, request: Sequence[int], total: Served) -> None:
        keys = [key_of(block) for block in request]
        total.asked += len(keys)
        handles, outcomes = self.cache.find_prefix(keys, pin=True)
        in_memory = int((outcomes == OK).sum())
        spilled = [i for i, outcome in enumerate(outcomes.tolist()) if outcome == SPILLED]
        if spilled:
            began = time.perf_counter()
            self._wait_for([keys[i] for i in spilled])
            total.waits_s.append(time.perf_counter() - began)
            handles[spilled] = self.cache.find([keys[i] for i in spilled], pin=True)[0]
        holes = np.flatnonzero(handles == 0)
        hits = int(holes[0]) if len(holes) else len(handles)
        came = sum(i < hits for i in spilled)
        total.ssd += came
        total.memory += min(hits - came, in_memory)
        self._copy_out(handles[:hits])
        total.wrong += sum(not self._is_right(i, request[i]) for i in range(hits))
        self.cache.touch(handles[:hits][::-1])
        self.cache.unpin(handles)
        total.stored += self.store(request[hits:], keys[hits:])

    def _wait_for(self, keys: Sequence[bytes]) -> None:
        """Until the worker has answered, or the deadline has passed."""
        deadline = time.perf_counter() + DEADLINE_MS / 1e3
        ticket = self.transport.promote(keys, self.cache.namespace_id, DEADLINE_MS)
        while ticket is not None and time.perf_counter() < deadline:
            if any(done.request_id == ticket for done in self.transport.replies()):
                return
            time.sleep(POLL_S)
        if ticket is not None:
            self.transport.forget(ticket)

    def store(self, blocks: Sequence[int], keys: Sequence[bytes]) -> int:
        """Claim, copy in, publish; how many."""
        handles, _ = self.cache.claim(list(keys), self.block_bytes)
        for row, block in enumerate(blocks):
            np.add(self.pattern, np.uint64(block), out=self.own[row])
        ours = np.flatnonzero(handles)
        self._copy(handles[ours], ours, into_arena=True)
        self.cache.publish(handles[ours])  # head first
        return len(ours)

    def hot_pass(self, keys: Sequence[bytes]) -> float | None:
        """Seconds of a lookup and a copy of blocks that are in memory; None when one is not (any more)."""
        began = time.perf_counter()
        handles, outcomes = self.cache.find(keys, pin=True)
        self._copy_out(handles)
        self.cache.unpin(handles)
        took = time.perf_counter() - began
        self.cache.touch(handles)
        return None if outcomes.any() else took

    def wrong(self, handles: Words, blocks: Sequence[int]) -> int:
        """How many of these, copied out, are not what `store` stored."""
        self._copy_out(handles)
        return sum(not self._is_right(row, block) for row, block in enumerate(blocks))

    def _copy_out(self, handles: Words) -> None:
        self._copy(handles, np.arange(len(handles)), into_arena=False)

    def _copy(self, handles: Words, rows: NDArray[np.int64], *, into_arena: bool) -> None:
        if not len(handles):
            return
        offsets, _ = self.cache.locate(handles)
        arena = offsets + np.uint64(self.cache.region.payload_address)
        own = np.uint64(self.own.ctypes.data) + rows.astype(np.uint64) * np.uint64(self.block_bytes)
        sizes = np.full(len(handles), self.block_bytes, np.uint64)
        self.copier.copy(arena if into_arena else own, own if into_arena else arena, sizes)

    def _is_right(self, row: int, block: int) -> bool:
        return bool((self.own[row] == self.pattern + np.uint64(block)).all())


def main(name: str, block_bytes: int, rate: float) -> None:
    with contextlib.closing(Client(name, block_bytes, STORE_BLOCKS)) as client:
        print("ready", flush=True)
        block = 0
        while line := sys.stdin.readline():
            began, stored = time.perf_counter(), 0
            print(line.strip(), flush=True)
            while line.strip() == "go" and not select.select([sys.stdin], [], [], 0)[0]:
                blocks = range(block, block + STORE_BLOCKS)
                stored += client.store(blocks, [key_of(one, "s") for one in blocks])
                block += STORE_BLOCKS
                ahead = stored * block_bytes / rate - (time.perf_counter() - began)
                time.sleep(max(ahead, 0))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
