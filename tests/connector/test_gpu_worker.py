"""Does the GPU worker report, wait, move to another mapping and end in the right order?

What both workers share is in `test_workers.py`. The device is the one of `engines.py`: jobs stay in flight until they
are told to land.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pegashm import _native
from pegashm.cache import Cache
from pegashm.connector.chunks import ChunkLayout
from pegashm.connector.cuda import PegaShmCudaWorker, device_driver
from pegashm.connector.jobs import ArenaBlocks
from pegashm.connector.registration import Driver

from tests.arenas import Shape, remove_arena
from tests.connector.engines import Device, Pages, blocks_of, claim, gpu_blocks, kv_caches

PAGES = Pages(tensors=(4096, 4096), groups=(((0, 4096), (1, 4096)),))
LAYOUT: ChunkLayout = PAGES.layout()

Start = Callable[..., PegaShmCudaWorker]


@pytest.fixture
def device() -> Device:
    return Device(at_once=False)


@pytest.fixture
def start(device: Device) -> Iterator[Start]:
    """Starts a worker on `device`; all are shut down when the test ends."""
    workers: list[PegaShmCudaWorker] = []

    def started(arena: str, driver: Driver | None = None) -> PegaShmCudaWorker:
        caches = kv_caches(PAGES, 8, torch.Generator().manual_seed(1))
        workers.append(
            PegaShmCudaWorker(
                caches, layout=LAYOUT, cell=0, arena=arena, driver=driver, engine=device.engine
            )
        )
        return workers[-1]

    yield started
    for worker in workers:
        worker.shutdown()


@pytest.fixture
def cache(arena_name: Callable[..., str], attach: Callable[[str], Cache]) -> Cache:
    return attach(arena_name())


def parts(cache: Cache, blocks: ArenaBlocks) -> list[int]:
    return _native.parts_total(cache.region, blocks.handles).tolist()


def jobs(worker: PegaShmCudaWorker) -> list[int]:
    results = worker.get_finished()
    assert all(result.success for result in results)
    return [result.job_id for result in results]


def until(what: Callable[[], bool]) -> None:
    while not what():
        time.sleep(0.001)


def stored(cache: Cache, worker: PegaShmCudaWorker, device: Device, count: int = 2) -> ArenaBlocks:
    """Blocks that were stored and published, and are pinned."""
    blocks = blocks_of(cache, claim(cache, LAYOUT, count, start=1000))
    worker.submit_store(1000, gpu_blocks([list(range(count))]), blocks)
    worker.wait({1000})
    assert [1000] == jobs(worker)
    assert {_native.OK} == set(cache.publish(blocks.handles, 1).tolist())
    cache.pin(blocks.handles)
    return blocks


def test_a_part_is_reported_when_the_copies_have_ended(
    cache: Cache, device: Device, start: Start
) -> None:
    """Not when they are submitted; and before vLLM hears that the store is done."""
    worker = start(cache.name)
    blocks = blocks_of(cache, claim(cache, LAYOUT, 2))
    worker.submit_store(7, gpu_blocks([[0, 1]]), blocks)
    assert [] == jobs(worker)
    assert [0, 0] == parts(cache, blocks)
    assert {_native.PENDING} == set(cache.publish(blocks.handles, 1).tolist())

    device.engines[0].land(7)
    assert [0, 0] == parts(cache, blocks)
    assert [7] == jobs(worker)
    assert [1, 1] == parts(cache, blocks)
    assert {_native.OK} == set(cache.publish(blocks.handles, 1).tolist())


def test_waiting_waits_for_those_jobs_only(cache: Cache, device: Device, start: Start) -> None:
    worker = start(cache.name)
    for job_id in (1, 2, 3):
        blocks = blocks_of(cache, claim(cache, LAYOUT, 1, start=job_id))
        worker.submit_store(job_id, gpu_blocks([[job_id]]), blocks)
    worker.wait({2, 99})
    assert [2] == jobs(worker)
    worker.wait({1, 2, 3})
    assert [1, 3] == jobs(worker)
    assert 1 == len(device.engines)


def test_a_block_that_changes_under_a_load_fails_it(
    cache: Cache, device: Device, start: Start
) -> None:
    """Our pins hold it; should they be lost all the same, the bytes are not used."""
    worker = start(cache.name)
    blocks = stored(cache, worker, device)
    worker.submit_load(2, blocks, gpu_blocks([[4, 5]]))
    cache.unpin(blocks.handles)
    assert {_native.OK} == set(cache.evict(blocks.handles[:1]).tolist())
    worker.wait({2})

    assert [2] == jobs(worker)
    assert {2} == worker.failed_jobs
    failed = {counter["key"]: counter["value"] for counter in cache.region.counters()}
    assert 2 == failed["loads_failed"]


def test_an_engine_that_cannot_be_made_costs_the_jobs_only(
    cache: Cache, device: Device, start: Start
) -> None:
    """A store's part is reported as failed, so that the claim is dropped; loads are computed."""
    device.refuses = AssertionError("no such tensors")
    worker = start(cache.name)
    blocks = blocks_of(cache, claim(cache, LAYOUT, 2))
    worker.submit_store(1, gpu_blocks([[0, 1]]), blocks)
    assert [1] == jobs(worker)
    assert {_native.INCOMPLETE} == set(cache.publish(blocks.handles, 1).tolist())

    device.refuses = None
    blocks = stored(cache, worker, device)
    mismatched = gpu_blocks([[0, 1, 2]])  # three engine blocks from two of the arena
    worker.submit_load(2, blocks, mismatched)
    assert [2] == jobs(worker)
    assert {2} == worker.failed_jobs


