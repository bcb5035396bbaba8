"""Do lookups see what lies on SSD, and only that? The table of spill records against a dict of ours."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pegashm import _native, fsck
from pegashm._native import MISSING, OK, SPILLED
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.names import control_path
from pegashm.units import MIB

from tests.arenas import Shape, temporary_arena

FENCE = namespace_of({"model": "spill"}, label="spill")
OTHER = namespace_of({"model": "other"}, label="other")
BYTES = 4096
RECORDS = 200


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big") + bytes(4)


def rows_of(
    numbers: list[int], namespace_id: int, *, file: int = 0, sequence: int = 1, offset: int = 0
) -> NDArray[np.void]:
    rows = np.zeros(len(numbers), dtype=_native.SPILL_FIELDS)
    for row, number in zip(rows, numbers, strict=True):
        row["key"][:] = np.frombuffer(key_of(number)[:32], dtype=np.uint8)
    rows["key_bytes"], rows["namespace_id"], rows["file"] = 32, namespace_id, file
    rows["payload_bytes"], rows["sequence"] = BYTES, sequence
    rows["file_offset"] = offset + BYTES * np.arange(len(numbers), dtype=np.uint64)
    rows["checksum"] = np.array(numbers, dtype=np.uint64) * np.uint64(7)
    return rows


@pytest.fixture
def cache() -> Iterator[Cache]:
    with (
        temporary_arena(Shape(spill_records=RECORDS)) as arena,
        Cache.attach(arena.name, namespace=FENCE) as attached,
    ):
        yield attached


@pytest.fixture
def table(cache: Cache) -> _native.SpillTable:
    made = _native.SpillTable(cache.region)
    made.clear()
    made.set_usable(0b11)
    return made


def outcomes(cache: Cache, numbers: list[int]) -> list[int]:
    return cache.find([key_of(number) for number in numbers])[1].tolist()


def test_found_as_spilled_and_read_back(cache: Cache, table: _native.SpillTable) -> None:
    rows = rows_of([1, 2, 3], cache.namespace_id)
    assert table.store(rows).all()
    assert [SPILLED, SPILLED, SPILLED, MISSING] == outcomes(cache, [1, 2, 3, 4])
    found = table.find([key_of(2), key_of(4)], cache.namespace_id)
    assert found[0] == rows[1]
    assert 0 == found[1]["payload_bytes"]
    assert (3, RECORDS) == (len(table), table.capacity)


def test_other_namespaces_see_nothing(cache: Cache, table: _native.SpillTable) -> None:
    table.store(rows_of([1], cache.namespace_id))
    cache.enter(OTHER)
    assert [MISSING] == outcomes(cache, [1])


def test_memory_comes_first(cache: Cache, table: _native.SpillTable) -> None:
    """A key in both tiers is found in memory; evicted there, it is found on SSD again."""
    table.store(rows_of([1], cache.namespace_id))
    handles, claimed = cache.claim([key_of(1)], BYTES)
    assert [OK] == claimed.tolist()  # on SSD is not "there": it may be stored again
    cache.publish(handles)
    assert [OK] == outcomes(cache, [1])
    cache.evict(handles)
    assert [SPILLED] == outcomes(cache, [1])


def test_a_prefix_goes_on_through_both_tiers(cache: Cache, table: _native.SpillTable) -> None:
    handles, _ = cache.claim([key_of(1), key_of(3)], BYTES)
    cache.publish(handles)
    table.store(rows_of([2, 4], cache.namespace_id))
    found, answers = cache.find_prefix([key_of(number) for number in range(1, 8)], pin=True)
    assert [OK, SPILLED, OK, SPILLED, MISSING] == answers.tolist()
    assert [True, False, True, False, False] == (found != 0).tolist()


def test_a_file_out_of_use_is_a_miss(cache: Cache, table: _native.SpillTable) -> None:
    table.store(rows_of([1], cache.namespace_id, file=0))
    table.store(rows_of([2], cache.namespace_id, file=1))
    table.set_usable(0b10)
    assert [MISSING, SPILLED] == outcomes(cache, [1, 2])
    table.set_usable(0b11)
    assert [SPILLED, SPILLED] == outcomes(cache, [1, 2])


def test_the_newer_place_of_a_key_counts(cache: Cache, table: _native.SpillTable) -> None:
    older = rows_of([1], cache.namespace_id, sequence=1)
    newer = rows_of([1], cache.namespace_id, sequence=2, offset=1 << 20)
    table.store(older)
    table.store(newer)
    assert 1 == len(table)
    assert 0 == table.forget(older)  # that place is not the key's any more
    assert newer[0] == table.find([key_of(1)], cache.namespace_id)[0]
    assert 1 == table.forget(newer)
    assert [MISSING] == outcomes(cache, [1])


def test_a_region_of_a_file_is_dropped(cache: Cache, table: _native.SpillTable) -> None:
    table.store(rows_of(list(range(10)), cache.namespace_id, file=0))
    table.store(rows_of(list(range(10, 20)), cache.namespace_id, file=1))
    assert 4 == table.drop(0, 2 * BYTES, 6 * BYTES)
    left = [number for number in range(20) if not 2 <= number < 6]
    assert [SPILLED] * 16 == outcomes(cache, left)
    assert [MISSING] * 4 == outcomes(cache, [2, 3, 4, 5])


def test_however_long_the_stretch_it_costs_what_lies_there(
    cache: Cache, table: _native.SpillTable
) -> None:
    """Place by place this would take days."""
    for offset in (0, 1 << 30, 1 << 40, 1 << 62):
        table.store(rows_of([offset.bit_length()], cache.namespace_id, offset=offset))
    table.store(rows_of([99], cache.namespace_id, file=1))
    assert 0 == table.drop(0, BYTES, 1 << 30)
    assert 0 == table.drop(2, 0, 2**64 - 1)
    assert 3 == table.drop(0, 0, (1 << 40) + 1)
    assert 1 == table.drop(0, 0, 2**64 - 1)
    assert [MISSING] * 4 + [SPILLED] == outcomes(cache, [0, 31, 41, 63, 99])


def test_a_full_table_says_so(cache: Cache, table: _native.SpillTable) -> None:
    kept = table.store(rows_of(list(range(RECORDS + 5)), cache.namespace_id))
    assert [True] * RECORDS + [False] * 5 == kept.tolist()
    table.drop(0, 0, BYTES)
    assert table.store(rows_of([RECORDS + 1], cache.namespace_id)).all()


def test_a_new_writer_begins_with_nothing(cache: Cache, table: _native.SpillTable) -> None:
    table.store(rows_of(list(range(50)), cache.namespace_id))
    successor = _native.SpillTable(cache.region)
    successor.clear()
    assert [MISSING] * 50 == outcomes(cache, list(range(50)))
    successor.set_usable(1)
    assert successor.store(rows_of(list(range(RECORDS)), cache.namespace_id)).all()
    assert [SPILLED] * RECORDS == outcomes(cache, list(range(RECORDS)))


def test_a_record_that_damage_lists_again_is_not_freed_twice(
    cache: Cache, table: _native.SpillTable
) -> None:
    """A free record whose word says "stored": its key is a miss for us, and every record is still used once."""
    rows = rows_of([1], cache.namespace_id)
    table.store(rows)
    descriptor = os.open(control_path(cache.name), os.O_RDWR)
    with mmap.mmap(descriptor, 0) as control:
        os.close(descriptor)
        offset = cache.region.header["spill_offset"]
        words = [offset + 128 * index for index in range(RECORDS)]
        stored = next(at for at in words if control[at] == 1)
        entry = next(
            at
            for at in range(cache.region.header["buckets_offset"], offset, 8)
            if control[at : at + 8] != bytes(8)
        )
        before = control[stored : stored + 8], control[entry : entry + 8]
        assert 1 == table.forget(rows)
        control[stored : stored + 8], control[entry : entry + 8] = before
    assert [SPILLED] == outcomes(cache, [1])
    assert 1 == table.forget(rows)
    assert table.store(rows_of(list(range(RECORDS)), cache.namespace_id)).all()
    assert [SPILLED] * RECORDS == outcomes(cache, list(range(RECORDS)))
    assert RECORDS == table.drop(0, 0, RECORDS * BYTES)


def test_keys_that_count_up_are_spread(seed: int) -> None:
    """Keys are hashes; should an engine's be counters, no bucket may overflow long before the table is full."""
    records = 8192
    with (
        temporary_arena(Shape(spill_records=records)) as arena,
        Cache.attach(arena.name, namespace=FENCE) as attached,
    ):
        table = _native.SpillTable(arena.region)
        table.clear()
        assert table.store(
            rows_of(list(range(seed % 9, seed % 9 + records)), attached.namespace_id)
        ).all()


