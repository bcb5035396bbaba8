"""Does the scheduler's side keep its promises to the engine, and to the other engines of an arena?

Managers on a real arena, asked as vLLM's scheduler asks them (v1/kv_offload, offloading/scheduler.py); what the
workers would report is reported by the test. Two managers of one namespace are two engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Mode
from pegashm.connector.attachment import Attachment
from pegashm.connector.jobs import ArenaBlocks
from pegashm.connector.manager import PegaShmManager
from pegashm.connector.settings import Settings
from pegashm.errors import ArenaMissingError
from pegashm.keys import namespace_of
from pegashm.reuse import read_reuse

from tests.arenas import Shape, make_arena, remove_arena

CHUNK_BYTES = 4096
NAMESPACE = namespace_of({"test": "manager"}, label="test")
HIT, MISS = LookupResult.HIT, LookupResult.MISS

Make = Callable[..., PegaShmManager]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes managers, as many engines; all are shut down when the test ends."""
    made: list[PegaShmManager] = []

    def manager(
        arena: str,
        *,
        mode: Mode = Mode.READ_WRITE,
        writers: int = 1,
        events: bool = False,
        required: bool = True,
        engine_id: str = "engine",
    ) -> PegaShmManager:
        settings = Settings(arena=arena, mode=mode, required=required)
        attachment = Attachment(settings, NAMESPACE, engine_id)
        made.append(
            PegaShmManager(
                attachment, mode=mode, chunk_bytes=CHUNK_BYTES, writers=writers, events=events
            )
        )
        return made[-1]

    yield manager
    for one in made:
        one.shutdown()


def keys_of(name: str, count: int, group: int = 0) -> list[OffloadKey]:
    return [make_offload_key(f"{name:>24}{number:08d}".encode(), group) for number in range(count)]


def request(
    manager: PegaShmManager,
    keys: Sequence[OffloadKey],
    name: str = "r",
    params: dict[str, Any] | None = None,
) -> ReqContext:
    """A request as vLLM announces it: the keys' places are known before they are looked up."""
    context = ReqContext(req_id=name, kv_transfer_params=params)
    manager.on_new_request(context)
    for place, key in enumerate(keys):
        context.set_offload_key_position(key, (place + 1) * 16)
    return context


def blocks_in(output: PrepareStoreOutput | None) -> ArenaBlocks:
    assert output is not None
    assert isinstance(output.store_spec, ArenaBlocks)
    return output.store_spec


def report(manager: PegaShmManager, handles: Any, *, parts: int = 1, ok: bool = True) -> None:
    """What workers say when their copies have ended."""
    cache = manager._attachment.cache
    assert cache is not None
    for _ in range(parts):
        _native.part_done(cache.region, handles, ok)


def store(manager: PegaShmManager, keys: Sequence[OffloadKey], context: ReqContext) -> int:
    """A whole store; how many of the keys were published."""
    output = manager.prepare_store(keys, context)
    blocks = blocks_in(output)
    assert output is not None
    if output.keys_to_store:
        report(manager, blocks.handles)
        manager.complete_store(set(output.keys_to_store), context)
    return len(output.keys_to_store)


def ask(manager: PegaShmManager, keys: Sequence[OffloadKey], context: ReqContext) -> int:
    """As vLLM asks for a prefix: until the first miss."""
    for place, key in enumerate(keys):
        if manager.lookup(key, context) is not HIT:
            return place
    return len(keys)


def end_step(manager: PegaShmManager) -> None:
    manager.on_schedule_end(ScheduleEndContext((), ()))


def pins(name: str) -> int:
    with open_arena(name) as arena:
        return int(sum(int(word).bit_count() for word in arena.region.blocks()["pins"].ravel()))


def tally(name: str) -> dict[str, int]:
    with open_arena(name) as arena:
        return arena.region.tally()


# -- lookups and loads -----------------------------------------------------------------------------


