"""Does a router that believes our KV events know what an engine can load, whoever stored or evicted it?

Managers on a real arena; other processes are other clients of it, and a spill table that the test writes as the
transport worker would. The router is strict: nothing is stored twice or removed that it does not have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from vllm.v1.kv_offload.base import Locality, Medium, OffloadKey

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Cache, Mode
from pegashm.connector.attachment import Attachment
from pegashm.connector.events import KvEvents
from pegashm.connector.manager import PegaShmManager
from pegashm.connector.settings import Settings
from pegashm.creation import purge
from pegashm.keys import namespace_of
from pegashm.names import control_path

from tests.arenas import Shape, make_arena, remove_arena
from tests.connector.test_manager import CHUNK_BYTES, NAMESPACE, end_step, keys_of, request, store
from tests.model.test_spill_table import rows_of

Index = dict[Medium, set[bytes]]
Make = Callable[..., PegaShmManager]
STEPS_MAX = 2000


class Router:
    """Keeps the index of one engine from its events alone."""

    def __init__(self, manager: PegaShmManager) -> None:
        self.manager = manager
        self.index: Index = {Medium.CPU: set(), Medium.STORAGE: set()}
        self.most = 0

    def hear(self) -> int:
        """One step's events; how many keys they spoke of."""
        end_step(self.manager)
        heard = 0
        for event in self.manager.take_events():
            assert event.locality is Locality.LOCAL
            assert event.keys
            heard += len(event.keys)
            known = self.index[event.medium]
            assert len(set(event.keys)) == len(event.keys)
            if event.removed:
                assert known.issuperset(event.keys), "removed, and never stored"
                known.difference_update(event.keys)
            else:
                assert known.isdisjoint(event.keys), "stored twice"
                known.update(event.keys)
        self.most = max(self.most, heard)
        return heard

    def hear_all(self) -> Index:
        """Until the engine has nothing more to tell at once."""
        for _ in range(STEPS_MAX):
            self.hear()
            if not self.manager.has_pending_work():
                return self.index
        raise AssertionError("it has always more to tell")

    def hear_until(self, expected: Index) -> None:
        for _ in range(STEPS_MAX):
            self.hear()
            if self.index == expected:
                return
        assert expected == self.index


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[PegaShmManager] = []

    def manager(
        name: str, *, mode: Mode = Mode.READ_WRITE, deadline_ms: int = 1000, required: bool = True
    ) -> PegaShmManager:
        made.append(
            PegaShmManager(
                Attachment(Settings(arena=name, mode=mode, required=required), NAMESPACE, "engine"),
                mode=mode,
                chunk_bytes=CHUNK_BYTES,
                writers=1,
                events=True,
                spill_deadline_ms=deadline_ms,
            )
        )
        return made[-1]

    yield manager
    for one in made:
        one.shutdown()


@pytest.fixture
def name(arena_name: Callable[..., str]) -> str:
    return arena_name(Shape(spill_records=128))


@pytest.fixture
def other(name: str) -> Iterator[Cache]:
    """Another process, as far as the arena knows: stores and evicts in the same namespace."""
    with Cache.attach(name, namespace=NAMESPACE, label="other") as cache:
        yield cache


@pytest.fixture
def table(other: Cache) -> _native.SpillTable:
    made = _native.SpillTable(other.region)
    made.clear()
    made.set_usable(1)
    return made


def what_is_there(cache: Cache) -> Index:
    """Read by other means than the events are: the records of the region, one by one."""
    blocks = cache.region.blocks()
    usable = cache.region.header["spill_usable"]
    spilled = cache.region.spilled()
    return {
        Medium.CPU: _keys(blocks[blocks["state"] == 2], cache.namespace_id),
        Medium.STORAGE: {
            key
            for file in set(spilled["file"].tolist())
            if usable >> file & 1
            for key in _keys(spilled[spilled["file"] == file], cache.namespace_id)
        },
    }


def _keys(rows: np.ndarray, namespace_id: int) -> set[bytes]:
    return {
        bytes(row["key"])[: int(row["key_bytes"])] + int(row["group"]).to_bytes(4, "big")
        for row in rows[rows["namespace_id"] == namespace_id]
    }


def put(cache: Cache, keys: Sequence[OffloadKey]) -> None:
    handles, _ = cache.claim(keys, CHUNK_BYTES)
    cache.publish(handles[handles != 0])


