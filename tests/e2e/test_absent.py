"""What does an engine do without an arena, and with settings that cannot work?

Without one it serves as if we were not there, says so once, and attaches when the arena appears; with
PEGASHM_REQUIRED=1 it ends and names the command that would help.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.arenas import PREFIX, remove_arena
from tests.e2e.engines import Engine, Supervisor, new_prompt

SIZE = "128M"


@pytest.fixture
def absent() -> Iterator[str]:
    """The name of an arena that nobody has created yet."""
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    remove_arena(name)


def test_an_engine_without_its_arena_serves_and_attaches_when_it_appears(
    absent: str,
    models: Callable[..., Path],
    start: Callable[..., Any],
    expected: Callable[..., list[list[int]]],
) -> None:
    before, after, anew = (new_prompt(f"absent {number}") for number in range(3))
    correct = expected(before, after, anew)
    engine: Engine = start(Engine, models("qwen3"), absent, environment={"PEGASHM_REQUIRED": "0"})
    engine.ready()
    for _ in range(3):
        assert correct[0] == engine.ask(before)[0].tokens
        time.sleep(1)
    warnings = [
        line for line in engine.said().splitlines() if "WARNING" in line and "PegaShm" in line
    ]
    assert 1 == len(warnings), warnings
    assert "pegashm serve" in warnings[0]

    supervisor: Supervisor = start(Supervisor, absent, SIZE)
    supervisor.ready()
    stored_and_found(engine, after, correct[1])
    # Purged and created anew under its feet: it lets go of the old one and attaches to the new one.
    supervisor.stop()
    remove_arena(absent)
    start(Supervisor, absent, SIZE).ready()
    until_it_says(
        engine, "was purged", before
    )  # until then it hits the old one, which it has mapped
    stored_and_found(engine, anew, correct[2])


def until_it_says(engine: Engine, words: str, prompt: list[int]) -> None:
    """It looks at its arena in its steps, every two seconds."""
    for _ in range(20):
        engine.ask(prompt)
        if words in engine.said():
            return
        time.sleep(0.5)
    raise engine.failure(f'did not say "{words}"')


def stored_and_found(engine: Engine, prompt: list[int], correct: list[int]) -> None:
    """Ask until the answer comes from the arena; it looks for one every two seconds."""
    for _ in range(10):
        engine.forget()
        answer = engine.ask(prompt)[0]
        assert correct == answer.tokens
        if answer.cached:
            assert 512 == answer.cached
            return
        time.sleep(0.5)
    raise engine.failure("did not attach")


def test_what_cannot_work_is_refused_at_start(
    absent: str, models: Callable[..., Path], start: Callable[..., Any]
) -> None:
    required: Engine = start(Engine, models("qwen3"), absent)
    unstable: Engine = start(
        Engine, models("qwen3"), absent, options={"prefix_caching_hash_algo": "xxhash"}
    )
    said = required.fails()
    assert f"pegashm serve --name {absent}" in said
    assert "PYTHONHASHSEED" in unstable.fails()
