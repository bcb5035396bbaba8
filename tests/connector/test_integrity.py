"""Do bytes that changed in the arena stay out of the engine when checksums are on, and only then?

Both workers, as in `test_workers.py`, and the manager beside them: what a worker finds, the scheduler's side acts on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, LookupResult, OffloadingWorker

from pegashm.cache import Cache
from pegashm.connector.attachment import Attachment
from pegashm.connector.chunks import ChunkLayout
from pegashm.connector.cuda import PegaShmCudaWorker
from pegashm.connector.manager import PegaShmManager
from pegashm.connector.settings import Settings
from pegashm.connector.worker import PegaShmCpuWorker
from pegashm.errors import ConfigError
from pegashm.payload_sums import Checksums

from tests.arenas import Shape
from tests.connector.conftest import NAMESPACE
from tests.connector.engines import (
    Device,
    Pages,
    blocks_of,
    claim,
    gpu_blocks,
    kv_caches,
)
from tests.connector.test_manager import keys_of, request

# 3 * 1900 bytes a cell: neither cells nor chunks end at pages.
PAGES = Pages(tensors=(1900, 1900, 1900), groups=(((0, 1900), (1, 1900), (2, 1900)),))

Make = Callable[..., Any]
Attach = Callable[[str], Cache]
Name = Callable[..., str]


@pytest.fixture(params=["cpu", "gpu"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes a worker of either kind; all are shut down when the test ends."""
    made: list[OffloadingWorker] = []

    def worker(
        caches: CanonicalKVCaches,
        layout: ChunkLayout,
        arena: str,
        checksums: Checksums = Checksums.ON,
        cell: int = 0,
    ) -> OffloadingWorker:
        common: dict[str, Any] = {"layout": layout, "cell": cell, "arena": arena}
        common["checksums"] = checksums
        made.append(
            PegaShmCpuWorker(caches, copy_threads=2, **common)
            if request.param == "cpu"
            else PegaShmCudaWorker(
                caches, driver=None, engine=Device().engine, hash_threads=2, **common
            )
        )
        return made[-1]

    yield worker
    for one in made:
        one.shutdown()


def finish(worker: Any, job_id: int) -> None:
    worker.wait({job_id})
    while not (results := worker.get_finished()):
        time.sleep(0.001)
    assert [(job_id, True)] == [(result.job_id, result.success) for result in results]


def counter(cache: Cache, name: str) -> int:
    return next(c["value"] for c in cache.region.counters() if c["key"] == name)


def stored(
    cache: Cache, make: Make, layout: ChunkLayout, checksums: Checksums, count: int = 3
) -> tuple[Any, list[CanonicalKVCaches]]:
    """Published and pinned blocks, written by a worker for each cell; their tensors."""
    handles = claim(cache, layout, count)
    blocks = blocks_of(cache, handles)
    tensors = []
    for cell in range(layout.cells):
        tensors.append(kv_caches(PAGES, count, torch.Generator().manual_seed(cell)))
        worker = make(tensors[-1], layout, cache.name, checksums, cell)
        worker.submit_store(1, gpu_blocks([list(range(count))]), blocks)
        finish(worker, 1)
    assert not cache.publish(handles, layout.cells).any()
    assert not cache.pin(handles).any()
    return blocks, tensors


def flip(cache: Cache, offset: int, at: int) -> None:
    cache.region.payload(int(offset) + at, 1)[0] ^= 0x10


@pytest.mark.parametrize("at", [0, 5699, 3000])
def test_a_flipped_bit_fails_the_load_and_only_where_it_is(
    make: Make, arena_name: Name, attach: Attach, at: int
) -> None:
    layout = PAGES.layout()
    cache = attach(arena_name())
    blocks, tensors = stored(cache, make, layout, Checksums.ON)
    flip(cache, blocks.offsets[1], at)
    worker = make(kv_caches(PAGES, 3), layout, cache.name)

    worker.submit_load(7, blocks, gpu_blocks([[0, 1, 2]]))
    finish(worker, 7)

    assert {7} == worker.failed_jobs
    assert 1 == counter(cache, "payloads_damaged")
    assert 3 == counter(cache, "loads_failed")
    assert [0, 1, 0] == cache.region.blocks()["damaged"].tolist()
    # The others are as good as before.
    good = blocks_of(cache, blocks.handles[[0, 2]])
    into = kv_caches(PAGES, 3)
    other = make(into, layout, cache.name)
    other.submit_load(8, good, gpu_blocks([[0, 2]]))
    finish(other, 8)
    assert set() == other.failed_jobs
    for ours, theirs in zip(into.tensors, tensors[0].tensors, strict=True):
        assert torch.equal(ours.tensor[[0, 2]], theirs.tensor[[0, 2]])