def evict(cache: Cache, keys: Sequence[OffloadKey]) -> None:
    handles, _ = cache.find(keys)
    cache.evict(handles[handles != 0])


def spill(table: _native.SpillTable, cache: Cache, numbers: list[int]) -> list[bytes]:
    assert table.store(rows_of(numbers, cache.namespace_id)).all()
    return [number.to_bytes(32, "big") + bytes(4) for number in numbers]


# -- whoever did it ------------------------------------------------------------------------------------


def test_what_others_store_and_evict_is_told(make: Make, name: str, other: Cache) -> None:
    router = Router(make(name))
    own, theirs = keys_of("own", 4), keys_of("theirs", 5, group=1)
    store(router.manager, own, request(router.manager, own))
    put(other, theirs)
    assert {Medium.CPU: {*own, *theirs}, Medium.STORAGE: set()} == router.hear_all()
    evict(other, [*own[:2], theirs[0]])
    assert {*own[2:], *theirs[1:]} == router.hear_all()[Medium.CPU]
    assert what_is_there(other) == router.index


def test_every_engine_of_the_namespace_tells_the_same(make: Make, name: str, other: Cache) -> None:
    routers = [Router(make(name)) for _ in range(3)]
    put(other, keys_of("a", 6))
    evict(other, keys_of("a", 2))
    for router in routers:
        assert what_is_there(other) == router.hear_all()


def test_what_was_there_before_the_engine(make: Make, name: str, other: Cache) -> None:
    put(other, keys_of("a", 6))
    assert set(keys_of("a", 6)) == Router(make(name)).hear_all()[Medium.CPU]


def test_other_namespaces_are_not_spoken_of(make: Make, name: str) -> None:
    router = Router(make(name))
    with Cache.attach(name, namespace=namespace_of({"test": "stranger"}, label="x")) as stranger:
        put(stranger, keys_of("a", 6))
        assert not any(router.hear_all().values())
        evict(stranger, keys_of("a", 6))
    assert not any(router.hear_all().values())


def test_eviction_for_want_of_room(make: Make, name: str, other: Cache) -> None:
    """64 blocks: the other's stores displace this engine's."""
    router = Router(make(name))
    own = keys_of("own", 40)
    store(router.manager, own, request(router.manager, own))
    router.hear_all()
    put(other, keys_of("theirs", 60))
    assert 64 == len(router.hear_all()[Medium.CPU])
    assert what_is_there(other) == router.index


# -- tiers ---------------------------------------------------------------------------------------------


def test_from_memory_to_ssd_and_back(
    make: Make, name: str, other: Cache, table: _native.SpillTable
) -> None:
    router = Router(make(name))
    keys = spill(table, other, [1, 2, 3])
    put(other, keys)
    assert {Medium.CPU: set(keys), Medium.STORAGE: set(keys)} == router.hear_all()
    evict(other, keys[:2])
    assert {Medium.CPU: set(keys[2:]), Medium.STORAGE: set(keys)} == router.hear_all()
    put(other, keys[:1])
    table.drop(0, 0, 4096)
    assert {Medium.CPU: {keys[0], keys[2]}, Medium.STORAGE: set(keys[1:])} == router.hear_all()


def test_a_spill_file_that_goes_and_comes_back(
    make: Make, name: str, other: Cache, table: _native.SpillTable
) -> None:
    router = Router(make(name))
    keys = spill(table, other, [1, 2, 3])
    assert set(keys) == router.hear_all()[Medium.STORAGE]
    table.set_usable(0)
    assert set() == router.hear_all()[Medium.STORAGE]
    table.set_usable(1)
    assert set(keys) == router.hear_all()[Medium.STORAGE]
    table.clear()  # a new worker, which has not opened its files yet
    assert set() == router.hear_all()[Medium.STORAGE]


def test_a_file_that_was_away_between_two_steps(
    make: Make, name: str, other: Cache, table: _native.SpillTable
) -> None:
    """The engine sees the same files in use as before, and hears all the same what came and went meanwhile."""
    router = Router(make(name))
    (gone, *rest) = spill(table, other, [1, 2, 3])
    assert {gone, *rest} == router.hear_all()[Medium.STORAGE]
    table.set_usable(0)
    table.forget(table.find([gone], other.namespace_id))
    (come,) = spill(table, other, [4])
    table.set_usable(1)
    assert {*rest, come} == router.hear_all()[Medium.STORAGE]


