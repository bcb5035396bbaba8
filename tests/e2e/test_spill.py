"""Do blocks come back from SSD, with the right bytes: after eviction, after a reboot, and not when nobody brings them?

Real engines, a real supervisor and its transport worker, a spill file in the test's own folder. Answers are compared
with those of an engine without us. What a reboot leaves is the file alone: everything is killed at once and shared
memory removed. Requests wait for SSD as long as they must (a minute) where the test is about what comes back, and as
long as the worker lives where it is about what does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.liveness import TRANSPORT_BYTE, holder_alive

from tests.arenas import remove_arena
from tests.contract.hostages import Hostage
from tests.e2e.engines import OPTIONS, Engine, Supervisor, counter, new_prompt

Start = Callable[..., Any]

PATIENT = {"spill_deadline_ms": 60_000}
PATIENCE_S = 60.0
SIZE = "16M"  # 32 blocks, eight prompts
PROMPTS = 24
BLOCKS = 4  # of each prompt
TOKENS = 512  # in them
AT_ONCE = 3


@pytest.fixture
def serve(name: str, start: Start, tmp_path: Path) -> Callable[[], Supervisor]:
    """Starts a supervisor with the test's spill file; its worker serves then."""

    def started() -> Supervisor:
        file = str(tmp_path / "blocks.spill")
        options = ("--segment-size", "4M", "--no-lock", "--spill", file, "--spill-size", "128M")
        supervisor: Supervisor = start(Supervisor, name, SIZE, options=options).ready()
        until(lambda: worker(name) != 0)
        return supervisor

    return started


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def worker(name: str) -> int:
    """Its process id, 0 while nobody serves."""
    with open_arena(name) as arena:
        header = arena.region.header
        ready = header["transport_path"] and header["spill_usable"]
        alive = holder_alive(arena.control_fd, TRANSPORT_BYTE)
        return int(header["transport_pid"]) if ready and alive else 0


def figure(name: str, key: str) -> int:
    with open_arena(name) as arena:
        return counter(arena, key)


def evict_all(name: str) -> None:
    """Memory forgets everything: what is on SSD is all there is."""
    with Cache.attach(name, namespace=None, label="evicts") as cache:

        def empty() -> bool:
            left = cache.region.blocks()
            left = left[left["state"] == 2]
            handles = left["generation"] << 24 | left["record"]
            return not len(handles) or not cache.evict(handles.astype("uint64")).any()

        until(empty)


def batches(items: list[Any]) -> list[list[Any]]:
    return [items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE)]


def store_all(
    engine: Engine, prompts: list[list[int]], correct: list[list[int]], name: str
) -> None:
    """Each is computed, and stays in memory until it is on SSD: nothing is lost to eviction."""
    done = 0
    for few in batches(prompts):
        answers = engine.ask(*few)
        assert [(tokens, 0) for tokens in correct[done : done + len(few)]] == [
            (answer.tokens, answer.cached) for answer in answers
        ]
        done += len(few)
        until(lambda: figure(name, "spill_stored") >= BLOCKS * done)  # noqa: B023 - called at once


def test_what_memory_has_no_room_for_comes_back(
    models: Callable[..., Path],
    start: Start,
    expected: Callable[..., list[list[int]]],
    name: str,
    serve: Callable[[], Supervisor],
) -> None:
    """Three times what the arena holds, asked for twice. Without the tier the second round would find next to nothing."""
    serve()
    engine: Engine = start(Engine, models("qwen3"), name, extra=PATIENT)
    prompts = [new_prompt(f"spilled {number}") for number in range(PROMPTS)]
    correct = expected(*prompts)
    engine.ready()
    store_all(engine, prompts, correct, name)
    assert figure(name, "evictions") > BLOCKS * PROMPTS / 2
    promoted = figure(name, "spill_promoted")
    engine.forget()
    again = [answer for few in batches(prompts) for answer in engine.ask(*few)]
    assert correct == [answer.tokens for answer in again]
    assert [TOKENS] * PROMPTS == [answer.cached for answer in again]
    assert figure(name, "spill_promoted") - promoted > BLOCKS * PROMPTS / 2
    # Several at once, more than memory holds together.
    engine.forget()
    together = engine.ask(*prompts)
    assert correct == [answer.tokens for answer in together]
    assert sum(answer.cached for answer in together) > TOKENS * PROMPTS / 2
    assert 0 == figure(name, "loads_failed")
    assert 0 == figure(name, "spill_damaged")
    with open_arena(name) as arena:
        blocks = arena.region.blocks()
        clients = {client["label"]: client["slot"] for client in arena.region.clients()}
        assert 2 == len(clients), "the engine and the worker"
        tally = arena.region.tally()
        assert (0, 0) == (tally["evicting"], tally["damaged"])
        assert len(blocks) <= 32


