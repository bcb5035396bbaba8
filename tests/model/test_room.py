"""Does an engine keep its blocks while there is memory that nobody uses?"""

from __future__ import annotations

from collections.abc import Callable

from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.units import KIB

from tests.arenas import Shape

FENCE = namespace_of({"model": 1}, label="room")


def keys_of(numbers: range) -> list[bytes]:
    return [number.to_bytes(32, "big") + bytes(4) for number in numbers]


def store(cache: Cache, keys: list[bytes], size: int) -> None:
    """One by one, as an engine's steps do."""
    for key in keys:
        handles, _ = cache.claim([key], size)
        cache.publish(handles)


def test_empty_segments_of_another_size_go_before_own_blocks(
    arena_name: Callable[[Shape], str],
) -> None:
    """Two segments stand empty: both are taken before any block is evicted, not only the first."""
    shape = Shape(segments_per_arena=(3,))
    with Cache.attach(arena_name(shape), namespace=FENCE) as cache:
        small, large = keys_of(range(48)), keys_of(range(100, 116))
        store(cache, small[:16], 4 * KIB)
        store(cache, large, 8 * KIB)
        cache.evict(cache.find(large)[0])

        store(cache, small[16:], 4 * KIB)

        _, outcomes = cache.find(small)
        assert [0] * 48 == outcomes.tolist()