def test_opening_a_file_is_no_event(other: Cache) -> None:
    table = _native.SpillTable(other.region)
    table.clear()
    head = other.region.header["journal_head"]
    spill(table, other, [1, 2, 3])
    assert head == other.region.header["journal_head"]
    table.set_usable(1)
    (key, *_) = spill(table, other, [4])
    _, (event,) = other.region.journal(head)
    assert ("spill", key[:32]) == (event["event"], event["key"])
    table.drop(0, 0, 4096)  # 1 and 4 lie there
    _, events = other.region.journal(head + 1)
    assert ["forget", "forget"] == [event["event"] for event in events]


def test_an_engine_that_never_waits_for_ssd_does_not_offer_it(
    make: Make, name: str, other: Cache, table: _native.SpillTable
) -> None:
    router = Router(make(name, deadline_ms=0))
    spill(table, other, [1, 2, 3])
    assert not any(router.hear_all().values())


def test_an_engine_that_only_saves_offers_nothing(make: Make, name: str) -> None:
    router = Router(make(name, mode=Mode.SAVE_ONLY))
    keys = keys_of("a", 4)
    assert 4 == store(router.manager, keys, request(router.manager, keys))
    assert not any(router.hear_all().values())


# -- what goes wrong -----------------------------------------------------------------------------------


