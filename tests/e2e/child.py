"""One vLLM engine as a child process, told what to do on stdin, one JSON object a line.

Started by `engines.Engine`, never imported. The engine core runs in this very process, so one SIGKILL takes
scheduler and worker together, at whatever they are doing. Answers go to the original stdout; everything that
vLLM prints goes to stderr, which the parent keeps in a log file. End of input ends the engine: it cannot
outlive the test that started it.

    {"ask": [[token, ...], ...], "load": false}   several prompts at once -> {"answers": [{tokens, cached}]}
    {"forget": "own"}         empty the engine's own prefix cache, as between two users -> {"done": true}
    {"forget": "everything"}  and the connector's, as after an update of the weights
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

TOKENS_OUT = 12
# Steps after an answer, so that the last blocks are published before we say so.
SETTLE_SECONDS = 0.4


class Driver:
    """The engine and the number of requests it was given."""

    def __init__(self, options: dict[str, Any], transfer: dict[str, Any] | None) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig

        self.engine: Any = LLM(
            dtype="float32",
            seed=0,
            enforce_eager=True,
            max_model_len=4096,
            max_num_batched_tokens=4096,
            kv_transfer_config=None if transfer is None else KVTransferConfig(**transfer),
            **options,
        ).llm_engine
        self.requests = 0

    def ask(self, prompts: list[list[int]], load: bool | None) -> list[dict[str, Any]]:
        """Greedy tokens for prompts given together, and how much of each was not computed here."""
        from vllm import SamplingParams

        extra = None if load is None else {"kv_transfer_params": {"pegashm": {"load": load}}}
        params = SamplingParams(
            temperature=0, max_tokens=TOKENS_OUT, ignore_eos=True, extra_args=extra
        )
        names = [f"{self.requests + number}" for number in range(len(prompts))]
        self.requests += len(prompts)
        for name, prompt in zip(names, prompts, strict=True):
            self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
        outputs: dict[str, Any] = {}
        while self.engine.has_unfinished_requests():
            outputs.update({output.request_id: output for output in self.engine.step()})
        self.settle(SETTLE_SECONDS)
        return [
            {
                "tokens": list(outputs[name].outputs[0].token_ids),
                "cached": outputs[name].num_cached_tokens or 0,
            }
            for name in names
        ]

    def settle(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.engine.step()
            time.sleep(0.005)

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if "ask" in order:
            return {"answers": self.ask(order["ask"], order.get("load"))}
        everything = order["forget"] == "everything"
        return {"done": self.engine.reset_prefix_cache(reset_connector=everything)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    driver = Driver(**json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(driver.obey(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
