"""Can a noisy namespace push another below its reserve? And what does a reserve cost those that have none?

Blocks go by recency, so that a quiet namespace's are always the next to go: each test makes them the oldest there are.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.keys import Namespace, namespace_of
from pegashm.units import KIB

from tests.arenas import Shape, make_arena, remove_arena
from tests.fsck.scene import Hand

BYTES = 4 * KIB
SHAPE = Shape(segments_per_arena=(4,))
BLOCKS = SHAPE.payload_bytes // BYTES  # 64
WIDE = Shape(segment_bytes=1024 * KIB, segments_per_arena=(4,))
WIDE_BLOCKS = WIDE.payload_bytes // BYTES  # 1024: more than an evictor gathers at once
RESIDENT, ATTACHED_AT = 56, 72  # of a namespace's entry, see FORMAT.md
NOISY = namespace_of({"model": "noisy"}, label="noisy")

Make = Callable[..., Cache]


def quiet(reserved_blocks: int, name: str = "quiet") -> Namespace:
    return namespace_of({"model": name}, label=name, reserved_bytes=reserved_blocks * BYTES)


def keys(numbers: range) -> list[bytes]:
    return [number.to_bytes(32, "big") + bytes(4) for number in numbers]


def store(cache: Cache, numbers: range, nbytes: int = BYTES) -> list[int]:
    """Published in one go; what each claim answered."""
    handles, outcomes = cache.claim(keys(numbers), nbytes)
    cache.publish(handles[handles != 0])
    return [int(outcome) for outcome in outcomes]


def found(cache: Cache, numbers: range) -> int:
    return int((cache.find(keys(numbers))[1] == _native.OK).sum())


@pytest.fixture
def join() -> Iterator[Make]:
    """Attaches to an arena, made when none is named; all is gone at the end."""
    caches: list[Cache] = []
    names: list[str] = []

    def attach(namespace: Namespace, name: str | None = None, shape: Shape = SHAPE) -> Cache:
        if name is None:
            names.append(name := make_arena(shape))
        caches.append(Cache.attach(name, namespace=namespace))
        return caches[-1]

    yield attach
    for cache in caches:
        cache.close()
    for name in names:
        remove_arena(name)


def test_noise_takes_what_is_above_the_reserve_and_no_more(join: Make) -> None:
    tenant = join(quiet(24))
    store(tenant, range(40))
    noisy = join(NOISY, tenant.name)
    for first in range(1000, 3000, 40):
        assert {_native.OK} == set(store(noisy, range(first, first + 40)))
    assert 24 == found(tenant, range(40))
    assert BLOCKS - 24 == found(noisy, range(2000, 3000))


@pytest.mark.parametrize("reserved", [600, 1000])
def test_reserve_larger_than_a_gathering_starves_nobody(join: Make, reserved: int) -> None:
    """The 512 oldest blocks are all kept: an evictor has to look beyond them."""
    tenant = join(quiet(reserved), shape=WIDE)
    store(tenant, range(reserved))
    noisy = join(NOISY, tenant.name)
    store(noisy, range(10_000, 10_000 + WIDE_BLOCKS - reserved))
    for first in range(20_000, 20_400, 8):
        assert {_native.OK} == set(store(noisy, range(first, first + 8)))
    assert reserved == found(tenant, range(reserved))


def test_other_size_takes_no_segment_below_the_reserve(join: Make) -> None:
    """A segment whose blocks are kept does not move to another size, though it is the most idle; another does."""
    tenant = join(quiet(20))
    store(tenant, range(20))
    noisy = join(NOISY, tenant.name)
    store(noisy, range(100, 144))
    assert _native.OK in store(noisy, range(200, 204), 64 * KIB)
    assert 20 == found(tenant, range(20))


def test_own_evictions_ask_no_reserve(join: Make) -> None:
    tenant = join(quiet(BLOCKS))
    for first in range(0, 640, 64):
        assert {_native.OK} == set(store(tenant, range(first, first + 64)))
    assert BLOCKS == found(tenant, range(576, 640))


def test_full_of_what_is_reserved(join: Make) -> None:
    """All there is belongs to others: a claim has no space, and says so without searching again."""
    tenant = join(quiet(BLOCKS))
    store(tenant, range(BLOCKS))
    noisy = join(NOISY, tenant.name)
    assert [_native.NO_SPACE] * 5 == store(noisy, range(1000, 1005))
    assert BLOCKS == found(tenant, range(BLOCKS))


def test_evicting_ahead_leaves_the_reserve(join: Make) -> None:
    """What the transport worker does: it is given what may go, and what may go no more stays."""
    tenant = join(quiet(24))
    store(tenant, range(40))
    worker = join(NOISY, tenant.name)
    store(worker, range(100, 110))
    handles, touches = worker.client.oldest(BYTES, BLOCKS)
    assert 40 - 24 + 10 == len(handles)
    tenant.enter(quiet(24, "elsewhere"))  # gives its reserve up
    tenant.enter(quiet(30))
    outcomes = worker.client.evict_untouched(handles, touches).tolist()
    assert 6 == outcomes.count(_native.QUOTA)
    assert 30 == found(tenant, range(40))
    assert 0 == worker.evict_lru(BYTES, BLOCKS)
    assert not np.any(worker.region.blocks()["pins"])


def test_below_its_reserve_a_namespace_grows_at_others_cost(join: Make) -> None:
    """Its own blocks are the oldest there are; were they to go for its new ones, noise would keep it small."""
    noisy = join(NOISY)
    tenant = join(quiet(40), noisy.name)
    first = 0
    for step in range(200):
        store(noisy, range(1000 + 4 * step, 1004 + 4 * step))
        if step >= 20:
            store(tenant, range(first, first + 1))
            first += 1
    assert 40 == found(tenant, range(first - 40, first))
    assert BLOCKS - 40 == found(noisy, range(1000, 1800))


def test_below_its_reserve_and_nothing_of_others_to_be_had(join: Make) -> None:
    """Others hold what is reserved for them, or pin it: then its own oldest go."""
    one = join(quiet(30, "one"))
    two = join(quiet(34, "two"), one.name)
    store(one, range(30))
    store(two, range(30))
    pinned, _ = one.find(keys(range(30)), pin=True)
    store(two, range(100, 104))
    assert [_native.OK] * 8 == store(two, range(200, 208))
    assert 30 == found(one, range(30))
    assert 34 == sum(found(two, some) for some in (range(30), range(100, 104), range(200, 208)))
    one.unpin(pinned)


def clamour(name: str, seed: int, start: float, stop: float) -> None:
    """A process of a namespace without a reserve that stores as fast as it can."""
    with Cache.attach(name, namespace=namespace_of({"noise": seed % 2}, label="noise")) as cache:
        time.sleep(max(0.0, start - time.time()))
        first = 1_000_000 * (seed + 1)
        while time.time() < stop:
            store(cache, range(first, first + 5))
            first += 5


@pytest.mark.timeout(300)
def test_reserve_holds_against_several_at_once(join: Make) -> None:
    """Three evictors, and a tenant that lives at its reserve: it never has fewer, at any moment."""
    reserved = 16
    tenant = join(quiet(reserved))
    context = multiprocessing.get_context("spawn")
    start = time.time() + 1.5
    stop = start + 3.0
    children = [
        context.Process(target=clamour, args=(tenant.name, seed, start, stop), daemon=True)
        for seed in range(3)
    ]
    for child in children:
        child.start()
    first, looks = 0, 0
    while time.time() < stop:
        store(tenant, range(first, first + 3))
        first += 3
        states = tenant.region.blocks()
        mine = states["namespace_id"] == tenant.namespace_id
        if first >= 60:  # one block may be between READY and CLAIMED: our own, under way to us
            looks += 1
            assert int(mine.sum()) >= reserved, "below the reserve"
    for child in children:
        child.join(120)
        assert 0 == child.exitcode
    assert looks > 20
    (row,) = [r for r in tenant.region.namespaces() if r["id"] == tenant.namespace_id]
    assert row["resident_bytes"] == row["blocks"] * BYTES >= reserved * BYTES


# -- what a reserve is given, and how it ends ------------------------------------------------------


def reserved_blocks(cache: Cache) -> dict[str, int]:
    rows = cache.region.namespaces(counted=False)
    return {row["label"]: row["reserved_bytes"] // BYTES for row in rows}


def test_reserves_together_are_at_most_what_there_is(join: Make) -> None:
    one = join(quiet(40, "one"))
    two = join(quiet(40, "two"), one.name)
    three = join(quiet(40, "three"), one.name)
    assert {"one": 40, "two": 24, "three": 0} == reserved_blocks(one)
    assert [40 * BYTES, 24 * BYTES, 0] == [cache.reserved_bytes for cache in (one, two, three)]
    one.enter(quiet(10, "one"))
    three.enter(quiet(40, "three"))
    assert {"one": 10, "two": 24, "three": 30} == reserved_blocks(one)


def test_reserve_of_who_has_gone_lasts_until_somebody_needs_it(join: Make) -> None:
    """An engine that restarts finds its blocks; models that nobody runs any more keep no memory from others."""
    watcher = join(NOISY)
    for name in ("first", "second"):
        with Cache.attach(watcher.name, namespace=quiet(20, name)) as cache:
            store(cache, range(20))
    store(watcher, range(1000, 1200))
    with Cache.attach(watcher.name, namespace=quiet(20, "second")) as cache:
        assert 20 == found(cache, range(20))
        living = join(quiet(40, "living"), watcher.name)
        assert {"first": 0, "second": 20, "living": 40, "noisy": 0} == reserved_blocks(living)


def test_namespace_that_is_left_keeps_no_reserve(join: Make) -> None:
    """An engine whose weights change again and again holds one reserve, and not one for each."""
    engine = join(quiet(20, "weights 0"))
    for number in range(1, 6):
        engine.enter(quiet(20, f"weights {number}"))
    assert 20 == sum(reserved_blocks(engine).values()) == reserved_blocks(engine)["weights 5"]
    other = join(quiet(20, "weights 5"), engine.name)
    engine.enter(quiet(20, "weights 6"))
    assert {"weights 5": 20, "weights 6": 20} == {
        label: count for label, count in reserved_blocks(other).items() if count
    }


def test_blocks_of_a_recycled_namespace_count_for_nobody(join: Make) -> None:
    """Evicting what an earlier namespace of the slot left takes nothing from its successor."""
    cache = join(namespace_of({"model": 0}, label="0"))
    store(cache, range(30))
    name = cache.name
    cache.close()
    with open_arena(name) as arena:
        for number in range(1, _native.NAMESPACE_COUNT):
            some = namespace_of({"model": number}, label=str(number))
            arena.region.register_namespace(some.fingerprint, label=some.label, now_ns=number + 1)
        hand = Hand(arena)
        first = hand.header["namespaces_offset"]
        assert 30 * BYTES == hand.get(first + RESIDENT)
        hand.put(first + RESIDENT, 0)
        hand.put(first + ATTACHED_AT, 0)  # so that it is the next to be recycled
    successor = join(NOISY, name)
    assert 0 == successor.namespace_id & 0xFFFF
    store(successor, range(1000, 1200))
    (row,) = [row for row in successor.region.namespaces() if row["blocks"]]
    assert successor.namespace_id == row["id"]
    assert BLOCKS * BYTES == row["resident_bytes"] == row["blocks"] * BYTES