def test_one_engine_finds_what_another_stored(make: Make, arena_name: Callable[..., str]) -> None:
    name = arena_name()
    storing, loading = make(name), make(name)
    keys = keys_of("a", 5)
    assert 3 == store(storing, keys[:3], request(storing, keys))
    context = request(loading, keys)
    assert 3 == ask(loading, keys, context)
    blocks = loading.prepare_load(keys[:3], context)
    assert isinstance(blocks, ArenaBlocks)
    assert blocks.handles.all()
    assert 3 == len(set(blocks.offsets.tolist()))


def test_pins_last_until_the_step_ends_or_the_load_does(
    make: Make, arena_name: Callable[..., str]
) -> None:
    name = arena_name()
    manager = make(name)
    keys = keys_of("a", 4)
    store(manager, keys, request(manager, keys))
    context = request(manager, keys)
    ask(manager, keys, context)
    assert 4 == pins(name)
    end_step(manager)
    assert 0 == pins(name)

    ask(manager, keys, context)
    manager.prepare_load(keys[:3], context)
    end_step(manager)
    assert 3 == pins(name)
    manager.complete_load(set(keys[:3]), context)
    assert 0 == pins(name)


def test_lookups_of_a_prefix_are_one_call(make: Make, arena_name: Callable[..., str]) -> None:
    """The first question of a step is answered for all of the request's keys."""
    name = arena_name()
    manager = make(name)
    keys = keys_of("a", 40)
    store(manager, keys[:30], request(manager, keys))
    calls = []
    cache = manager._attachment.cache
    assert cache is not None
    find_prefix = cache.find_prefix
    cache.find_prefix = lambda *args, **kw: calls.append(1) or find_prefix(*args, **kw)  # type: ignore[method-assign, func-returns-value]
    context = request(manager, keys)
    assert 30 == ask(manager, keys, context)
    assert 1 == len(calls)


def test_a_sliding_window_is_looked_up_from_its_end(
    make: Make, arena_name: Callable[..., str]
) -> None:
    name = arena_name()
    manager = make(name)
    keys = keys_of("w", 20, group=1)
    store(manager, keys[5:15], request(manager, keys))
    context = request(manager, keys)
    found = [manager.lookup(key, context) is HIT for key in reversed(keys)]
    assert [False] * 5 + [True] * 10 + [False] * 5 == found
    end_step(manager)
    assert 0 == pins(name)


def test_a_key_whose_place_is_not_known_is_looked_up_alone(
    make: Make, arena_name: Callable[..., str]
) -> None:
    manager = make(arena_name())
    keys = keys_of("a", 2)
    store(manager, keys, request(manager, keys))
    context = request(manager, [])
    assert [HIT, HIT] == [manager.lookup(key, context) for key in keys]


def test_a_block_that_was_not_found_cannot_be_loaded(
    make: Make, arena_name: Callable[..., str]
) -> None:
    """Its handle is 0, which makes the worker report that the load failed."""
    manager = make(arena_name())
    keys = keys_of("a", 2)
    blocks = manager.prepare_load(keys, request(manager, keys))
    assert isinstance(blocks, ArenaBlocks)
    assert [0, 0] == blocks.handles.tolist()


def test_a_request_whose_loads_keep_failing_is_computed(
    make: Make, arena_name: Callable[..., str]
) -> None:
    manager = make(arena_name())
    keys = keys_of("a", 1)
    store(manager, keys, request(manager, keys))
    context = request(manager, keys)
    loads = 0
    while ask(manager, keys, context):
        manager.prepare_load(keys, context)
        manager.complete_load(set(keys), context)
        end_step(manager)
        loads += 1
        assert loads < 100
    assert loads > 1


# -- stores ----------------------------------------------------------------------------------------


