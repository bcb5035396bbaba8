"""What does one process measure in the operations bench? Batches of each operation on blocks of its own, for a while.

Started by operations.py as `python -m bench.operations_worker JSON` with the region's descriptors inherited, alone or beside
others. It reads one JSON line ({"seconds", "full"}) and answers with one: for each operation the nanoseconds a block of
every batch, how many blocks went through and how long that took in all. Every outcome is checked.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pegashm import _native

from bench.lookup_keys import KeySet

__all__ = ["BATCH", "main"]

BATCH = 256
KEYS = 64 * BATCH
BLOCK_BYTES = 4096


class Worker:
    """One attached client and keys that nobody else has."""

    def __init__(self, setup: dict[str, int]) -> None:
        self.region = _native.Region(setup["control_fd"], [setup["arena_fd"]])
        self.client = _native.Client(self.region, setup["slot"], setup["incarnation"])
        self.namespace_id = setup["namespace_id"]
        self.seed = setup["slot"] << 32
        self.ns: dict[str, list[float]] = {}
        self.blocks = 0
        self.refused = 0

    def fresh_keys(self) -> list[bytes]:
        self.seed += 1
        return KeySet(KEYS, self.seed).all()

    def measure(self, seconds: float, *, full: bool) -> dict[str, Any]:
        self.ns, self.blocks, self.refused = {}, 0, 0
        spent = 0.0
        while spent < seconds:
            keys = self.fresh_keys()  # in nobody's time
            began = time.perf_counter()
            for at in range(0, KEYS, BATCH):
                (self.replace if full else self.cycle)(keys[at : at + BATCH])
            spent += time.perf_counter() - began
        return {
            "ns": self.ns,
            "blocks": self.blocks,
            "refused": self.refused,
            "seconds": spent,
        }

    def cycle(self, keys: list[bytes]) -> None:
        """A block's life in an arena with room."""
        client = self.client
        handles, outcomes = self.timed("claim", lambda: self.claim(keys))
        self.ok(outcomes)
        self.timed("publish", lambda: self.ok(client.publish(handles)))
        found = self.timed("find, pin", lambda: client.find(keys, self.namespace_id, pin=True)[0])
        if (found != handles).any():
            raise AssertionError("a block that was published is not found")
        self.timed("touch", lambda: client.touch(handles))
        self.timed("unpin", lambda: client.unpin(handles))
        self.timed("evict", lambda: self.ok(client.evict(handles)))
        self.blocks += len(keys)

    def replace(self, keys: list[bytes]) -> None:
        """In a full arena: each claim evicts what has not been used for longest. One that others outpace is
        refused after a bounded search, as an engine's store would be: counted."""
        handles, outcomes = self.timed("claim, evicting", lambda: self.claim(keys))
        if not np.isin(outcomes, (_native.OK, _native.NO_SPACE)).all():
            self.ok(outcomes)
        claimed = handles[outcomes == _native.OK]
        self.ok(self.client.publish(claimed))
        self.blocks += len(claimed)
        self.refused += len(keys) - len(claimed)

    def claim(self, keys: list[bytes]) -> Any:
        return self.client.claim(keys, self.namespace_id, BLOCK_BYTES)

    @staticmethod
    def ok(outcomes: Any) -> None:
        if outcomes.any():
            raise AssertionError(f"outcomes {np.unique(outcomes).tolist()}, expected {_native.OK}")

    def timed(self, name: str, operation: Callable[[], Any]) -> Any:
        began = time.perf_counter_ns()
        came = operation()
        self.ns.setdefault(name, []).append((time.perf_counter_ns() - began) / BATCH)
        return came


def main() -> None:
    worker = Worker(json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(worker.measure(order["seconds"], full=order["full"])), flush=True)


if __name__ == "__main__":
    main()
