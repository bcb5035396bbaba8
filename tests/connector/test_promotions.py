"""What does the scheduler's side make of blocks on SSD: whom does it ask, how often, and what does it answer meanwhile?

Managers as in `test_manager.py`; the worker at the other end is a `Clerk`, who answers when the test says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    TierFilter,
    TierMatcher,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Mode
from pegashm.connector.attachment import Attachment
from pegashm.connector.jobs import ArenaBlocks
from pegashm.connector.manager import PegaShmManager
from pegashm.connector.settings import Settings
from pegashm.connector.stats import METRICS
from pegashm.transport.messages import Answer

from tests.arenas import Shape
from tests.connector.clerk import PATIENCE_S, Clerk, until
from tests.connector.test_manager import (
    CHUNK_BYTES,
    NAMESPACE,
    end_step,
    keys_of,
    pins,
    request,
    store,
)

HIT, MISS, PENDING = LookupResult.HIT, LookupResult.MISS, LookupResult.HIT_PENDING
SHAPE = Shape(spill_records=512, remote_buckets=64)  # 64 blocks in memory
LONG_MS = 60_000

Make = Callable[..., PegaShmManager]


@pytest.fixture
def clerk(arena_name: Callable[..., str]) -> Iterator[Clerk]:
    one = Clerk(arena_name(SHAPE), NAMESPACE, CHUNK_BYTES)
    yield one
    one.close()


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[PegaShmManager] = []

    def manager(
        clerk: Clerk, *, mode: Mode = Mode.READ_WRITE, deadline_ms: int = LONG_MS
    ) -> PegaShmManager:
        settings = Settings(arena=clerk.cache.name, mode=mode, required=True)
        made.append(
            PegaShmManager(
                Attachment(settings, NAMESPACE, "engine"),
                mode=mode,
                chunk_bytes=CHUNK_BYTES,
                writers=1,
                events=False,
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


def prefix(
    manager: PegaShmManager, keys: Sequence[OffloadKey], context: ReqContext
) -> list[LookupResult]:
    """As vLLM looks a prefix up: to the first miss."""
    results = []
    for key in keys:
        results.append(manager.lookup(key, context))
        if results[-1] is MISS:
            break
    return results


def window(
    manager: PegaShmManager, keys: Sequence[OffloadKey], context: ReqContext, width: int
) -> list[LookupResult]:
    """As vLLM looks a sliding window up: from the end, until so many hits follow each other."""
    results: list[LookupResult] = []
    streak = 0
    for key in reversed(keys):
        results.append(manager.lookup(key, context))
        streak = 0 if results[-1] is MISS else streak + 1
        if streak == width:
            break
    return results


def step(
    manager: PegaShmManager, keys: Sequence[OffloadKey], context: ReqContext
) -> list[LookupResult]:
    results = prefix(manager, keys, context)
    end_step(manager)
    return results


def step_until(
    manager: PegaShmManager,
    keys: Sequence[OffloadKey],
    context: ReqContext,
    wanted: Sequence[LookupResult],
) -> None:
    """Step by step, until the lookups say so; the step is not ended then."""

    def looked_up() -> bool:
        if prefix(manager, keys, context) == list(wanted):
            return True
        end_step(manager)
        return False

    until(looked_up)


def counts(manager: PegaShmManager, metric: str) -> dict[str, float]:
    stats = manager.get_stats()
    values: dict[Any, Any] = (
        {} if stats is None else stats._values.get(f"vllm:pegashm_{metric}", {})
    )
    return {labels[0]: value for labels, value in values.items()}


def hits_counted(clerk: Clerk) -> int:
    return next(int(r["value"]) for r in clerk.cache.region.counters() if r["key"] == "hits")


def test_the_whole_prefix_is_asked_for_once_and_comes(clerk: Clerk, make: Make) -> None:
    manager = make(clerk)
    keys = keys_of("a", 12)
    store(manager, keys[:3], request(manager, keys, "stores"))
    clerk.spill(keys[3:10])
    context = request(manager, keys)
    begun = hits_counted(clerk)
    for _ in range(50):
        assert [HIT] * 3 + [PENDING] * 7 + [MISS] == step(manager, keys, context)
    asked = clerk.taken()
    assert tuple(keys[3:10]) == asked.keys
    assert 0 < asked.deadline_ms <= LONG_MS
    assert [] == clerk.take(), "once is enough"
    assert 3 == pins(clerk.cache.name), "what was found waits with it"
    assert 3 == hits_counted(clerk) - begun, "and is looked for once"

    clerk.bring(asked.keys)
    clerk.answer(asked, Answer.OK)
    step_until(manager, keys, context, [HIT] * 10 + [MISS])
    assert [CacheHitSource.HOST] * 3 + [CacheHitSource.DISK] * 7 == [
        manager.get_load_source(key, context) for key in keys[:10]
    ]
    blocks = manager.prepare_load(keys[:10], context)
    assert isinstance(blocks, ArenaBlocks)
    assert blocks.handles.all()
    end_step(manager)
    assert 10 == pins(clerk.cache.name)
    manager.complete_load(set(keys[:10]), context)
    assert 0 == pins(clerk.cache.name)
    stats = manager.get_stats()
    assert stats is not None
    values = stats._values
    assert {("memory",): 3, ("ssd",): 7} == values["vllm:pegashm_loads"]
    assert {("ok",): 7} == values["vllm:pegashm_promotions"]
    assert 7 == values["vllm:pegashm_lookups"][("spilled",)]
    assert values.keys() <= METRICS.keys()
    (waited,) = values["vllm:pegashm_promotion_wait_seconds"].values()
    assert 1 == len(waited)


def test_blocks_of_another_host_come_like_those_on_ssd(clerk: Clerk, make: Make) -> None:
    """One request for all that is not here; counted apart."""
    manager = make(clerk)
    keys = keys_of("a", 12)
    store(manager, keys[:2], request(manager, keys, "stores"))
    clerk.spill(keys[2:5])
    clerk.hold_elsewhere(keys[4:10])  # one of them is on SSD here as well: that is nearer
    context = request(manager, keys)
    assert [HIT] * 2 + [PENDING] * 8 + [MISS] == step(manager, keys, context)
    asked = clerk.taken()
    assert tuple(keys[2:10]) == asked.keys
    clerk.bring([*keys[2:8], keys[9]])
    clerk.answer(asked, *[Answer.OK] * 6, Answer.MISSING, Answer.OK)
    step_until(manager, keys, context, [HIT] * 8 + [MISS])
    assert [CacheHitSource.HOST] * 2 + [CacheHitSource.DISK] * 3 + [CacheHitSource.P2P] * 3 == [
        manager.get_load_source(key, context) for key in keys[:8]
    ]
    manager.prepare_load(keys[:8], context)
    manager.complete_load(set(keys[:8]), context)
    end_step(manager)
    stats = manager.get_stats()
    assert stats is not None
    values = stats._values
    assert {("memory",): 2, ("ssd",): 3, ("remote",): 3} == values["vllm:pegashm_loads"]
    assert {("ok",): 3} == values["vllm:pegashm_promotions"]
    # The ninth came too, behind the miss; the eighth did not.
    assert {("ok",): 4, ("missing",): 1} == values["vllm:pegashm_fetches"]
    assert (3, 5) == tuple(
        values["vllm:pegashm_lookups"][(tier,)] for tier in ("spilled", "remote")
    )
    assert 0 == pins(clerk.cache.name)


@pytest.mark.parametrize(
    "answer", sorted(set(Answer) - {Answer.OK, Answer.PENDING}, key=int), ids=lambda a: a.name
)
def test_a_block_that_does_not_come_is_a_miss(clerk: Clerk, make: Make, answer: Answer) -> None:
    """And what comes before it in the prefix is used."""
    manager = make(clerk)
    keys = keys_of("a", 6)
    clerk.spill(keys)
    context = request(manager, keys)
    step(manager, keys, context)
    asked = clerk.taken()
    clerk.bring(keys[:2] + keys[3:])
    clerk.answer(asked, *[answer if place == 2 else Answer.OK for place in range(6)])
    step_until(manager, keys, context, [HIT, HIT, MISS])
    end_step(manager)
    assert {"ok": 5, answer.name.lower(): 1} == counts(manager, "promotions")
    for _ in range(5):
        assert [HIT, HIT, MISS] == step(manager, keys, context), "nobody is asked for it again"
    assert [] == clerk.take()
    assert 0 == pins(clerk.cache.name)


def test_the_deadline_passes(clerk: Clerk, make: Make) -> None:
    """What is in memory by then is used, the rest a miss; an answer that comes later changes nothing."""
    manager = make(clerk, deadline_ms=1000)
    keys = keys_of("a", 6)
    clerk.spill(keys)
    context = request(manager, keys)
    began = time.monotonic()
    step(manager, keys, context)
    asked = clerk.taken()
    assert asked.deadline_ms <= 1000
    clerk.bring(keys[:2])
    step_until(manager, keys, context, [HIT, HIT, MISS])
    assert time.monotonic() - began >= 1.0
    end_step(manager)
    assert {"late": 6} == counts(manager, "promotions")
    clerk.answer(asked, Answer.OK)
    for _ in range(20):
        assert [HIT, HIT, MISS] == step(manager, keys, context)
    other = request(manager, keys, "other")
    assert [HIT, HIT] + [PENDING] * 4 == prefix(manager, keys, other), "each request has its own"


def test_without_a_worker_nobody_waits(clerk: Clerk, make: Make) -> None:
    manager = make(clerk)
    keys = keys_of("a", 4)
    clerk.spill(keys)
    clerk.end()
    until(lambda: step(manager, keys, request(manager, keys)) == [MISS])
    assert [MISS] == step(manager, keys, request(manager, keys))


def test_the_worker_dies_while_a_request_waits(clerk: Clerk, make: Make) -> None:
    manager = make(clerk)
    keys = keys_of("a", 4)
    clerk.spill(keys)
    context = request(manager, keys)
    step(manager, keys, context)
    clerk.taken()
    began = time.monotonic()
    clerk.end()
    step_until(manager, keys, context, [MISS])
    assert time.monotonic() - began < LONG_MS / 1e3 / 2
    assert {"lost": 4} == counts(manager, "promotions")


def test_a_worker_that_stands_still_costs_a_deadline_and_then_nothing(
    clerk: Clerk, make: Make
) -> None:
    """As when it is stopped: its lock and its socket are there, and nobody answers."""
    manager = make(clerk, deadline_ms=300)
    keys = keys_of("a", 2)
    clerk.spill(keys)
    waited = 0

    def at_once() -> bool:
        nonlocal waited
        context = request(manager, keys, f"{waited}")
        waited += 1
        began, steps = time.monotonic(), 0
        while step(manager, keys, context) != [MISS]:
            steps += 1
            assert time.monotonic() - began < 5
            time.sleep(0.001)
        return steps <= 1 and time.monotonic() - began < 0.2  # not held up until its deadline

    until(at_once)
    assert waited > 3
    until(at_once)


def test_it_is_asked_again_when_it_answers_again(clerk: Clerk, make: Make) -> None:
    manager = make(clerk, deadline_ms=200)
    keys = keys_of("a", 2)
    clerk.spill(keys)
    until_silent = time.monotonic() + 4
    number = 0
    while time.monotonic() < until_silent:
        step(manager, keys, request(manager, keys, f"{number}"))
        number += 1
        time.sleep(0.02)

    def asked_again() -> bool:
        nonlocal number
        clerk.take()
        number += 1
        context = request(manager, keys, f"{number}")
        step(manager, keys, context)
        manager.on_request_finished(context)
        return bool(clerk.take(0.05))

    until(asked_again)


def test_save_only_and_never_ask_nobody(clerk: Clerk, make: Make) -> None:
    keys = keys_of("a", 4)
    clerk.spill(keys)
    for manager in (make(clerk, mode=Mode.SAVE_ONLY), make(clerk, deadline_ms=0)):
        for _ in range(3):
            assert [MISS] == step(manager, keys, request(manager, keys))
    assert [] == clerk.take(0.1)


def test_load_only_asks(clerk: Clerk, make: Make) -> None:
    manager = make(clerk, mode=Mode.LOAD_ONLY)
    keys = keys_of("a", 4)
    clerk.spill(keys)
    assert [PENDING] * 4 == step(manager, keys, request(manager, keys))
    assert tuple(keys) == clerk.taken().keys


@pytest.mark.parametrize("way", ["params", "filter"])
def test_a_request_that_wants_none(clerk: Clerk, make: Make, way: str) -> None:
    manager = make(clerk)
    keys = keys_of("a", 4)
    clerk.spill(keys)
    context = request(manager, keys, params={"pegashm": {"load": False}} if way == "params" else {})
    if way == "filter":
        context.load_tier_filter = TierFilter((TierMatcher(Medium.CPU, Locality.LOCAL),))
    assert [MISS] == step(manager, keys, context)
    assert [] == clerk.take(0.1)


def test_a_window_asks_for_what_it_needs(clerk: Clerk, make: Make) -> None:
    """Pending blocks count as hits: from the end, only as far as vLLM has looked."""
    manager = make(clerk)
    keys = keys_of("w", 20, group=1)
    clerk.spill(keys[:18])
    context = request(manager, keys)
    assert [MISS] * 2 + [PENDING] * 4 == window(manager, keys, context, 4)
    end_step(manager)
    asked = clerk.taken()
    assert set(keys[14:18]) == set(asked.keys)
    # One of them does not come: the window moves on, and its blocks are asked for.
    clerk.bring([key for key in keys[14:18] if key != keys[15]])
    clerk.answer(asked, *[Answer.FAILED if k == keys[15] else Answer.OK for k in asked.keys])

    def moved() -> bool:
        results = window(manager, keys, context, 4)
        end_step(manager)
        return results == [MISS, MISS, HIT, HIT, MISS, HIT, PENDING, PENDING, PENDING]

    until(moved)
    more = clerk.taken()
    assert set(keys[11:14]) == set(more.keys)
    clerk.bring(more.keys)
    clerk.answer(more, Answer.OK)

    def there() -> bool:
        results = window(manager, keys, context, 4)
        if results == [MISS, MISS, HIT, HIT, MISS, HIT, HIT, HIT, HIT]:
            return True
        end_step(manager)
        return False

    until(there)
    blocks = manager.prepare_load(keys[11:15], context)
    assert isinstance(blocks, ArenaBlocks)
    assert blocks.handles.all()
    manager.complete_load(set(keys[11:15]), context)
    end_step(manager)
    assert 0 == pins(clerk.cache.name)


def test_two_groups_are_asked_for_in_one_message(clerk: Clerk, make: Make) -> None:
    manager = make(clerk)
    full, sliding = keys_of("a", 5), keys_of("a", 5, group=1)
    clerk.spill(full + sliding)
    context = request(manager, full)
    for place, key in enumerate(sliding):
        context.set_offload_key_position(key, (place + 1) * 16)
    assert [PENDING] * 5 == prefix(manager, full, context)
    assert [PENDING] * 2 == window(manager, sliding, context, 2)
    end_step(manager)
    assert {*full, *sliding[3:]} == set(clerk.taken().keys)


def test_what_somebody_else_is_writing_is_waited_for(clerk: Clerk, make: Make) -> None:
    """Another request of this engine, or another engine, has asked before: neither is answered with a miss."""
    first, second = make(clerk), make(clerk)
    keys = keys_of("a", 3)
    clerk.spill(keys)
    waits = [(first, request(first, keys, "1")), (second, request(second, keys, "2"))]
    step(*[first, keys, waits[0][1]])
    asked = clerk.taken()
    handles = clerk.begin(asked.keys)  # under way
    assert [PENDING] * 3 == step(second, keys, waits[1][1])
    other = clerk.taken()
    clerk.answer(other, Answer.PENDING)
    for _ in range(20):
        assert [PENDING] * 3 == step(second, keys, waits[1][1])
    clerk.publish(handles)
    step_until(second, keys, waits[1][1], [HIT] * 3)
    clerk.answer(asked, Answer.OK)
    step_until(first, keys, waits[0][1], [HIT] * 3)
    assert [] == clerk.take()


@pytest.mark.parametrize("answered", [False, True])
def test_a_request_that_ends_is_forgotten(clerk: Clerk, make: Make, answered: bool) -> None:
    manager = make(clerk)
    keys = keys_of("a", 8)
    store(manager, keys[:4], request(manager, keys, "stores"))
    clerk.spill(keys[4:])
    context = request(manager, keys)
    step(manager, keys, context)
    asked = clerk.taken()
    assert 4 == pins(clerk.cache.name)
    if answered:
        clerk.answer(asked, Answer.OK)
        time.sleep(0.05)
    manager.on_request_finished(context)
    assert 0 == pins(clerk.cache.name)
    assert not manager._promotions._waiting
    assert not manager._promotions._tickets
    assert 0 == manager._promotions._cost
    clerk.answer(asked, Answer.OK)
    for _ in range(3):
        end_step(manager)


def test_a_request_that_runs_after_all_is_forgotten(clerk: Clerk, make: Make) -> None:
    manager = make(clerk)
    keys = keys_of("a", 4)
    clerk.spill(keys[1:])
    store(manager, keys[:1], request(manager, keys, "stores"))
    context = request(manager, keys, "runs")
    step(manager, keys, context)
    assert 1 == pins(clerk.cache.name)
    manager.on_schedule_end(ScheduleEndContext(("runs",), ()))
    assert 0 == pins(clerk.cache.name)
    assert not manager._promotions._waiting


def test_one_that_vllm_never_asks_about_again_is_forgotten_at_its_deadline(
    clerk: Clerk, make: Make
) -> None:
    manager = make(clerk, deadline_ms=1000)
    keys = keys_of("a", 4)
    store(manager, keys[:2], request(manager, keys, "stores"))
    clerk.spill(keys[2:])
    step(manager, keys, request(manager, keys))
    assert 2 == pins(clerk.cache.name)
    time.sleep(1.05)
    end_step(manager)
    assert 0 == pins(clerk.cache.name)
    assert not manager._promotions._waiting
    assert not manager._promotions._tickets


def test_requests_beyond_a_share_of_the_arena_wait_for_their_turn(clerk: Clerk, make: Make) -> None:
    """64 blocks: a quarter of them may be under way at once."""
    manager = make(clerk)
    keys = [keys_of(f"r{number}", 10) for number in range(6)]
    clerk.spill([key for group in keys for key in group])
    contexts = [request(manager, group, f"{number}") for number, group in enumerate(keys)]
    done: set[int] = set()

    def step_all() -> bool:
        for number, context in enumerate(contexts):
            if number in done:
                continue
            results = prefix(manager, keys[number], context)
            if results == [HIT] * 10:
                manager.prepare_load(keys[number], context)
                manager.complete_load(set(keys[number]), context)
                done.add(number)
            else:
                assert [PENDING] * 10 == results
        end_step(manager)
        asked = clerk.take()
        assert len(asked) <= 1
        for one in asked:
            clerk.bring(one.keys)
            clerk.answer(one, Answer.OK)
        return len(done) == 6

    until(step_all)
    assert 0 == manager._promotions._cost
    assert 0 == pins(clerk.cache.name)


def test_more_than_half_of_the_arena_is_not_asked_for(clerk: Clerk, make: Make) -> None:
    manager = make(clerk)
    keys = keys_of("a", 50)
    clerk.spill(keys)
    context = request(manager, keys)
    assert [PENDING] * 50 == step(manager, keys, context)
    asked = clerk.taken()
    assert tuple(keys[:32]) == asked.keys
    assert [PENDING] * 32 + [MISS] == step(manager, keys, context)
    clerk.bring(asked.keys)
    clerk.answer(asked, Answer.OK)
    step_until(manager, keys, context, [HIT] * 32 + [MISS])
    assert {"ok": 32, "not_asked": 18} == counts(manager, "promotions")


def test_what_is_evicted_again_and_again_is_a_miss_in_the_end(clerk: Clerk, make: Make) -> None:
    """A request that is ready, but not scheduled for lack of device memory, step after step."""
    manager = make(clerk)
    keys = keys_of("a", 2)
    clerk.spill(keys)
    context = request(manager, keys)
    asked = 0
    deadline = time.monotonic() + 20
    while (results := step(manager, keys, context)) != [MISS]:
        assert time.monotonic() < deadline
        for one in clerk.take():
            asked += 1
            clerk.bring(one.keys)
            clerk.answer(one, Answer.OK)
        if results == [HIT, HIT]:
            handles, _ = clerk.cache.find(keys)
            assert not clerk.cache.evict(handles).any()
    assert 4 == asked


def test_a_reset_forgets_the_waits_and_their_pins(clerk: Clerk, make: Make) -> None:
    """What was pinned before belongs to the old weights."""
    manager = make(clerk)
    keys = keys_of("a", 4)
    store(manager, keys[:2], request(manager, keys, "stores"))
    clerk.spill(keys[2:])
    context = request(manager, keys)
    assert [HIT, HIT, PENDING, PENDING] == step(manager, keys, context)
    manager.reset_cache()
    assert 0 == pins(clerk.cache.name)
    assert not manager._promotions._waiting
    assert [MISS] == step(manager, keys, context)


def test_another_arena_knows_nothing_of_old_waits(clerk: Clerk, make: Make) -> None:
    manager = make(clerk)
    keys = keys_of("a", 4)
    store(manager, keys[:2], request(manager, keys, "stores"))
    clerk.spill(keys[2:])
    context = request(manager, keys)
    step(manager, keys, context)
    for path in Path("/dev/shm").glob(f"pegashm.{clerk.cache.name}.*"):
        path.unlink()
    manager._attachment._look_at = 0.0
    end_step(manager)
    assert manager._attachment.cache is None
    assert not manager._promotions._waiting
    assert [MISS] == step(manager, keys, context)


def test_whatever_goes_wrong_is_a_miss(
    clerk: Clerk, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make(clerk)
    keys = keys_of("a", 4)
    clerk.spill(keys)
    step(manager, keys, request(manager, keys))

    def fail(*_: object) -> None:
        raise OSError("no")

    client = manager._promotions._client
    assert client is not None
    for name in ("promote", "replies", "forget"):
        monkeypatch.setattr(client, name, fail)
    context = request(manager, keys, "late")
    step(manager, keys, context)
    manager.on_request_finished(context)
    manager.reset_cache()
    end_step(manager)


def test_a_claimed_block_that_is_on_ssd_is_found_there(clerk: Clerk) -> None:
    keys = keys_of("a", 2)
    clerk.spill(keys[:1])
    clerk.begin(keys)
    _, outcomes = clerk.cache.find(keys)
    assert [_native.SPILLED, _native.PENDING] == outcomes.tolist()
    with open_arena(clerk.cache.name) as arena:
        assert 2 == arena.region.tally()["claimed"]
