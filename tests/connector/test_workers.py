"""Do both workers move the right bytes, and say so to the right side at the right time?

The CPU worker as it is; the GPU worker with vLLM's pointers on CPU tensors (see `engines.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker

from pegashm import _native
from pegashm.cache import Cache
from pegashm.connector.chunks import ChunkLayout
from pegashm.connector.cuda import PegaShmCudaWorker
from pegashm.connector.worker import PegaShmCpuWorker
from pegashm.payload_sums import Checksums

from tests.arenas import Shape
from tests.connector.engines import (
    HYBRID,
    Device,
    Pages,
    blocks_of,
    claim,
    gpu_blocks,
    kv_caches,
)

Make = Callable[..., Any]
Attach = Callable[[str], Cache]
Name = Callable[..., str]

FLAT = Pages(tensors=(2048, 2048), groups=(((0, 2048), (1, 2048)),))


@pytest.fixture(params=["cpu", "gpu", "cpu with checksums", "gpu with checksums"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes a worker of either kind; all are shut down when the test ends."""
    checksums = Checksums.ON if "checksums" in request.param else Checksums.OFF
    made: list[OffloadingWorker] = []

    def worker(
        caches: CanonicalKVCaches, layout: ChunkLayout, arena: str, cell: int = 0
    ) -> OffloadingWorker:
        common: dict[str, Any] = {"layout": layout, "cell": cell, "arena": arena}
        common["checksums"] = checksums
        made.append(
            PegaShmCpuWorker(caches, copy_threads=1, **common)
            if request.param.startswith("cpu")
            else PegaShmCudaWorker(caches, driver=None, engine=Device().engine, **common)
        )
        return made[-1]

    yield worker
    for one in made:
        one.shutdown()


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def finish(worker: Any, job_id: int) -> None:
    """Wait for a job as vLLM does; it is reported once, as a success."""
    worker.wait({job_id})
    while not (results := worker.get_finished()):
        time.sleep(0.001)  # its copies have ended, its bytes are being hashed
    assert [(job_id, True)] == [(result.job_id, result.success) for result in results]
    assert [] == worker.get_finished()


def payload(cache: Cache, handles: np.ndarray[Any, Any]) -> list[bytes]:
    offsets, sizes = cache.locate(handles)
    return [
        bytes(cache.region.payload(offset, nbytes))
        for offset, nbytes in zip(offsets.tolist(), sizes.tolist(), strict=True)
    ]


