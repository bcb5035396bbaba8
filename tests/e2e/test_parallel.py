"""Do tensor-parallel engines share with their like, and never with engines of another size?

Each worker of a TP=2 engine holds half of the heads, so a block has a cell for each of them, is published
when both have written, and means nothing to an engine of one worker.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pegashm.arena import Arena

from tests.e2e.engines import Engine, new_prompt


def test_two_workers_load_what_two_workers_stored_and_one_worker_does_not(
    models: Callable[..., Path],
    start: Callable[..., Any],
    expected: Callable[..., list[list[int]]],
    neighbour: Engine,
    shared_arena: Arena,
) -> None:
    def two() -> Engine:
        engine: Engine = start(
            Engine,
            models("qwen3"),
            shared_arena.name,
            options={"tensor_parallel_size": 2},
            environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        )
        return engine

    first, second = new_prompt("first of two"), new_prompt("second of two")
    correct = expected(first, second)
    storing = two().ready()
    stored = storing.ask(first)[0]
    assert (correct[0], 0) == (stored.tokens, stored.cached)
    assert 2 in shared_arena.region.blocks()["parts_done"], "both workers wrote"
    storing.kill()

    loading = two().ready()
    loaded = loading.ask(first)[0]
    assert (correct[0], 512) == (loaded.tokens, loaded.cached)
    apart = neighbour.ask(first)[0]
    assert (correct[0], 0) == (apart.tokens, apart.cached)
    neighbour.ask(second)
    apart = loading.ask(second)[0]
    assert (correct[1], 0) == (apart.tokens, apart.cached)
