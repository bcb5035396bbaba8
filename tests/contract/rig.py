"""What does vLLM call, in which order, and how long does each call take?

A real manager and a real worker on a real arena, driven as vLLM 0.32 drives them (offloading/scheduler.py and
worker.py): look up, load, store, publish, end of the step, now and then a reset. Every call is timed; every byte that
comes from the cache is compared with what its key says it must be. Both workers: the CPU's as it is, the GPU's on
the device of `tests/connector/engines.py`.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)

from pegashm.cache import Mode
from pegashm.connector.attachment import Attachment
from pegashm.connector.cuda import PegaShmCudaWorker
from pegashm.connector.manager import PegaShmManager
from pegashm.connector.settings import SPILL_DEADLINE_MS, Settings
from pegashm.connector.worker import PegaShmCpuWorker
from pegashm.keys import namespace_of

from tests.connector.engines import Device, Pages, gpu_blocks, kv_caches

__all__ = ["BOUND_S", "CHUNK_BYTES", "NAMESPACE", "Figures", "Rig"]

# Not what is promised (that is in docs/reliability.md, from the figures printed), but what tells a call that waits for
# somebody from one that waits for its turn on a crowded machine.
BOUND_S = 5.0

PAGES = Pages(tensors=(2048, 2048), groups=(((0, 2048), (1, 2048)),))
LAYOUT = PAGES.layout()
CHUNK_BYTES = LAYOUT.chunk_bytes
NAMESPACE = namespace_of({"test": "contract"}, label="contract")
CHAINS, CHAIN_KEYS, ROWS = 12, 6, 12
RESET_CHANCE = 0.03

_T = TypeVar("_T")


@dataclass
class Figures:
    """All calls of all tests: seconds by name, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    loaded: int = 0
    stored: int = 0
    wrong_bytes: int = 0
    leaked_blocks: int = 0
    kills: int = 0
    stops: int = 0
    points: set[int] = field(default_factory=set)

    @property
    def calls(self) -> int:
        return sum(len(times) for times in self.seconds.values())

    def line(self) -> dict[str, float | str]:
        times = np.concatenate([np.array(times) for times in self.seconds.values()])
        worst = max(self.seconds, key=lambda name: max(self.seconds[name]))
        return {
            "calls": self.calls,
            "stops": self.stops,
            "kills": self.kills,
            "crash_points": len(self.points),
            "chunks_loaded": self.loaded,
            "chunks_stored": self.stored,
            "p50_us": round(float(np.quantile(times, 0.5)) * 1e6, 1),
            "p99_us": round(float(np.quantile(times, 0.99)) * 1e6, 1),
            "max_ms": round(float(times.max()) * 1e3, 1),
            "slowest": worst,
            "wrong_bytes": self.wrong_bytes,
            "leaked_blocks": self.leaked_blocks,
            "hangs": int((times > BOUND_S).sum()),
        }

    def table(self) -> str:
        """A line for each call."""
        lines = []
        for name, times in sorted(self.seconds.items()):
            p50, p99 = np.quantile(times, (0.5, 0.99)) * 1e6
            lines.append(
                f"{name:24} {len(times):7} calls  p50 {p50:8.1f} us  p99 {p99:9.1f} us  "
                f"max {max(times) * 1e3:8.2f} ms"
            )
        return "\n".join(lines)


def page_of(key: bytes) -> torch.Tensor:
    """The bytes that belong to a key, a row for each tensor."""
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
    )
    return torch.randint(-128, 128, (2, 2048), dtype=torch.int8, generator=generator)


