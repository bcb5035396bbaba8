"""One vLLM engine as a child process: it answers prompts given on stdin, one JSON object a line.

Started by `processes.Engine`, never imported. The engine runs in this very process, so one SIGKILL takes
scheduler and worker together, at whatever they are doing. Answers go to the original stdout; everything that
vLLM prints goes to stderr, which the parent keeps in a log file. End of input ends the engine, and the
parent's death kills it, also while it starts: it cannot outlive the demo.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
SETTLE_SECONDS = (
    0.5  # steps after an answer, so that the last blocks are published before we say so
)


def attach_ms(arena_name: str) -> float:
    """Open, map and validate the arena once, as the connector will: what attaching costs an engine."""
    from pegashm.arena import open_arena

    began = time.perf_counter()
    with open_arena(arena_name):
        return (time.perf_counter() - began) * 1e3


def start_engine(model: str, *, with_pegashm: bool) -> Any:
    from vllm import LLM
    from vllm.config import KVTransferConfig

    transfer = KVTransferConfig(
        kv_connector="PegaShmConnector",
        kv_connector_module_path="pegashm.connector",
        kv_role="kv_both",
    )
    return LLM(
        model=model,
        dtype="float32",
        seed=0,
        enforce_eager=True,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        kv_transfer_config=transfer if with_pegashm else None,
    ).llm_engine


def answer(engine: Any, number: int, token_ids: list[int]) -> Mapping[str, Any]:
    """Greedy tokens for one prompt, when the first of them came, and how much was not computed here."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    began = time.perf_counter()
    engine.add_request(f"demo-{number}", {"prompt_token_ids": token_ids}, params)
    first: float | None = None
    last: Any = None
    while engine.has_unfinished_requests():
        for output in engine.step():
            if first is None and output.outputs[0].token_ids:
                first = time.perf_counter() - began
            last = output
    until = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < until:
        engine.step()
        time.sleep(0.005)
    return {
        "tokens": list(last.outputs[0].token_ids),
        "cached": last.num_cached_tokens or 0,
        "ttft_ms": (first or 0.0) * 1e3,
    }


def die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    die_with_parent()
    model, arena_name = sys.argv[1], os.environ.get("PEGASHM_ARENA")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    attached = attach_ms(arena_name) if arena_name else None
    engine = start_engine(model, with_pegashm=arena_name is not None)
    print(json.dumps({"ready": True, "attach_ms": attached}), file=answers)
    for number, line in enumerate(sys.stdin):
        print(json.dumps(answer(engine, number, json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
