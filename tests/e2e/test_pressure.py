"""Is every answer right, and every block accounted for, while eviction runs all the time?

Two engines at once, an arena of 32 blocks, and prompts that need four times as many; each is asked
several at a time, twice, in an order of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pegashm.arena import open_arena
from pegashm.units import MIB

from tests.arenas import Shape
from tests.e2e.engines import Engine, counter, new_prompt

PROMPTS = 32
AT_ONCE = 4


def test_an_arena_much_too_small(
    models: Callable[..., Path],
    start: Callable[..., Any],
    expected: Callable[..., list[list[int]]],
    arena_name: Callable[..., str],
    chance: random.Random,
) -> None:
    name = arena_name(Shape(segment_bytes=4 * MIB, segments_per_arena=(4,)))
    engines: list[Engine] = [start(Engine, models("qwen3"), name) for _ in range(2)]
    prompts = [new_prompt(f"pressure {number}") for number in range(PROMPTS)]
    correct = expected(*prompts)
    for engine in engines:
        engine.ready()
    for _ in range(2):
        orders = [chance.sample(range(PROMPTS), PROMPTS) for _ in engines]
        for begin in range(0, PROMPTS, AT_ONCE):
            chosen = [order[begin : begin + AT_ONCE] for order in orders]
            for engine, numbers in zip(engines, chosen, strict=True):
                engine.ask_later(*(prompts[number] for number in numbers))
            for engine, numbers in zip(engines, chosen, strict=True):
                answers = [answer.tokens for answer in engine.answers()]
                assert [correct[number] for number in numbers] == answers
        for engine in engines:
            engine.forget()  # the second round finds only what the arena still has
    with open_arena(name) as arena:
        assert counter(arena, "evictions") > 2 * PROMPTS
        assert counter(arena, "hits") > 0
        assert counter(arena, "loads_failed") == 0
        tally = arena.region.tally()
        assert (0, 0, 0) == (tally["claimed"], tally["evicting"], tally["damaged"])
        assert tally["ready"] > 0
        assert 0 == arena.region.blocks()["pins"].sum()
        found = arena.region.repair()
        assert not any(found.values()), found
