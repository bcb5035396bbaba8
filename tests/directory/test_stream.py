"""Whatever is lost, late or cut: does what we know of another host become what it holds?"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from pegashm import _native
from pegashm.directory.messages import Chunk, Delta, Hashes
from pegashm.directory.stream import Stream

from tests.arenas import Shape, temporary_arena

NOBODY = bytes(16)
NONE = np.zeros(0, np.uint64)
HOST = 9


@pytest.fixture
def table() -> Iterator[_native.RemoteTable]:
    with temporary_arena(Shape(remote_buckets=512)) as arena:
        made = _native.RemoteTable(arena.region)
        made.clear()
        made.set_usable(HOST, usable=True)
        yield made


def hashes(*numbers: int) -> Hashes:
    return np.array(numbers, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def told(sequence: int, *ops: tuple[int, int]) -> Delta:
    """`ops`: (operation, number of a block)."""
    return Delta(
        NOBODY,
        NOBODY,
        sequence,
        np.array([op for op, _ in ops], dtype=np.uint8),
        hashes(*[number for _, number in ops]),
    )


def chunk(as_of: int, *numbers: int, ssd: tuple[int, ...] = ()) -> Chunk:
    return Chunk(as_of, hashes(*numbers), hashes(*ssd))


def known(table: _native.RemoteTable, numbers: range = range(10)) -> list[int]:
    hosts, _ = table.find(hashes(*numbers))
    return [number for number, row in zip(numbers, hosts, strict=True) if HOST in row]


def begun(table: _native.RemoteTable, *chunks: Chunk) -> Stream:
    """A stream whose snapshot has come."""
    stream = Stream(table, HOST, 0.0)
    give(stream, *chunks)
    return stream


def give(stream: Stream, *chunks: Chunk, now: float = 0.0) -> None:
    assert stream.wants_snapshot(now)
    stream.asked(now)
    for place, one in enumerate(chunks):
        stream.take(one, place=place, last=place + 1 == len(chunks), now=now)


def test_a_snapshot_and_what_follows(table: _native.RemoteTable) -> None:
    stream = begun(table, chunk(4, 1, 2), chunk(4, 3))
    assert [1, 2, 3] == known(table)
    assert not stream.wants_snapshot(100.0)
    stream.hear(told(3, (1, 8)), 1.0)  # from before it
    stream.hear(told(4, (2, 1)), 1.0)
    assert [1, 2, 3] == known(table)
    stream.hear(told(5, (1, 4), (2, 1)), 1.0)
    stream.hear(told(5), 1.0)
    assert [2, 3, 4] == known(table)
    assert (5, 0, 1, 1.0) == (stream.sequence, stream.gaps, stream.snapshots, stream.heard_at)


@pytest.mark.parametrize("next_one", [told(6, (1, 7)), told(5)], ids=["told", "heartbeat"])
def test_a_missed_message_shows(table: _native.RemoteTable, next_one: Delta) -> None:
    """By the next one, or by a heartbeat when nothing else happens."""
    stream = begun(table, chunk(4, 1, 2))
    stream.hear(next_one, 10.0)
    assert 1 == stream.gaps
    assert stream.wants_snapshot(10.0)
    give(stream, chunk(6, 2, 5), now=10.0)
    assert [2, 5] == known(table), "what is not told any more is forgotten"
    assert not stream.wants_snapshot(100.0)


def test_a_snapshot_begun_before_the_gap_is_no_answer_to_it(table: _native.RemoteTable) -> None:
    stream = begun(table, chunk(4, 1))
    stream.hear(told(9, (1, 2)), 10.0)
    give(stream, chunk(7, 1), now=10.0)
    assert 1 == stream.snapshots
    assert not stream.wants_snapshot(10.1), "not at once"
    assert stream.wants_snapshot(15.0)
    give(stream, chunk(8, 1, 3), now=15.0)
    assert [1, 3] == [n for n in known(table) if n != 2]
    assert 2 in known(table), "told after it was begun"


def test_a_gap_while_it_comes_begins_it_again(table: _native.RemoteTable) -> None:
    stream = Stream(table, HOST, 0.0)
    stream.asked(0.0)
    stream.take(chunk(4, 1), place=0, last=False, now=0.0)
    stream.hear(told(5, (1, 2)), 0.0)
    stream.hear(told(7, (1, 3)), 0.0)
    stream.take(chunk(7, 6), place=1, last=True, now=0.0)
    assert 0 == stream.snapshots
    assert stream.wants_snapshot(5.0)


def test_what_was_evicted_since_a_chunk_was_read_stays_so(table: _native.RemoteTable) -> None:
    stream = Stream(table, HOST, 0.0)
    stream.hear(told(1, (1, 1), (1, 2)), 0.0)
    stream.asked(0.0)
    stream.hear(told(2, (2, 1), (1, 3)), 0.0)
    stream.hear(told(3, (2, 5)), 0.0)
    stream.take(chunk(1, 1, 2), place=0, last=False, now=0.0)
    assert [2, 3] == known(table)
    stream.take(chunk(2, 5, ssd=(6,)), place=1, last=True, now=0.0)
    assert [2, 3, 6] == known(table)
    assert not stream.wants_snapshot(100.0)


def test_the_first_message_heard_says_what_a_snapshot_must_know(
    table: _native.RemoteTable,
) -> None:
    """A subscription takes a moment: what was told before it counts as missed."""
    stream = Stream(table, HOST, 0.0)
    stream.asked(0.0)
    stream.hear(told(8, (1, 1)), 0.0)
    stream.take(chunk(6, 2), place=0, last=True, now=0.0)  # 7 was missed by both
    assert 0 == stream.snapshots
    assert stream.wants_snapshot(5.0)
    give(stream, chunk(7, 2), now=5.0)
    assert [1, 2] == known(table)


def test_one_that_does_not_come_is_asked_for_again_less_and_less(
    table: _native.RemoteTable,
) -> None:
    stream = Stream(table, HOST, 0.0)
    now, waits = 0.0, []
    for _ in range(8):
        stream.asked(now)
        asked_at = now
        while not stream.wants_snapshot(now):
            now += 0.5
        waits.append(now - asked_at)
    assert sorted(waits) == waits
    assert waits[0] < 12
    assert 30 <= waits[-1] < 32


def test_a_host_that_tells_without_end_is_not_heard_out(table: _native.RemoteTable) -> None:
    stream = Stream(table, HOST, 0.0)
    stream.asked(0.0)
    many = np.arange(60_000, dtype=np.uint64)
    for place in range(400):
        stream.take(Chunk(0, many, NONE), place=place, last=False, now=0.0)
    assert not stream.is_coming
    assert len(table) <= table.capacity


def test_random_losses_end_in_what_is_so(table: _native.RemoteTable, seed: int) -> None:
    """A host of 200 blocks; a tenth of all messages and chunks is lost, some snapshots stop halfway."""
    chance = random.Random(seed)
    for _ in range(20):
        table.drop_host(HOST)
        table.set_usable(HOST, usable=True)
        stream = Stream(table, HOST, 0.0)
        held: set[int] = set()
        sequence, now = chance.randrange(3), 0.0
        chunks: list[tuple[Chunk, int]] = []
        for step in range(1000):
            now += 0.1
            quiet = step > 500
            loses = 0.0 if quiet else 0.1
            if not quiet and chance.random() < 0.7:
                ops = []
                for number in chance.sample(range(200), chance.randrange(1, 8)):
                    held ^= {number}
                    ops.append((1 if number in held else 2, number))
                sequence += 1
                if chance.random() >= loses:
                    stream.hear(told(sequence, *ops), now)
            elif chance.random() >= loses:
                stream.hear(told(sequence), now)
            if stream.wants_snapshot(now):
                stream.asked(now)
                chunks = [(chunk(sequence), 0)]
                chunks += [
                    (chunk(sequence, *[n for n in held if n % 4 == part]), part + 1)
                    for part in range(4)
                ]
            if chunks and chance.random() < 0.5:
                # What was read a while ago comes now; the rest is as it was read then.
                one, place = chunks.pop(0)
                if chance.random() >= loses:
                    stream.take(one, place=place, last=place == 4, now=now)
        assert stream.snapshots, "some came through"
        assert sorted(held) == known(table, range(200))
