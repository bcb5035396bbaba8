"""What do two engines that run at the same time, on one arena, see of each other?

B and C are started once, side by side, with a real supervisor; each test uses prompts of its own, so that
one tells nothing about the next. The last test makes B leave its namespace and must stay last.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pegashm.arena import Arena, open_arena
from pegashm.names import control_path
from pegashm.reuse import read_window
from pegashm.units import parse_bytes

from tests.arenas import PREFIX, remove_arena
from tests.e2e.engines import Engine, Supervisor, counter, new_prompt
from tests.format.spec import fields_of, sizes_of
from tests.transport.rig import eventually

Expected = Callable[..., list[list[int]]]
RESERVED = "8M"


@dataclass(slots=True)
class Pair:
    """Two engines on one arena; `supervisor` is replaced when a test kills it."""

    b: Engine
    c: Engine
    arena: Arena
    supervisor: Supervisor


@pytest.fixture(scope="module")
def pair(
    models: Callable[..., Path], start_shared: Callable[..., Any], expected: Expected
) -> Iterator[Pair]:
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        supervisor = start_shared(Supervisor, name, "128M", log="supervisor").ready()
        # Not forks of one Python: what they agree on must not hang on what these would share, as the seed of hash().
        how = {"extra": {"reserved_bytes": RESERVED}, "warm": False}
        b = start_shared(Engine, models("qwen3"), name, log="B", **how)
        c = start_shared(Engine, models("qwen3"), name, log="C", **how)
        b.ready()
        c.ready()
        with open_arena(name) as arena:
            yield Pair(b, c, arena, supervisor)
    finally:
        remove_arena(name)


def test_each_loads_what_the_other_stored(pair: Pair, expected: Expected) -> None:
    prompts = [new_prompt(f"each {number}") for number in range(6)]
    correct = expected(*prompts)
    pair.b.ask_later(*prompts[:3])
    pair.c.ask_later(*prompts[3:])
    stored = pair.b.answers() + pair.c.answers()
    pair.b.ask_later(*prompts[3:])
    pair.c.ask_later(*prompts[:3])
    loaded_by_b, loaded_by_c = pair.b.answers(), pair.c.answers()
    loaded = loaded_by_c + loaded_by_b
    assert correct == [answer.tokens for answer in stored]
    assert correct == [answer.tokens for answer in loaded]
    assert [0] * 6 == [answer.cached for answer in stored]
    assert [512] * 6 == [answer.cached for answer in loaded]


def test_what_they_ask_for_is_counted_and_a_reserve_is_theirs(
    pair: Pair, expected: Expected
) -> None:
    """Each request once, by both engines: half of what is asked for is asked for again, and all of that is served."""
    prompts = [new_prompt(f"counted {number}") for number in range(4)]
    before = read_window(pair.arena.region, "1 h", 3600)
    for engine in (pair.b, pair.c):
        assert expected(*prompts) == [answer.tokens for answer in engine.ask(*prompts)]
    after = read_window(pair.arena.region, "1 h", 3600)
    asked, served = after.asked - before.asked, after.served - before.served
    assert (2 * 4 * 4, 4 * 4) == (asked, served)  # 512 tokens are four blocks
    assert after.unique - before.unique == pytest.approx(asked / 2, abs=2)
    (row,) = [row for row in pair.arena.region.namespaces() if row["blocks"]]
    assert parse_bytes(RESERVED) == row["reserved_bytes"]


def test_a_longer_prompt_loads_the_part_they_have_in_common(pair: Pair, expected: Expected) -> None:
    common = new_prompt("common")[:300]
    short, long = common + new_prompt("short", 100), common + new_prompt("long", 400)
    correct = expected(short, long)
    assert correct[0] == pair.b.ask(short)[0].tokens
    answer = pair.c.ask(long)[0]
    assert (correct[1], 256) == (answer.tokens, answer.cached)


def test_a_request_can_decline_to_load(pair: Pair, expected: Expected) -> None:
    prompt = new_prompt("declined")
    correct = expected(prompt)[0]
    pair.b.ask(prompt)
    declined = pair.c.ask(prompt, load=False)[0]
    assert (correct, 0) == (declined.tokens, declined.cached)
    pair.c.forget()
    assert 512 == pair.c.ask(prompt, load=True)[0].cached


def test_a_killed_supervisor_is_not_missed_and_its_successor_readopts(
    pair: Pair, expected: Expected
) -> None:
    """Killed and replaced while both engines are in the middle of prompts."""
    prompts = [new_prompt(f"unwatched {number}") for number in range(8)]
    correct = expected(*prompts)
    pair.b.ask_later(*prompts[:4])
    pair.supervisor.kill()
    stored = pair.b.answers()
    pair.c.ask_later(*prompts)
    again = Supervisor(pair.arena.name, "128M", pair.supervisor.log)
    pair.b.ask_later(*prompts[4:])
    loaded = pair.c.answers()
    both = pair.b.answers()
    pair.supervisor = again.ready()
    try:
        eventually(lambda: "re-adopted" in again.said())
        assert correct[:4] == [answer.tokens for answer in stored]
        assert correct == [answer.tokens for answer in loaded]
        assert [512] * 4 == [answer.cached for answer in loaded[:4]]
        assert correct[4:] == [answer.tokens for answer in both]
        pair.c.forget()
        assert [512] * 8 == [answer.cached for answer in pair.c.ask(*prompts)]
    finally:
        again.stop()


def test_blocks_that_change_under_a_load_are_computed(pair: Pair, expected: Expected) -> None:
    """The test watches for pins, and ends the life of each pinned block before the load has used it.

    Nobody who keeps to the rules can: the state words are overwritten through a mapping of our own. Each
    attempt waits a little longer, so that some come before the copy, some in it, some after.
    """
    prompt = new_prompt("changing", 3900)
    correct = expected(prompt)[0]
    assert correct == pair.b.ask(prompt)[0].tokens
    with contextlib.closing(Records(pair.arena)) as records:
        for attempt in range(12):
            ready = records.unpinned()
            pair.c.ask_later(prompt)
            records.end_what_gets_pinned(ready, attempt % 4 * 5e-4, pair.c.has_answered)
            assert correct == pair.c.answers()[0].tokens
            pair.c.forget()
    said = pair.c.said()
    print(
        f"{said.count('a load for request')} loads failed, "
        f"{counter(pair.arena, 'loads_failed')} blocks changed while they were copied"
    )
    assert "a load for request" in said
    after = new_prompt("after the change")
    assert expected(after)[0] == pair.c.ask(after)[0].tokens


class Records:
    """The block records of an arena through a mapping of the test's own, laid out as FORMAT.md says."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        with open(control_path(arena.name), "r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)
        header = arena.region.header
        words = sizes_of("Block records")[-1] // 8
        at = {field.name: field.offset // 8 for field in fields_of("Block records")}
        table = np.frombuffer(
            self._bytes, np.uint64, header["record_count"] * words, header["blocks_offset"]
        ).reshape(-1, words)
        self._states = table[:, at["state"]]
        self._pins = table[:, at["pins"] : at["pins"] + 2]

    def unpinned(self) -> NDArray[np.uint32]:
        """Records of the blocks that are ready and that nobody holds."""
        blocks = self._arena.region.blocks()
        free = (blocks["state"] == 2) & ~blocks["pins"].any(axis=1)
        return np.asarray(blocks["record"][free], dtype=np.uint32)

    def end_what_gets_pinned(
        self, ready: NDArray[np.uint32], delay_s: float, over: Callable[[], bool]
    ) -> None:
        """Wait for pins on `ready`, then for `delay_s`, then add one to the generation of what is pinned.

        On a busy machine they may come and go unseen: until `over`.
        """
        while not self._pins[ready].any():
            if over():
                return
        until = time.perf_counter() + delay_s
        while time.perf_counter() < until:
            pass
        pinned = ready[self._pins[ready].any(axis=1)]
        self._states[pinned] += np.uint64(1 << 24)

    def close(self) -> None:
        del self._states, self._pins
        self._bytes.close()


def test_an_engine_that_resets_finds_no_old_block_and_others_still_do(
    pair: Pair, expected: Expected
) -> None:
    old, new = new_prompt("before the reset"), new_prompt("after the reset")
    correct = expected(old, new)
    pair.b.ask(old)
    pair.b.forget("everything")
    again = pair.b.ask(old)[0]
    assert (correct[0], 0) == (again.tokens, again.cached)
    other = pair.c.ask(old)[0]
    assert (correct[0], 512) == (other.tokens, other.cached)
    # In its new namespace B stores and finds as before, and C does not see what it stored there.
    pair.b.ask(new)
    pair.b.forget()
    kept = pair.b.ask(new)[0]
    assert (correct[1], 512) == (kept.tokens, kept.cached)
    apart = pair.c.ask(new)[0]
    assert (correct[1], 0) == (apart.tokens, apart.cached)
    assert 0 == counter(pair.arena, "clients_reaped")
