"""What came of the blocks that requests asked for? Each once, and the sum is what was asked for, here and in the region.

Managers as in `test_manager.py`, a transport worker whose answers the test decides as in `test_promotions.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, ScheduleEndContext

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Cache, Mode
from pegashm.connector.accounts import REASONS
from pegashm.connector.attachment import Attachment
from pegashm.connector.manager import PegaShmManager
from pegashm.connector.settings import Settings
from pegashm.connector.stats import METRICS
from pegashm.exporter.definitions import MISS_REASONS
from pegashm.keys import namespace_of
from pegashm.payload_sums import Checksums
from pegashm.transport.messages import Answer

from tests.arenas import Shape
from tests.connector.clerk import PATIENCE_S, Clerk, until
from tests.connector.test_manager import CHUNK_BYTES, NAMESPACE, ask, keys_of, request, store

SHAPE = Shape(spill_records=512, remote_buckets=64)

Make = Callable[..., PegaShmManager]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[PegaShmManager] = []

    def manager(
        arena: str,
        *,
        deadline_ms: int = 60_000,
        checksums: Checksums = Checksums.OFF,
        namespace: Any = NAMESPACE,
    ) -> PegaShmManager:
        settings = Settings(arena=arena, required=True)
        made.append(
            PegaShmManager(
                Attachment(settings, namespace, "engine"),
                mode=Mode.READ_WRITE,
                chunk_bytes=CHUNK_BYTES,
                writers=1,
                events=False,
                checksums=checksums,
                spill_deadline_ms=deadline_ms,
            )
        )
        client = made[-1]._promotions._client
        if client is not None and client._socket is not None:
            assert client._socket.poll(PATIENCE_S * 1e3, zmq.POLLOUT), "not connected"
        return made[-1]

    yield manager
    for one in made:
        one.shutdown()


@pytest.fixture
def name(arena_name: Callable[..., str]) -> str:
    made = arena_name(SHAPE)
    with open_arena(made) as arena:
        arena.region.set_eviction("adaptive")
    return made


@pytest.fixture
def clerk(name: str) -> Iterator[Clerk]:
    one = Clerk(name, NAMESPACE, CHUNK_BYTES)
    yield one
    one.close()


def step(manager: PegaShmManager, *new: ReqContext) -> None:
    """The end of an engine's step, in which these requests were scheduled for the first time."""
    manager.on_schedule_end(ScheduleEndContext(tuple(each.req_id for each in new), ()))


def counted(name: str) -> dict[str, int]:
    """What the region has counted, without zeros."""
    with open_arena(name, writable=False, map_payload=False) as arena:
        found = {entry["key"]: int(entry["value"]) for entry in arena.region.counters()}
    parts = {
        key: value for key, value in found.items() if key.startswith(("hits_", "missed_")) and value
    }
    assert found["asked"] == sum(parts.values())
    return parts


def reported(manager: PegaShmManager) -> dict[str, int]:
    """What vLLM is told, without zeros, by the region's names; the sum holds there too."""
    stats = manager.get_stats()
    values: dict[str, Any] = {} if stats is None else stats.data
    found: Counter[str] = Counter()
    asked = 0
    for metric, by_label in (stats._values if stats is not None else values).items():
        for labels, amount in by_label.items():
            if metric == "vllm:pegashm_asked":
                asked += amount
            elif metric == "vllm:pegashm_hits":
                found[f"hits_{labels[0]}"] += amount
            elif metric == "vllm:pegashm_misses":
                found[f"missed_{labels[0]}"] += amount
    assert asked == sum(found.values())
    return dict(found)


def load(manager: PegaShmManager, keys: Sequence[OffloadKey], context: ReqContext) -> None:
    manager.prepare_load(keys, context)
    manager.complete_load(keys, context)


def test_every_reason_has_a_counter_and_a_meaning() -> None:
    assert set(REASONS) == set(MISS_REASONS)
    assert {"vllm:pegashm_asked", "vllm:pegashm_hits", "vllm:pegashm_misses"} <= set(METRICS)
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [] == [name for name in METRICS if f"`{name}`" not in documented]


