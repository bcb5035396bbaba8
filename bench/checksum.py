"""What do checksums of payloads cost, and so: should blocks in memory have them?

Real blocks of a real arena, several times larger than the last-level cache, in random order. A store is the copy into
claimed blocks, with checksums on followed by hashing what was copied; a load is a look at the generations, with checksums
on hashing the blocks, the copy out, and the generations again: what the CPU worker does for a job, without vLLM. Off and
on are measured in the same rounds. "hash" is XXH3-64 alone, of one block again and again (hot) and of random ones (cold).
The batch is one load of 32 MiB, as a prompt's hit is before its first token. The work hash is over all checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegashm._native import Copier, read_sums
from pegashm.cache import Cache, Copyist
from pegashm.keys import namespace_of
from pegashm.payload_sums import Hasher, Part

from bench import harness, memory
from bench.served import served_arena

__all__ = ["measure"]

KIB, MIB = 1 << 10, 1 << 20
QUESTION = "What do checksums of payloads cost a store and a load, and a 32 MiB hit?"
NOT_SHOWN = (
    "what hashing takes from the engine's own threads: memory bandwidth, and a core while it lasts",
    "device copies, where hashing runs beside the copy and costs time only if it is the slower of the two",
    "several NUMA nodes, and huge pages under the arena",
)

Words = NDArray[np.uint64]


@dataclass(slots=True)
class Blocks:
    """Blocks of one size: claimed ones to store to, published and pinned ones to load from."""

    nbytes: int
    claimed: Words
    claimed_offsets: Words
    ready: Words
    ready_offsets: Words

    @property
    def part(self) -> Part:
        return Part(index=0, count=1, nbytes=self.nbytes)


class Bench:
    """One arena, this process's own memory beside it, and a copier and a hasher of some threads."""

    def __init__(self, cache: Cache, own: memory.Mapping, threads: int, pass_bytes: int) -> None:
        self.cache = cache
        self.copyist = Copyist(cache.arena)
        self.own = own
        self.copier = Copier(threads)
        self.hasher = Hasher(threads)
        self.pass_bytes = pass_bytes
        self.random = np.random.default_rng(harness.SEED)

    def close(self) -> None:
        self.copier.close()
        self.hasher.close()

    def pick(self, handles: Words, offsets: Words, nbytes: int) -> tuple[Words, Words, Words]:
        """Random blocks for one pass, and as many random places in our own memory."""
        count = min(self.pass_bytes // nbytes, len(handles))
        chosen = self.random.permutation(len(handles))[:count]
        places = self.random.permutation(len(self.own.bytes) // nbytes)[:count]
        ours = (places * nbytes + self.own.address).astype(np.uint64)
        return handles[chosen], offsets[chosen], ours

    def store(self, blocks: Blocks, *, sums: bool) -> float:
        """Seconds a gigabyte."""
        handles, offsets, ours = self.pick(blocks.claimed, blocks.claimed_offsets, blocks.nbytes)
        sizes = np.full(len(handles), blocks.nbytes, np.uint64)
        to = offsets + np.uint64(self.copyist.payload_address)
        start = time.perf_counter()
        copied = self.copier.copy(to, ours, sizes)
        if sums:
            self.copyist.store_sums(handles, offsets, blocks.part, self.hasher)
        return (time.perf_counter() - start) / copied * 1e9

    def load(self, blocks: Blocks, *, sums: bool, one_by_one: bool = False) -> float:
        """Seconds a gigabyte. `one_by_one`: each block is copied right after it was hashed."""
        handles, offsets, ours = self.pick(blocks.ready, blocks.ready_offsets, blocks.nbytes)
        sizes = np.full(len(handles), blocks.nbytes, np.uint64)
        from_ = offsets + np.uint64(self.copyist.payload_address)
        start = time.perf_counter()
        if not self.copyist.generations_hold(handles).all():
            raise AssertionError("a pinned block is gone")
        step = 1 if one_by_one else len(handles)
        for at in range(0, len(handles), step):
            cut = slice(at, at + step)
            if sums:
                checked = self.copyist.verify(handles[cut], offsets[cut], blocks.part, self.hasher)
                if not checked.all_ok:
                    raise AssertionError(f"{checked.damages}")
            self.copier.copy(ours[cut], from_[cut], sizes[cut])
        if not self.copyist.generations_hold(handles).all():
            raise AssertionError("a pinned block is gone")
        return (time.perf_counter() - start) / int(sizes.sum()) * 1e9

    def hash(self, blocks: Blocks, *, hot: bool) -> float:
        _, offsets, _ = self.pick(blocks.ready, blocks.ready_offsets, blocks.nbytes)
        if hot:
            offsets[:] = offsets[0]
        runs = [(offset, blocks.nbytes) for offset in offsets.tolist()]
        start = time.perf_counter()
        self.hasher.sums(self.cache.region, runs)
        return (time.perf_counter() - start) / (len(runs) * blocks.nbytes) * 1e9

    def contenders(self, blocks: Blocks) -> dict[str, Callable[[], float]]:
        return {
            "hash hot": partial(self.hash, blocks, hot=True),
            "hash cold": partial(self.hash, blocks, hot=False),
            "store off": partial(self.store, blocks, sums=False),
            "store on": partial(self.store, blocks, sums=True),
            "load off": partial(self.load, blocks, sums=False),
            "load on": partial(self.load, blocks, sums=True),
            "load one by one": partial(self.load, blocks, sums=True, one_by_one=True),
        }


def measure(options: harness.Options) -> harness.Findings:
    arena_bytes = options.pick(512 * MIB, 320 * MIB, 64 * MIB)
    pass_bytes = options.pick(64 * MIB, 64 * MIB, 4 * MIB)
    batch_bytes = options.pick(32 * MIB, 32 * MIB, 2 * MIB)
    rounds = options.pick(25, 7, 1)
    sizes = options.pick((64, 256, 1024, 2048), (64, 256, 1024, 2048), (64, 256))

    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    own = memory.anonymous(arena_bytes // 2, huge=False)
    own.bytes[:] = np.frombuffer(
        np.random.default_rng(harness.SEED).bytes(len(own.bytes)), np.uint8
    )
    with served_arena("checksum", arena_bytes, None) as name:
        fence = namespace_of({"bench": "checksum"}, label="bench")
        with Cache.attach(name, namespace=fence) as cache:
            for size_kib in sizes:
                blocks = make_blocks(cache, own, size_kib * KIB, arena_bytes // 5)
                digest.update(read_sums(cache.region, blocks.ready)[0].tobytes())
                for threads in (1, 2):
                    harness.progress(f"{size_kib} KiB, {threads} thread(s)")
                    with contextlib.closing(Bench(cache, own, threads, pass_bytes)) as bench:
                        taken = harness.interleave(rounds, bench.contenders(blocks))
                        bench.pass_bytes = batch_bytes
                        batches = harness.interleave(
                            rounds,
                            {
                                "off": partial(bench.load, blocks, sums=False),
                                "on": partial(bench.load, blocks, sums=True),
                            },
                        )
                    rows.append(row_of(size_kib, threads, taken, batches, batch_bytes))
                cache.unpin(blocks.ready)
                cache.abandon(blocks.claimed)
                cache.evict(blocks.ready)
    figures = {
        "hash_cold_gbs": median_of(rows, "hash_cold_gbs"),
        "store_share": median_of(rows, "store_share"),
        "load_share": median_of(rows, "load_share"),
        "load_us_more_a_mib": median_of(rows, "load_us_more_a_mib"),
        "batch_bytes": batch_bytes,
        "batch_ms_more": median_of(rows, "batch_ms_more"),
        "rounds": rounds,
        "results": rows,
    }
    return harness.Findings([summary(rows, batch_bytes)], figures, digest.hexdigest()[:16])


def make_blocks(cache: Cache, own: memory.Mapping, nbytes: int, half_bytes: int) -> Blocks:
    """Random bytes in as many published blocks as claimed ones."""
    count = half_bytes // nbytes
    keys = [f"{nbytes}-{number}".encode().rjust(32) + bytes(4) for number in range(2 * count)]
    handles, _ = cache.claim(keys, nbytes)
    if not handles.all():
        raise SystemExit(f"only {np.count_nonzero(handles)} of {2 * count} blocks could be had")
    offsets, _ = cache.locate(handles)
    ready, claimed = handles[:count], handles[count:]
    with contextlib.closing(Copier(1)) as copier:
        to = offsets[:count] + np.uint64(cache.region.payload_address)
        ours = np.arange(count, dtype=np.uint64) * np.uint64(nbytes) + np.uint64(own.address)
        copier.copy(to, ours, np.full(count, nbytes, np.uint64))
    cache.store_sums(ready)
    if cache.publish(ready).any() or cache.pin(ready).any():
        raise AssertionError("blocks of our own could not be published and pinned")
    return Blocks(nbytes, claimed, offsets[count:], ready, offsets[:count])


def row_of(
    size_kib: int,
    threads: int,
    taken: dict[str, list[float]],
    batches: dict[str, list[float]],
    batch_bytes: int,
) -> dict[str, Any]:
    """Rates in GB/s; a share is the rate with checksums on over that with them off."""
    seconds = {name: harness.median(samples) for name, samples in taken.items()}
    batch = {
        name: harness.median(samples) * batch_bytes / 1e9 * 1e3 for name, samples in batches.items()
    }
    return {
        "block_kib": size_kib,
        "threads": threads,
        **{f"{name.replace(' ', '_')}_gbs": round(1 / each, 2) for name, each in seconds.items()},
        "store_share": round(seconds["store off"] / seconds["store on"], 3),
        "load_share": round(seconds["load off"] / seconds["load on"], 3),
        "load_us_more_a_mib": round(
            (seconds["load on"] - seconds["load off"]) * MIB / 1e9 * 1e6, 1
        ),
        "batch_off_ms": round(batch["off"], 3),
        "batch_on_ms": round(batch["on"], 3),
        "batch_ms_more": round(batch["on"] - batch["off"], 3),
    }


def median_of(rows: Sequence[dict[str, Any]], figure: str) -> float:
    return round(harness.median([row[figure] for row in rows]), 3)


def summary(rows: Sequence[dict[str, Any]], batch_bytes: int) -> Any:
    return harness.table(
        f"GB/s; a batch is {batch_bytes // MIB} MiB",
        (
            "block, threads",
            "hash hot",
            "cold",
            "store off",
            "on",
            "share",
            "load off",
            "on",
            "share",
            "on, one by one",
            "batch off ms",
            "on ms",
        ),
        [
            (
                f"{row['block_kib']:5} KiB {row['threads']}",
                row["hash_hot_gbs"],
                row["hash_cold_gbs"],
                row["store_off_gbs"],
                row["store_on_gbs"],
                f"{row['store_share']:.2f}",
                row["load_off_gbs"],
                row["load_on_gbs"],
                f"{row['load_share']:.2f}",
                row["load_one_by_one_gbs"],
                f"{row['batch_off_ms']:.2f}",
                f"{row['batch_on_ms']:.2f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    harness.run("checksum", QUESTION, not_shown=NOT_SHOWN, measure=measure)
