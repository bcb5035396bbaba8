"""Does a checksum find what it should, forget what it should, and keep a damaged block from everybody?

Through `Cache` and `Copyist`, as any Python user has them; the connector's workers have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import xxhash

from pegashm import _native
from pegashm.cache import Cache, Copyist
from pegashm.errors import ConfigError
from pegashm.keys import namespace_of
from pegashm.payload_sums import (
    PARTS_MAX,
    Checksums,
    Hasher,
    Part,
    Verdict,
    check,
    checksums_of,
    has_sums,
    payload_sum,
    verify,
)

NAMESPACE = namespace_of({"test": "sums"}, label="sums")
NBYTES = 6000  # not a whole number of pages
Handles = np.ndarray


def key(number: int) -> bytes:
    return number.to_bytes(32, "big") + bytes(4)


def counter(cache: Cache, name: str) -> int:
    return next(c["value"] for c in cache.region.counters() if c["key"] == name)


def payload(cache: Cache, handle: np.uint64) -> memoryview:
    offsets, sizes = cache.locate(np.array([handle], dtype=np.uint64))
    return cache.region.payload(int(offsets[0]), int(sizes[0]))


@pytest.fixture
def attach(arena_name: Callable[..., str]) -> Iterator[Callable[[], Cache]]:
    """Clients of one small arena."""
    name = arena_name()
    caches: list[Cache] = []

    def attached() -> Cache:
        caches.append(Cache.attach(name, namespace=NAMESPACE))
        return caches[-1]

    yield attached
    for cache in caches:
        cache.close()


@pytest.fixture
def cache(attach: Callable[[], Cache]) -> Cache:
    return attach()


def stored(cache: Cache, count: int = 3, *, sums: bool = True, start: int = 0) -> Handles:
    """Published blocks of different bytes, pinned by us."""
    handles, outcomes = cache.claim([key(start + n) for n in range(count)], NBYTES)
    assert not outcomes.any()
    for number, handle in enumerate(handles):
        payload(cache, handle)[:] = bytes([start + number]) * NBYTES
    if sums:
        cache.store_sums(handles)
    assert not cache.publish(handles).any()
    assert not cache.pin(handles).any()
    return handles


def row_of(cache: Cache, handle: np.uint64) -> np.void:
    blocks = cache.region.blocks()
    found = blocks[blocks["record"] == int(handle) & 0xFFFFFF]
    assert 1 == len(found)
    return found[0]


def test_bytes_that_are_the_same_hold(cache: Cache) -> None:
    handles = stored(cache)
    checked = cache.verify(handles)
    assert checked.all_ok
    assert () == checked.damages
    assert 3 == counter(cache, "payloads_verified")
    assert 0 == counter(cache, "payloads_damaged")
    assert has_sums(cache.region, handles).all()
    assert [1, 1, 1] == [int(row_of(cache, handle)["sum_parts"]) for handle in handles]


@pytest.mark.parametrize("at", [0, 1, NBYTES // 2, NBYTES - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_found_wherever_it_is(cache: Cache, at: int, bit: int) -> None:
    handles = stored(cache)
    before = payload_sum(bytes(payload(cache, handles[1])))
    payload(cache, handles[1])[at] ^= 1 << bit
    after = payload_sum(bytes(payload(cache, handles[1])))

    checked = cache.verify(handles)

    assert [Verdict.OK, Verdict.MISMATCH, Verdict.OK] == checked.verdicts.tolist()
    (damage,) = checked.damages
    assert (int(handles[1]), 0, before, after) == (
        damage.handle,
        damage.part,
        damage.expected,
        damage.found,
    )
    assert f"{before:016x}" in str(damage)
    assert f"{after:016x}" in str(damage)


def test_a_damaged_block_is_nobodys_hit_and_gives_way(
    cache: Cache, attach: Callable[[], Cache]
) -> None:
    """From the moment it is found: not pinned by us again nor by others, replaced when stored again."""
    other = attach()
    (handle,) = handles = stored(cache, 1)
    payload(cache, handle)[7] ^= 1
    assert Verdict.MISMATCH == cache.verify(handles).verdicts[0]

    for client in (cache, other):
        assert [_native.MISSING] == client.find([key(0)], pin=True)[1].tolist()
        assert [_native.MISSING] == client.pin(handles).tolist()
    assert 1 == row_of(cache, handle)["damaged"]
    # We still hold it: its memory may not go, so its key cannot be stored yet.
    assert [_native.EXISTS] == other.claim([key(0)], NBYTES)[1].tolist()
    cache.unpin(handles)
    again, outcomes = other.claim([key(0)], NBYTES)
    assert [_native.OK] == outcomes.tolist()
    payload(other, again[0])[:] = b"\5" * NBYTES
    other.store_sums(again)
    other.publish(again)
    found, _ = cache.find([key(0)], pin=True)
    assert found.tolist() == again.tolist()
    assert cache.verify(found).all_ok
    assert 1 == counter(cache, "payloads_damaged")
    assert not cache.region.blocks()["damaged"].any()


def test_damage_is_counted_once_however_many_find_it(
    cache: Cache, attach: Callable[[], Cache]
) -> None:
    handles = stored(cache, 1)
    other = attach()
    other.pin(handles)
    payload(cache, handles[0])[0] ^= 1
    for client in (cache, other, cache):
        checked = client.verify(handles)
        assert [Verdict.MISMATCH] == checked.verdicts.tolist()
    assert "marked as damaged" in str(checked.damages[0])
    assert 1 == counter(cache, "payloads_damaged")


def test_a_damaged_block_can_be_evicted_by_handle(cache: Cache) -> None:
    handles = stored(cache, 1)
    payload(cache, handles[0])[0] ^= 1
    cache.verify(handles)
    cache.unpin(handles)
    assert [_native.OK] == cache.evict(handles).tolist()
    assert 0 == cache.region.tally()["ready"]


def test_without_a_checksum_there_is_nothing_to_say(cache: Cache) -> None:
    """Blocks of engines that store none are neither right nor wrong, and stay where they are."""
    handles = stored(cache, sums=False)
    payload(cache, handles[0])[0] ^= 1
    assert {Verdict.NO_SUM} == set(cache.verify(handles).verdicts.tolist())
    assert not has_sums(cache.region, handles).any()
    assert 3 == (cache.find([key(0), key(1), key(2)], pin=True)[0] != 0).sum()
    assert 0 == counter(cache, "payloads_damaged") == counter(cache, "payloads_verified")


def test_a_new_life_knows_nothing_of_the_old(cache: Cache) -> None:
    """Checksums end with the block: the next one in the same record starts without."""
    old = stored(cache, 1)
    cache.unpin(old)
    cache.evict(old)
    new = stored(cache, 1, sums=False, start=9)
    for _ in range(200):
        if int(new[0]) & 0xFFFFFF == int(old[0]) & 0xFFFFFF:
            break
        cache.unpin(new)
        cache.evict(new)
        new = stored(cache, 1, sums=False, start=9)
    assert int(new[0]) & 0xFFFFFF == int(old[0]) & 0xFFFFFF
    sums, part_bytes, counts, damaged = _native.read_sums(cache.region, new)
    assert not any(table.any() for table in (sums, part_bytes, counts, damaged))
    assert [Verdict.NO_SUM] == cache.verify(new).verdicts.tolist()
    assert [Verdict.NO_SUM] == cache.verify(old).verdicts.tolist()


def test_each_writer_has_its_part(cache: Cache) -> None:
    """Three ranks write and verify a third each; whose bytes are hurt is said by the part."""
    handles, _ = cache.claim([key(0)], NBYTES)
    offsets, _ = cache.locate(handles)
    payload(cache, handles[0])[:] = bytes(range(250)) * 24
    parts = [Part(index=index, count=3, nbytes=1900) for index in range(3)]
    with Copyist.open(cache.name) as copyist:
        assert copyist.serve(cache.region_id, cache.slot, cache.incarnation)
        for part in parts[:2]:
            copyist.store_sums(handles, offsets, part)
            copyist.part_done(handles, True)
        assert not has_sums(cache.region, handles).any()
        copyist.store_sums(handles, offsets, parts[2], Hasher(2))
        copyist.part_done(handles, True)
        assert not cache.publish(handles, 3).any()
        assert has_sums(cache.region, handles).all()
        cache.pin(handles)
        start = int(offsets[0])
        for index in range(3):
            whole = bytes(cache.region.payload(start + index * 1900, 1900))
            assert (
                xxhash.xxh3_64_intdigest(whole)
                == _native.read_sums(cache.region, handles)[0][0, index]
            )
        payload(cache, handles[0])[5999] ^= 1  # padding: nobody's
        assert cache.verify(handles).all_ok
        payload(cache, handles[0])[1900] ^= 1
        assert copyist.verify(handles, offsets, parts[0]).all_ok
        assert copyist.verify(handles, offsets, parts[2]).all_ok
        # A reader who cuts otherwise verifies all that its bytes lie in.
        halves = [Part(index=index, count=2, nbytes=3000) for index in range(2)]
        assert [1] == check(cache.region, handles, offsets, halves[0]).verdicts.tolist()
        assert [1] == [d.part for d in check(cache.region, handles, offsets, halves[0]).damages]
        assert [1] == [d.part for d in copyist.verify(handles, offsets, parts[1]).damages]


def test_a_reader_beyond_the_last_part_is_refused(cache: Cache) -> None:
    """No writer of its namespace leaves bytes out: the layout is damaged."""
    handles, _ = cache.claim([key(0)], NBYTES)
    offsets, _ = cache.locate(handles)
    Copyist(cache.arena).store_sums(handles, offsets, Part(index=0, count=1, nbytes=3000))
    cache.publish(handles)
    cache.pin(handles)
    for reader in (Part(index=1, count=2, nbytes=3000), Part(index=0, count=1, nbytes=3001)):
        assert [Verdict.MISMATCH] == check(cache.region, handles, offsets, reader).verdicts.tolist()
    inside = Part(index=0, count=3, nbytes=1000)
    assert check(cache.region, handles, offsets, inside).all_ok


def test_many_threads_give_the_same_sums(cache: Cache) -> None:
    runs = [(index * 4096, 4096) for index in range(61)]
    for offset, nbytes in runs:
        cache.region.payload(offset, nbytes)[:8] = (offset + 1).to_bytes(8, "little")
    one = Hasher().sums(cache.region, runs)
    three = Hasher(3)
    assert one == three.sums(cache.region, runs)
    assert 61 == len(set(one))
    assert [] == three.sums(cache.region, [])
    three.close()


def test_only_claimed_blocks_take_checksums(cache: Cache) -> None:
    """A late or wrong writer changes nothing: life over, published, or parts that do not fit."""
    handles = stored(cache, 1, sums=False)

    def write(handle: int, part_count: int = 1, part_bytes: int = NBYTES) -> list[bool]:
        array = np.array([handle], dtype=np.uint64)
        sums = np.array([7], dtype=np.uint64)
        return _native.write_sums(
            cache.region, array, sums, part=0, part_count=part_count, part_bytes=part_bytes
        ).tolist()

    assert [False] == write(int(handles[0]))
    claimed, _ = cache.claim([key(5)], NBYTES)
    claim = int(claimed[0])
    assert [False] == write(claim + (1 << 24))
    assert [False] == write(0)
    assert [False] == write(claim | 0xFFFFFF)
    assert [False] == write(claim, 1, NBYTES + 1)
    assert [False] == write(claim, 2, NBYTES // 2 + 1)
    assert not has_sums(cache.region, np.append(handles, claimed)).any()
    assert [True] == write(claim, 8, NBYTES // 8)


@pytest.mark.parametrize(("part", "count", "nbytes"), [(0, 0, 1), (1, 1, 1), (0, 9, 1), (0, 1, 0)])
def test_parts_that_cannot_be(cache: Cache, part: int, count: int, nbytes: int) -> None:
    none = np.zeros(0, dtype=np.uint64)
    with pytest.raises(ValueError, match="part"):
        _native.write_sums(cache.region, none, none, part=part, part_count=count, part_bytes=nbytes)
    with pytest.raises(ConfigError, match="part"):
        Part(index=part, count=count, nbytes=nbytes)


def test_too_many_writers_are_told_what_to_type() -> None:
    with pytest.raises(ConfigError, match="checksums: off"):
        Part(index=0, count=PARTS_MAX + 1, nbytes=4096)


def test_a_checksum_is_never_zero() -> None:
    assert xxhash.xxh3_64_intdigest(b"x" * 100) == payload_sum(b"x" * 100)
    assert 0 != payload_sum(b"")


def test_fsck_verifies_any_block_it_meets(cache: Cache) -> None:
    """`verify` on the rows of `region.blocks()`, without pins; it marks and counts nothing."""
    handles = np.concatenate([stored(cache, 2), stored(cache, 1, sums=False, start=50)])
    payload(cache, handles[1])[100] ^= 4
    verdicts = [verify(cache.region, row_of(cache, handle)) for handle in handles]
    assert [Verdict.OK, Verdict.MISMATCH, Verdict.NO_SUM] == verdicts
    row = row_of(cache, handles[0]).copy()
    row["payload_offset"] = cache.region.payload_bytes
    assert Verdict.MISMATCH == verify(cache.region, row)
    row["generation"] += 1
    assert Verdict.NO_SUM == verify(cache.region, row)
    assert 0 == counter(cache, "payloads_damaged")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("off", Checksums.OFF),
        ("on", Checksums.ON),
        (" Required ", Checksums.REQUIRED),
        (True, Checksums.ON),
        (False, Checksums.OFF),
    ],
)
def test_settings(said: object, meant: Checksums) -> None:
    assert meant is checksums_of(said)


@pytest.mark.parametrize("said", ["yes", "xxh3", 1, None])
def test_other_settings_are_refused(said: object) -> None:
    with pytest.raises(ConfigError, match=r"checksums must be one of off, on, required"):
        checksums_of(said)
