"""Does `pegashm-dump --follow` tell every event once, in order, and say which ones it could not?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.names import control_path
from pegashm.tools.watch import event_line, events

from tests.arenas import remove_arena
from tests.format.spec import Stranger
from tests.tools.scenes import FENCE

MakeArena = Callable[..., str]


def store(cache: Cache, count: int) -> None:
    """`count` publish events, one key each; blocks are evicted as needed, which adds events."""
    for index in range(count):
        handles, _ = cache.claim([index.to_bytes(8, "big") + bytes(4)], 4096)
        cache.publish(handles)


def read_for(name: str, seconds: float, backlog: int = 10) -> list[dict[str, Any]]:
    with open_arena(name, writable=False, map_payload=False) as arena:
        return list(events(arena.region, control_path(name), backlog=backlog, seconds=seconds))


def test_events_come_as_they_happen(arena_name: MakeArena) -> None:
    """The command prints what happens after it started, one JSON line each, and ends when told."""
    name = arena_name()
    with Cache.attach(name, namespace=FENCE) as cache:
        store(cache, 3)
        follower = subprocess.Popen(
            [sys.executable, "-m", "pegashm.tools.dump", "--name", name, "--follow", "--json",
             "--backlog", "2"],
            stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        assert follower.stdout is not None
        past = [json.loads(follower.stdout.readline())["sequence"] for _ in range(2)]
        handles, _ = cache.find([(1).to_bytes(8, "big") + bytes(4)])
        cache.evict(handles)
        live = json.loads(follower.stdout.readline())
        follower.terminate()
        follower.communicate()
    assert [2, 3] == past
    assert (4, "evict", (1).to_bytes(8, "big").hex(), int(handles[0])) == tuple(
        live[key] for key in ("sequence", "event", "key", "handle")
    )


def test_interrupt_ends_it_well(arena_name: MakeArena) -> None:
    name = arena_name()
    with Cache.attach(name, namespace=FENCE) as cache:
        store(cache, 1)
        follower = subprocess.Popen(
            [sys.executable, "-m", "pegashm.tools.dump", "--name", name, "--follow"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        assert follower.stdout is not None
        assert "publish" in follower.stdout.readline()
        follower.send_signal(2)
        _, errors = follower.communicate()
    assert 0 == follower.returncode
    assert "Traceback" not in errors


def test_every_event_once_while_the_ring_turns(arena_name: MakeArena) -> None:
    """Slower than the writer, it says exactly which sequence numbers were overwritten."""
    name = arena_name()
    with Cache.attach(name, namespace=FENCE) as cache, open_arena(name) as arena:
        store(cache, 3)
        follow = events(arena.region, control_path(name), backlog=3, seconds=None)
        seen = [next(follow)]
        store(cache, arena.region.header["journal_entry_count"])  # and evictions: over a turn
        head = arena.region.header["journal_head"]
        while seen[-1].get("sequence") != head:
            seen.append(next(follow))
    told: list[int] = []
    for event in seen:
        if event["event"] == "overwritten":
            assert "overwritten before they could be read" in event_line(event)
            assert event["count"] == event["last"] - event["first"] + 1
            told.extend(range(event["first"], event["last"] + 1))
        else:
            told.append(event["sequence"])
    assert list(range(1, head + 1)) == told
    assert "overwritten" in {event["event"] for event in seen}


def test_event_that_was_never_written_is_told(arena_name: MakeArena) -> None:
    """A process that died between taking a number and writing its event leaves a gap that we name."""
    name = arena_name()
    with Cache.attach(name, namespace=FENCE) as cache:
        store(cache, 5)
        header = Stranger(Path(control_path(name)).read_bytes())
        with Path(control_path(name)).open("r+b") as control:
            control.seek(header.number("journal_offset") + 3 * 64)
            control.write(bytes(8))
        told = read_for(name, 1.0)
    assert [1, 2, None, 4, 5] == [event.get("sequence") for event in told]
    assert {"event": "unwritten", "first": 3, "last": 3, "count": 1} == told[2]


def test_purged_arena_ends_it(arena_name: MakeArena) -> None:
    name = arena_name()
    with Cache.attach(name, namespace=FENCE) as cache:
        store(cache, 1)
        follow = events(cache.region, control_path(name), backlog=1, seconds=None)
        assert 1 == next(follow)["sequence"]
        remove_arena(name)
        assert [{"event": "gone", "path": control_path(name)}] == list(follow)
