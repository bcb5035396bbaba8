"""Do blocks get to SSD and back, byte for byte, by themselves and when asked for?"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pegashm import _native, fsck
from pegashm._native import MISSING, OK, SPILLED
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.payload_sums import has_sums
from pegashm.transport.messages import Answer
from pegashm.units import KIB, MIB

from tests.arenas import Shape
from tests.transport.rig import BYTES, SHAPE, Rig, eventually, key_of


def test_written_behind_evicted_and_promoted(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 31))
    one.wait_stored(30)
    one.evict(keys)
    assert [SPILLED] * 30 == one.outcomes(keys)
    assert 0 == one.judge(keys)

    assert [Answer.OK] * 30 == one.promote(keys)
    assert 30 == one.judge(keys)
    assert 30 == one.counter("spill_promoted")
    assert 30 * BYTES == one.counter("spill_bytes_read") == one.counter("spill_payload_bytes")
    assert 30 == one.counter("spill_stored")  # what came from SSD is not written again
    assert fsck.check(one.arena).clean


def test_after_a_reboot(rig: Callable[..., Rig]) -> None:
    """Memory is gone, and all processes: the file brings the blocks back, under the namespace's new id."""
    one = rig().start()
    keys = one.store(range(1, 41))
    one.wait_stored(40)
    one.reboot()
    assert [MISSING] * 40 == one.outcomes(keys)
    one.start()
    assert [SPILLED] * 40 == one.outcomes(keys)
    assert [Answer.OK] * 40 == one.promote(keys)
    assert 40 == one.judge(keys)
    assert "40 blocks found" in one.said()


def test_a_namespace_comes_back_before_its_engine(rig: Callable[..., Rig]) -> None:
    """After a reboot another engine is first: the ids are others, the blocks are found under their own."""
    one = rig().start()
    keys = one.store(range(1, 6))
    one.wait_stored(5)
    one.namespace = namespace_of({"model": "another"}, label="another")
    one.reboot()
    one.start()
    assert [MISSING] * 5 == one.outcomes(keys)
    one.cache.enter(namespace_of({"model": "transport"}, label="transport test"))
    assert [SPILLED] * 5 == one.outcomes(keys)
    assert [Answer.OK] * 5 == one.promote(keys)
    assert 5 == one.judge(keys)


def test_what_was_stored_while_no_worker_ran(rig: Callable[..., Rig]) -> None:
    one = rig()
    keys = one.store(range(1, 21))
    one.start().wait_stored(20)
    one.evict(keys)
    assert 20 == one.spilled(keys)


def test_several_files_share_the_blocks(rig: Callable[..., Rig]) -> None:
    one = rig(files=3).start()
    for first in range(1, 61, 10):
        one.store(range(first, first + 10))
        one.wait_stored(first + 9)
    table = _native.SpillTable(one.arena.region)
    rows = table.find([key_of(number) for number in range(1, 61)], one.cache.namespace_id)
    assert {0, 1, 2} == set(rows["file"].tolist())
    keys = [key_of(number) for number in range(1, 61)]
    one.evict(keys)
    assert [Answer.OK] * 60 == one.promote(keys)
    assert 60 == one.judge(keys)


def test_other_keys_other_namespaces_other_regions(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 4))
    one.wait_stored(3)
    one.evict(keys)
    assert [Answer.OK, Answer.MISSING] == one.promote([keys[0], key_of(99)])
    ticket = eventually(lambda: one.client.promote(keys, one.cache.namespace_id + 1, 5000))
    done = eventually(lambda: [r for r in one.client.replies() if r.request_id == ticket])
    assert bytes([Answer.MISSING] * 3) == done[0].outcomes
    one.client._region_id = b"another region's"
    assert [Answer.MISSING] * 3 == one.promote(keys)
    assert 1 == one.judge(keys)


def test_a_block_asked_for_twice_is_read_once(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 51))
    one.wait_stored(50)
    one.evict(keys)
    tickets = {one.ask(keys) for _ in range(4)}
    answers = {}

    def all_answered() -> bool:
        answers.update({reply.request_id: reply.outcomes for reply in one.client.replies()})
        return tickets <= answers.keys()

    eventually(all_answered)
    assert {bytes(50)} == set(answers.values())
    assert 50 == one.judge(keys)
    assert 50 * BYTES == one.counter("spill_bytes_read")


