"""One vLLM engine of the overhead bench: answers the prompts it is given, and says how long that took.

Started by overhead.py as `python -m bench.overhead_engine MODEL`, with PEGASHM_ARENA in its environment when it is to use
PegaShm. One JSON object a line on its input, one on its output: `{"prompts": [[token, ...]], "tokens": N}` is answered with
the seconds to the first token of all and to the end, the tokens, and how many prompt tokens were not computed;
`{"forget": true}` empties the engine's own prefix cache. Everything that vLLM prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

__all__ = ["main"]

SETTLE_SECONDS = 0.3  # steps after an answer, in nobody's time: the last blocks are published then


def make_engine(model: str, *, with_pegashm: bool) -> Any:
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


def answer(engine: Any, number: int, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    names = [f"{number}-{index}" for index in range(len(prompts))]
    began = time.perf_counter()
    for name, prompt in zip(names, prompts, strict=True):
        engine.add_request(name, {"prompt_token_ids": prompt}, params)
    waiting, first = set(names), 0.0
    outputs: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            outputs[output.request_id] = output
            if output.outputs[0].token_ids and output.request_id in waiting:
                waiting.discard(output.request_id)
                first = time.perf_counter() - began
    seconds = time.perf_counter() - began
    until = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < until:
        engine.step()
        time.sleep(0.005)
    return {
        "seconds": seconds,
        "first": first,
        "tokens": [list(outputs[name].outputs[0].token_ids) for name in names],
        "cached": sum(outputs[name].num_cached_tokens or 0 for name in names),
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = make_engine(sys.argv[1], with_pegashm="PEGASHM_ARENA" in os.environ)
    print(json.dumps({"ready": True}), file=answers)
    for number, line in enumerate(sys.stdin):
        order = json.loads(line)
        if "forget" in order:
            said: dict[str, Any] = {"done": bool(engine.reset_prefix_cache())}
        else:
            said = answer(engine, number, order["prompts"], order["tokens"])
        print(json.dumps(said), file=answers)


if __name__ == "__main__":
    main()
