"""Is what happens to an arena noticed, once, in words that name who?"""

from __future__ import annotations

import signal
from collections.abc import Callable

from pegashm.cache import Cache
from pegashm.exporter.judging import Health, judge
from pegashm.exporter.page.noticed import TROUBLES, Noticed
from pegashm.exporter.reading import Reader, Reading
from pegashm.reaper import reap_dead_clients
from pegashm.units import KIB

from tests.arenas import Shape, make_arena, remove_arena
from tests.page.scene import QUIET, ROOMY, keys
from tests.tools.scenes import client_process


class Watch:
    """Looks whenever it is told to; what is new since the last look."""

    def __init__(self, name: str) -> None:
        self._reader = Reader(name, survey_seconds=0.0, fresh_seconds=0.0)
        self._noticed = Noticed()
        self._before: tuple[Reading, Health] | None = None
        self._at = 0.0
        self._seen = 0

    def look(self, seconds: float = 5.0) -> list[tuple[str, str]]:
        """(kind, text) of each new event, the oldest first."""
        reading = self._reader.read()
        now = (reading, judge(reading))
        self._at += seconds
        self._noticed.compare(self._at, self._before, now)
        self._before = now
        rows = [row for row in self._noticed.rows() if row["at"] == self._at]
        return [(row["kind"], f"{row['amount'] or ''}{row['text']}") for row in reversed(rows)]


def kinds(found: list[tuple[str, str]]) -> list[str]:
    return [kind for kind, _ in found]


def test_a_client_comes_dies_and_is_reaped(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    watch = Watch(name)
    assert ["exporter_started", "unsupervised"] == kinds(watch.look())
    assert [] == watch.look()
    with client_process(name) as child:
        found = watch.look()
        assert {"client_attached", "namespace_registered"} == set(kinds(found))
        assert f"pid {child.pid} (a client) attached" in dict(found)["client_attached"]
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = dict(watch.look())
        assert f"pid {child.pid} (a client) died, and is not reaped yet" in found["client_died"]
        with Cache.attach(name, namespace=QUIET, label="reaper") as cache:
            reap_dead_clients(cache.arena, skip_slot=cache.slot)
            found = dict(watch.look())
            assert f"pid {child.pid} (a client) was reaped" in found["client_reaped"]
    assert ["client_gone"] == kinds(watch.look())


def test_another_arena_under_the_same_name(name: str) -> None:
    watch = Watch(name)
    assert ["exporter_started", "missing"] == kinds(watch.look())
    make_arena(Shape(), name)
    found = kinds(watch.look())
    assert "arena_found" in found
    assert "client_attached" not in found
    remove_arena(name)
    make_arena(Shape(), name)
    assert "arena_replaced" in kinds(watch.look())
    remove_arena(name)
    assert {"arena_gone", "missing"} <= set(kinds(watch.look()))


def test_trouble_grows_and_begins_anew(arena_name: Callable[..., str]) -> None:
    """Stores that found no room: one event while it goes on, another when it comes back later."""
    name = arena_name(Shape(segments_per_arena=(1,)))
    watch = Watch(name)
    with Cache.attach(name, namespace=ROOMY) as cache:
        cache.claim(keys(1, 16), 4 * KIB)
        watch.look()
        cache.claim(keys(101, 3), 4 * KIB)
        expected = TROUBLES["claims_no_space"]
        assert [("claims_no_space", f"3{expected}")] == watch.look()
        cache.claim(keys(101, 4), 4 * KIB)
        assert [("claims_no_space", f"7{expected}")] == watch.look()
        assert [] == watch.look(seconds=400.0)
        cache.claim(keys(101, 1), 4 * KIB)
        assert [("claims_no_space", f"1{expected}")] == watch.look()


def test_every_trouble_is_a_counter(arena_name: Callable[..., str]) -> None:
    reading = Reader(arena_name()).read()
    assert TROUBLES.keys() <= reading.counters.keys()
