"""Does an engine answer from what a dead engine stored, for each kind of KV cache?

Grouped-query attention, a hybrid of sliding windows and full attention, and latent attention (MLA). The
last part is the negative control: with the stored bytes zeroed the answer must change, or the tokens
that count as loaded would not have been used at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegashm.arena import Arena
from pegashm.kv_of_model import read_model
from pegashm.plan import plan_blocks

from tests.e2e.engines import (
    OPTIONS,
    PROMPT_TOKENS,
    Engine,
    counter,
    new_prompt,
    zero_payload,
)


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_a_killed_engine_stored_is_loaded_and_used(
    kind: str, models: Callable[..., Path], start: Callable[..., Engine], big_arena: Arena
) -> None:
    model, options = models(kind), OPTIONS[kind]
    prompt, other = new_prompt("1"), new_prompt("2")
    alone = start(Engine, model, None, options=options)
    storing = start(Engine, model, big_arena.name, options=options)
    alone.ready()
    storing.ready()
    correct = [answer.tokens for answer in alone.ask(prompt) + alone.ask(other)]
    alone.kill()
    first = storing.ask(prompt)[0]
    assert (correct[0], 0) == (first.tokens, first.cached)
    assert_blocks_are_as_planned(big_arena, model, options)
    storing.kill()

    loading = start(Engine, model, big_arena.name, options=options).ready()
    before = counter(big_arena, "bytes_loaded")
    second = loading.ask(prompt)[0]
    assert correct[0] == second.tokens
    assert second.cached >= 512
    assert counter(big_arena, "bytes_loaded") > before
    assert correct[1] == loading.ask(other)[0].tokens
    assert big_arena.region.blocks()["pins"].sum() == 0

    loading.forget()
    assert zero_payload(big_arena) > 0
    third = loading.ask(prompt)[0]
    assert third.cached >= 512
    assert correct[0] != third.tokens


def assert_blocks_are_as_planned(arena: Arena, model: Path, options: dict[str, Any]) -> None:
    """What `pegashm plan` says of this model is what its engine has stored: blocks of that size, and so many."""
    tokens = options.get("block_size", 128)
    planned = plan_blocks(read_model(str(model), dtype="float32"), block_tokens=tokens)
    blocks = arena.region.blocks()
    stored = blocks[blocks["payload_bytes"] != 0]
    assert {planned.chunk_bytes} == set(stored["payload_bytes"].tolist())
    # All whole blocks of the prompt in one group, at least the window's last in others; and at most one more of the answer.
    whole, groups = PROMPT_TOKENS // tokens, len(planned.groups)
    assert whole + groups - 1 <= len(stored) <= groups * (whole + 1)
