"""What is written, how much of it, and what leaves memory: admission, budget, backlog, watermarks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from pegashm._native import MISSING, OK, SPILLED
from pegashm.cache import Cache
from pegashm.names import control_path
from pegashm.spill.format import RECORD_FIELDS
from pegashm.transport import spiller as spilling
from pegashm.transport.admission import Admission
from pegashm.transport.budget import WriteBudget
from pegashm.transport.messages import Answer
from pegashm.transport.tier import Tier
from pegashm.units import KIB, MIB

from tests.arenas import Shape
from tests.transport.rig import BYTES, Rig, eventually

HOUR = 3_600_000_000_000


# -- budget --------------------------------------------------------------------------------------


def test_a_budget_of_24_hours() -> None:
    now = 1000 * HOUR
    budget = WriteBudget(100, now_ns=lambda: now)
    assert 100 == budget.left()
    budget.spend(60)
    now += 10 * HOUR
    budget.spend(50)
    assert 0 == budget.left(), "never below nothing"
    now += 13 * HOUR
    assert 0 == budget.left()
    now += HOUR
    assert (50, 50) == (budget.spent(), budget.left())


def test_no_budget_counts_all_the_same() -> None:
    budget = WriteBudget(0)
    budget.spend(1 << 50)
    assert (None, 1 << 50) == (budget.left(), budget.spent())


def test_a_new_worker_learns_what_was_written() -> None:
    now = 1000 * HOUR
    budget = WriteBudget(40_000, now_ns=lambda: now)
    records = np.zeros(4, RECORD_FIELDS)
    records["payload_bytes"] = 5000  # two pages
    records["published_at_ns"] = [now, now - HOUR, now - 30 * HOUR, now + 5 * HOUR]
    budget.found(records)
    assert 3 * 8192 == budget.spent()


def test_the_daily_budget_is_kept(rig: Callable[..., Rig]) -> None:
    one = rig(daily_bytes=30 * BYTES).start()
    keys: list[bytes] = []

    def settled() -> bool:
        return one.counter("spill_stored") + one.counter("spill_skipped") >= len(keys)

    for first in range(1, 51, 5):
        keys += one.store(range(first, first + 5))
        eventually(settled)
    written = one.counter("spill_file_bytes")
    assert 10 * BYTES < written <= 36 * BYTES  # frames and a region's page are found out afterwards
    one.kill()
    before = one.counter("spill_stored")
    one.start()
    one.store(range(60, 100))
    eventually(lambda: one.counter("spill_stored") + one.counter("spill_skipped") >= 90)
    # A restart does not begin the day anew: the blocks of both lives keep to one budget. Only pages of frames are forgotten.
    assert before <= one.counter("spill_stored") <= 30


# -- admission -----------------------------------------------------------------------------------


def test_second_touch_decides_by_use() -> None:
    policy = Admission("second-touch")
    assert not policy.watch(1, 10, 5, b"one")
    assert not policy.watch(2, 11, 5, b"two")
    assert [] == policy.look([1, 2], [20, 11])  # its own request ended
    assert [1] == policy.look([1, 2], [30, 11])  # somebody found it
    assert [2] == policy.watched().tolist()
    assert not policy.admits_victim(2, 11, 5, b"two")
    assert policy.watch(3, 40, 5, b"two")  # computed again after it was evicted
    assert not policy.watch(4, 41, 6, b"two")  # another namespace's
    assert [] == policy.look([4], [0])
    assert 0 == len(policy.watched())


def test_admission_of_all_and_of_evicted() -> None:
    assert Admission("all").watch(1, 1, 1, b"k")
    assert not Admission("evicted").watch(1, 1, 1, b"k")
    assert Admission("evicted").admits_victim(1, 1, 1, b"k")


def test_second_touch_with_a_worker(rig: Callable[..., Rig]) -> None:
    one = rig(admission="second-touch").start()
    keys = one.store(range(1, 11))

    def proved() -> bool:  # the worker looks once a second who was touched
        one.cache.touch_keys(keys[:4])
        time.sleep(0.2)
        return one.counter("spill_stored") == 4

    eventually(proved)
    one.evict(keys)
    assert [SPILLED] * 4 + [MISSING] * 6 == one.outcomes(keys)


def test_only_what_is_evicted(rig: Callable[..., Rig]) -> None:
    """`evicted`: nothing is written while there is room; then the oldest are, before they go."""
    one = rig(admission="evicted", low=0.1, high=0.2).start()
    keys = one.store(range(1, 41))
    eventually(lambda: one.counter("publishes") == 40)
    assert 0 == one.counter("spill_stored")
    keys += one.store(range(41, 65))
    eventually(lambda: one.spilled(keys) >= 12)
    assert one.counter("spill_stored") >= 12
    oldest = keys[: one.spilled(keys)]
    assert [SPILLED] * len(oldest) == one.outcomes(oldest)
    assert 0 == one.counter("spill_late")


# -- watermarks ----------------------------------------------------------------------------------


def test_evicts_ahead_between_the_watermarks(rig: Callable[..., Rig]) -> None:
    """64 blocks, 7 to 13 kept free: engines always find room, and nothing is lost on the way."""
    one = rig(low=0.1, high=0.2).start()
    keys = []
    for first in range(1, 641, 4):
        keys += one.store(range(first, first + 4))
        eventually(lambda: free_of(one) >= 7)
        one.wait_stored(len(keys) - 32)  # a device that stands still for a moment is another test's
    assert 0 == one.counter("spill_late")
    outcomes = one.outcomes(keys)
    assert 640 == outcomes.count(OK) + outcomes.count(SPILLED)
    assert 51 <= outcomes.count(OK) <= 57
    for first in range(0, 640, 16):
        assert {Answer.OK} == set(one.promote(keys[first : first + 16]))
        assert 16 == one.judge(keys[first : first + 16])
        eventually(lambda: free_of(one) >= 7)


def free_of(one: Rig) -> int:
    unassigned, sizes = one.arena.region.room()
    return unassigned * 16 + sum(size["free"] for size in sizes)


def test_pinned_blocks_stay(rig: Callable[..., Rig]) -> None:
    one = rig(low=0.5, high=0.5).start()
    keys = one.store(range(1, 33))
    one.cache.find(keys, pin=True)
    one.store(range(33, 65))
    eventually(lambda: free_of(one) >= 32)
    assert [OK] * 32 == one.outcomes(keys)


def test_no_watermarks_no_eviction(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 65))
    one.wait_stored(64)
    assert [OK] * 64 == one.outcomes(keys)


# -- backlog -------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False], ids=["later", "never"])
def test_a_half_written_event_is_waited_for_and_not_for_ever(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """Its writer was preempted, or died there: what was published afterwards is written behind all the same."""
    one = rig()
    monkeypatch.setattr(spilling, "_HOLE_SECONDS", 60.0)
    with Cache.attach(one.name, namespace=None) as cache:
        spiller = spilling.Spiller(Tier(cache, one.options.spill, stall_seconds=30.0))
        one.store(range(1, 4))
        header = cache.region.header
        second = (header["journal_head"] - 1) & (header["journal_entry_count"] - 1)
        with open(control_path(one.name), "r+b", buffering=0) as control:
            place = header["journal_offset"] + 64 * second
            opened = os.pread(control.fileno(), 8, place)
            os.pwrite(control.fileno(), bytes(8), place)
            for _ in range(20):  # as a worker that is busy: at once
                spiller._follow_journal()
            assert 1 == len(spiller._backlog)
            if finished:
                os.pwrite(control.fileno(), opened, place)
        if not finished:
            monkeypatch.setattr(spilling, "_HOLE_SECONDS", 0.0)
        spiller._follow_journal()
        assert (3 if finished else 2) == len(spiller._backlog)


@pytest.mark.parametrize("bound", [{"backlog_bytes": 64 * KIB}, {"backlog_seconds": 0.001}])
def test_a_flood_is_dropped_not_waited_for(
    rig: Callable[..., Rig], bound: dict[str, float]
) -> None:
    """What falls out of the backlog is counted; it stays in memory and nothing else is lost."""
    shape = Shape(segment_bytes=MIB, segments_per_arena=(16,), spill_records=4000)
    one = rig(shape=shape, file_bytes=64 * MIB, **bound).start()
    one.process.send_signal(signal.SIGSTOP)
    keys = one.store(range(1, 1001))
    one.process.send_signal(signal.SIGCONT)
    eventually(lambda: one.counter("spill_stored") + one.counter("spill_late") >= 1000)
    assert one.counter("spill_late") > 0
    assert 1000 == one.judge(keys)
