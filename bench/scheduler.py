"""What does a request cost the engine's scheduler, by how many blocks it has?

The very managers, called as vLLM's scheduler calls them, without an engine: `PegaShmManager` on a served arena, and beside it,
in the same rounds, vLLM's own `CPUOffloadingManager` (a Python dict in the engine's process, lost with it). A request
whose blocks are all there: looked up key by key, loaded, completed, finished. One whose blocks are all new: the first
lookup misses, all are stored, completed, finished. No bytes are copied: that is bench.copy. Needs vLLM.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from bench import harness
from bench.served import served_arena

__all__ = ["measure"]

KIB, MIB = 1 << 10, 1 << 20
QUESTION = "What does a request cost the engine's scheduler, by how many blocks it has?"
NOT_SHOWN = (
    "copies, and the engine's own work for the same request",
    "several engines on the arena at once, and blocks on SSD or of other hosts",
)
BLOCK_BYTES = 4 * KIB  # only bookkeeping is measured
BLOCKS = (100, 1000, 8000)


def measure(options: harness.Options) -> harness.Findings:
    try:
        from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
    except ImportError:
        raise SystemExit(
            "this bench calls vLLM's managers, and vLLM is not installed here. Type: pip install 'pegashm[vllm]'"
        ) from None
    rounds = options.pick(15, 7, 2)
    counts = options.pick(BLOCKS, BLOCKS, (100,))
    chunks = 8 * max(counts)
    rows = []
    for count in counts:
        harness.progress(f"{count} blocks")
        with pegashm_manager(chunks) as (ours, written):
            theirs = CPUOffloadingManager(num_chunks=chunks)
            contenders = {
                "PegaShm": Driver(ours, count, written),
                "vLLM's own": Driver(theirs, count, lambda _: None),
            }
            rows.append(row_of(contenders, count, rounds))
    figures = {"rounds": rounds, "results": rows}
    digest = hashlib.sha256(repr([row["judged"] for row in rows]).encode()).hexdigest()[:16]
    return harness.Findings([table(rows)], figures, digest)


class Driver:
    """One manager and its requests; the first is stored at once, to be asked for again."""

    def __init__(self, manager: Any, count: int, written: Callable[[Any], object]) -> None:
        """`written`: the workers' report of a store, without its copy."""
        self.manager = manager
        self.written = written
        self.count = count
        self.numbers = itertools.count()
        self.known = self.keys()
        self.hits = 0
        self.store(self.known)

    def keys(self) -> list[Any]:
        from vllm.v1.kv_offload.base import make_offload_key

        chain = next(self.numbers)
        return [
            make_offload_key(hashlib.blake2b(f"{chain} {n}".encode(), digest_size=32).digest(), 0)
            for n in range(self.count)
        ]

    def context(self, keys: Sequence[Any]) -> Any:
        """As vLLM makes one; its own work, in nobody's time."""
        from vllm.v1.kv_offload.base import ReqContext

        context = ReqContext(req_id=f"r{next(self.numbers)}")
        for place, key in enumerate(keys):
            context.set_offload_key_position(key, (place + 1) * 16)
        return context

    def load(self, keys: Sequence[Any]) -> float:
        from vllm.v1.kv_offload.base import LookupResult

        manager, context = self.manager, self.context(keys)
        began = time.perf_counter()
        manager.on_new_request(context)
        for key in keys:
            if manager.lookup(key, context) is not LookupResult.HIT:
                raise AssertionError("a block that was stored is not there")
        manager.prepare_load(keys, context)
        self.end_step(context)
        manager.complete_load(keys, context)
        manager.on_request_finished(context)
        took = time.perf_counter() - began
        self.hits += len(keys)
        return took

    def store(self, keys: Sequence[Any]) -> float:
        from vllm.v1.kv_offload.base import LookupResult

        manager, context = self.manager, self.context(keys)
        began = time.perf_counter()
        manager.on_new_request(context)
        if manager.lookup(keys[0], context) is not LookupResult.MISS:
            raise AssertionError("a new block is there already")
        output = manager.prepare_store(keys, context)
        self.end_step(context)
        took = time.perf_counter() - began
        if output is None or len(output.keys_to_store) != len(keys):
            raise AssertionError("not all blocks could be stored")
        self.written(output.store_spec)
        began = time.perf_counter()
        manager.complete_store(keys, context)
        manager.on_request_finished(context)
        return took + time.perf_counter() - began

    def store_new(self) -> float:
        return self.store(self.keys())

    def load_known(self) -> float:
        return self.load(self.known)

    def end_step(self, context: Any) -> None:
        from vllm.v1.kv_offload.base import ScheduleEndContext

        self.manager.on_schedule_end(ScheduleEndContext((context.req_id,), ()))


def row_of(contenders: dict[str, Driver], count: int, rounds: int) -> dict[str, Any]:
    samples: dict[str, list[float]] = {}

    def note(name: str, what: Callable[[], float]) -> float:
        samples.setdefault(name, []).append(what())
        return samples[name][-1]

    runs: dict[str, Callable[[], float]] = {}
    for name, driver in contenders.items():
        runs[f"{name}: hits"] = partial(note, f"{name}: hits", driver.load_known)
        runs[f"{name}: new"] = partial(note, f"{name}: new", driver.store_new)
    medians = harness.interleave(rounds, runs)
    us = {name: round(harness.median(taken) * 1e6, 1) for name, taken in medians.items()}
    return {
        "blocks": count,
        "us": us,
        "us_a_block": {name: round(value / count, 3) for name, value in us.items()},
        "ratio_hits": round(us["PegaShm: hits"] / us["vLLM's own: hits"], 2),
        "ratio_new": round(us["PegaShm: new"] / us["vLLM's own: new"], 2),
        "judged": [driver.hits for driver in contenders.values()],
    }


@contextlib.contextmanager
def pegashm_manager(chunks: int) -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """A manager in an arena of so many chunks and more, and what its workers would report."""
    from pegashm import _native
    from pegashm.cache import Mode
    from pegashm.connector.attachment import Attachment
    from pegashm.connector.manager import PegaShmManager
    from pegashm.connector.settings import Settings
    from pegashm.keys import namespace_of

    size = 2 * chunks * BLOCK_BYTES + 64 * MIB
    with served_arena(
        "scheduler", size, None, options=["--no-lock", "--block-min", str(BLOCK_BYTES)]
    ) as name:
        settings = Settings(arena=name, mode=Mode.READ_WRITE)
        namespace = namespace_of({"bench": "scheduler"}, label="bench.scheduler")
        attachment = Attachment(settings, namespace, "bench")
        manager = PegaShmManager(
            attachment,
            mode=Mode.READ_WRITE,
            chunk_bytes=BLOCK_BYTES,
            writers=1,
            events=False,
        )

        def written(spec: Any) -> None:
            assert attachment.cache is not None
            _native.part_done(attachment.cache.region, spec.handles, True)

        try:
            yield manager, written
        finally:
            manager.shutdown()


def table(rows: Sequence[dict[str, Any]]) -> Any:
    names = list(rows[0]["us"])
    return harness.table(
        "us a request in the scheduler (ns a block)",
        ("blocks", *names, "hits: times vLLM's", "new: times vLLM's"),
        [
            (
                row["blocks"],
                *(
                    f"{row['us'][name]:,.0f} ({row['us_a_block'][name] * 1e3:.0f})"
                    for name in names
                ),
                row["ratio_hits"],
                row["ratio_new"],
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    harness.run("scheduler", QUESTION, not_shown=NOT_SHOWN, measure=measure)