def test_blocks_of_many_sizes(rig: Callable[..., Rig]) -> None:
    """Sizes that are no multiple of a page included."""
    shape = Shape(segment_bytes=MIB, segments_per_arena=(16,), spill_records=1000)
    one = rig(shape=shape).start()
    sizes = [4 * KIB, 4 * KIB + 8, 20_000, 64 * KIB, 300_000, MIB]
    keys = []
    for number, size in enumerate(sizes, 1):
        keys += one.store(range(100 * number, 100 * number + 4), size)
    one.wait_stored(len(keys))
    one.evict(keys)
    assert len(keys) == one.spilled(keys)
    assert [Answer.OK] * len(keys) == one.promote(keys)
    assert len(keys) == one.judge(keys)


def test_checksums_of_parts_come_back(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 6), sums=True) + one.store(range(6, 9))
    one.wait_stored(8)
    one.evict(keys)
    assert [Answer.OK] * 8 == one.promote(keys)
    handles, _ = one.cache.find(keys, pin=True)
    assert [True] * 5 + [False] * 3 == has_sums(one.arena.region, handles).tolist()
    assert 5 == int((one.cache.verify(handles).verdicts == 0).sum())
    one.cache.unpin(handles)


def test_a_damaged_block_is_not_written(rig: Callable[..., Rig]) -> None:
    one = rig()
    keys = one.store(range(1, 4), sums=True)
    handles, _ = one.cache.find(keys, pin=True)
    offsets, _ = one.cache.locate(handles)
    view = one.arena.region.payload(int(offsets[1]), BYTES)
    view[100] ^= 1
    view.release()
    one.cache.unpin(handles)
    one.start().wait_stored(2)
    eventually(lambda: "not written to SSD" in one.said())
    assert [OK, MISSING, OK] == one.cache.find(keys, pin=True)[1].tolist()


def test_the_ring_turns(rig: Callable[..., Rig]) -> None:
    """Ten times what a file holds goes through it: what is found is right, what is not was overwritten."""
    shape = Shape(segment_bytes=MIB, segments_per_arena=(8,), spill_records=500)
    one = rig(shape=shape, low=0.1, high=0.2).start()
    stored = 0
    for first in range(1, 161, 4):
        stored += 4
        one.store(range(first, first + 4), MIB)
        one.wait_stored(stored)
    keys = [key_of(number) for number in range(1, 161)]
    assert one.counter("spill_dropped") > 100
    found = 0
    for first in range(0, 160, 4):
        answers = one.promote(keys[first : first + 4])
        assert set(answers) <= {Answer.OK, Answer.MISSING}
        found += one.judge(keys[first : first + 4])
    assert found >= 6  # a region of 2 MiB holds one of 1 MiB, with its pages
    assert one.counter("spill_damaged") == 0
    payload, written = one.counter("spill_payload_bytes"), one.counter("spill_file_bytes")
    assert payload < written < 1.05 * payload


def test_a_table_that_is_too_small_keeps_the_newest(rig: Callable[..., Rig]) -> None:
    one = rig(shape=replace(SHAPE, spill_records=100), file_bytes=16 * MIB).start()
    keys = []
    for first in range(1, 401, 40):
        keys += one.store(range(first, first + 40))
        one.wait_stored(first + 39)
        one.evict(keys[-40:])
    assert 40 == one.spilled(keys[-40:])
    one.kill(signal.SIGTERM)
    one.start()
    assert 100 >= one.spilled(keys) >= 90
    assert 40 == one.spilled(keys[-40:])
    assert "--spill-records" in one.said()


def test_ends_in_good_order(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 4))
    one.wait_stored(3)
    one.evict(keys)
    assert 0 == one.kill(signal.SIGTERM)
    assert [MISSING] * 3 == one.outcomes(keys)
    assert "" == one.arena.region.header["transport_path"]
    assert not one.client.alive or eventually(lambda: not one.client.alive)
    assert one.client.promote(keys, one.cache.namespace_id, 1000) is None
    assert 1 == len(one.arena.region.clients())  # its slot is free again
    assert np.array_equal([], one.client.replies())


def test_purged_under_it(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    for path in one.arena.region.header["arenas"]:
        assert path
    from tests.arenas import remove_arena

    remove_arena(one.name)
    assert 1 == one.process.wait(30)
    assert "is gone" in one.said()


def test_a_second_engine_finds_what_was_promoted(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 9))
    one.wait_stored(8)
    one.evict(keys)
    one.promote(keys)
    with Cache.attach(one.name, namespace=one.namespace) as other:
        assert not other.find(keys)[1].any()
