"""Real engines, servers and supervisors for the end-to-end tests, seen from outside.

Every process can be killed with SIGKILL and is always reaped; every wait has a deadline and ends early when
the process dies, with the end of its log in the failure. `Engine` speaks to `child.py`; `Server` is vLLM's own
OpenAI server. An engine is started at once and waited for later, so that two can start side by side.
Whatever a test needs to see of the arena, it sees as any stranger would: by opening it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegashm.arena import Arena

from tests.e2e.warm import Fork
from tests.ports import free_port

__all__ = [
    "OPTIONS",
    "Answer",
    "Engine",
    "Server",
    "Supervisor",
    "counter",
    "new_prompt",
    "transfer_config",
    "zero_payload",
]

HERE = Path(__file__).parent
READY_SECONDS = 600.0
ANSWER_SECONDS = 120.0
PROMPT_TOKENS = 550  # four blocks of 128 and a tail: 512 tokens can come from the cache
# What each kind of model wants: the CPU kernel of latent attention is compiled for blocks of 16.
OPTIONS: dict[str, dict[str, Any]] = {"qwen3": {}, "gemma3": {}, "dsv2": {"block_size": 16}}
QUIET_VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one engine said to one prompt; `cached`: prompt tokens that it did not compute."""

    tokens: list[int]
    cached: int


def new_prompt(name: str, tokens: int = PROMPT_TOKENS) -> list[int]:
    """Random tokens, the same for the same name."""
    chance = random.Random(name)
    return [chance.randrange(3, 500) for _ in range(tokens)]


def transfer_config(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a user gives as --kv-transfer-config."""
    return {
        "kv_connector": "PegaShmConnector",
        "kv_connector_module_path": "pegashm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": dict(extra or {}),
    }


class Child:
    """A process in a group of its own, with a log file; stdin and stdout are pipes when it `talks`.

    `warm`: not a program but a Python script and its arguments, run where vLLM is imported already; it talks.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        talks: bool = False,
        warm: bool = False,
    ) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | Fork
        with log.open("ab") as file:
            self.log_offset = file.tell()
            if warm:
                self.process = Fork(
                    command, errors=file, environment=environment, folder=log.parent
                )
                return
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else file,
                stderr=file,
                env=environment,
                cwd=log.parent,  # away from the sources, so that the installed package is what runs
                start_new_session=True,
            )

    def said(self) -> str:
        """What this process (not an earlier one with the same log) has written so far."""
        return self.log.read_bytes()[self.log_offset :].decode(errors="replace")

    def failure(self, what: str) -> AssertionError:
        lines = "\n  ".join(self.said().splitlines()[-40:])
        return AssertionError(f"{self.log.stem} {what}. The end of its log:\n  {lines}")

    def kill(self) -> None:
        """SIGKILL to it and its own children at once: no handler, no farewell."""
        if self.process.poll() is None:
            left = shared_memory_of_group(self.process.pid)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for path in left:
                path.unlink(missing_ok=True)

    def stop(self, seconds: float = 15) -> int:
        """End it, politely first; its exit status. Nothing to do when it is gone."""
        if self.process.stdin:
            self.process.stdin.close()
        elif self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        if self.process.stdout:
            self.process.stdout.close()
        return self.process.wait()


def shared_memory_of_group(group: int) -> set[Path]:
    """What vLLM's processes share among themselves, and would leave in /dev/shm when killed; arenas not."""
    paths: set[Path] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(process.name)) == group:
                for line in (process / "maps").read_text().splitlines():
                    _, slash, name = line.partition(" /dev/shm/")
                    if slash and not name.startswith("pegashm.") and not name.endswith("(deleted)"):
                        paths.add(Path("/dev/shm") / name)
    return paths