def test_nothing_is_stored_twice(make: Make, arena_name: Callable[..., str]) -> None:
    name = arena_name()
    first, second = make(name), make(name)
    keys = keys_of("a", 4)
    store(first, keys[:2], request(first, keys))
    under_way = first.prepare_store([keys[2]], request(first, keys, "s"))
    assert under_way is not None
    output = second.prepare_store(keys, request(second, keys))
    assert output is not None
    assert [keys[3]] == output.keys_to_store
    assert 1 == len(blocks_in(output).handles)


def test_a_block_is_published_when_every_worker_has_reported(
    make: Make, arena_name: Callable[..., str]
) -> None:
    name = arena_name()
    manager = make(name, writers=2)
    keys = keys_of("a", 2)
    context = request(manager, keys)
    handles = blocks_in(manager.prepare_store(keys, context)).handles
    report(manager, handles, parts=1)
    manager.complete_store(set(keys), context)
    assert {"claimed": 2, "ready": 0}.items() <= tally(name).items()
    end_step(manager)
    assert 2 == tally(name)["claimed"], "a worker may still be writing"
    report(manager, handles, parts=1)
    end_step(manager)
    assert {"claimed": 0, "ready": 0}.items() <= tally(name).items()

    handles = blocks_in(manager.prepare_store(keys, context)).handles
    report(manager, handles, parts=2)
    manager.complete_store(set(keys), context)
    assert 2 == tally(name)["ready"]


def test_a_part_that_failed_is_not_published(make: Make, arena_name: Callable[..., str]) -> None:
    name = arena_name()
    manager = make(name, writers=2)
    keys = keys_of("a", 1)
    context = request(manager, keys)
    handles = blocks_in(manager.prepare_store(keys, context)).handles
    report(manager, handles)
    report(manager, handles, ok=False)
    manager.complete_store(set(keys), context)
    assert {"claimed": 0, "ready": 0}.items() <= tally(name).items()


def test_a_store_that_finds_no_room_is_dropped(make: Make, arena_name: Callable[..., str]) -> None:
    name = arena_name(Shape(segments_per_arena=(1,)))  # 16 blocks
    manager = make(name)
    keys = keys_of("a", 20)
    context = request(manager, keys)
    output = manager.prepare_store(keys, context)
    assert output is not None
    assert keys[:16] == output.keys_to_store
    other = keys_of("b", 2)
    output = manager.prepare_store(other, request(manager, other))
    assert output is not None
    assert [] == output.keys_to_store


def test_the_end_of_a_chain_is_evicted_before_its_head(
    make: Make, arena_name: Callable[..., str]
) -> None:
    name = arena_name(Shape(segments_per_arena=(1,)))  # 16 blocks
    manager = make(name)
    old, new = keys_of("old", 12), keys_of("new", 10)
    first = request(manager, old, "first")
    store(manager, old, first)
    manager.on_request_finished(first)
    store(manager, new, request(manager, new))
    assert 6 == ask(manager, old, request(manager, old))


def test_events_tell_what_was_published(make: Make, arena_name: Callable[..., str]) -> None:
    manager = make(arena_name(), events=True)
    keys = keys_of("a", 3)
    store(manager, keys, request(manager, keys))
    (event,) = manager.take_events()
    assert (set(keys), False) == (set(event.keys), event.removed)
    assert [] == list(manager.take_events())


# -- modes and wishes ------------------------------------------------------------------------------


def test_modes(make: Make, arena_name: Callable[..., str]) -> None:
    name = arena_name()
    saving, loading = make(name, mode=Mode.SAVE_ONLY), make(name, mode=Mode.LOAD_ONLY)
    keys = keys_of("a", 2)
    assert 0 == store(loading, keys, request(loading, keys))
    assert 2 == store(saving, keys, request(saving, keys))
    assert 0 == ask(saving, keys, request(saving, keys))
    assert 2 == ask(loading, keys, request(loading, keys))


