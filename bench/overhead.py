"""What does an engine pay for PegaShm when it hits nothing, and what does it gain when it hits everything?

Real vLLM engines on a tiny model, one with the connector and one without, in alternating runs. Cold: batches of prompts that
nobody has seen, every block of which the connector looks up, misses and stores; the ratio is of the medians of
whole batches, prefill and decode. Warm: one prompt at a time, its time to the first token when computed and, after the engine's own
prefix cache was emptied, when loaded. All answers of both engines are compared. A tiny model computes a token in microseconds,
so that what a connector costs weighs more here than on a model of billions. Needs vLLM.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.served import served_arena

__all__ = ["measure"]

MIB = 1 << 20
QUESTION = (
    "What does the connector cost an engine that hits nothing, and what does it save one that hits?"
)
NOT_SHOWN = (
    "a GPU, whose copies run beside the computing, and a model of real size",
    "many requests at once that share prefixes: bench.replay",
)
MODEL_MAKER = Path(__file__).parent.parent / "tests" / "models" / "make_model.py"
VOCABULARY = 500
BATCH_PROMPTS, BATCH_PROMPT_TOKENS, BATCH_TOKENS = 8, 1000, 32
PROMPT_TOKENS = (512, 1024, 2048, 3840)
QUIET_VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Engine:
    """A child that answers. `arena`: whose, None for an engine without us."""

    def __init__(self, model: str, arena: str | None) -> None:
        environment = {**os.environ, **QUIET_VLLM}
        environment.pop("PEGASHM_ARENA", None)
        if arena is not None:
            environment |= {"PEGASHM_ARENA": arena, "PEGASHM_REQUIRED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.overhead_engine", model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if arena is None else None,
            text=True,
            env=environment,
        )

    def ready(self) -> Engine:
        self._hear()
        return self

    def ask(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
        return self._say({"prompts": [list(prompt) for prompt in prompts], "tokens": tokens})

    def forget(self) -> None:
        self._say({"forget": True})

    def _say(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("an engine has ended; it says why above")
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def measure(options: harness.Options) -> harness.Findings:
    if importlib.util.find_spec("vllm") is None:
        raise SystemExit(
            "this bench runs vLLM engines, and vLLM is not installed here. Type: pip install 'pegashm[vllm]'"
        )
    rounds = options.pick(25, 7, 1)
    lengths = options.pick(PROMPT_TOKENS, PROMPT_TOKENS, (512,))
    digest = hashlib.sha256()
    with engines() as (with_us, without):
        cold = measure_cold(with_us, without, rounds, digest)
        warm = [
            measure_warm(with_us, without, length, options.pick(9, 5, 1), digest)
            for length in lengths
        ]
    figures = {
        "rounds": rounds,
        "cold_overhead": cold["overhead"],
        "ttft_gain": {row["tokens"]: row["gain"] for row in warm},
        "cold": cold,
        "warm": warm,
    }
    return harness.Findings([cold_table(cold), warm_table(warm)], figures, digest.hexdigest()[:16])


@contextlib.contextmanager
def engines() -> Iterator[tuple[Engine, Engine]]:
    """One on an arena of its own, one without; both start at once."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pegashm-bench-"))
        model = os.path.join(folder, "model")
        harness.progress("making a model, starting two engines")
        command = [sys.executable, str(MODEL_MAKER), "qwen3", model]
        subprocess.run(command, check=True, capture_output=True)
        options = ["--segment-size", str(4 * MIB)]
        arena = stack.enter_context(served_arena("overhead", 2048 * MIB, None, options=options))
        both = [
            stack.enter_context(contextlib.closing(Engine(model, name))) for name in (arena, None)
        ]
        yield both[0].ready(), both[1].ready()