def engine_environment(arena: str | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
    environment |= QUIET_VLLM
    environment.pop("PEGASHM_ARENA", None)
    if arena is not None:
        environment |= {"PEGASHM_ARENA": arena, "PEGASHM_REQUIRED": "1"}
    return environment | dict(more or {})


class Engine(Child):
    """`child.py` on a model; attached to an arena, or (None) a run without us.

    `warm`: a fork of one Python that has imported vLLM, see `warm.py`; else a Python of its own, as it has to be where
    another one is named, or a `prefix`, or where it starts others itself.
    """

    def __init__(
        self,
        model: Path,
        arena: str | None,
        log: Path,
        *,
        extra: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        python: str = sys.executable,
        warm: bool = True,
    ) -> None:
        setup = {
            "options": {"model": str(model), **(options or {})},
            "transfer": None if arena is None else transfer_config(extra),
        }
        script = [str(HERE / "child.py"), json.dumps(setup)]
        alone = prefix or python != sys.executable or "tensor_parallel_size" in (options or {})
        warm = warm and not alone
        command = script if warm else [*prefix, python, "-X", "faulthandler", *script]
        super().__init__(
            command, log, engine_environment(arena, environment), talks=True, warm=warm
        )

    def ready(self) -> Engine:
        self._read(READY_SECONDS)
        return self

    def ask(self, *prompts: list[int], load: bool | None = None) -> list[Answer]:
        """All prompts at once; the answers in their order."""
        self.ask_later(*prompts, load=load)
        return self.answers()

    def ask_later(self, *prompts: list[int], load: bool | None = None) -> None:
        self._say({"ask": prompts, "load": load})

    def answers(self) -> list[Answer]:
        return [Answer(**answer) for answer in self._read(ANSWER_SECONDS)["answers"]]

    def has_answered(self) -> bool:
        """Whether answers() would not wait."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def forget(self, what: str = "own") -> None:
        self._say({"forget": what})
        assert self._read(ANSWER_SECONDS)["done"], "vLLM did not reset its prefix cache"

    def fails(self) -> str:
        """It must not start: wait for its end; all it said."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS)
        assert ready, "neither started nor ended"
        assert not self.process.stdout.readline(), "it started, and should have refused to"
        assert 0 != self.process.wait(READY_SECONDS)
        return self.said()

    def _say(self, order: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.failure("is gone") from None

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            raise self.failure(f"did not answer within {seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise self.failure(f"ended (exit status {self.process.wait()})")
        said: dict[str, Any] = json.loads(line)
        return said


class Server(Child):
    """vLLM's OpenAI server, as `vllm serve` starts it; scheduler and worker in processes of their own."""

    def __init__(self, model: Path, arena: str, log: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(model), "--served-model-name", "tiny", "--port", str(self.port)]
        command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "4096", "--enable-prompt-tokens-details"]
        command += ["--kv-transfer-config", json.dumps(transfer_config())]
        environment = engine_environment(arena, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
        super().__init__(command, log, environment)

    def ready(self) -> Server:
        until = time.monotonic() + READY_SECONDS
        while True:
            try:
                self._open("/health").close()
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    raise self.failure(f"ended (exit status {self.process.returncode})") from None
                if time.monotonic() > until:
                    raise self.failure("was not ready in time") from None
                time.sleep(0.2)
            else:
                return self

    def ask(self, prompt: list[int], tokens: int = 12) -> Answer:
        body = {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        with self._open("/v1/completions", json.dumps(body).encode()) as response:
            said = json.load(response)
        details = said["usage"]["prompt_tokens_details"] or {}
        return Answer(said["choices"][0]["token_ids"], details.get("cached_tokens") or 0)

    def _open(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=ANSWER_SECONDS)


class Supervisor(Child):
    """`pegashm serve`. Ready when `pegashm status` would say so to a process manager."""

    def __init__(
        self,
        arena: str,
        size: str,
        log: Path,
        *,
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self.arena = arena
        self.pegashm = [sys.executable, "-m", "pegashm"]
        command = [*prefix, *self.pegashm, "serve", "--name", arena, "--size", size, *options]
        super().__init__(command, log, dict(os.environ))

    def ready(self) -> Supervisor:
        until = time.monotonic() + READY_SECONDS
        status = [*self.pegashm, "status", "--name", self.arena]
        while subprocess.run(status, capture_output=True, check=False).returncode != 0:
            if self.process.poll() is not None:
                raise self.failure(f"ended (exit status {self.process.returncode})")
            if time.monotonic() > until:
                raise self.failure("was not ready in time")
            time.sleep(0.1)
        return self


def counter(arena: Arena, key: str) -> int:
    """One of the arena's counters."""
    return next(int(row["value"]) for row in arena.region.counters() if row["key"] == key)


def zero_payload(arena: Arena) -> int:
    """Zero the bytes of every READY block, behind everybody's back; how many there were."""
    blocks = arena.region.blocks()
    ready = blocks[blocks["state"] == 2]
    for block in ready:
        size = int(block["payload_bytes"])
        arena.region.payload(int(block["payload_offset"]), size)[:] = bytes(size)
    return len(ready)