def test_an_arena_created_anew_gets_a_new_mapping(
    device: Device,
    start: Start,
    arena_name: Callable[..., str],
    attach: Callable[[str], Cache],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old worker is drained, its parts reported, its registrations undone, before it is dropped."""
    token = secrets.token_hex(4)
    monkeypatch.setattr(secrets, "token_hex", lambda _bytes: token)
    registered: dict[int, int] = {}

    def register(address: int, nbytes: int) -> bool:
        registered[address] = nbytes
        return True

    def unregister(address: int) -> None:
        del registered[address]
        device.events.append("unregistered")

    name = arena_name()
    old = attach(name)
    worker = start(name, Driver(register, unregister))
    blocks = blocks_of(old, claim(old, LAYOUT, 2))
    worker.submit_store(1, gpu_blocks([[0, 1]]), blocks)
    until(lambda: len(registered) == 1)
    (old_address,) = registered

    remove_arena(name)
    assert name == arena_name(Shape(segments_per_arena=(2, 2)))
    new = attach(name)
    assert new.region_id != old.region_id
    others = blocks_of(new, claim(new, LAYOUT, 2))
    worker.submit_store(2, gpu_blocks([[2, 3]]), others)

    assert ["job 1 landed", "engine ended"] == device.events[:2]
    until(lambda: "unregistered" in device.events)
    assert [1, 1] == parts(old, blocks)
    assert 2 == len(device.engines)
    until(lambda: len(registered) == 2)  # one chunk for each of two files
    assert old_address not in registered
    worker.wait({2})
    assert [1, 2] == jobs(worker)
    assert [1, 1] == parts(new, others)
    written = bytes(new.region.payload(int(others.offsets[0]), 4096))
    assert written == worker._caches.tensors[0].tensor[2].numpy().tobytes()

    # A late job for the arena that is gone moves nothing, and is not the new one's.
    worker.submit_load(3, blocks, gpu_blocks([[0, 1]]))
    assert [3] == jobs(worker)
    assert {3} == worker.failed_jobs
    assert 2 == len(device.engines)
    assert 2 == len(registered)


def test_device_code_may_read_only_what_is_registered(
    cache: Cache, device: Device, start: Start
) -> None:
    """vLLM is told of pinned memory once all is registered, by a new worker, between two jobs."""
    worker = start(cache.name, Driver(lambda _address, _nbytes: True, lambda _address: None))
    blocks = blocks_of(cache, claim(cache, LAYOUT, 2))
    worker.submit_store(1, gpu_blocks([[0, 1]]), blocks)
    mapped = worker._mapped
    assert mapped is not None
    until(mapped._registered)
    assert [False] == [engine.host_memory_is_pinned for engine in device.engines]

    for job_id in (2, 3):  # a job is in flight: not yet
        more = blocks_of(cache, claim(cache, LAYOUT, 1, start=job_id))
        worker.submit_store(job_id, gpu_blocks([[job_id]]), more)
    assert 1 == len(device.engines)
    worker.wait({1, 2, 3})
    assert [1, 2, 3] == jobs(worker)

    for job_id in (4, 5):
        more = blocks_of(cache, claim(cache, LAYOUT, 1, start=job_id))
        worker.submit_store(job_id, gpu_blocks([[job_id]]), more)
        worker.wait({job_id})
        assert [job_id] == jobs(worker)
        assert [1] == parts(cache, more)
    assert [False, True] == [engine.host_memory_is_pinned for engine in device.engines]


def test_without_full_registration_memory_is_never_called_pinned(
    cache: Cache, device: Device, start: Start
) -> None:
    worker = start(cache.name, Driver(lambda _address, _nbytes: False, lambda _address: None))
    for job_id in range(3):
        blocks = blocks_of(cache, claim(cache, LAYOUT, 1, start=job_id))
        worker.submit_store(job_id, gpu_blocks([[0]]), blocks)
        worker.wait({job_id})
        assert [job_id] == jobs(worker)
        assert [1] == parts(cache, blocks)
    assert [False] == [engine.host_memory_is_pinned for engine in device.engines]


def test_registration_begins_with_the_first_job(cache: Cache, device: Device, start: Start) -> None:
    """Not when the worker is made: vLLM has yet to record its graphs then."""
    calls: list[int] = []
    driver = Driver(lambda address, _nbytes: calls.append(address) is None, calls.remove)
    worker = start(cache.name, driver)
    time.sleep(0.02)
    assert [] == calls
    worker.submit_store(1, gpu_blocks([[0]]), blocks_of(cache, claim(cache, LAYOUT, 1)))
    until(lambda: len(calls) == 1)
    worker.shutdown()
    assert [] == calls


def test_shutdown_ends_copies_then_registrations_then_locks(
    cache: Cache, device: Device, start: Start
) -> None:
    driver = Driver(
        lambda _address, _nbytes: True, lambda _address: device.events.append("unregistered")
    )
    worker = start(cache.name, driver)
    blocks = blocks_of(cache, claim(cache, LAYOUT, 2))
    worker.submit_store(1, gpu_blocks([[0, 1]]), blocks)
    mapped = worker._mapped
    assert mapped is not None
    until(mapped._registered)
    worker.shutdown()

    assert ["job 1 landed", "engine ended", "unregistered"] == device.events
    assert [1, 1] == parts(cache, blocks)
    assert mapped.copyist.region.closed
    worker.shutdown()


def test_the_owner_is_not_reaped_while_a_worker_may_write(
    cache: Cache, device: Device, start: Start, attach: Callable[[str], Cache]
) -> None:
    """Its claims stay claimed after it has gone, until the worker has gone too."""
    worker = start(cache.name)
    blocks = blocks_of(cache, claim(cache, LAYOUT, 2))
    worker.submit_store(1, gpu_blocks([[0, 1]]), blocks)
    watcher = attach(cache.name)
    cache.close()
    watcher.reap_dead()
    assert 2 == watcher.region.tally()["claimed"]

    worker.shutdown()
    watcher.reap_dead()
    assert 0 == watcher.region.tally()["claimed"]


def test_nothing_is_registered_without_a_gpu() -> None:
    assert device_driver(kv_caches(PAGES, 1)) is None


def test_a_full_arena_has_a_row_for_each_block(
    cache: Cache, device: Device, start: Start, seed: int
) -> None:
    """Every block that fits, in a random order, through one job."""
    device.at_once = True
    worker = start(cache.name)
    count = cache.region.payload_bytes // (8 * 1024)
    handles = claim(cache, LAYOUT, count)
    np.random.default_rng(seed).shuffle(handles)
    blocks = blocks_of(cache, handles)
    ids: list[Any] = [number % 8 for number in range(count)]
    worker.submit_store(1, gpu_blocks([ids]), blocks)
    assert [1] == jobs(worker)
    tensors = worker._caches.tensors
    for number, offset in zip(ids, blocks.offsets.tolist(), strict=True):
        expected = b"".join(tensor.tensor[number].numpy().tobytes() for tensor in tensors)
        assert expected == bytes(cache.region.payload(offset, 8192))