def measure_cold(with_us: Engine, without: Engine, rounds: int, digest: Any) -> dict[str, Any]:
    harness.progress(f"cold: {rounds} rounds")
    prompts = new_prompts(BATCH_PROMPT_TOKENS)
    answers: dict[str, list[Any]] = {"with": [], "without": []}
    batches: dict[str, Iterator[list[list[int]]]] = {
        name: batches_of(prompts_)
        for name, prompts_ in zip(answers, itertools.tee(prompts), strict=True)
    }

    def batch(name: str, engine: Engine) -> float:
        said = engine.ask(next(batches[name]), BATCH_TOKENS)
        if said["cached"]:
            raise AssertionError(f"{said['cached']} tokens of new prompts were hits")
        answers[name].append(said["tokens"])
        return float(said["seconds"])

    runs: dict[str, Callable[[], float]] = {
        "with": partial(batch, "with", with_us),
        "without": partial(batch, "without", without),
    }
    for once in runs.values():
        once()  # kernels and pools are warm
    taken = harness.interleave(rounds, runs)
    compare(answers["with"], answers["without"], digest)
    seconds = {name: harness.median(times) for name, times in taken.items()}
    tokens = BATCH_PROMPTS * (BATCH_PROMPT_TOKENS + BATCH_TOKENS)
    pairs = [a / b - 1 for a, b in zip(taken["with"], taken["without"], strict=True)]
    return {
        "tokens_a_second": {name: round(tokens / value, 1) for name, value in seconds.items()},
        "overhead": round(seconds["with"] / seconds["without"] - 1, 4),
        "overhead_pairs_median": round(harness.median(pairs), 4),
        "overhead_quickest": round(min(taken["with"]) / min(taken["without"]) - 1, 4),
        "seconds": {name: [round(value, 4) for value in times] for name, times in taken.items()},
    }


def measure_warm(
    with_us: Engine, without: Engine, length: int, rounds: int, digest: Any
) -> dict[str, Any]:
    harness.progress(f"prompts of {length} tokens")
    prompts = new_prompts(length, salt=length)
    computed, stored, loaded, cached = [], [], [], []
    for _ in range(rounds):
        prompt = next(prompts)
        without.forget()
        right = without.ask([prompt], 1)
        first = with_us.ask([prompt], 1)
        with_us.forget()
        again = with_us.ask([prompt], 1)
        compare([first["tokens"], again["tokens"]], [right["tokens"]] * 2, digest)
        computed.append(right["first"])
        stored.append(first["first"])
        loaded.append(again["first"])
        cached.append(again["cached"])
    ms = {
        "computed": harness.median(computed) * 1e3,
        "computed_and_stored": harness.median(stored) * 1e3,
        "loaded": harness.median(loaded) * 1e3,
    }
    return {
        "tokens": length,
        "loaded_tokens": round(harness.median(cached)),
        "ttft_ms": {name: round(value, 1) for name, value in ms.items()},
        "gain": round(ms["computed"] / ms["loaded"], 1),
    }


def compare(ours: Sequence[Any], theirs: Sequence[Any], digest: Any) -> None:
    if list(ours) != list(theirs):
        raise AssertionError("the engine with PegaShm answered otherwise than the one without")
    digest.update(repr(theirs).encode())


def new_prompts(length: int, salt: int = 0) -> Iterator[list[int]]:
    chance = np.random.default_rng([harness.SEED, salt])
    while True:
        yield chance.integers(10, VOCABULARY, length).tolist()


def batches_of(prompts: Iterator[list[int]]) -> Iterator[list[list[int]]]:
    while True:
        yield list(itertools.islice(prompts, BATCH_PROMPTS))


def cold_table(cold: dict[str, Any]) -> Any:
    speeds = cold["tokens_a_second"]
    return harness.table(
        f"{BATCH_PROMPTS} new prompts of {BATCH_PROMPT_TOKENS} tokens at once, {BATCH_TOKENS} tokens each",
        ("tokens/s without", "with", "overhead", "median of pairs", "of the quickest"),
        [
            (
                speeds["without"],
                speeds["with"],
                f"{cold['overhead']:+.2%}",
                f"{cold['overhead_pairs_median']:+.2%}",
                f"{cold['overhead_quickest']:+.2%}",
            )
        ],
    )


def warm_table(rows: Sequence[dict[str, Any]]) -> Any:
    return harness.table(
        "Time to the first token, ms",
        ("prompt tokens", "computed", "computed and stored", "loaded", "tokens loaded", "times"),
        [
            (row["tokens"], *row["ttft_ms"].values(), row["loaded_tokens"], row["gain"])
            for row in rows
        ],
    )


if __name__ == "__main__":
    harness.run("overhead", QUESTION, not_shown=NOT_SHOWN, measure=measure)