def test_what_is_loaded_is_a_hit_and_the_rest_was_never_stored(make: Make, name: str) -> None:
    first, second = make(name), make(name)
    keys = keys_of("chain", 10)
    context = request(first, keys)
    assert 0 == ask(first, keys, context)
    step(first, context)
    assert {"missed_never_stored": 10} == counted(name) == reported(first)
    store(first, keys[:6], context)

    again = request(second, keys, "again")
    for _ in range(3):  # it waits in the queue: looked up in each step, asked for once
        assert 6 == ask(second, keys, again)
        step(second)
    assert 6 == ask(second, keys, again)
    load(second, keys[:6], again)
    step(second, again)
    second.on_request_finished(again)
    assert {"hits_memory": 6, "missed_never_stored": 4} == reported(second)
    assert {"hits_memory": 6, "missed_never_stored": 14} == counted(name)


def test_the_rest_of_a_chain_is_missed_for_its_first_misss_reason(make: Make, name: str) -> None:
    """Block 3 was evicted: those behind it are in memory, and of no use."""
    one = make(name)
    keys = keys_of("chain", 10)
    store(one, keys, request(one, keys, "stores"))
    with Cache.attach(name, namespace=NAMESPACE) as other:
        other.evict(other.find([keys[3]])[0])
    context = request(one, keys)
    assert 3 == ask(one, keys, context)
    load(one, keys[:3], context)
    assert {"hits_memory": 3, "missed_evicted": 7} == counted(name)


def test_found_and_not_loaded(make: Make, name: str) -> None:
    """The engine computes the end of each prompt itself, however much of it is there."""
    one = make(name)
    keys = keys_of("chain", 10)
    store(one, keys, request(one, keys, "stores"))
    context = request(one, keys)
    assert 10 == ask(one, keys, context)
    load(one, keys[:9], context)
    assert {"hits_memory": 9, "missed_unused": 1} == counted(name)


def test_another_engine_is_storing_it(make: Make, name: str) -> None:
    one = make(name)
    keys = keys_of("chain", 4)
    with Cache.attach(name, namespace=NAMESPACE) as other:
        other.claim([bytes(keys[0])], CHUNK_BYTES)
        context = request(one, keys)
        ask(one, keys, context)
        step(one, context)
    assert {"missed_not_yet": 4} == counted(name)


def test_another_namespace_has_it(make: Make, name: str) -> None:
    one = make(name)
    two = make(name, namespace=namespace_of({"model": "another"}, label="another"))
    keys = keys_of("chain", 4)
    store(one, keys, request(one, keys, "stores"))
    context = request(two, keys)
    ask(two, keys, context)
    step(two, context)
    assert {"missed_other_namespace": 4} == counted(name)


def test_its_store_found_no_room(make: Make, name: str) -> None:
    one = make(name)
    many, few = keys_of("many", 64), keys_of("few", 3)
    with Cache.attach(name, namespace=NAMESPACE) as other:
        handles, _ = other.claim([bytes(key) for key in many], CHUNK_BYTES)
        other.publish(handles)
        other.pin(handles)
        assert 0 == store(one, few, request(one, few, "stores"))
    context = request(one, few)
    ask(one, few, context)
    step(one, context)
    assert {"missed_pinned_out": 3} == counted(name)


def test_damaged_and_without_checksums(make: Make, name: str) -> None:
    one, strict = make(name), make(name, checksums=Checksums.REQUIRED)
    keys = keys_of("chain", 4)
    store(one, keys, request(one, keys, "stores"))
    context = request(strict, keys)
    assert 0 == ask(strict, keys, context)
    step(strict, context)
    assert {"missed_checksum": 4} == reported(strict)
    with Cache.attach(name, namespace=NAMESPACE) as other:
        _native.mark_damaged(other.region, other.find([bytes(keys[2])])[0])
    context = request(one, keys, "later")
    assert 2 == ask(one, keys, context)
    load(one, keys[:2], context)
    assert {"hits_memory": 2, "missed_checksum": 2} == reported(one)


