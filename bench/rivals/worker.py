"""What does a client of a store measure, in a process of its own? Lookups, puts and gets, on command.

Started by workers.py in the store's own environment as `python -m bench.rivals.worker JSON`; reads a JSON object a line, does what
`do` says, answers one line (a rival's own chatter on standard output goes to the log). Every block that comes back is compared with what
was put: each client makes the same pattern from the same seed, and each 4 KiB of a block carry the block's number.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.rivals.store import Rows, Store

__all__ = ["main"]

SEED = 20261124
STAMP_WORDS = 512  # one stamp each 4 KiB
NO_BLOCK = np.uint64(2**64 - 1)
RING_CALLS, KEEP_CALLS = 24, 16

Say = Callable[[Mapping[str, Any]], None]


class Worker:
    """One client and its buffers."""

    def __init__(self, store: Store, buffer_bytes: int) -> None:
        self.store = store
        self.source = store.memory(buffer_bytes)
        self.target = store.memory(buffer_bytes)
        words = self.source.view(np.uint64)
        words[:] = np.random.default_rng(SEED).integers(0, 1 << 63, len(words), np.uint64)
        self.random = random.Random(SEED)

    def do_prepare(self, block_bytes: int) -> dict[str, Any]:
        self.store.prepare(block_bytes)
        return {}

    def do_exists(self, chains: Sequence[int], count: int, calls: int, hit: bool) -> dict[str, Any]:
        """Ask for the first `count` blocks of a chain, another one each time."""
        taken = []
        for _ in range(calls):
            names = self._names(self.random.choice(chains), count)
            start = time.perf_counter_ns()
            found = self.store.exists(names)
            taken.append(time.perf_counter_ns() - start)
            if found != (count if hit else 0):
                raise AssertionError(f"{found} of {count} blocks are there, hit={hit}")
        return {"ns": taken}

    def do_put(
        self, first: int, count: int, block_bytes: int, a_call: int, at: float = 0
    ) -> dict[str, Any]:
        """Put blocks from the source buffer, so many a call, starting at a moment of the monotonic clock."""
        rows = self._stamped(first, count, block_bytes)
        return self._timed(self.store.put, first, rows, a_call, at)

    def do_get(
        self, first: int, count: int, block_bytes: int, a_call: int, at: float = 0, put_by: int = 0
    ) -> dict[str, Any]:
        """Get blocks into the target buffer, and compare them all. `put_by`: so many a call were put from the buffer's start."""
        rows = self._rows(self.target, count, block_bytes)
        rows.view(np.uint64)[:, ::STAMP_WORDS] = NO_BLOCK  # what an earlier get left must not count
        answer = self._timed(self.store.get, first, rows, a_call, at)
        step = put_by or count
        right = 0
        for begin in range(0, count, step):
            part = rows[begin : begin + step]
            expected = self._stamped(first + begin, len(part), block_bytes)
            right += int((part == expected).all(axis=1).sum())
        return answer | {"right": right, "wrong": answer["came"] - min(right, answer["came"])}

    def do_delete(self, first: int, count: int) -> dict[str, Any]:
        self.store.delete(self._names(first, count))
        return {}

    def do_storm(self, first: int, block_bytes: int, a_call: int, say: Say) -> dict[str, Any]:
        """Put and delete without end, and say after each call how far it came: until killed."""
        for call in range(1 << 30):
            start = first + call * a_call
            rows = self._stamped(start, a_call, block_bytes)
            self.store.put(self._names(start, a_call), rows)
            if call >= RING_CALLS and self.store.deletes:
                self.store.delete(self._names(start - RING_CALLS * a_call, a_call))
            say({"from": max(first, start - (KEEP_CALLS - 1) * a_call), "to": start + a_call})
        return {}

    def _timed(
        self,
        act: Callable[[Sequence[Any], Rows], int | None],
        first: int,
        rows: Rows,
        a_call: int,
        at: float,
    ) -> dict[str, Any]:
        cuts = [slice(i, min(i + a_call, len(rows))) for i in range(0, len(rows), a_call)]
        calls = [(self._names(first + cut.start, cut.stop - cut.start), rows[cut]) for cut in cuts]
        while time.monotonic() < at:
            pass
        marks, came = [time.monotonic_ns()], 0
        for names, part in calls:
            came += act(names, part) or 0
            marks.append(time.monotonic_ns())
        return {"began": marks[0], "ended": marks[-1], "ns": np.diff(marks).tolist(), "came": came}

    def _names(self, first: int, count: int) -> list[Any]:
        return [self.store.name(block) for block in range(first, first + count)]

    def _stamped(self, first: int, count: int, block_bytes: int) -> Rows:
        """The source buffer as these blocks."""
        rows = self._rows(self.source, count, block_bytes)
        numbers = np.arange(first, first + count, dtype=np.uint64)
        rows.view(np.uint64)[:, ::STAMP_WORDS] = numbers[:, None]
        return rows

    @staticmethod
    def _rows(buffer: Rows, count: int, block_bytes: int) -> Rows:
        return buffer[: count * block_bytes].reshape(count, block_bytes)


def main(arguments: Sequence[str]) -> None:
    setup = json.loads(arguments[0])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(what: Mapping[str, Any]) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    store = importlib.import_module(f"bench.rivals.stores.{setup['module']}").open_store(
        setup["config"]
    )
    worker = Worker(store, setup["buffer_bytes"])
    say({"pid": os.getpid()})
    for line in sys.stdin:
        command = json.loads(line)
        act = getattr(worker, f"do_{command.pop('do')}")
        if act == worker.do_storm:
            command["say"] = say
        started = time.monotonic()
        try:
            answer = act(**command)
        except Exception as error:  # noqa: BLE001 (whatever a rival raises is its answer)
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        say({**answer, "seconds": time.monotonic() - started})
    store.close()


if __name__ == "__main__":
    main(sys.argv[1:])
