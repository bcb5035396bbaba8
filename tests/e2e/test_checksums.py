"""Does an engine with checksums on ever use bytes that changed in the arena?

Payloads are changed behind everybody's back while nobody uses them, as a memory error or a stray write would. The
engine's answers stay those of an engine without us, and what was changed is stored anew. That changed bytes do
reach an engine without checksums is shown in `test_models.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pegashm.arena import Arena

from tests.e2e.engines import Engine, counter, new_prompt, zero_payload

Start = Callable[..., Any]


def flip_one_byte(arena: Arena, block: int, at: int) -> None:
    """In the payload of the `block`-th READY block; counted from its end when negative."""
    blocks = arena.region.blocks()
    ready = blocks[blocks["state"] == 2][block]
    size = int(ready["payload_bytes"])
    payload = arena.region.payload(int(ready["payload_offset"]), size)
    payload[at % size] ^= 0x40


def test_changed_payloads_are_computed_and_stored_anew(
    models: Callable[..., Path],
    start: Start,
    expected: Callable[..., list[list[int]]],
    big_arena: Arena,
) -> None:
    prompt = new_prompt("a flipped byte")
    correct = expected(prompt)[0]
    engine = start(Engine, models("qwen3"), big_arena.name, extra={"checksums": "on"}).ready()
    assert (correct, 0) == (engine.ask(prompt)[0].tokens, 0)
    assert {1} == set(big_arena.region.blocks()["sum_parts"].tolist())
    engine.forget()
    assert 512 == engine.ask(prompt)[0].cached
    assert 4 <= counter(big_arena, "payloads_verified")

    flip_one_byte(big_arena, 1, 12345)
    engine.forget()
    assert correct == engine.ask(prompt)[0].tokens
    assert 1 == counter(big_arena, "payloads_damaged")
    assert 1 <= counter(big_arena, "loads_failed")
    assert "part 0: the bytes have checksum" in engine.said()
    engine.forget()
    again = engine.ask(prompt)[0]
    assert (correct, 512) == (again.tokens, again.cached), "what was damaged is whole again"

    changed = zero_payload(big_arena)
    engine.forget()
    assert correct == engine.ask(prompt)[0].tokens
    assert 1 + changed == counter(big_arena, "payloads_damaged")
    # vLLM stores nothing of a request whose whole hit has failed; the next one of this prompt is stored.
    engine.forget()
    assert correct == engine.ask(prompt)[0].tokens
    engine.forget()
    again = engine.ask(prompt)[0]
    assert (correct, 512) == (again.tokens, again.cached)


def test_one_of_two_workers_finds_its_bytes_changed(
    models: Callable[..., Path],
    start: Start,
    expected: Callable[..., list[list[int]]],
    big_arena: Arena,
) -> None:
    """Tensor parallel: each worker has a checksum of its own, and one's failure fails the load of both."""
    prompt = new_prompt("half of a block")
    correct = expected(prompt)[0]
    engine = start(
        Engine,
        models("qwen3"),
        big_arena.name,
        options={"tensor_parallel_size": 2},
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1", "PEGASHM_CHECKSUMS": "on"},
    ).ready()
    assert correct == engine.ask(prompt)[0].tokens
    assert {2} == set(big_arena.region.blocks()["sum_parts"].tolist())

    flip_one_byte(big_arena, 2, -1)  # the second worker's cell
    engine.forget()
    assert correct == engine.ask(prompt)[0].tokens
    assert 1 == counter(big_arena, "payloads_damaged")
    assert "part 1: the bytes have checksum" in engine.said()
    engine.forget()
    again = engine.ask(prompt)[0]
    assert (correct, 512) == (again.tokens, again.cached)