@pytest.mark.parametrize("blocks_per_chunk", [1, 3])
def test_hybrid_groups_come_back_where_they_belong(
    make: Make, arena_name: Name, attach: Attach, seed: int, blocks_per_chunk: int
) -> None:
    """Two groups on the same tensors; loaded from the middle of a chunk on: what comes is what was stored."""
    layout = HYBRID.layout(blocks_per_chunk=blocks_per_chunk)
    cache = attach(arena_name())
    stored = kv_caches(HYBRID, 20, random(seed))
    ids = [[3, 1, 4, 15, 9, 11], [2, 6, 5, 3, 19, 0]]
    handles = claim(cache, layout, 12 // blocks_per_chunk)

    storing = make(stored, layout, cache.name)
    assert storing.submit_store(1, gpu_blocks(ids), blocks_of(cache, handles))
    finish(storing, 1)
    assert {1} == set(_native.parts_total(cache.region, handles).tolist())
    assert {_native.OK} == set(cache.publish(handles, 1).tolist())

    # The engine has the first blocks of each group already, one of the first and two of the second.
    cache.pin(handles)
    loaded = kv_caches(HYBRID, 20)
    loading = make(loaded, layout, cache.name)
    elsewhere, first = [[10, 11, 12, 13, 14], [17, 18, 19, 16]], [1, 2]
    of_group = len(handles) // 2
    needed = np.concatenate(
        [handles[g * of_group + first[g] // blocks_per_chunk : (g + 1) * of_group] for g in (0, 1)]
    )
    assert loading.submit_load(2, blocks_of(cache, needed), gpu_blocks(elsewhere, first))
    finish(loading, 2)
    assert set() == loading.failed_jobs
    for group, refs in enumerate(HYBRID.groups):
        for tensor, data in refs:
            came = loaded.tensors[tensor].tensor[elsewhere[group], :data]
            went = stored.tensors[tensor].tensor[ids[group][first[group] :], :data]
            assert torch.equal(came, went)
    untouched = [block for block in range(20) if block not in elsewhere[0] + elsewhere[1]]
    assert not any(cache.tensor[untouched].any() for cache in loaded.tensors)


@pytest.mark.parametrize(("ids", "first"), [([0, 1], 1), ([0, 1, 2, 3], 0), ([0], 2)])
def test_a_chunk_that_is_not_filled_is_not_published(
    make: Make, arena_name: Name, attach: Attach, seed: int, ids: list[int], first: int
) -> None:
    """What a store leaves out is whatever the memory held before."""
    layout = FLAT.layout(blocks_per_chunk=3)
    cache = attach(arena_name())
    handles = claim(cache, layout, -(-(len(ids) + first) // 3))
    before = payload(cache, handles)
    worker = make(kv_caches(FLAT, 4, random(seed)), layout, cache.name)
    worker.submit_store(1, gpu_blocks([ids], [first]), blocks_of(cache, handles))
    finish(worker, 1)

    assert before == payload(cache, handles)
    assert {_native.INCOMPLETE} == set(cache.publish(handles, 1).tolist())


def test_each_worker_has_its_cell(make: Make, arena_name: Name, attach: Attach, seed: int) -> None:
    """Four ranks write one chunk; it is complete when all have, and each finds its own bytes."""
    layout = FLAT.layout(cells=4)
    cache = attach(arena_name())
    handles = claim(cache, layout, 2)
    blocks = blocks_of(cache, handles)
    ranks = [kv_caches(FLAT, 4, random(seed + rank)) for rank in range(4)]
    workers = [make(caches, layout, cache.name, rank) for rank, caches in enumerate(ranks)]

    for rank, worker in enumerate(workers):
        assert {_native.PENDING} == set(cache.publish(handles, 4).tolist())
        worker.submit_store(rank, gpu_blocks([[2, 0]]), blocks)
        finish(worker, rank)

    assert {_native.OK} == set(cache.publish(handles, 4).tolist())
    expected = [
        b"".join(
            tensor.tensor[block].numpy().tobytes() for caches in ranks for tensor in caches.tensors
        )
        for block in (2, 0)
    ]
    assert expected == payload(cache, handles)


def test_replicated_ranks_load_what_the_first_wrote(
    make: Make, arena_name: Name, attach: Attach, seed: int
) -> None:
    """One cell, as for MLA: rank 0 stores, every rank loads from it."""
    layout = FLAT.layout()
    cache = attach(arena_name())
    handles = claim(cache, layout, 2)
    blocks = blocks_of(cache, handles)
    first = kv_caches(FLAT, 4, random(seed))
    worker = make(first, layout, cache.name)
    worker.submit_store(1, gpu_blocks([[2, 3]]), blocks)
    finish(worker, 1)
    cache.publish(handles, 1)
    cache.pin(handles)

    for rank in range(3):
        other = kv_caches(FLAT, 4)
        loading = make(other, layout, cache.name)
        loading.submit_load(rank, blocks, gpu_blocks([[2, 3]]))
        finish(loading, rank)
        for ours, theirs in zip(other.tensors, first.tensors, strict=True):
            assert torch.equal(ours.tensor[2:], theirs.tensor[2:])


def refusals() -> dict[str, Callable[[Any], Any]]:
    return {
        "no region": lambda blocks: replace(blocks, region_id=bytes(16)),
        "another region": lambda blocks: replace(blocks, region_id=bytes(range(16))),
        "another client's life": lambda blocks: replace(blocks, incarnation=blocks.incarnation + 1),
        "a slot that is free": lambda blocks: replace(blocks, slot=blocks.slot + 1),
        "beyond the arena": lambda blocks: replace(blocks, offsets=blocks.offsets + (1 << 40)),
    }


@pytest.mark.parametrize("what", refusals())
def test_blocks_that_cannot_be_joined_are_left_alone(
    make: Make, arena_name: Name, attach: Attach, seed: int, what: str
) -> None:
    """A store ends without parts, so that nobody publishes it; a load ends as failed."""
    layout = FLAT.layout()
    cache = attach(arena_name())
    handles = claim(cache, layout, 2)
    wrong = refusals()[what](blocks_of(cache, handles))
    caches = kv_caches(FLAT, 4, random(seed))
    before = [tensor.tensor.clone() for tensor in caches.tensors]
    empty = payload(cache, handles)
    worker = make(caches, layout, cache.name)

    worker.submit_store(1, gpu_blocks([[0, 1]]), wrong)
    finish(worker, 1)
    assert [0, 0] == _native.parts_total(cache.region, handles).tolist()
    assert empty == payload(cache, handles)
    assert set() == worker.failed_jobs

    worker.submit_load(2, wrong, gpu_blocks([[0, 1]]))
    finish(worker, 2)
    assert {2} == worker.failed_jobs
    assert all(torch.equal(a, b.tensor) for a, b in zip(before, caches.tensors, strict=True))


def test_no_arena_at_all(make: Make, arena_name: Name, attach: Attach) -> None:
    """A worker whose arena is missing refuses, and does not raise."""
    layout = FLAT.layout()
    cache = attach(arena_name())
    blocks = blocks_of(cache, claim(cache, layout, 1))
    worker = make(kv_caches(FLAT, 4), layout, "test-there-is-none")

    worker.submit_store(1, gpu_blocks([[0]]), blocks)
    finish(worker, 1)
    worker.submit_load(2, blocks, gpu_blocks([[0]]))
    finish(worker, 2)
    assert {2} == worker.failed_jobs


def test_a_block_that_is_gone_is_not_loaded(
    make: Make, arena_name: Name, attach: Attach, seed: int
) -> None:
    """Evicted since it was looked up, or never found (handle 0): the whole load fails."""
    layout = FLAT.layout()
    cache = attach(arena_name())
    handles = claim(cache, layout, 2)
    blocks = blocks_of(cache, handles)
    worker = make(kv_caches(FLAT, 4, random(seed)), layout, cache.name)
    worker.submit_store(1, gpu_blocks([[0, 1]]), blocks)
    finish(worker, 1)
    cache.publish(handles, 1)

    one_missing = replace(blocks, handles=np.array([handles[0], 0], dtype=np.uint64))
    worker.submit_load(2, one_missing, gpu_blocks([[2, 3]]))
    finish(worker, 2)
    assert {_native.OK} == set(cache.evict(handles[:1]).tolist())
    worker.submit_load(3, blocks, gpu_blocks([[2, 3]]))
    finish(worker, 3)
    assert {2, 3} == worker.failed_jobs


def test_a_transfer_of_nothing_is_a_success(make: Make, arena_name: Name, attach: Attach) -> None:
    layout = FLAT.layout()
    cache = attach(arena_name())
    nothing = blocks_of(cache, np.zeros(0, dtype=np.uint64))
    worker = make(kv_caches(FLAT, 4), layout, cache.name)

    worker.submit_load(1, nothing, gpu_blocks([[]]))
    finish(worker, 1)
    assert set() == worker.failed_jobs


@pytest.mark.parametrize(("blocks_per_chunk", "cells"), [(1, 1), (2, 1), (3, 2), (1, 3)])
def test_cpu_and_gpu_engines_lay_a_chunk_out_alike(
    arena_name: Name, attach: Attach, seed: int, blocks_per_chunk: int, cells: int
) -> None:
    """Byte for byte: `chunks.py` and vLLM's pointers on our views write the same block."""
    layout = HYBRID.layout(blocks_per_chunk=blocks_per_chunk, cells=cells)
    cache = attach(arena_name(Shape(segments_per_arena=(3, 3))))
    caches = [kv_caches(HYBRID, 12, random(seed + cell)) for cell in range(cells)]
    ids = [list(range(2 * blocks_per_chunk)), list(range(6, 6 + blocks_per_chunk))]
    written = []
    for start, kind in enumerate(("cpu", "gpu")):
        handles = claim(cache, layout, 3, start=100 * start)
        for block in cache.locate(handles)[0].tolist():
            cache.region.payload(block, layout.chunk_bytes)[:] = bytes(layout.chunk_bytes)
        for cell, mine in enumerate(caches):
            common: dict[str, Any] = {"layout": layout, "cell": cell, "arena": cache.name}
            worker = (
                PegaShmCpuWorker(mine, copy_threads=1, **common)
                if kind == "cpu"
                else PegaShmCudaWorker(mine, driver=None, engine=Device().engine, **common)
            )
            worker.submit_store(1, gpu_blocks(ids), blocks_of(cache, handles))
            finish(worker, 1)
            worker.shutdown()
        written.append(payload(cache, handles))

    assert written[0] == written[1]
    assert all(any(block) for block in written[0])


def test_a_store_that_leaves_part_of_a_chunk_unwritten_is_not_published(
    make: Make, arena_name: Name, attach: Attach
) -> None:
    """vLLM drops blocks that a sliding window has passed, inside a chunk too: the rest would be old bytes."""
    layout = FLAT.layout(blocks_per_chunk=2)
    cache = attach(arena_name())
    handles = claim(cache, layout, 2)
    worker = make(kv_caches(FLAT, 8, random(1)), layout, cache.name)
    assert worker.submit_store(1, gpu_blocks([[1, 2, 3]], [1]), blocks_of(cache, handles))
    finish(worker, 1)
    assert {_native.INCOMPLETE} == set(cache.publish(handles, 1).tolist())
    assert 0 == cache.region.tally()["claimed"]