def test_a_journal_that_went_round(make: Make, name: str, other: Cache) -> None:
    router = Router(make(name))
    put(other, keys_of("early", 8))
    router.hear_all()
    for turn in range(other.region.header["journal_entry_count"] // 16 + 2):
        put(other, keys_of(f"late {turn}", 8))
        evict(other, keys_of(f"late {turn}", 8))
    evict(other, keys_of("early", 4))
    put(other, keys_of("last", 3))
    assert what_is_there(other) == router.hear_all()
    assert {*keys_of("early", 8)[4:], *keys_of("last", 3)} == router.index[Medium.CPU]
    assert router.manager._events is not None
    assert router.manager._events.overruns


def test_events_that_were_never_written(make: Make, name: str, other: Cache) -> None:
    """As of a process that died between a change and its event: found by going round."""
    router = Router(make(name))
    put(other, keys_of("a", 8))
    router.hear_all()
    evict(other, keys_of("a", 4))
    put(other, keys_of("b", 4))
    events = router.manager._events
    assert events is not None
    events._read_to = other.region.header["journal_head"]
    router.hear_until(what_is_there(other))


def test_an_event_half_written(make: Make, name: str, other: Cache) -> None:
    """It is waited for a moment, and then passed over: what it would have said is found by going round."""
    router = Router(make(name))
    router.hear_all()
    with open(control_path(name), "r+b", buffering=0) as control:
        control.seek(384)
        head = int.from_bytes(control.read(8), "little")
        control.seek(384)
        control.write((head + 1).to_bytes(8, "little"))
    put(other, keys_of("a", 4))
    router.hear_until(what_is_there(other))


def test_a_purged_arena_and_its_successor(make: Make) -> None:
    name = make_arena(Shape())
    try:
        manager = make(name)
        router = Router(manager)
        keys = keys_of("a", 6)
        store(manager, keys, request(manager, keys))
        assert set(keys) == router.hear_all()[Medium.CPU]
        purge(name, force=True)
        manager._attachment._look_at = 0.0
        assert set() == router.hear_all()[Medium.CPU]
        make_arena(Shape(), name)
        with Cache.attach(name, namespace=NAMESPACE, label="other") as other:
            put(other, keys[:2])
            manager._attachment._look_at = 0.0
            assert set(keys[:2]) == router.hear_all()[Medium.CPU]
    finally:
        remove_arena(name)


def test_weights_that_changed(make: Make, name: str, other: Cache) -> None:
    """This engine can load nothing any more of what it told; another one can."""
    router, neighbour = Router(make(name)), Router(make(name))
    put(other, keys_of("a", 6))
    router.hear_all()
    router.manager.reset_cache()
    assert not any(router.hear_all().values())
    assert set(keys_of("a", 6)) == neighbour.hear_all()[Medium.CPU]


# -- bounds ----------------------------------------------------------------------------------------------


def test_a_step_tells_a_bounded_number(make: Make, arena_name: Callable[..., str]) -> None:
    """And the engine is kept going until all is told, no longer."""
    name = arena_name(Shape(segment_bytes=1 << 20, segments_per_arena=(16,)))  # 4096 blocks
    manager = make(name)
    router = Router(manager)
    router.hear_all()
    with Cache.attach(name, namespace=NAMESPACE, label="other") as other:
        put(other, keys_of("a", 4000))
        assert not manager.has_pending_work(), "it may sleep, whatever others do"
        router.hear()
        assert manager.has_pending_work()
        router.hear_all()
        late = Router(make(name))
        assert what_is_there(other) == router.index == late.hear_all()
    assert 0 < router.most <= 1024 + 64
    assert 0 < late.most <= 512


def test_an_engine_that_shall_not_sleep(arena_name: Callable[..., str]) -> None:
    attachment = Attachment(Settings(arena=arena_name()), NAMESPACE, "engine")
    manager = PegaShmManager(
        attachment,
        mode=Mode.READ_WRITE,
        chunk_bytes=CHUNK_BYTES,
        writers=1,
        events=True,
        events_while_idle=True,
    )
    Router(manager).hear()
    assert manager.has_pending_work()
    manager.shutdown()


def test_no_events_are_kept_when_nobody_wants_them(arena_name: Callable[..., str]) -> None:
    attachment = Attachment(Settings(arena=arena_name()), NAMESPACE, "engine")
    manager = PegaShmManager(
        attachment, mode=Mode.READ_WRITE, chunk_bytes=CHUNK_BYTES, writers=1, events=False
    )
    keys = keys_of("a", 3)
    store(manager, keys, request(manager, keys))
    assert [] == list(manager.take_events())
    assert not manager.has_pending_work()
    manager.shutdown()


# -- anything --------------------------------------------------------------------------------------------


def test_churn(
    make: Make, name: str, other: Cache, table: _native.SpillTable, chance: random.Random
) -> None:
    """Random stores, evictions, spills and drops by others between the steps of two engines."""
    routers = [Router(make(name)), Router(make(name))]
    keys = [number.to_bytes(32, "big") + bytes(4) for number in range(90)]
    for _ in range(400):
        some = chance.sample(keys, chance.randrange(1, 12))
        numbers = [int.from_bytes(key[:32], "big") for key in some]
        match chance.randrange(6):
            case 0 | 1:
                put(other, [OffloadKey(key) for key in some])
            case 2:
                evict(other, [OffloadKey(key) for key in some])
            case 3:
                table.store(rows_of(numbers, other.namespace_id))
            case 4:
                table.forget(table.find(some, other.namespace_id))
            case _:
                table.set_usable(chance.randrange(2))
        if chance.randrange(3) == 0:
            chance.choice(routers).hear()
    for router in routers:
        assert what_is_there(other) == router.hear_all()
        assert isinstance(router.manager._events, KvEvents)


def test_reading_takes_nothing_from_a_stranger(name: str, other: Cache) -> None:
    """The functions below the events: limits, other namespaces, places beyond the end."""
    put(other, keys_of("a", 5))
    with open_arena(name) as arena:
        head, usable, _ = _native.residency_signs(arena.region)
        assert (5, 0) == (head, usable)
        last, overrun, torn, keys = _native.changed_keys(
            arena.region, other.namespace_id, 0, head, 3
        )
        assert (3, 0, 0, list(keys_of("a", 3))) == (last, overrun, torn, keys)
        assert (5, 0, 0, []) == _native.changed_keys(arena.region, 1 << 20, 0, head, 100)
        assert [1, 0] == _native.residency(
            arena.region, [*keys_of("a", 1), *keys_of("b", 1)], other.namespace_id
        ).tolist()
        total = arena.region.header["record_count"] + 128
        assert (total, []) == _native.resident_keys(
            arena.region, other.namespace_id, total, 1000, 10
        )
        _, two = _native.resident_keys(arena.region, other.namespace_id, 0, 1000, 2)
        assert 2 == len(two)
        for wrong in (
            lambda: _native.changed_keys(arena.region, 1, 0, 0, 0),
            lambda: _native.resident_keys(arena.region, 1, 0, 10, 0),
        ):
            with pytest.raises(ValueError, match="a limit is at least 1"):
                wrong()
