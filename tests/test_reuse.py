"""Is the reuse ceiling what a count of everything says? And does anything that may happen to its words matter?

The estimate's own error is known: 1.04 / sqrt(registers). What is asked here is whether it is kept, for few keys and
many, in windows that slide, with several processes counting, and beside words that are wrong.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator

import pytest

from pegashm.arena import Arena, open_arena
from pegashm.cache import Cache
from pegashm.config import ServeConfig
from pegashm.keys import namespace_of
from pegashm.layout import plan_layout
from pegashm.reuse import WINDOWS, estimate_unique, read_reuse, read_window
from pegashm.units import parse_bytes

from tests.arenas import Shape, temporary_arena
from tests.fsck.scene import Hand

REGISTERS = 1 << 12
ERROR = 1.04 / REGISTERS**0.5
FENCE = namespace_of({"model": "reuse"}, label="reuse")
NOW_S = 1_700_000_000
TICK_S = 15


@pytest.fixture
def arena() -> Iterator[Arena]:
    with temporary_arena(Shape(reuse_registers=REGISTERS)) as opened:
        yield opened


def keys(numbers: range) -> list[bytes]:
    return [number.to_bytes(32, "little") + bytes(4) for number in numbers]


def test_arena_without_registers_counts_nothing() -> None:
    with temporary_arena() as arena:
        arena.region.count_asked(keys(range(5)), 1)
        arena.region.count_served(5)
        assert [] == read_reuse(arena.region)


def test_nothing_asked_for(arena: Arena) -> None:
    for window in read_reuse(arena.region):
        assert (0, 0, 0.0, None, None) == (
            window.asked,
            window.known_seconds,
            window.unique,
            window.ceiling,
            window.hit_rate,
        )


@pytest.mark.parametrize("count", [1, 10, 500, 3_000, 20_000, 300_000])
def test_estimate_keeps_its_error(arena: Arena, count: int) -> None:
    """Four standard errors, over the whole range; each key twice, so that the ceiling is one half."""
    for _ in range(2):
        for first in range(0, count, 4096):
            some = keys(range(first, min(first + 4096, count)))
            arena.region.count_asked(some, 1, at_s=NOW_S)
    window = read_window(arena.region, "15 min", 900, at_s=NOW_S)
    assert 2 * count == window.asked
    assert window.unique == pytest.approx(count, rel=4 * ERROR, abs=0.5)
    assert window.ceiling == pytest.approx(0.5, abs=2 * ERROR + 0.25 / count)


def test_windows_slide(arena: Arena) -> None:
    """A hundred new keys a minute for a day: each window knows its own minutes, at any moment."""
    for minute in range(24 * 60):
        at_s = NOW_S + 60 * minute
        arena.region.count_asked(keys(range(100 * minute, 100 * minute + 100)), 1, at_s=at_s)
        if minute % 180 != 179:
            continue
        for window in read_reuse(arena.region, at_s=at_s):
            minutes = min(window.seconds // 60, minute + 1)
            assert 100 * minutes == window.asked, window
            assert window.unique == pytest.approx(100 * minutes, rel=4 * ERROR)
    hours_later = read_reuse(arena.region, at_s=NOW_S + 36 * 3600)
    assert [0, 0] == [window.asked for window in hours_later[:2]]
    assert hours_later[2].asked == pytest.approx(100 * 12 * 60, abs=100)
    two_days = read_reuse(arena.region, at_s=NOW_S + 49 * 3600)
    assert [(0, 0.0)] * 3 == [(window.asked, window.unique) for window in two_days]


def test_same_keys_of_another_namespace_are_others(arena: Arena) -> None:
    for namespace_id in (1 << 16, 2 << 16, 2 << 16):
        arena.region.count_asked(keys(range(1000)), namespace_id, at_s=NOW_S)
    window = read_window(arena.region, "1 h", 3600, at_s=NOW_S)
    assert 3000 == window.asked
    assert window.unique == pytest.approx(2000, rel=4 * ERROR)


def test_what_was_served_is_known_beside_it(arena: Arena) -> None:
    with Cache.attach(arena.name, namespace=FENCE) as cache:
        cache.count_asked(keys(range(100)))
        cache.count_served(40)
        (window, _, day) = read_reuse(arena.region)
    assert (0.4, 0.4) == (window.hit_rate, day.hit_rate)
    assert TICK_S <= window.known_seconds <= 2 * TICK_S


def ask(name: str, seed: int, start: float) -> None:
    """One engine: requests for keys of its own, and for some that all share."""
    chance = random.Random(seed)
    with open_arena(name) as arena:
        time.sleep(max(0.0, start - time.time()))
        for step in range(200):
            own = range(100_000 * (seed + 1) + 20 * step, 100_000 * (seed + 1) + 20 * step + 20)
            shared = range(chance.randrange(1000), 1020)
            arena.region.count_asked(keys(own) + keys(shared), 1, at_s=NOW_S + step // 10)
            arena.region.count_served(len(shared), at_s=NOW_S + step // 10)


def test_several_processes_count_together(arena: Arena) -> None:
    """No request is lost, whoever writes the same words at the same time."""
    context = multiprocessing.get_context("spawn")
    start = time.time() + 1.5
    children = [
        context.Process(target=ask, args=(arena.name, seed, start), daemon=True)
        for seed in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert 0 == child.exitcode
    window = read_window(arena.region, "1 h", 3600, at_s=NOW_S + 30)
    expected = 0
    for seed in range(3):
        chance = random.Random(seed)
        expected += sum(1020 - chance.randrange(1000) for _ in range(200))
    assert (3 * 200 * 20 + expected, expected) == (window.asked, window.served)
    assert window.unique == pytest.approx(3 * 200 * 20 + 1020, rel=5 * ERROR)


def test_clock_that_goes_back(arena: Arena) -> None:
    """What was counted ahead of now is passed over until its time comes, and counting goes on."""
    arena.region.count_asked(keys(range(1000)), 1, at_s=NOW_S + 7200)
    arena.region.count_asked(keys(range(500, 600)), 1, at_s=NOW_S)
    window = read_window(arena.region, "1 h", 3600, at_s=NOW_S)
    assert 100 == window.asked
    assert window.unique == pytest.approx(100, rel=4 * ERROR, abs=3)


def test_words_of_any_value_are_survived(arena: Arena, seed: int) -> None:
    """A damaged table costs the estimate, never more: U is at most N, and counting mends it."""
    chance = random.Random(seed)
    hand = Hand(arena)
    for _ in range(20_000):
        place = 8 * chance.randrange((5760 * 16 + REGISTERS * 128) // 8)
        hand.put(hand.reuse(place), chance.getrandbits(64))
    for window in read_reuse(arena.region):
        assert 0 <= window.unique <= window.asked
    arena.region.count_asked(keys(range(100)), 1)
    arena.region.count_served(10)


@pytest.mark.parametrize(
    ("size", "registers"),
    [("4M", 256), ("32M", 2048), ("256M", 1 << 14), ("2G", 1 << 14), ("200G", 1 << 14)],
)
def test_arenas_of_all_sizes_count_and_keep_their_size(size: str, registers: int) -> None:
    """At most 1/128 of a small arena, 2 MiB of a large one; what counts is part of what was asked for."""
    config = ServeConfig(name="planned", size_bytes=parse_bytes(size))
    plan = plan_layout(config).plan
    assert registers == plan["reuse_register_count"]
    assert plan["payload_bytes"] + plan["control_bytes"] <= config.size_bytes


def test_estimate_of_registers_at_both_ends() -> None:
    """No key, and more than the last rank can tell apart."""
    empty = [0] * 33
    assert 0.0 == estimate_unique(empty)
    assert 0.0 == estimate_unique([REGISTERS, *[0] * 32])
    assert estimate_unique([*[0] * 32, REGISTERS]) > 1e12
    assert 1.0 == pytest.approx(estimate_unique([REGISTERS - 1, 1, *[0] * 31]), rel=0.001)
    assert {"15 min": 900, "1 h": 3600, "24 h": 86400} == WINDOWS
