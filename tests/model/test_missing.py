"""Why is a block not there? Each answer that the arena can give, and what is counted of those that went."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.units import KIB

from tests.arenas import Shape, make_arena, remove_arena

BLOCK_BYTES = 16 * KIB  # 16 of them
NAMESPACE = namespace_of({"test": "missing"}, label="test")
OTHER = namespace_of({"test": "other"}, label="other")


@pytest.fixture
def cache() -> Iterator[Cache]:
    name = make_arena(Shape(spill_records=64))
    try:
        with Cache.attach(name, namespace=NAMESPACE) as attached:
            attached.region.set_eviction("adaptive")
            yield attached
    finally:
        remove_arena(name)


def keys(numbers: Iterable[int]) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() + bytes(4) for number in numbers]


def why(cache: Cache, number: int) -> str:
    (answer,) = cache.region.why_missing(keys([number]), cache.namespace_id)
    return answer


def store(cache: Cache, numbers: Iterable[int]) -> NDArray[np.uint64]:
    handles, _ = cache.claim(keys(numbers), BLOCK_BYTES)
    cache.publish(handles[handles != 0])
    return handles


def counter(cache: Cache, key: str) -> int:
    return next(int(c["value"]) for c in cache.region.counters() if c["key"] == key)


def test_never_stored_not_yet_present(cache: Cache) -> None:
    assert "never_stored" == why(cache, 1)
    handles, _ = cache.claim(keys([1]), BLOCK_BYTES)
    assert "not_yet" == why(cache, 1)
    cache.publish(handles)
    assert "present" == why(cache, 1)


def test_evicted(cache: Cache) -> None:
    cache.evict(store(cache, [1]))
    assert "evicted" == why(cache, 1)
    store(cache, [1])
    assert "present" == why(cache, 1)


def test_of_another_namespace(cache: Cache) -> None:
    store(cache, [1])
    with Cache.attach(cache.name, namespace=OTHER) as other:
        assert "other_namespace" == why(other, 1)
        assert "never_stored" == why(other, 2)
        other.evict(store(other, [1]))
        assert "evicted" == why(other, 1), "its own story comes first"


def test_refused_for_want_of_room(cache: Cache) -> None:
    """All is pinned: what is refused is remembered as such, until it is stored or evicted."""
    handles = store(cache, range(16))
    cache.pin(handles)
    assert [_native.NO_SPACE] == cache.claim(keys([99]), BLOCK_BYTES)[1].tolist()
    assert "refused" == why(cache, 99)
    cache.unpin(handles)
    cache.evict(handles[:1])
    cache.evict(store(cache, [99]))
    assert "evicted" == why(cache, 99)


def test_a_refusal_takes_no_ghosts_place(cache: Cache) -> None:
    """Ghosts teach the policy: a storm of refused stores must not wipe them out."""
    cache.evict(store(cache, range(16)))
    handles = store(cache, range(100, 116))
    cache.pin(handles)
    for first in range(1000, 3000, 100):
        cache.claim(keys(range(first, first + 100)), BLOCK_BYTES)
    answers = [why(cache, number) for number in range(16)]
    assert 16 == answers.count("evicted")


def test_a_refusal_is_not_a_use(cache: Cache) -> None:
    """Stored after it was refused, a block is as new as any."""
    handles = store(cache, range(16))
    cache.pin(handles)
    cache.claim(keys([99]), BLOCK_BYTES)
    cache.unpin(handles)
    cache.evict(handles)
    first, second = store(cache, [99])[0], store(cache, [98])[0]
    words = cache.region.describe(np.array([first, second], np.uint64))["touched"]
    assert 0 == words[0] & 1 == words[1] & 1
    assert words[0] < words[1]


def test_damaged(cache: Cache) -> None:
    handles = store(cache, [1])
    _native.mark_damaged(cache.region, handles)
    assert "damaged" == why(cache, 1)


def test_on_ssd(cache: Cache) -> None:
    table = _native.SpillTable(cache.region)
    table.clear()
    table.set_usable(1)
    rows = np.zeros(1, _native.SPILL_FIELDS)
    rows["key"][0] = np.frombuffer(keys([1])[0][:32], np.uint8)
    rows["key_bytes"], rows["namespace_id"], rows["payload_bytes"] = 32, cache.namespace_id, 4096
    assert table.store(rows).all()
    assert "spilled" == why(cache, 1)


def test_lru_remembers_nothing(cache: Cache) -> None:
    """As FORMAT.md says: only adaptive eviction leaves ghosts."""
    cache.region.set_eviction("lru")
    cache.evict(store(cache, [1]))
    assert "never_stored" == why(cache, 1)


def test_residence_is_counted(cache: Cache) -> None:
    """By when a block was published."""
    handles = store(cache, range(4))
    cache.evict(handles)
    assert 4 == counter(cache, "residence_le_1")
    assert 4 == counter(cache, "evictions")
    assert counter(cache, "residence_sum_us") < 4_000_000
    handles = store(cache, range(10, 13))
    time.sleep(1.1)
    cache.evict(handles)
    assert 3 == counter(cache, "residence_le_10")
    assert 3_200_000 <= counter(cache, "residence_sum_us")


def test_gauges_are_values(cache: Cache) -> None:
    cache.region.set_gauge("spill_backlog_bytes", 7)
    cache.region.set_gauge("spill_backlog_bytes", 5)
    entry = next(c for c in cache.region.counters() if c["key"] == "spill_backlog_bytes")
    assert ("gauge", 5) == (entry["type"], entry["value"])
    assert "counter" == next(c for c in cache.region.counters() if c["key"] == "hits")["type"]