@pytest.mark.parametrize(
    ("writer", "reader"),
    [(Checksums.OFF, Checksums.OFF), (Checksums.ON, Checksums.OFF), (Checksums.OFF, Checksums.ON)],
)
def test_without_checksums_on_both_sides_wrong_bytes_arrive(
    make: Make, arena_name: Name, attach: Attach, writer: Checksums, reader: Checksums
) -> None:
    """What the other tests would see if nothing were verified; and the engines still share."""
    layout = PAGES.layout()
    cache = attach(arena_name())
    blocks, tensors = stored(cache, make, layout, writer)
    flip(cache, blocks.offsets[1], 0)
    into = kv_caches(PAGES, 3)
    worker = make(into, layout, cache.name, reader)

    worker.submit_load(7, blocks, gpu_blocks([[0, 1, 2]]))
    finish(worker, 7)

    assert set() == worker.failed_jobs
    assert tensors[0].tensors[0].tensor[1, 0] ^ 0x10 == into.tensors[0].tensor[1, 0]
    assert torch.equal(tensors[0].tensors[0].tensor[2], into.tensors[0].tensor[2])
    assert 0 == counter(cache, "payloads_damaged")


def test_required_takes_no_load_without_checksums(
    make: Make, arena_name: Name, attach: Attach
) -> None:
    layout = PAGES.layout()
    cache = attach(arena_name())
    blocks, _ = stored(cache, make, layout, Checksums.OFF)
    worker = make(kv_caches(PAGES, 3), layout, cache.name, Checksums.REQUIRED)
    worker.submit_load(7, blocks, gpu_blocks([[0, 1, 2]]))
    finish(worker, 7)
    assert {7} == worker.failed_jobs
    assert not cache.region.blocks()["damaged"].any()


def test_each_rank_verifies_its_own_cell(make: Make, arena_name: Name, attach: Attach) -> None:
    """The rank whose bytes are hurt says so, the other's load is right; the padding is nobody's."""
    layout = PAGES.layout(cells=2)
    assert layout.chunk_bytes > 2 * layout.cell_bytes
    cache = attach(arena_name(Shape(segments_per_arena=(6,))))
    blocks, tensors = stored(cache, make, layout, Checksums.ON)
    assert {2} == set(cache.region.blocks()["sum_parts"].tolist())
    flip(cache, blocks.offsets[0], layout.chunk_bytes - 1)
    flip(cache, blocks.offsets[2], layout.cell_bytes)
    for cell, failed in ((0, set()), (1, {7})):
        into = kv_caches(PAGES, 3)
        worker = make(into, layout, cache.name, Checksums.ON, cell)
        worker.submit_load(7, blocks, gpu_blocks([[0, 1, 2]]))
        finish(worker, 7)
        assert failed == worker.failed_jobs
        if not failed:
            for ours, theirs in zip(into.tensors, tensors[cell].tensors, strict=True):
                assert torch.equal(ours.tensor, theirs.tensor)
    assert [0, 0, 1] == cache.region.blocks()["damaged"].tolist()


def test_nine_writers_cannot_have_checksums(make: Make, arena_name: Name) -> None:
    layout = PAGES.layout(cells=9)
    with pytest.raises(
        ConfigError, match=r"1 to 8 parts, this one is written in 9.*checksums: off"
    ):
        make(kv_caches(PAGES, 1), layout, arena_name())
    make(kv_caches(PAGES, 1), layout, arena_name(), Checksums.OFF)


# -- the scheduler's side ----------------------------------------------------------------------------

LAYOUT = PAGES.layout()
HIT, MISS = LookupResult.HIT, LookupResult.MISS


@pytest.fixture
def managers(arena_name: Name) -> Iterator[Callable[[Checksums], PegaShmManager]]:
    """Engines of one arena, by what they do about checksums."""
    name = arena_name()
    made: list[PegaShmManager] = []

    def manager(checksums: Checksums) -> PegaShmManager:
        made.append(
            PegaShmManager(
                Attachment(Settings(arena=name), NAMESPACE, "engine"),
                mode=Settings(arena=name).mode,
                chunk_bytes=LAYOUT.chunk_bytes,
                writers=1,
                events=False,
                checksums=checksums,
            )
        )
        return made[-1]

    yield manager
    for one in made:
        one.shutdown()


