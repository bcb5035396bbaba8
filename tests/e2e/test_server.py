"""Does the cache survive a restart of vLLM's own OpenAI server?

The server that users run, scheduler and worker in processes of their own, killed with all of them; hits as
a client of the API sees them, in `usage.prompt_tokens_details.cached_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pegashm.arena import Arena

from tests.e2e.engines import Server, new_prompt


def test_a_restarted_server_answers_from_what_it_stored_before(
    models: Callable[..., Path],
    start: Callable[..., Server],
    expected: Callable[..., list[list[int]]],
    big_arena: Arena,
) -> None:
    prompt = new_prompt("server")
    correct = expected(prompt)[0]
    server = start(Server, models("qwen3"), big_arena.name).ready()
    before = server.ask(prompt)
    assert (correct, 0) == (before.tokens, before.cached)
    server.ask(new_prompt("another"))  # its steps publish what the first one stored
    server.kill()

    again = start(Server, models("qwen3"), big_arena.name).ready()
    after = again.ask(prompt)
    assert (correct, 512) == (after.tokens, after.cached)
