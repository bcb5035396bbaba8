"""An engine that compares its own KV bytes with the arena's after every store and every load.

Started in place of `child.py`, whose orders it obeys; one more: {"watched": true} -> what it has seen so far. Three
moments at which bytes could part from what they should be, each looked at where it happens:

 1. a store is handed over: the bytes in the engine's tensors at that moment, and those in the arena when the copy
    has ended, must be the same (else the model, or vLLM's next user of the block, wrote while it was read);
 2. a round is over: the bytes in the tensors must still be those that were stored (else the store read them too
    early, before the model had written them);
 3. a load has ended: the bytes in the tensors must be those that some engine wrote down for this very life of the
    block when it stored it (else they changed in between, or were published before they were all there).

What was stored is written down in a ledger, a file for each engine, before anybody can publish it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import child
import numpy as np

from pegashm.connector.worker import PegaShmCpuWorker

LEDGER = Path(os.environ["PEGASHM_TEST_LEDGER"])


class Watch:
    """What was seen; the model thread and the copying thread both come here."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.stores = self.loads = self.chunks_stored = self.chunks_loaded = self.looked_again = 0
        self.wrong: list[str] = []
        self.longest_step_s = 0.0
        self.handed: dict[int, dict[int, int]] = {}  # job -> handle -> digest when handed over
        self.recent: list[tuple[Any, Any, dict[int, int]]] = []  # stored in this round
        self.known: dict[tuple[str, int], int] = {}
        self.read: dict[Path, int] = {}
        self.out = os.open(LEDGER / f"{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, what: str) -> None:
        with self.mutex:
            self.wrong.append(what)
        print(f"WATCHED: {what}", file=sys.stderr, flush=True)

    def write_down(self, region: bytes, digests: dict[int, int]) -> None:
        lines = "".join(f"{region.hex()} {handle} {digest}\n" for handle, digest in digests.items())
        os.write(self.out, lines.encode())

    def look_up(self, region: bytes, handle: int) -> int | None:
        asked = (region.hex(), handle)
        if asked not in self.known:
            for path in LEDGER.iterdir():
                with path.open("rb") as file:
                    file.seek(self.read.get(path, 0))
                    whole = file.read()
                whole = whole[: whole.rfind(b"\n") + 1]
                self.read[path] = self.read.get(path, 0) + len(whole)
                for line in whole.decode().splitlines():
                    of, name, digest = line.split()
                    self.known[of, int(name)] = int(digest)
        return self.known.get(asked)

    def report(self) -> dict[str, Any]:
        return {
            "stores": self.stores,
            "loads": self.loads,
            "chunks_stored": self.chunks_stored,
            "chunks_loaded": self.chunks_loaded,
            "looked_again": self.looked_again,
            "longest_step_s": round(self.longest_step_s, 3),
            "wrong": self.wrong,
        }


watch = Watch()


def digests(worker: Any, job: Any, copyist: Any, side: str) -> dict[int, int]:
    """Of each chunk of a job: a digest of its bytes in the `engine` or in the `arena`, in the arena's order."""
    runs = worker._runs(job, copyist)
    starts = job.blocks.offsets + np.uint64(copyist.payload_address)
    order = np.argsort(starts)
    found: dict[int, int] = dict.fromkeys(job.blocks.handles.tolist(), 0)
    by_place = np.argsort(runs.arena)
    of_chunk = order[np.searchsorted(starts[order], runs.arena, side="right") - 1]
    addresses = runs.engine if side == "engine" else runs.arena
    for run in by_place.tolist():
        handle = int(job.blocks.handles[of_chunk[run]])
        data = ctypes.string_at(int(addresses[run]), int(runs.sizes[run]))
        found[handle] = zlib.crc32(data, found[handle])
    return found


def joined(worker: Any, job: Any) -> Any:
    return worker._reach.join(job.blocks, worker._layout.chunk_bytes)


submit, store, load = (
    PegaShmCpuWorker._submit,
    PegaShmCpuWorker._store,
    PegaShmCpuWorker._load,
)


class Place:
    """Stands for the mapping where only the engine's side is asked for."""

    payload_address = 0


def watched_submit(self: Any, job_id: int, blocks: Any, engine: Any, *, is_store: bool) -> bool:
    if is_store and sum(engine.group_sizes) == len(blocks.handles) * self._layout.blocks_per_chunk:
        job = type("Job", (), {"blocks": blocks, "engine": engine})
        with watch.mutex:
            watch.handed[job_id] = digests(self, job, Place, "engine")
    return submit(self, job_id, blocks, engine, is_store=is_store)


def watched_store(self: Any, job: Any) -> int:
    copied = store(self, job)
    with watch.mutex:
        handed = watch.handed.pop(job.job_id, None)
    if not copied or handed is None:
        return copied
    copyist = joined(self, job)
    in_arena, in_engine = (
        digests(self, job, copyist, "arena"),
        digests(self, job, copyist, "engine"),
    )
    for handle, digest in in_arena.items():
        if handed[handle] != digest or in_engine[handle] != digest:
            watch.say(
                f"store of {handle:#x}: {handed[handle]:08x} when handed over, {digest:08x} in the "
                f"arena, {in_engine[handle]:08x} in the engine afterwards"
            )
    watch.write_down(copyist.region_id, in_arena)
    with watch.mutex:
        watch.stores += 1
        watch.chunks_stored += len(in_arena)
        watch.recent.append((self, job, in_arena))
    return copied


def watched_load(self: Any, job: Any) -> int:
    copied = load(self, job)
    if not copied:
        return copied
    copyist = joined(self, job)
    for handle, digest in digests(self, job, copyist, "engine").items():
        stored = watch.look_up(copyist.region_id, handle)
        if stored != digest:
            there = digests(self, job, copyist, "arena")[handle]
            watch.say(
                f"load of {handle:#x}: {digest:08x} came, {stored and f'{stored:08x}'} was stored, "
                f"{there:08x} is in the arena"
            )
    with watch.mutex:
        watch.loads += 1
        watch.chunks_loaded += len(job.blocks.handles)
    return copied


class Driver(child.Driver):
    """child.py's, that looks again when a round is over, and times every step."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        step = self.engine.step

        def timed() -> Any:
            began = time.perf_counter()
            try:
                return step()
            finally:
                watch.longest_step_s = max(watch.longest_step_s, time.perf_counter() - began)

        self.engine.step = timed

    def ask(self, prompts: list[list[int]], load: bool | None) -> list[dict[str, Any]]:
        answers = super().ask(prompts, load)
        with watch.mutex:
            recent, watch.recent = watch.recent, []
        for worker, job, stored in recent:
            # Nobody has been given these blocks since: there are far more of them than a round needs.
            for handle, digest in digests(worker, job, Place, "engine").items():
                watch.looked_again += 1
                if digest != stored[handle]:
                    watch.say(
                        f"store of {handle:#x}: {stored[handle]:08x} was stored, {digest:08x} is what the "
                        "model had written in the end"
                    )
        return answers

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        return watch.report() if "watched" in order else super().obey(order)


@contextlib.contextmanager
def hooked() -> Iterator[None]:
    PegaShmCpuWorker._submit = watched_submit  # type: ignore[method-assign]
    PegaShmCpuWorker._store = watched_store  # type: ignore[method-assign]
    PegaShmCpuWorker._load = watched_load  # type: ignore[method-assign]
    child.Driver = Driver  # type: ignore[misc]
    yield


if __name__ == "__main__":
    with hooked():
        child.main()