def cache_of(manager: PegaShmManager) -> Cache:
    cache = manager._attachment.cache
    assert cache is not None
    return cache


def store(manager: PegaShmManager, make: Make, keys: Any, checksums: Checksums) -> int:
    """As vLLM stores; how many blocks were published."""
    context = request(manager, keys, "store")
    output = manager.prepare_store(keys, context)
    assert output is not None
    count = len(output.keys_to_store)
    if count:
        caches = kv_caches(PAGES, count, torch.Generator().manual_seed(1))
        worker = make(caches, LAYOUT, cache_of(manager).name, checksums)
        worker.submit_store(1, gpu_blocks([list(range(count))]), output.store_spec)
        finish(worker, 1)
        manager.complete_store(set(output.keys_to_store), context)
    return count


def load(manager: PegaShmManager, make: Make, keys: Any, checksums: Checksums) -> bool:
    """As vLLM loads keys that are hits; whether the bytes may be used."""
    context = request(manager, keys, "load")
    assert [HIT] * len(keys) == [manager.lookup(key, context) for key in keys]
    spec = manager.prepare_load(keys, context)
    worker = make(kv_caches(PAGES, len(keys)), LAYOUT, cache_of(manager).name, checksums)
    worker.submit_load(2, spec, gpu_blocks([list(range(len(keys)))]))
    finish(worker, 2)
    manager.complete_load(keys, context)
    return not worker.failed_jobs


def test_a_damaged_block_is_gone_after_the_load_and_can_be_stored_again(
    make: Make, managers: Callable[[Checksums], PegaShmManager]
) -> None:
    engine, other = managers(Checksums.ON), managers(Checksums.OFF)
    keys = keys_of("k", 3)
    assert 3 == store(engine, make, keys, Checksums.ON)
    cache = cache_of(engine)
    offsets = cache.region.blocks()["payload_offset"]
    flip(cache, offsets[1], 17)

    assert not load(engine, make, keys, Checksums.ON)

    assert 2 == cache.region.tally()["ready"]
    for manager in (engine, other):
        context = request(manager, keys, "again")
        assert [HIT, MISS, HIT] == [manager.lookup(key, context) for key in keys]
    assert 1 == store(engine, make, keys, Checksums.ON)
    assert load(engine, make, keys, Checksums.ON)
    assert load(other, make, keys, Checksums.OFF)
    assert 1 == counter(cache, "payloads_damaged")


def test_a_damaged_block_that_another_engine_holds_goes_when_it_is_stored_again(
    make: Make, managers: Callable[[Checksums], PegaShmManager]
) -> None:
    """Its memory may not be reused under the other's copy; until then it is a miss to all."""
    engine, other = managers(Checksums.ON), managers(Checksums.OFF)
    keys = keys_of("k", 1)
    store(engine, make, keys, Checksums.ON)
    cache = cache_of(engine)
    flip(cache, cache.region.blocks()["payload_offset"][0], 17)
    held, _ = cache_of(other).find([bytes(key) for key in keys], pin=True)
    assert held.all()

    assert not load(engine, make, keys, Checksums.ON)

    assert 1 == cache.region.tally()["ready"]
    assert MISS == engine.lookup(keys[0], request(engine, keys, "again"))
    assert 0 == store(engine, make, keys, Checksums.ON)
    cache_of(other).unpin(held)
    assert 1 == store(engine, make, keys, Checksums.ON)
    assert load(engine, make, keys, Checksums.ON)


def test_an_engine_that_requires_checksums_misses_what_has_none(
    make: Make, managers: Callable[[Checksums], PegaShmManager]
) -> None:
    plain, strict = managers(Checksums.OFF), managers(Checksums.REQUIRED)
    with_sums, without = keys_of("with", 2), keys_of("without", 2)
    store(plain, make, without, Checksums.OFF)
    store(strict, make, with_sums, Checksums.REQUIRED)

    context = request(strict, [*with_sums, *without])
    asked = [strict.lookup(key, context) for key in (*with_sums, *without)]
    assert [HIT, HIT, MISS, MISS] == asked
    assert not cache_of(strict).region.blocks()["pins"][:, 1].any()
    pinned = np.count_nonzero(cache_of(strict).region.blocks()["pins"].any(axis=1))
    assert 2 == pinned, "pins on blocks that were left are dropped at once"
    assert load(plain, make, [*with_sums, *without], Checksums.OFF)
    assert load(strict, make, with_sums, Checksums.REQUIRED)
