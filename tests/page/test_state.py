"""Is api/state what the region holds, plain JSON in every state of an arena, and cheap for many?"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from pegashm import __version__
from pegashm.arena import Arena, open_arena
from pegashm.cache import Cache
from pegashm.exporter.judging import judge
from pegashm.exporter.page.amounts import MISSES, PLOTTED, amounts_of
from pegashm.exporter.page.state import SCHEMA, state_of
from pegashm.exporter.reading import Reader
from pegashm.units import KIB

from tests.arenas import Shape
from tests.page.scene import HOSTILE, exporting


def state(name: str) -> dict[str, Any]:
    reading = Reader(name).read()
    found: dict[str, Any] = json.loads(
        json.dumps(state_of(reading, judge(reading)), allow_nan=False)
    )
    return found


def test_what_the_region_holds(scene: tuple[Arena, Cache]) -> None:
    arena, _ = scene
    found = state(arena.name)
    assert (SCHEMA, arena.name) == (found["schema"], found["name"])
    assert arena.region.header["region_id"].hex() == found["arena"]["region_id"]
    assert found["arena"]["draining_since"] is None
    memory = found["memory"]
    tally = arena.region.tally()
    assert [tally[key] for key in ("ready", "claimed", "evicting")] == [
        memory[key] for key in ("ready", "claimed", "evicting")
    ]
    assert (20 * 4 + 5 * 16) * KIB == memory["ready_bytes"]
    assert (3, 3 * 4 * KIB) == (memory["pinned"], memory["pinned_bytes"])
    by_label = {space["label"]: space for space in found["namespaces"]}
    for space in arena.region.namespaces():
        shown = by_label[space["label"]]
        assert space["resident_bytes"] == shown["bytes"]
        assert space["blocks"] == shown["ready"] + shown["claimed"]
    assert {"engine 0", HOSTILE} == {client["label"] for client in found["clients"]}
    assert 64 == found["ssd"]["room"]
    assert arena.region.header["remote_bucket_count"] * 8 == found["hosts"]["room"]
    newest = arena.region.journal(0)[1][-1]
    assert (newest["sequence"], newest["key"].hex()) == (
        found["journal"][0]["sequence"],
        found["journal"][0]["key"],
    )


def test_every_state_of_an_arena(arena_name: Callable[..., str]) -> None:
    missing = state("test-no-such-arena")
    assert ("missing", "down") == (missing["state"], missing["health"]["status"])
    for part in ("arena", "memory", "ssd", "hosts", "map"):
        assert missing[part] is None
    plain = state(arena_name())
    assert plain["ssd"] is None, "made without"
    assert plain["hosts"] is None
    assert [] == plain["reuse"]
    unpopulated = state(arena_name(Shape(segments_ready=0)))
    assert {"absent"} == {cell[0] for cell in unpopulated["map"]["cells"]}


def test_drained(arena: Arena) -> None:
    with open_arena(arena.name) as opened:
        opened.region.set_draining(time.time_ns())
    found = state(arena.name)
    assert abs(found["arena"]["draining_since"] - time.time()) < 60


def test_amounts_add_up() -> None:
    counters = {"hits_memory": 5, "hits_ssd": 3, "hits_remote": 1} | dict.fromkeys(MISSES, 2)
    amounts = amounts_of(counters)
    assert sum(counters.values()) == sum(amounts[name] for name in PLOTTED[:4])
    assert amounts["missed"] == sum(amounts[name] for name in MISSES)


def test_many_readers_cost_what_one_does(scene: tuple[Arena, Cache]) -> None:
    """Answers within a second are one and the same, however many ask."""
    with exporting(scene[0].name) as address:
        bodies = set()
        for _ in range(20):
            with urllib.request.urlopen(address + "api/state") as answer:
                bodies.add(answer.read())
                assert "close" == answer.headers["Connection"], (
                    "its connections are for scrapers too"
                )
        assert len(bodies) < 10
        found = json.loads(bodies.pop())
        assert __version__ == found["exporter"]["version"]
        assert {"last_minute", "misses", "events"} <= found.keys()
