"""Does the cache survive a restart of vLLM's own OpenAI server, and does the server's /metrics say what came of it?

The server that users run, scheduler and worker in processes of their own, killed with all of them; hits as
a client of the API sees them, in `usage.prompt_tokens_details.cached_tokens`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

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
    again.ask(new_prompt("one more"))

    with again._open("/metrics") as response:
        counted = pegashm_metrics(response.read().decode())
    hits, misses = counted["hits"], counted["misses"]
    assert {"memory"} == set(hits)
    assert hits["memory"] == counted["loads"]["memory"] > 0
    assert {"never_stored"} == set(misses)
    assert sum(hits.values()) + sum(misses.values()) == sum(counted["asked"].values())
    assert sum(counted["lookups"].values()) >= sum(hits.values())

    # What the region has counted of both servers holds the sum, too: the first one's died with it.
    region = {entry["key"]: entry["value"] for entry in big_arena.region.counters()}
    parts = {key: value for key, value in region.items() if key.startswith(("hits_", "missed_"))}
    assert region["asked"] == sum(parts.values()) > sum(counted["asked"].values())
    assert region["hits_memory"] == hits["memory"]


def pegashm_metrics(text: str) -> dict[str, dict[str, float]]:
    """By name and by the value of its one label (none: ""), all engines together."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("vllm:pegashm_") and sample.name.endswith("_total"):
                name = sample.name.removeprefix("vllm:pegashm_").removesuffix("_total")
                labels = [sample.labels.get(each) for each in ("tier", "reason", "result")]
                found[name]["".join(label for label in labels if label)] += sample.value
    return {
        name: {label: value for label, value in values.items() if value}
        for name, values in found.items()
    }
