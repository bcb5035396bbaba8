"""Does adaptive eviction choose as it says? One client, a full arena, and who is gone afterwards.

The order is that of touch words: due by recency and frequency, heads of chains never before their tails; ghosts of what went
are remembered and teach the span. What evictions may never do is the model's business (`test_model.py`), hit rates are
bench/replay.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from pegashm._native import OK
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.units import KIB

from tests.arenas import Shape, make_arena, remove_arena

BLOCK_BYTES = 16 * KIB
BLOCKS = 64
SHAPE = Shape(
    segment_bytes=4 * BLOCKS * KIB, block_bytes_min=BLOCK_BYTES, segments_per_arena=(4,)
)  # fmt: skip
SPAN_ONE = 1 << 40


@pytest.fixture
def cache() -> Iterator[Cache]:
    name = make_arena(SHAPE)
    try:
        with Cache.attach(
            name, namespace=namespace_of({"test": "adaptive"}, label="test")
        ) as attached:
            attached.region.set_eviction("adaptive")
            yield attached
    finally:
        remove_arena(name)


def keys(numbers: Iterable[int]) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() + bytes(4) for number in numbers]


def request(cache: Cache, numbers: Iterable[int]) -> int:
    """What an engine does with a prompt; how many blocks hit."""
    chain = keys(numbers)
    found, outcomes = cache.find_prefix(chain, pin=True)
    hits = int((outcomes == OK).sum())
    cache.touch(found[:hits][::-1])
    handles, _ = cache.claim(chain[hits:], BLOCK_BYTES)
    cache.publish(handles[handles != 0])
    cache.unpin(found)
    cache.touch_keys(chain[::-1])
    return hits


def scan(cache: Cache, first: int) -> None:
    """More blocks than fit, each in one request only."""
    for number in range(first, first + BLOCKS + 16, 16):
        request(cache, range(number, number + 16))


def present(cache: Cache, numbers: Iterable[int]) -> list[int]:
    numbers = list(numbers)
    return [
        n for n, outcome in zip(numbers, cache.find(keys(numbers))[1], strict=True) if outcome == OK
    ]


def due(cache: Cache) -> dict[int, int]:
    """Touch words of what is there, by record."""
    blocks = cache.region.blocks()
    return dict(zip(blocks["record"].tolist(), blocks["touched"].tolist(), strict=True))


def test_what_is_used_again_outlives_a_scan_longer_than_the_arena(cache: Cache) -> None:
    """With least recently used it would be gone."""
    for _ in range(3):
        request(cache, range(8))
    scan(cache, 1000)
    assert list(range(8)) == present(cache, range(8))

    cache.region.set_eviction("lru")
    request(cache, range(8))
    scan(cache, 2000)
    scan(cache, 3000)
    assert [] == present(cache, range(8))


def test_what_was_hot_long_ago_goes(cache: Cache) -> None:
    for _ in range(5):
        request(cache, range(8))
    for turn in range(60):
        request(cache, range(10_000 + 32 * turn, 10_000 + 32 * turn + 32))
    assert [] == present(cache, range(8))


def test_the_end_of_a_chain_goes_before_its_beginning(cache: Cache) -> None:
    request(cache, range(BLOCKS))
    for turn in range(6):
        request(cache, range(500 + turn, 501 + turn))
    left = present(cache, range(BLOCKS))
    assert list(range(BLOCKS - 6)) == left


def test_a_request_counts_a_block_once(cache: Cache) -> None:
    """Storing and ending, or loading and ending, are one use: the end of a request makes nothing more of it."""
    request(cache, range(4))
    once = due(cache)
    clock = int(cache.region.header["access_clock"])
    assert all(word & 3 == 0 and word <= clock + 4 * 4 for word in once.values())

    request(cache, range(4))
    twice = due(cache)
    assert all(word & 3 == 1 for word in twice.values()), "again, and not counted by anybody now"
    span = 8 * BLOCKS
    clock = int(cache.region.header["access_clock"])
    for word in twice.values():
        assert 0.5 * span < word - clock < 1.1 * span, "worth two uses: due a span ahead, no more"


def test_a_ghost_brings_back_what_was_known(cache: Cache) -> None:
    for _ in range(4):
        request(cache, range(4))
    handles, _ = cache.find(keys(range(4)))
    cache.evict(handles)
    assert [] == present(cache, range(4))
    request(cache, range(4))
    words = due(cache)
    clock = int(cache.region.header["access_clock"])
    assert 4 == len(words)
    assert all(word & 1 and word > clock + 8 * BLOCKS for word in words.values())


def test_ghosts_teach_the_span_within_its_bounds(cache: Cache) -> None:
    assert 0 == cache.region.header["span"]
    for turn in range(400):  # comes back too late for LRU, and each time was used once only
        base = (turn % 5) * 32
        request(cache, range(base, base + 32))
    shorter = int(cache.region.header["span"])
    assert SPAN_ONE // 4 <= shorter <= 6 * SPAN_ONE
    assert shorter != SPAN_ONE, "nothing was learned"


@pytest.mark.parametrize("damage", [0xFF, 0x80, 0x01])
def test_any_value_of_its_hints_is_survived(cache: Cache, damage: int) -> None:
    """Ghosts, span, share and touch words are hints: whatever stands there, requests are served."""
    request(cache, range(BLOCKS))
    header = cache.region.header
    control = np.memmap(f"/dev/shm/pegashm.{cache.name}.control", np.uint8, mode="r+")
    control[304:320] = damage
    end = int(header["control_bytes"])
    control[end - 8 * 4 * int(header["record_count"]) : end] = damage
    touches = int(header["touches_offset"])
    control[touches : touches + 8 * int(header["record_count"])] = damage
    for turn in range(40):
        request(cache, range(100 * turn, 100 * turn + 16))
    assert list(range(3900, 3916)) == present(cache, range(3900, 3916))
