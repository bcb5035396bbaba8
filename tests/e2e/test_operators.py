"""What does an operator's hand do beside a real engine? Its traffic is recorded and replayed, and its blocks are dropped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.admin.scenes import said
from tests.e2e.engines import Engine, new_prompt
from tests.e2e.test_spill import until

CHUNKS = 4  # whole chunks of 128 tokens in a prompt
NOTICED_SECONDS = 2.5  # an engine looks for a recorder every two seconds


def test_traffic_is_recorded_and_blocks_are_dropped(
    models: Callable[..., Path], start: Callable[..., Any], big_arena: Any, tmp_path: Path
) -> None:
    name, model = big_arena.name, models("qwen3")
    engine: Engine = start(Engine, model, name).ready()
    prompts = [new_prompt("first"), new_prompt("second")]
    cold = engine.ask(*prompts)

    trace = tmp_path / "trace.jsonl"
    command = [sys.executable, "-m", "pegashm", "trace", "record", "--name", name, "--json"]
    recorder = subprocess.Popen(
        [*command, "--out", str(trace), "--requests", "4"], stdout=subprocess.PIPE, text=True
    )
    until(trace.exists)
    time.sleep(NOTICED_SECONDS)
    for _ in range(2):
        engine.forget()
        warm = engine.ask(*prompts)
        assert [answer.tokens for answer in cold] == [answer.tokens for answer in warm]
        assert [128 * CHUNKS] * 2 == [answer.cached for answer in warm]
    printed, _ = recorder.communicate(timeout=60)
    assert (0, 4) == (recorder.returncode, json.loads(printed)["requests"])
    asked = [json.loads(line)["hash_ids"] for line in trace.read_text().splitlines()]
    assert asked[:2] == asked[2:]
    assert [CHUNKS] * 4 == [len(ids) for ids in asked]
    assert 2 * CHUNKS == len({block for ids in asked for block in ids})
    replayed = said("trace", "replay", str(trace), "--budget", "1G")
    assert (4, 2 * CHUNKS) == (replayed["requests"], replayed["distinct"])

    (namespace,) = (row["label"] for row in big_arena.region.namespaces())
    dropped = said("drop", "--name", name, "--namespace", namespace, "--yes")
    assert 2 * CHUNKS == dropped["evicted"]
    engine.forget()
    again = engine.ask(*prompts)
    assert [answer.tokens for answer in cold] == [answer.tokens for answer in again]
    assert [0, 0] == [answer.cached for answer in again]
    engine.forget()
    assert [128 * CHUNKS] * 2 == [answer.cached for answer in engine.ask(*prompts)]