def test_a_request_says_what_it_wants(make: Make, arena_name: Callable[..., str]) -> None:
    manager = make(arena_name())
    keys = keys_of("a", 2)
    no_store = request(manager, keys, params={"pegashm": {"store": False}})
    assert 0 == store(manager, keys, no_store)
    no_load = request(manager, keys, params={"pegashm": {"load": False}})
    assert 2 == store(manager, keys, no_load)
    assert 0 == ask(manager, keys, no_load)
    assert 2 == ask(manager, keys, no_store)


# -- resets, and arenas that come and go -----------------------------------------------------------


def test_a_reset_leaves_the_blocks_to_others_and_finds_none(
    make: Make, arena_name: Callable[..., str]
) -> None:
    name = arena_name()
    resetting, other = make(name), make(name)
    keys = keys_of("a", 2)
    store(resetting, keys, request(resetting, keys))
    resetting.reset_cache()
    assert 0 == ask(resetting, keys, request(resetting, keys))
    assert 2 == ask(other, keys, request(other, keys))
    new = keys_of("new", 1)
    store(resetting, new, request(resetting, new))
    assert 1 == ask(resetting, new, request(resetting, new))
    assert 0 == ask(other, new, request(other, new))


def test_a_reset_forgets_no_claim_that_is_being_written(
    make: Make, arena_name: Callable[..., str]
) -> None:
    """vLLM drops its jobs, the workers do not: their blocks stay claimed until they have reported."""
    name = arena_name()
    manager = make(name)
    keys = keys_of("a", 3)
    context = request(manager, keys)
    handles = blocks_in(manager.prepare_store(keys, context)).handles
    manager.reset_cache()
    end_step(manager)
    assert 3 == tally(name)["claimed"]
    report(manager, handles)
    end_step(manager)
    assert {"claimed": 0, "ready": 0}.items() <= tally(name).items()


def test_a_reset_drops_the_pins_of_loads(make: Make, arena_name: Callable[..., str]) -> None:
    name = arena_name()
    manager = make(name)
    keys = keys_of("a", 3)
    store(manager, keys, request(manager, keys))
    context = request(manager, keys)
    ask(manager, keys, context)
    manager.prepare_load(keys, context)
    end_step(manager)
    manager.reset_cache()
    assert 0 == pins(name)
    manager.complete_load(set(keys), context)
    assert 0 == pins(name)


def test_a_request_older_than_a_reset_stores_nothing(
    make: Make, arena_name: Callable[..., str]
) -> None:
    """Its KV was computed, at least in part, from the weights before."""
    manager = make(arena_name())
    keys = keys_of("a", 2)
    older = request(manager, keys, "older")
    manager.reset_cache()
    assert 0 == store(manager, keys, older)
    assert 2 == store(manager, keys, request(manager, keys, "younger"))