class Rig:
    """One engine: scheduler's side and one worker."""

    def __init__(
        self,
        name: str,
        figures: Figures,
        seed: int,
        *,
        gpu: bool = False,
        spill_deadline_ms: int = SPILL_DEADLINE_MS,
    ) -> None:
        self.figures = figures
        self.chance = random.Random(seed)
        self.engine = kv_caches(PAGES, ROWS)
        self.jobs = 0
        self.requests = 0
        self.over = False
        self.waited = 0
        self.reset_chance = RESET_CHANCE
        settings = Settings(arena=name, mode=Mode.READ_WRITE)
        self.attachment = self.call(
            "attach at start", lambda: Attachment(settings, NAMESPACE, "contract")
        )
        self.manager = PegaShmManager(
            self.attachment,
            mode=Mode.READ_WRITE,
            chunk_bytes=CHUNK_BYTES,
            writers=1,
            events=True,
            spill_deadline_ms=spill_deadline_ms,
        )
        self.worker: Any = (
            PegaShmCudaWorker(
                self.engine,
                layout=LAYOUT,
                cell=0,
                arena=name,
                driver=None,
                engine=Device(at_once=False).engine,
            )
            if gpu
            else PegaShmCpuWorker(self.engine, layout=LAYOUT, cell=0, arena=name, copy_threads=1)
        )

    # -- as vLLM does it ---------------------------------------------------------------------------

    def call(self, name: str, what: Callable[..., _T], *arguments: Any) -> _T:
        start = time.perf_counter()
        try:
            return what(*arguments)
        finally:
            took = time.perf_counter() - start
            self.figures.seconds.setdefault(name, []).append(took)
            assert took < BOUND_S, f"{name} took {took:.1f} s"

    def steps(self, count: int) -> int:
        """So many requests, one a step; how many chunks came from the cache."""
        return sum(self.step() for _ in range(count))

    def step(self) -> int:
        manager = self.manager
        self.attachment._look_at = 0.0  # every step, not every two seconds
        context, keys = self.request()
        found = self.look_up(keys, context)
        came = self.load(keys[:found], context) if found else 0
        self.store(keys[found:], context)
        self.call("on_request_finished", manager.on_request_finished, context)
        self.call("get_stats", manager.get_stats)
        self.call("take_events", lambda: list(manager.take_events()))
        if self.chance.random() < self.reset_chance:
            self.call("reset_cache", manager.reset_cache)
        return came

    def look_up(self, keys: list[OffloadKey], context: ReqContext) -> int:
        """How many there are, of those that come first; step by step while some are on SSD."""
        while True:
            found, pending = 0, False
            for key in keys:
                result = self.call("lookup", self.manager.lookup, key, context)
                if result is LookupResult.MISS:
                    break
                found += 1
                pending = pending or result is not LookupResult.HIT
            if not pending:
                return found
            self.waited += 1
            self.end_step()

    def pending_steps(self, count: int) -> int:
        """As steps(); how many of them were spent waiting for SSD."""
        before = self.waited
        self.steps(count)
        return self.waited - before

    def is_on_ssd(self) -> bool:
        """Whether all that is in memory was written to SSD."""
        cache = self.attachment.cache
        assert cache is not None
        rows = cache.region.counters()
        written = next(int(row["value"]) for row in rows if row["key"] == "spill_stored")
        return 0 < cache.region.tally()["ready"] <= written

    def evict_all(self) -> bool:
        """What is on SSD is all there is; False when the worker holds something just now, which then stays."""
        cache = self.attachment.cache
        assert cache is not None
        ready = cache.region.blocks()
        ready = ready[ready["state"] == 2]
        return not cache.evict(
            (ready["generation"] << 24 | ready["record"]).astype(np.uint64)
        ).any()

    def request(self) -> tuple[ReqContext, list[OffloadKey]]:
        chain = int(self.chance.random() ** 2 * CHAINS)
        count = self.chance.randint(1, CHAIN_KEYS)
        keys = [make_offload_key(f"{chain:>24}{n:08d}".encode(), 0) for n in range(count)]
        context = ReqContext(req_id=f"r{self.requests}", kv_transfer_params=None)
        self.requests += 1
        self.call("on_new_request", self.manager.on_new_request, context)
        for place, key in enumerate(keys):
            context.set_offload_key_position(key, (place + 1) * 16)
        return context, keys

    def load(self, keys: list[OffloadKey], context: ReqContext) -> int:
        rows = self.chance.sample(range(ROWS), len(keys))
        blocks = self.call("prepare_load", self.manager.prepare_load, keys, context)
        self.end_step()
        self.jobs += 1
        self.call("submit_load", self.worker.submit_load, self.jobs, blocks, gpu_blocks([rows]))
        self.finish(self.jobs)
        self.call("complete_load", self.manager.complete_load, set(keys), context)
        if self.jobs in self.worker.failed_jobs:
            self.worker.failed_jobs.discard(self.jobs)
            return 0
        for key, row in zip(keys, rows, strict=True):
            right = page_of(key)
            for place, tensor in enumerate(self.engine.tensors):
                if not torch.equal(tensor.tensor[row], right[place]):
                    self.figures.wrong_bytes += 1
        assert 0 == self.figures.wrong_bytes
        self.figures.loaded += len(keys)
        return len(keys)

    def store(self, keys: list[OffloadKey], context: ReqContext) -> None:
        output = self.call("prepare_store", self.manager.prepare_store, keys, context)
        assert output is not None
        self.end_step()
        stored = list(output.keys_to_store)
        if not stored:
            return
        rows = self.chance.sample(range(ROWS), len(stored))
        for key, row in zip(stored, rows, strict=True):
            right = page_of(key)
            for place, tensor in enumerate(self.engine.tensors):
                tensor.tensor[row] = right[place]
        self.jobs += 1
        self.call(
            "submit_store",
            self.worker.submit_store,
            self.jobs,
            gpu_blocks([rows]),
            output.store_spec,
        )
        self.finish(self.jobs)
        self.call("complete_store", self.manager.complete_store, set(stored), context)
        self.figures.stored += len(stored)

    def end_step(self) -> None:
        self.call("on_schedule_end", self.manager.on_schedule_end, ScheduleEndContext((), ()))

    def finish(self, job: int) -> None:
        self.call("wait", self.worker.wait, {job})
        results = self.call("get_finished", self.worker.get_finished)
        assert [job] == [result.job_id for result in results]

    def shutdown(self) -> None:
        if not self.over:
            self.over = True
            self.call("worker.shutdown", self.worker.shutdown)
            self.call("manager.shutdown", self.manager.shutdown)

    def until_hits(self, seconds: float = 30.0) -> None:
        """Go on until the cache is of use again: all that the dead held comes back."""
        deadline = time.monotonic() + seconds
        while not self.steps(10):
            assert time.monotonic() < deadline, "no hits any more"
