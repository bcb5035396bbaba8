"""How close do stores and loads come to the best copy this machine can do, at each block size?

A store copies blocks from process memory to an arena, a load the other way, both through pegashm._native.Copier, on
random blocks of buffers several times larger than the last-level cache. In the same rounds reference.c copies
the same runs by every way it knows (glibc memcpy, `rep movsb`, streaming stores in one, two and four streams);
the limit is the best of these at that size. "4 KiB" and "huge" are the arena's pages; the process's own memory has
4 KiB pages as malloc gives them, or huge ones where the column says both. "64 KiB x 36" is a real layout: a block of an
engine with 36 layers is a page of each layer's tensor there, and one run of 36 pages in the arena. Every method's bytes are compared once a
case; the work hash is over all destinations at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegashm._native import Copier

from bench import harness, memory
from bench.reference import Reference

__all__ = ["measure"]

BATCH_BLOCKS = 32
LAYERS = 36
KIB, MIB = 1 << 10, 1 << 20
QUESTION = "How close do store and load come to the best copy this machine can do?"
NOT_SHOWN = (
    "what the copied bytes cost their next reader: streaming stores leave them in memory, not in a cache",
    "several NUMA nodes, device memory, and copies while other cores load the memory bus",
    "the limit's threads wait for each other spinning and start for free; Copier's are woken for each call",
)

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Place:
    """Memory of one page kind: what an engine stores from and loads to, and an arena between."""

    pages: str
    source: memory.Mapping
    loaded: memory.Mapping
    arena: memory.Mapping


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the question."""

    place: Place
    threads: int
    block_bytes: int
    direction: str
    layers: int = 1  # runs of `block_bytes` that lie together in the arena

    @property
    def name(self) -> str:
        return f"{self.block_bytes // KIB} KiB" + (f" x {self.layers}" if self.layers > 1 else "")

    @property
    def ends(self) -> tuple[memory.Mapping, memory.Mapping]:
        """(from, to)"""
        if self.direction == "store":
            return self.place.source, self.place.arena
        return self.place.arena, self.place.loaded


@dataclass(frozen=True, slots=True)
class Pass:
    """Runs of one pass: random blocks, each at most once."""

    destinations: Words
    sources: Words
    sizes: Words

    def batches(self, blocks: int) -> Iterator[Pass]:
        for at in range(0, len(self.sizes), blocks):
            cut = slice(at, at + blocks)
            yield Pass(self.destinations[cut], self.sources[cut], self.sizes[cut])


def measure(options: harness.Options) -> harness.Findings:
    buffer_bytes = options.pick(256 * MIB, 256 * MIB, 8 * MIB)
    pass_bytes = options.pick(64 * MIB, 64 * MIB, 4 * MIB)
    rounds = options.pick(15, 5, 1)
    sizes_kib = options.pick((4, 16, 64, 256, 1024, 2048), (64, 256, 1024, 2048), (64, 256))

    reference = Reference()
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    random = np.random.default_rng(harness.SEED)
    with contextlib.ExitStack() as stack:
        places = make_places(stack, options, buffer_bytes, random, notes)
        copiers = {
            threads: stack.enter_context(contextlib.closing(Copier(threads))) for threads in (1, 2)
        }
        shapes = [(size_kib, 1) for size_kib in sizes_kib] + [(64, LAYERS)]
        cases = itertools.product(places, copiers, shapes, ("store", "load"))
        for place, threads, (size_kib, layers), direction in cases:
            case = Case(place, threads, size_kib * KIB, direction, layers)
            harness.progress(f"{place.pages}, {threads} thread(s), {case.name}, {direction}")
            runner = Runner(case, reference, copiers[threads], pass_bytes, random)
            rows.append(runner.result(rounds))
        digest = hashlib.sha256()
        for place in places:
            digest.update(place.arena.bytes.data)
            digest.update(place.loaded.bytes.data)
    wanted = [row for row in rows if row["block_kib"] >= 64]
    shares = [row["share"] for row in wanted]
    batch_shares = [row["share_batch"] for row in wanted]
    figures = {
        "share_median": round(harness.median(shares), 3),
        "share_min": min(shares),
        "share_quickest_median": round(
            harness.median([row["share_quickest"] for row in wanted]), 3
        ),
        "share_batch_median": round(harness.median(batch_shares), 3),
        "share_batch_min": min(batch_shares),
        "to_memcpy_median": round(harness.median([row["to_memcpy"] for row in wanted]), 2),
        "rounds": rounds,
        "results": rows,
    }
    return harness.Findings([summary(rows)], figures, digest.hexdigest()[:16], notes)


