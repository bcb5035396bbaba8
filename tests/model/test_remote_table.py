"""Do lookups see what other hosts hold, and only that? The table of remote hints against dicts of ours."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pegashm import _native, fsck
from pegashm._native import MISSING, OK, REMOTE, SPILLED, TIER_MEMORY, TIER_SSD
from pegashm.cache import Cache
from pegashm.keys import namespace_of

from tests.arenas import Shape, temporary_arena
from tests.model.test_spill_table import rows_of

FENCE = namespace_of({"model": "remote"}, label="remote")
OTHER = namespace_of({"model": "other"}, label="other")
BYTES = 4096
BUCKETS = 64
BOTH = TIER_MEMORY | TIER_SSD


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big") + bytes(4)


@pytest.fixture
def cache() -> Iterator[Cache]:
    with (
        temporary_arena(Shape(spill_records=64, remote_buckets=BUCKETS)) as arena,
        Cache.attach(arena.name, namespace=FENCE) as attached,
    ):
        yield attached


@pytest.fixture
def table(cache: Cache) -> _native.RemoteTable:
    made = _native.RemoteTable(cache.region)
    made.clear()
    for host in (1, 2, 3, 4095):
        made.set_usable(host, usable=True)
    return made


def hashes(*numbers: int) -> NDArray[np.uint64]:
    return _native.remote_hashes_of(FENCE.fingerprint, [key_of(number) for number in numbers])


def outcomes(cache: Cache, *numbers: int) -> list[int]:
    return cache.find([key_of(number) for number in numbers])[1].tolist()


def hosts_of(table: _native.RemoteTable, number: int) -> dict[int, int]:
    hosts, tiers = table.find(hashes(number))
    return {
        host: tier
        for host, tier in zip(hosts[0].tolist(), tiers[0].tolist(), strict=True)
        if host >= 0
    }


def test_found_as_remote_while_its_host_counts(cache: Cache, table: _native.RemoteTable) -> None:
    assert 2 == table.add(1, hashes(1, 2))
    assert 1 == table.add(4095, hashes(3))
    assert [REMOTE, REMOTE, REMOTE, MISSING] == outcomes(cache, 1, 2, 3, 4)
    table.set_usable(1, usable=False)
    assert [MISSING, MISSING, REMOTE] == outcomes(cache, 1, 2, 3)
    assert {} == hosts_of(table, 1)
    table.set_usable(1, usable=True)
    assert [REMOTE, REMOTE] == outcomes(cache, 1, 2)
    table.set_none_usable()
    assert [MISSING, MISSING, MISSING] == outcomes(cache, 1, 2, 3)


def test_other_namespaces_and_groups_see_nothing(cache: Cache, table: _native.RemoteTable) -> None:
    table.add(1, hashes(1))
    assert MISSING == cache.find([key_of(1)[:32] + b"\0\0\0\1"])[1][0]
    assert (
        MISSING == cache.find([key_of(1)[1:]])[1][0]
    )  # shorter, with the same words but for the length
    cache.enter(OTHER)
    assert [MISSING] == outcomes(cache, 1)


def test_nearer_tiers_come_first(cache: Cache, table: _native.RemoteTable) -> None:
    spill = _native.SpillTable(cache.region)
    spill.clear()
    spill.set_usable(1)
    table.add(1, hashes(1, 2, 3, 4))
    spill.store(rows_of([2, 3], cache.namespace_id))
    handles, claimed = cache.claim([key_of(3), key_of(4)], BYTES)
    assert [OK, OK] == claimed.tolist(), "elsewhere is not here: it may be stored"
    assert [REMOTE, SPILLED, SPILLED, REMOTE] == outcomes(cache, 1, 2, 3, 4)  # claimed, not ready
    cache.publish(handles)
    found, answers = cache.find_prefix([key_of(number) for number in (1, 2, 3, 4, 5, 1)])
    assert [REMOTE, SPILLED, OK, OK, MISSING] == answers.tolist()
    assert [False, False, True, True, False] == (found != 0).tolist()


def test_misses_are_counted(cache: Cache, table: _native.RemoteTable) -> None:
    table.add(1, hashes(1, 2))
    outcomes(cache, 1, 2, 3)
    counted = {row["key"]: row["value"] for row in cache.region.counters()}
    assert (3, 2) == (counted["misses"], counted["misses_remote"])


def test_tiers_come_and_go(table: _native.RemoteTable) -> None:
    """What is told of one block: in memory, on SSD too, evicted from memory, overwritten on SSD."""
    one = np.repeat(hashes(1), 4)
    for told, tiers in ((1, TIER_MEMORY), (2, BOTH), (3, TIER_SSD), (4, None)):
        table.clear()
        table.set_usable(1, usable=True)
        table.apply(1, np.array([1, 3, 2, 4], dtype=np.uint8)[:told], one[:told])
        assert ({1: tiers} if tiers else {}) == hosts_of(table, 1)
    table.apply(1, np.array([0, 5, 255], dtype=np.uint8), one[:3])
    assert 0 == len(table), "an operation that is none"


def test_a_block_that_all_hosts_hold_is_listed_for_some(table: _native.RemoteTable) -> None:
    for host in range(100):
        table.add(host, hashes(7))
        table.set_usable(host, usable=True)
    assert _native.REMOTE_COPIES == len(table) == len(hosts_of(table, 7))
    assert 99 in hosts_of(table, 7), "the last to tell is among them"
    for host in range(100):
        table.remove(host, hashes(7))
    assert {} == hosts_of(table, 7)
    assert 0 == len(table) == sum(table.hints(host) for host in range(100))


def test_a_full_table_forgets_others(cache: Cache, table: _native.RemoteTable) -> None:
    numbers = list(range(5 * table.capacity))
    table.add(1, hashes(*numbers))
    assert len(table) == table.hints(1) <= table.capacity
    assert len(numbers) == len(table) + table.displaced
    assert len(table) > 0.98 * table.capacity
    newest = outcomes(cache, *numbers[-table.capacity // 8 :])
    assert newest.count(REMOTE) > 0.8 * len(newest), "new ones are kept"


def test_four_fifths_full_loses_next_to_nothing(seed: int) -> None:
    """That is how `--remote-blocks` sizes the table."""
    buckets = 4096
    with temporary_arena(Shape(remote_buckets=buckets)) as arena:
        table = _native.RemoteTable(arena.region)
        table.clear()
        chance = np.random.default_rng(seed)
        blocks = buckets * 8 * 4 // 5
        table.add(1, chance.integers(0, 1 << 63, blocks, dtype=np.uint64))
        assert table.displaced < blocks / 200


def test_a_retired_host_is_a_miss_and_leaves_no_hint(
    cache: Cache, table: _native.RemoteTable
) -> None:
    table.add(1, hashes(*range(50)))
    table.add(2, hashes(*range(40, 60)))
    table.retire(1)
    assert [MISSING] * 40 + [REMOTE] * 20 == outcomes(cache, *range(60))
    assert 50 == table.drop_retired()
    assert 20 == len(table) == table.hints(2)
    assert 0 == table.drop_retired()
    table.set_usable(1, usable=True)
    assert {2: TIER_MEMORY} == hosts_of(table, 45), "its number is free for another"


def test_a_host_that_begins_anew_counts_until_it_does(
    cache: Cache, table: _native.RemoteTable
) -> None:
    table.add(1, hashes(1, 2))
    table.add(2, hashes(2))
    table.begin_anew(1)
    assert [REMOTE, REMOTE] == outcomes(cache, 1, 2)
    assert 2 == table.drop_retired()
    table.add(1, hashes(3))
    assert [MISSING, REMOTE, REMOTE] == outcomes(cache, 1, 2, 3)
    table.begin_anew(9)
    assert 0 == table.drop_retired()


def test_hints_of_retired_hosts_give_way_first(table: _native.RemoteTable) -> None:
    table.add(1, hashes(*range(table.capacity)))
    before = table.displaced
    table.retire(1)
    table.add(2, hashes(*range(10_000, 10_000 + table.capacity // 2)))
    assert before == table.displaced
    assert table.capacity // 2 == table.hints(2)


def test_a_new_writer_begins_with_nothing(cache: Cache, table: _native.RemoteTable) -> None:
    table.add(1, hashes(*range(50)))
    table.describe(
        1,
        host_id=b"h" * 16,
        incarnation=b"i" * 16,
        address="a",
        sequence=3,
        events=4,
        heard_at_ns=5,
    )
    (row,) = (row for row in cache.region.remote_hosts() if row["number"] == 1)
    assert (True, b"h" * 16, b"i" * 16, "a", 3, 4, 5, 50) == tuple(
        row[name]
        for name in (
            "usable", "host_id", "incarnation", "address", "sequence", "events", "heard_at_ns", "hints"
        )
    )  # fmt: skip
    successor = _native.RemoteTable(cache.region)
    successor.clear()
    assert [MISSING] * 50 == outcomes(cache, *range(50))
    assert [] == cache.region.remote_hosts()
    successor.set_usable(1, usable=True)
    assert [MISSING] * 50 == outcomes(cache, *range(50))


def test_a_region_without_hints_keeps_none() -> None:
    with temporary_arena() as arena, Cache.attach(arena.name, namespace=FENCE) as attached:
        table = _native.RemoteTable(arena.region)
        table.clear()
        table.set_usable(1, usable=True)
        assert (0, 0, 0) == (table.add(1, hashes(1)), table.capacity, table.drop_host(1))
        assert (table.find(hashes(1))[0] == -1).all()
        assert [MISSING] == outcomes(attached, 1)
        assert [] == arena.region.remote_hosts()


def test_what_cannot_be_is_refused(table: _native.RemoteTable) -> None:
    with pytest.raises(ValueError, match="numbered 0 to 4095"):
        table.add(4096, hashes(1))
    with pytest.raises(ValueError, match="numbered 0 to 4095"):
        table.retire(-1)
    with pytest.raises(ValueError, match="a tier is"):
        table.add(1, hashes(1), 4)
    with pytest.raises(ValueError, match="2 operations, 1 hashes"):
        table.apply(1, np.zeros(2, dtype=np.uint8), hashes(1))


def test_hashes_are_what_the_document_says(cache: Cache) -> None:
    """FORMAT.md, "Remote hints", computed by hand; equal by key, by handle, and by fingerprint alone."""
    mask = (1 << 64) - 1

    def mix(hash_: int, value: int) -> int:
        product = (hash_ ^ value) * 0x9E3779B97F4A7C15 & mask
        return product ^ product >> 32

    def words(data: bytes) -> list[int]:
        return [int.from_bytes(data[at : at + 8], "little") for at in range(0, 32, 8)]

    short = b"abc" + b"\0\0\1\2"
    for key in (key_of(5), short):
        expected = 0x8EBC6AF09C88C6E3
        for word in words(FENCE.fingerprint):
            expected = mix(expected, word)
        expected = mix(expected, int.from_bytes(key[-4:], "big") | (len(key) - 4) << 16)
        for word in words(key[:-4].ljust(32, b"\0")):
            expected = mix(expected, word)
        expected = mix(mix(expected, 0xD6E8FEB86659FD93), 0xA0761D6478BD642F)
        assert [expected] == _native.remote_hashes_of(FENCE.fingerprint, [key]).tolist()
        assert [expected] == _native.remote_hashes(cache.region, [key], cache.namespace_id).tolist()
        handles, _ = cache.claim([key], BYTES)
        assert [expected, 0] == _native.remote_hashes(
            cache.region, np.append(handles, np.uint64(0))
        ).tolist()
    with pytest.raises(ValueError, match="not registered"):
        _native.remote_hashes(cache.region, [short], 0x10099)


def test_events_say_how_a_block_stands_now(cache: Cache) -> None:
    keys = [key_of(number) for number in range(4)]
    handles, _ = cache.claim(keys, BYTES)
    cache.publish(handles)
    cache.evict(handles[2:])
    last, overrun, torn, ops, told = _native.remote_events(cache.region, 0, 0, 100)
    assert (6, 0, 0) == (last, overrun, torn)
    assert [1, 1, 2, 2, 2, 2] == ops.tolist()  # the first two events of the evicted are out of date
    assert [*hashes(0, 1, 2, 3), *hashes(2, 3)] == told.tolist()
    last, *_, ops, told = _native.remote_events(cache.region, 4, 4, 1)
    assert (5, 1) == (last, len(ops))
    assert ([], 6) == ((rest := _native.remote_events(cache.region, 6, 6, 9))[3].tolist(), rest[0])


def test_events_that_were_overwritten_are_counted(cache: Cache) -> None:
    size = cache.region.header["journal_entry_count"]
    handles, _ = cache.claim([key_of(0)], BYTES)
    cache.publish(handles)
    for _ in range(size // 2 + 10):
        cache.evict(handles)
        handles, _ = cache.claim([key_of(0)], BYTES)
        cache.publish(handles)
    head = cache.region.header["journal_head"]
    last, overrun, torn, ops, _ = _native.remote_events(cache.region, 3, 3, 1 << 20)
    assert (head, head - size - 3, 0) == (last, overrun, torn)
    assert size == len(ops)
    assert {1} == set(ops.tolist())


def test_holdings_are_what_can_be_read(cache: Cache) -> None:
    spill = _native.SpillTable(cache.region)
    spill.clear()
    spill.set_usable(1)
    spill.store(rows_of([7, 8], cache.namespace_id))
    spill.store(rows_of([9], cache.namespace_id, file=1))  # a file out of use
    handles, _ = cache.claim([key_of(number) for number in range(4)], BYTES)
    cache.publish(handles[:3])
    header = cache.region.header
    total = header["record_count"] + header["spill_record_count"]
    held = [_native.remote_holdings(cache.region, at, at + 7) for at in range(0, total, 7)]
    found = dict(
        zip(
            np.concatenate([part[0] for part in held]).tolist(),
            np.concatenate([part[1] for part in held]).tolist(),
            strict=True,
        )
    )
    assert found == dict.fromkeys(hashes(0, 1, 2).tolist(), 1) | dict.fromkeys(
        hashes(7, 8).tolist(), 2
    )
    assert 0 == len(_native.remote_holdings(cache.region, total, total + 9)[0])


def test_changes_on_ssd_are_kept_for_the_stream(cache: Cache) -> None:
    spill = _native.SpillTable(cache.region)
    spill.clear()
    spill.store(rows_of([1], cache.namespace_id))
    assert 0 == len(spill.take_log()[0]), "nobody has asked for it"
    spill.keep_log(6)
    spill.store(rows_of([2, 3], cache.namespace_id, offset=BYTES))
    spill.drop(0, 0, BYTES)
    spill.forget(rows_of([2], cache.namespace_id, offset=BYTES))
    ops, told, lost = spill.take_log()
    assert ([3, 3, 4, 4], False) == (ops.tolist(), lost)
    assert hashes(2, 3, 1, 2).tolist() == told.tolist()
    spill.store(rows_of(list(range(20, 28)), cache.namespace_id, offset=1 << 20))
    ops, _, lost = spill.take_log()
    assert (6, True) == (len(ops), lost)
    assert ([], False) == ((again := spill.take_log())[0].tolist(), again[2])


def test_against_dicts(cache: Cache, table: _native.RemoteTable, seed: int) -> None:
    """Ten thousand steps below the size at which hints are pushed out: what is found is what dicts say."""
    chance = random.Random(seed)
    known: dict[int, dict[int, int]] = {}
    usable = {1, 2, 3, 4095}
    for _ in range(10_000):
        number, host = chance.randrange(40), chance.choice((1, 2, 3, 4095))
        held = known.setdefault(number, {})
        choice = chance.random()
        tier = chance.choice((TIER_MEMORY, TIER_SSD))
        if choice < 0.5:
            table.add(host, hashes(number), tier)
            held[host] = held.get(host, 0) | tier
        elif choice < 0.97:
            table.remove(host, hashes(number), tier)
            if host in held and (left := held.pop(host) & ~tier):
                held[host] = left
        elif choice < 0.995:
            usable ^= {host}
            table.set_usable(host, host in usable)
        else:
            assert sum(host in held for held in known.values()) == table.drop_host(host)
            usable.discard(host)
            for held in known.values():
                held.pop(host, None)
    assert sum(map(len, known.values())) == len(table)
    for number in range(40):
        left = {h: tiers for h, tiers in known.get(number, {}).items() if h in usable}
        assert left == hosts_of(table, number)
        assert ([REMOTE] if left else [MISSING]) == outcomes(cache, number)
    assert fsck.check(cache.arena).clean