def test_a_reset_that_gets_no_namespace_leaves_the_arena(
    make: Make, arena_name: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better no cache than the blocks of the old weights."""
    manager = make(arena_name())
    keys = keys_of("a", 2)
    store(manager, keys, request(manager, keys))
    cache = manager._attachment.cache
    assert cache is not None

    def refuse(*_: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(cache, "enter", refuse)
    manager.reset_cache()
    assert manager._attachment.cache is None
    assert 0 == ask(manager, keys, request(manager, keys))
    manager._attachment._look_at = 0.0
    end_step(manager)
    assert manager._attachment.cache is not None
    assert 0 == ask(manager, keys, request(manager, keys))


def test_without_an_arena_all_is_a_miss_until_it_appears() -> None:
    name = make_arena(Shape())
    remove_arena(name)
    with pytest.raises(ArenaMissingError, match=f"pegashm serve --name {name}"):
        Attachment(Settings(arena=name, required=True), NAMESPACE, "engine")
    attachment = Attachment(Settings(arena=name), NAMESPACE, "engine")
    manager = PegaShmManager(
        attachment, mode=Mode.READ_WRITE, chunk_bytes=CHUNK_BYTES, writers=1, events=False
    )
    keys = keys_of("a", 2)
    context = request(manager, keys)
    assert 0 == ask(manager, keys, context)
    assert 0 == store(manager, keys, context)
    blocks = manager.prepare_load(keys, context)
    assert isinstance(blocks, ArenaBlocks)
    assert bytes(16) == blocks.region_id
    manager.complete_load(set(keys), context)
    manager.on_request_finished(context)
    manager.reset_cache()
    end_step(manager)
    manager.shutdown()


def test_an_arena_that_was_purged_is_left_and_its_successor_entered(make: Make) -> None:
    name = make_arena(Shape())
    try:
        manager = make(name)
        keys = keys_of("a", 2)
        context = request(manager, keys)
        store(manager, keys, context)
        ask(manager, keys, context)
        manager.prepare_load(keys, context)
        remove_arena(name)
        manager._attachment._look_at = 0.0
        end_step(manager)
        assert manager._attachment.cache is None
        assert 0 == ask(manager, keys, request(manager, keys))
    finally:
        remove_arena(name)


@pytest.mark.parametrize("engine_id", ["e" * 300, "Maschine ü" * 40, ""])
def test_names_of_any_length(make: Make, arena_name: Callable[..., str], engine_id: str) -> None:
    make(arena_name(), engine_id=engine_id)
    long = replace(NAMESPACE, label="ü" * 500)
    Attachment(Settings(arena=arena_name(), required=True), long, engine_id).close()


def test_whatever_goes_wrong_is_a_miss(make: Make, arena_name: Callable[..., str]) -> None:
    """With the mapping gone behind its back every call into the core raises; the engine must not notice."""
    manager = make(arena_name())
    keys = keys_of("a", 3)
    context = request(manager, keys)
    store(manager, keys[:1], context)
    output = manager.prepare_store(keys[1:2], context)
    assert output is not None
    assert HIT is manager.lookup(keys[0], context)
    cache = manager._attachment.cache
    assert cache is not None
    cache.close()
    assert MISS is manager.lookup(keys[2], context)
    manager.prepare_load(keys[:1], context)
    manager.complete_load(set(keys[:1]), context)
    manager.complete_store(set(output.keys_to_store), context)
    after = manager.prepare_store(keys[2:], context)
    assert after is not None
    assert [] == after.keys_to_store
    manager.on_request_finished(context)
    end_step(manager)
    manager.reset_cache()
    manager.shutdown()


def test_specs_travel_to_the_workers(make: Make, arena_name: Callable[..., str]) -> None:
    """Inside vLLM's own metadata, which it pickles."""
    import pickle

    manager = make(arena_name())
    keys = keys_of("a", 2)
    blocks = blocks_in(manager.prepare_store(keys, request(manager, keys)))
    came = pickle.loads(pickle.dumps(blocks))
    assert (blocks.region_id, blocks.slot, blocks.incarnation) == (
        came.region_id,
        came.slot,
        came.incarnation,
    )
    assert np.array_equal(blocks.handles, came.handles)
    assert np.array_equal(blocks.offsets, came.offsets)


def test_request_is_counted_once_and_whole(make: Make, arena_name: Callable[[Shape], str]) -> None:
    """However often it asks, and though it stops at the first miss: the reuse ceiling is of requests."""
    arena = arena_name(Shape(reuse_registers=1024))
    first, second = make(arena), make(arena, engine_id="second")
    keys = keys_of("counted", 10)
    context = request(first, keys)
    for _ in range(3):
        ask(first, keys, context)
        first.on_schedule_end(ScheduleEndContext((), ()))
    store(first, keys[:6], context)
    again = request(second, keys, "again")
    assert 6 == ask(second, keys, again)
    second.prepare_load(keys[:6], again)
    with open_arena(arena, writable=False, map_payload=False) as opened:
        (window, _, _) = read_reuse(opened.region)
    assert (20, 6) == (window.asked, window.served)
    assert window.unique == pytest.approx(10, abs=1.5)
    second.complete_load(keys[:6], again)