def make_places(
    stack: contextlib.ExitStack,
    options: harness.Options,
    size: int,
    random: np.random.Generator,
    notes: list[str],
) -> list[Place]:
    """4 KiB pages on both sides; a huge arena; in a full run huge pages on both sides too."""
    harness.progress("populating buffers")

    def place(pages: str, folder: str, *, huge: bool) -> Place:
        source, loaded = (memory.anonymous(size, huge=huge) for _ in range(2))
        source.bytes[:] = np.frombuffer(random.bytes(size), np.uint8)
        return Place(pages, source, loaded, memory.shared_file(folder, size))

    places = [place("4 KiB", "/dev/shm", huge=False)]
    huge_folder = stack.enter_context(memory.huge_tmpfs(3 * size))
    if huge_folder is None:
        notes.append("huge pages left out: mounting a tmpfs with huge=always needs root")
        return places
    places.append(place("huge", huge_folder, huge=False))
    if options.extent == "full":
        places.append(place("huge both", huge_folder, huge=True))
    notes.extend(
        f"{each.pages}: arena {each.arena.huge_share:.0%}, process memory {each.source.huge_share:.0%} in huge pages"
        for each in places
    )
    return places


class Runner:
    """Measures one case: the limit's methods and Copier's, in rounds on fresh random blocks."""

    def __init__(
        self,
        case: Case,
        reference: Reference,
        copier: Copier,
        pass_bytes: int,
        random: np.random.Generator,
    ) -> None:
        self.case = case
        self.reference = reference
        self.copier = copier
        self.random = random
        together = case.block_bytes * case.layers
        self.block_count = min(pass_bytes, len(case.place.arena.bytes)) // together * case.layers
        self.batch_seconds: list[float] = []

    def fresh_pass(self) -> Pass:
        sender, receiver = self.case.ends
        size = self.case.block_bytes

        def addresses(buffer: memory.Mapping) -> Words:
            layers = self.case.layers if buffer is self.case.place.arena else 1
            groups = self.random.permutation(len(buffer.bytes) // (size * layers))
            blocks = groups[: self.block_count // layers, None] * layers + np.arange(layers)
            return (blocks.ravel() * size + buffer.address).astype(np.uint64)

        return Pass(
            addresses(receiver), addresses(sender), np.full(self.block_count, size, np.uint64)
        )

    def limit(self, method: str) -> float:
        """Seconds of one pass by reference.c."""
        runs = self.fresh_pass()
        return self.reference.copy(
            method, self.case.threads, runs.destinations, runs.sources, runs.sizes
        )

    def ours(self, method: str, blocks_a_call: int | None = None) -> float:
        """Seconds of one pass by Copier, in one call or in calls of so many blocks."""
        runs = self.fresh_pass()
        batches = [runs] if blocks_a_call is None else list(runs.batches(blocks_a_call))
        marks = [time.perf_counter()]
        for batch in batches:
            self.copier.copy(batch.destinations, batch.sources, batch.sizes, method=method)
            marks.append(time.perf_counter())
        if blocks_a_call == BATCH_BLOCKS:
            self.batch_seconds.extend(np.diff(marks).tolist())
        return marks[-1] - marks[0]

    def check(self, method: str) -> None:
        """Copy once more and compare every byte."""
        runs = self.fresh_pass()
        sender, receiver = self.case.ends
        copied = self.copier.copy(runs.destinations, runs.sources, runs.sizes, method=method)
        if copied != int(runs.sizes.sum()):
            raise AssertionError(f"{method} says it copied {copied} of {runs.sizes.sum()} bytes")
        size = self.case.block_bytes
        for to, start in zip(runs.destinations.tolist(), runs.sources.tolist(), strict=True):
            at, origin = to - receiver.address, start - sender.address
            if not np.array_equal(
                receiver.bytes[at : at + size], sender.bytes[origin : origin + size]
            ):
                raise AssertionError(f"{method} copied wrong bytes: {self.case}")

    def result(self, rounds: int) -> dict[str, Any]:
        """Bytes a second of everybody, and our share of the best of the limit's methods."""
        contenders: dict[str, Callable[[], float]] = {
            f"limit {name}": partial(self.limit, name) for name in self.reference.methods
        }
        own_methods = Copier.methods()
        contenders |= {f"copier {name}": partial(self.ours, name) for name in own_methods}
        contenders["batch"] = partial(self.ours, "auto", BATCH_BLOCKS)
        contenders["single"] = partial(self.ours, "auto", 1)
        for method in own_methods:
            self.check(method)
        seconds = harness.interleave(rounds, contenders)
        total = self.block_count * self.case.block_bytes
        rate = {name: total / harness.median(taken) / 1e9 for name, taken in seconds.items()}
        # The quickest pass of each: what is left of the share when other work on the machine is left out.
        quickest = {name: min(taken) for name, taken in seconds.items()}
        best_limit = min(quickest[name] for name in quickest if name.startswith("limit "))
        return self._row(rate, best_limit / quickest["copier auto"])

    def _row(self, rate: Mapping[str, float], share_quickest: float) -> dict[str, Any]:
        limits = {name[6:]: value for name, value in rate.items() if name.startswith("limit ")}
        best = max(limits, key=lambda name: limits[name])
        limit = limits[best]
        return {
            "pages": self.case.place.pages,
            "threads": self.case.threads,
            "block_kib": self.case.block_bytes // KIB,
            "layers": self.case.layers,
            "block": self.case.name,
            "direction": self.case.direction,
            "limit_by": best,
            "limit_gbs": round(limit, 2),
            "copier_gbs": round(rate["copier auto"], 2),
            "share": round(rate["copier auto"] / limit, 3),
            "share_quickest": round(share_quickest, 3),
            "share_batch": round(rate["batch"] / limit, 3),
            "share_single": round(rate["single"] / limit, 3),
            "to_memcpy": round(rate["copier auto"] / limits["memcpy"], 2),
            "batch_us_p50": round(harness.percentile(self.batch_seconds, 50) * 1e6, 1),
            "batch_us_p99": round(harness.percentile(self.batch_seconds, 99) * 1e6, 1),
            "limits_gbs": {name: round(value, 2) for name, value in limits.items()},
            "methods_gbs": {
                name[7:]: round(value, 2)
                for name, value in rate.items()
                if name.startswith("copier ")
            },
        }


def summary(rows: Sequence[Mapping[str, Any]]) -> Any:
    columns = (
        "arena pages, threads, block, direction",
        "limit GB/s",
        "by",
        "memcpy GB/s",
        "Copier GB/s",
        "of limit",
        "quickest passes",
        "of memcpy",
        f"{BATCH_BLOCKS} a call: of limit",
        "p50 us",
        "p99 us",
        "1 a call: of limit",
    )
    return harness.table(
        "block copies, one call a pass; share of the best copy of reference.c",
        columns,
        [
            (
                f"{row['pages']:9} {row['threads']} {row['block']:>11} {row['direction']}",
                row["limit_gbs"],
                row["limit_by"],
                row["limits_gbs"]["memcpy"],
                row["copier_gbs"],
                f"{row['share']:.2f}",
                f"{row['share_quickest']:.2f}",
                f"{row['to_memcpy']:.2f}",
                f"{row['share_batch']:.2f}",
                row["batch_us_p50"],
                row["batch_us_p99"],
                f"{row['share_single']:.2f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    harness.run("copy", QUESTION, not_shown=NOT_SHOWN, measure=measure)