def test_what_cannot_be_is_refused(cache: Cache, table: _native.SpillTable) -> None:
    with pytest.raises(ValueError, match="files are 0 to 63"):
        table.store(rows_of([1], cache.namespace_id, file=64))
    no_key = rows_of([1], cache.namespace_id)
    no_key["key_bytes"] = 0
    with pytest.raises(ValueError, match="1 to 32 bytes"):
        table.store(no_key)


def test_against_a_dict(cache: Cache, table: _native.SpillTable, seed: int) -> None:
    """Ten thousand steps of storing, forgetting and dropping: what is found is what a dict says."""
    chance = random.Random(seed)
    apart = MIB  # so that blocks lie in more stretches of the file than some ranges have, and in fewer than others
    known: dict[int, NDArray[np.void]] = {}
    for step in range(10_000):
        number = chance.randrange(300)
        choice = chance.random()
        if choice < 0.6:
            place = {"file": chance.randrange(2), "sequence": step, "offset": step * apart}
            row = rows_of([number], cache.namespace_id, **place)
            room = number in known or len(known) < RECORDS
            assert room == table.store(row)[0]
            if room:
                known[number] = row[0].copy()
        elif choice < 0.9 and number in known:
            assert 1 == table.forget(known.pop(number).reshape(1))
        elif choice > 0.99:
            first = chance.randrange(step + 2)
            end = first + chance.choice((1, 50, 300, step + 2))
            file = chance.randrange(2)
            gone = [
                key
                for key, row in known.items()
                if row["file"] == file and first * apart <= row["file_offset"] < end * apart
            ]
            assert len(gone) == table.drop(file, first * apart, end * apart)
            for key in gone:
                del known[key]
    assert len(known) == len(table)
    expected = [SPILLED if number in known else MISSING for number in range(300)]
    assert expected == outcomes(cache, list(range(300)))
    found = table.find([key_of(number) for number in known], cache.namespace_id)
    assert all(row == known[number] for row, number in zip(found, known, strict=True))
    assert fsck.check(cache.arena).clean


def test_oldest_are_pinned_and_go_unless_used(cache: Cache) -> None:
    handles, _ = cache.claim([key_of(number) for number in range(6)], BYTES)
    cache.publish(handles)
    oldest, touches = cache.client.oldest(BYTES, 4)
    assert handles[:1:-1].tolist() == oldest.tolist()  # the first of a batch is the most recent
    assert _native.PINNED == cache.evict(oldest)[0]
    cache.touch(oldest[:1])
    assert [_native.PINNED, OK, OK, OK] == cache.client.evict_untouched(oldest, touches).tolist()
    assert [OK, OK, MISSING, MISSING, MISSING, OK] == outcomes(cache, list(range(6)))
    unassigned, sizes = cache.region.room()
    assert 3 == unassigned
    assert [{"stride_bytes": BYTES, "capacity": 16, "free": 13}] == sizes