def test_a_reboot_costs_nothing_but_memory(
    models: Callable[..., Path],
    start: Start,
    expected: Callable[..., list[list[int]]],
    name: str,
    serve: Callable[[], Supervisor],
) -> None:
    """Engine, supervisor and worker are killed at once, /dev/shm is empty: the file brings it all back."""
    supervisor = serve()
    engine: Engine = start(Engine, models("qwen3"), name, extra=PATIENT)
    prompts = [new_prompt(f"rebooted {number}") for number in range(12)]
    correct = expected(*prompts)
    engine.ready()
    store_all(engine, prompts, correct, name)
    old = worker(name)
    engine.kill()
    supervisor.kill()
    assert Hostage(old).settle("-ZX"), "the worker dies with its supervisor"
    remove_arena(name)

    serve()
    assert old != worker(name)
    later: Engine = start(Engine, models("qwen3"), name, extra=PATIENT).ready()
    answers = [answer for few in batches(prompts) for answer in later.ask(*few)]
    assert correct == [answer.tokens for answer in answers]
    assert [TOKENS] * len(prompts) == [answer.cached for answer in answers]
    assert BLOCKS * len(prompts) <= figure(name, "spill_promoted")
    assert 0 == figure(name, "spill_damaged")


@pytest.mark.parametrize("kind", ["gemma3", "dsv2"])
def test_each_kind_of_cache_comes_back(
    kind: str,
    models: Callable[..., Path],
    start: Start,
    name: str,
    serve: Callable[[], Supervisor],
) -> None:
    """Sliding windows beside full attention (groups of their own) and latent attention: from SSD alone, and really used."""
    serve()
    options = OPTIONS[kind]
    alone: Engine = start(Engine, models(kind), None, options=options)
    engine: Engine = start(Engine, models(kind), name, options=options, extra=PATIENT)
    prompts = [new_prompt(f"{kind} {number}") for number in range(3)]
    alone.ready()
    correct = [answer.tokens for prompt in prompts for answer in alone.ask(prompt)]
    alone.kill()
    engine.ready()
    first = [answer for prompt in prompts for answer in engine.ask(prompt)]
    assert [(tokens, 0) for tokens in correct] == [(a.tokens, a.cached) for a in first]
    with open_arena(name) as arena:
        stored = len(arena.region.blocks())
    until(lambda: figure(name, "spill_stored") >= stored)
    evict_all(name)
    engine.forget()
    again = [answer for prompt in prompts for answer in engine.ask(prompt)]
    assert correct == [answer.tokens for answer in again]
    assert all(answer.cached >= TOKENS for answer in again)
    assert figure(name, "spill_promoted") > 0
    assert 0 == figure(name, "spill_damaged")


def test_a_worker_that_does_not_answer(
    models: Callable[..., Path],
    start: Start,
    expected: Callable[..., list[list[int]]],
    name: str,
    serve: Callable[[], Supervisor],
) -> None:
    """Stopped: the deadline, then a computed answer. Killed while a request waits: at once. Back again: hits again."""
    serve()
    engine: Engine = start(Engine, models("qwen3"), name, extra={"spill_deadline_ms": 20_000})
    hasty: Engine = start(Engine, models("qwen3"), name, extra={"spill_deadline_ms": 500})
    prompts = [new_prompt(f"stopped {number}") for number in range(2)]
    correct = expected(*prompts)
    engine.ready()
    hasty.ready()
    assert correct == [engine.ask(prompt)[0].tokens for prompt in prompts]
    until(lambda: figure(name, "spill_stored") >= BLOCKS * len(prompts))
    evict_all(name)
    engine.forget()

    stopped = worker(name)
    os.kill(stopped, signal.SIGSTOP)
    try:
        began = time.monotonic()
        answer = hasty.ask(prompts[0])[0]
        took = time.monotonic() - began
        assert (correct[0], 0) == (answer.tokens, answer.cached)
        assert 0.5 < took < 15, f"{took:.1f} s"

        began = time.monotonic()
        engine.ask_later(prompts[1])
        time.sleep(1.0)
        assert not engine.has_answered(), "it waits for the worker"
    finally:
        os.kill(stopped, signal.SIGKILL)
    (answer,) = engine.answers()
    took = time.monotonic() - began
    assert (correct[1], 0) == (answer.tokens, answer.cached)
    assert took < 15, f"{took:.1f} s: it waited for a dead worker"

    until(lambda: worker(name) not in (0, stopped))

    def hits_again() -> bool:  # engines look for a worker once a second
        evict_all(name)
        engine.forget()
        answer = engine.ask(prompts[1])[0]
        assert correct[1] == answer.tokens
        return answer.cached == TOKENS

    until(hits_again)
    # Killed again and again while requests come and go: the answers stay, and nobody hangs.
    for round_ in range(4):
        evict_all(name)
        hasty.forget()
        with contextlib.suppress(ProcessLookupError):
            if pid := worker(name):
                os.kill(pid, (signal.SIGKILL, signal.SIGSTOP)[round_ % 2])
        began = time.monotonic()
        assert correct == [answer.tokens for answer in hasty.ask(*prompts)]
        assert time.monotonic() - began < 15
        with contextlib.suppress(ProcessLookupError):
            if pid := worker(name):
                os.kill(pid, signal.SIGCONT)