def test_a_tier_that_nobody_serves(make: Make, name: str, clerk: Clerk) -> None:
    one = make(name, deadline_ms=0)
    keys = keys_of("chain", 4)
    clerk.spill(keys)
    context = request(one, keys)
    assert 0 == ask(one, keys, context)
    step(one, context)
    assert {"missed_tier_off": 4} == counted(name)


def test_from_ssd_and_from_another_host(make: Make, name: str, clerk: Clerk) -> None:
    one = make(name)
    keys = keys_of("chain", 6)
    store(one, keys[:2], request(one, keys, "stores"))
    clerk.spill(keys[2:4])
    clerk.hold_elsewhere(keys[4:])
    context = request(one, keys)
    assert LookupResult.HIT_PENDING == [one.lookup(key, context) for key in keys][2]
    step(one)
    asked = clerk.taken()
    clerk.bring(keys[2:])
    clerk.answer(asked, Answer.OK)

    def came() -> bool:
        found = ask(one, keys, context)
        if found < len(keys):
            step(one)
        return found == len(keys)

    until(came)
    load(one, keys, context)
    step(one, context)
    assert {"hits_memory": 2, "hits_ssd": 2, "hits_remote": 2} == counted(name) == reported(one)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer.MISSING, "evicted"),
        (Answer.NO_SPACE, "pinned_out"),
        (Answer.OVERLOADED, "overloaded"),
        (Answer.FAILED, "failed"),
        (Answer.DAMAGED, "checksum"),
        (Answer.LATE, "timed_out"),
    ],
)
def test_what_the_worker_does_not_bring(
    make: Make, name: str, clerk: Clerk, answer: Answer, reason: str
) -> None:
    one = make(name)
    keys = keys_of("chain", 4)
    clerk.spill(keys)
    context = request(one, keys)
    [one.lookup(key, context) for key in keys]
    step(one)
    clerk.answer(clerk.taken(), answer)

    def refused() -> bool:
        missed = one.lookup(keys[0], context) is LookupResult.MISS
        step(one, *([context] if missed else []))
        return missed

    until(refused)
    assert {f"missed_{reason}": 4} == counted(name)


def test_the_deadline_passes(make: Make, name: str, clerk: Clerk) -> None:
    one = make(name, deadline_ms=200)
    keys = keys_of("chain", 4)
    clerk.spill(keys)
    context = request(one, keys)
    [one.lookup(key, context) for key in keys]
    step(one)
    clerk.take(PATIENCE_S)
    time.sleep(0.25)
    assert LookupResult.MISS == one.lookup(keys[0], context)
    step(one, context)
    assert {"missed_timed_out": 4} == counted(name)


def test_a_request_that_is_aborted_is_counted_too(make: Make, name: str) -> None:
    one = make(name)
    keys = keys_of("chain", 4)
    context = request(one, keys)
    ask(one, keys, context)
    one.on_request_finished(context)
    step(one)
    assert {"missed_never_stored": 4} == counted(name)


def test_two_groups(make: Make, name: str) -> None:
    one = make(name)
    full, window = keys_of("chain", 5, group=0), keys_of("chain", 5, group=1)
    store(one, full, request(one, full, "stores"))
    context = request(one, [])
    for place in range(5):
        context.set_offload_key_position(full[place], (place + 1) * 16)
        context.set_offload_key_position(window[place], (place + 1) * 16)
    assert 5 == ask(one, full, context)
    assert LookupResult.MISS == one.lookup(window[0], context)
    step(one, context)
    assert {"missed_unused": 5, "missed_never_stored": 5} == counted(name)


def test_without_an_arena_nothing_is_counted() -> None:
    settings = replace(Settings(arena="there-is-none", required=False))
    one = PegaShmManager(
        Attachment(settings, NAMESPACE, "engine"),
        mode=Mode.READ_WRITE,
        chunk_bytes=CHUNK_BYTES,
        writers=1,
        events=False,
    )
    keys = keys_of("chain", 4)
    context = request(one, keys)
    ask(one, keys, context)
    step(one, context)
    one.shutdown()
    assert {} == reported(one)
