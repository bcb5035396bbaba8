"""Who sees whose blocks? Engines on one arena that differ in one thing each.

A neighbour stores; a copy of its model in another folder loads; other weights of the same shape, and the
same weights under another `weights_version`, find nothing and answer as they would alone. Two engines more
that only save or only load.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pegashm.arena import Arena

from tests.e2e.engines import Engine, new_prompt

Expected = Callable[..., list[list[int]]]


def test_a_copy_of_the_model_loads_and_other_weights_do_not(
    models: Callable[..., Path],
    start: Callable[..., Any],
    expected: Expected,
    neighbour: Engine,
    shared_arena: Arena,
    tmp_path: Path,
) -> None:
    prompt = new_prompt("fence")
    correct = expected(prompt)[0]
    assert correct == neighbour.ask(prompt)[0].tokens
    copied = tmp_path / "a copy elsewhere"
    shutil.copytree(models("qwen3"), copied)
    same: Engine = start(Engine, copied, shared_arena.name)
    other: Engine = start(Engine, models("qwen3", 1), shared_arena.name)
    same.ready()
    other.ready()
    answer = same.ask(prompt)[0]
    assert (correct, 512) == (answer.tokens, answer.cached)
    answer = other.ask(prompt)[0]
    assert 0 == answer.cached
    assert correct != answer.tokens
    other.forget()
    again = other.ask(prompt)[0]
    assert (answer.tokens, 512) == (again.tokens, again.cached), "its own blocks, its own answer"
    neighbour.forget()
    mine = neighbour.ask(prompt)[0]
    assert (correct, 512) == (mine.tokens, mine.cached)


def test_versions_and_modes(
    models: Callable[..., Path],
    start: Callable[..., Any],
    expected: Expected,
    neighbour: Engine,
    shared_arena: Arena,
) -> None:
    first, second, third = (new_prompt(f"mode {number}") for number in range(3))
    correct = expected(first, second, third)
    neighbour.ask(first)
    saving: Engine = start(
        Engine,
        models("qwen3"),
        shared_arena.name,
        extra={"mode": "save-only", "weights_version": "update 7"},
    )
    loading: Engine = start(
        Engine,
        models("qwen3"),
        shared_arena.name,
        extra={"mode": "load-only", "weights_version": "update 7"},
    )
    saving.ready()
    loading.ready()

    apart = loading.ask(first)[0]
    assert (correct[0], 0) == (apart.tokens, apart.cached), "another version of the weights"

    saved = saving.ask(second)[0]
    assert (correct[1], 0) == (saved.tokens, saved.cached)
    saving.forget()
    assert 0 == saving.ask(second)[0].cached, "save-only"
    loaded = loading.ask(second)[0]
    assert (correct[1], 512) == (loaded.tokens, loaded.cached)
    before = shared_arena.region.tally()["ready"]
    unsaved = loading.ask(third)[0]
    assert (correct[2], 0) == (unsaved.tokens, unsaved.cached)
    assert before == shared_arena.region.tally()["ready"], "load-only"
    loading.forget()
    assert 0 == loading.ask(third)[0].cached
    assert 0 == neighbour.ask(second)[0].cached, "another version of the weights"

    # One that ends by itself, unlike all that are killed here, gives back its slot.
    clients = len(shared_arena.region.clients())
    assert 0 == loading.stop(60), loading.failure("did not end well")
    assert clients - 1 == len(shared_arena.region.clients())
