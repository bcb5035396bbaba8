"""What does the real broker make of a workload? Its requests, in their order, by N engine processes through real arenas.

Each arena is a `pegashm serve` of its own: one for all engines (`shared`), or one for each with its part of the budget
(`isolated`). Requests are dealt to engines in turn, or so that a session stays with one. A request begins when its
engine is free and all earlier ones have begun, so at most N are under way, about in the trace's order. Engines are
bench/replay_engine.py; the small payloads are compared, so that a wrong hit would be seen.
"""

from __future__ import annotations

import contextlib
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pegashm._native import plan_region
from pegashm.arena import open_arena
from pegashm.layout import reuse_registers

from bench.policies.simulate import Score, Tally
from bench.policies.workload import Workload, runs_of, sessions
from bench.served import served_arena

__all__ = ["Deal", "Layout", "Plan", "Replayed", "replay"]

KIB = 1 << 10
SEGMENT_BLOCKS = 64
ANSWER_SECONDS = 60

Layout = Literal["shared", "isolated"]
Deal = Literal["round-robin", "session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to replay. `budget`: payload bytes of all arenas together; `copies`: of each block, all needed for a hit."""

    budget: int
    engines: int = 1
    layout: Layout = "shared"
    deal: Deal = "round-robin"
    block_bytes: int = 4 * KIB
    copies: int = 1
    eviction: str | None = None  # None: the broker's default

    @property
    def arenas(self) -> int:
        return self.engines if self.layout == "isolated" else 1

    @property
    def arena_bytes(self) -> int:
        """Whole segments: what is left over is not used."""
        segment = SEGMENT_BLOCKS * self.block_bytes
        return self.budget // self.arenas // segment * segment

    @property
    def capacity(self) -> int:
        """Blocks in one arena."""
        return self.arena_bytes // self.block_bytes // self.copies


@dataclass(frozen=True, slots=True)
class Replayed:
    """What it came to. `refused`: blocks that no arena had room for; `wrong`: hits with other bytes than were stored."""

    score: Score
    seconds: float
    refused: int
    wrong: int


def replay(
    workload: Workload, plan: Plan, tick: Callable[[int], None] = lambda done: None
) -> Replayed:
    """The whole of it; `tick` hears how many requests have begun."""
    if plan.arena_bytes == 0:
        raise SystemExit(
            f"a budget of {plan.budget} bytes in {plan.arenas} arenas: expected at least "
            f"{SEGMENT_BLOCKS * plan.block_bytes} bytes each"
        )
    with contextlib.ExitStack() as stack:
        names = [stack.enter_context(_arena(plan)) for _ in range(plan.arenas)]
        engines = [
            stack.enter_context(_engine(names[number % plan.arenas], plan))
            for number in range(plan.engines)
        ]
        began = time.perf_counter()
        answers = _serve(workload, engines, _dealt(workload, plan), tick)
        seconds = time.perf_counter() - began
        counters = [_counters(name) for name in names]
    tally = Tally()
    for request, answer in zip(workload.requests, answers, strict=True):
        tally.add(request, answer[0])
    evictions = sum(counter["evictions"] for counter in counters)
    return Replayed(
        tally.score(evictions),
        seconds,
        refused=sum(counter["claims_no_space"] for counter in counters),
        wrong=sum(answer[3] for answer in answers),
    )


def _dealt(workload: Workload, plan: Plan) -> Sequence[int]:
    """Which engine serves each request."""
    count = len(workload.requests)
    turns = range(count) if plan.deal == "round-robin" else sessions(workload.requests)
    return [turn % plan.engines for turn in turns]


def _serve(
    workload: Workload,
    engines: Sequence[subprocess.Popen[str]],
    dealt: Sequence[int],
    tick: Callable[[int], None],
) -> list[tuple[int, ...]]:
    answers: list[tuple[int, ...]] = [()] * len(dealt)
    busy: dict[int, int] = {}  # engine -> request
    waiting = deque(range(len(dealt)))
    with selectors.DefaultSelector() as selector:
        for number, engine in enumerate(engines):
            assert engine.stdout is not None
            selector.register(engine.stdout, selectors.EVENT_READ, number)
        while waiting or busy:
            while waiting and dealt[waiting[0]] not in busy:
                request = waiting.popleft()
                busy[dealt[request]] = request
                _tell(engines[dealt[request]], runs_of(workload.requests[request].chain))
                tick(request + 1)
            events = selector.select(ANSWER_SECONDS)
            if not events:
                raise SystemExit(f"no engine has answered for {ANSWER_SECONDS} s")
            for key, _ in events:
                answers[busy.pop(key.data)] = _heard(engines[key.data])
    return answers


def _tell(engine: subprocess.Popen[str], line: str) -> None:
    assert engine.stdin is not None
    engine.stdin.write(line + "\n")
    engine.stdin.flush()


def _heard(engine: subprocess.Popen[str]) -> tuple[int, ...]:
    assert engine.stdout is not None
    line = engine.stdout.readline()
    if not line:
        raise SystemExit("an engine of the replay has ended; it says why above")
    return tuple(map(int, line.split()))


@contextlib.contextmanager
def _engine(name: str, plan: Plan) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable, "-m", "bench.replay_engine", name, str(plan.block_bytes), str(plan.copies)
    ]  # fmt: skip
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise SystemExit("an engine of the replay did not start; it says why above")
        yield child
        assert child.stdin is not None
        child.stdin.close()
        child.wait(ANSWER_SECONDS)
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _arena(plan: Plan) -> Iterator[str]:
    segment = SEGMENT_BLOCKS * plan.block_bytes
    whole = plan.arena_bytes
    for _ in range(4):  # `--size` is all of it, and says how large a part of it is
        planned = plan_region(
            segment_bytes=segment,
            block_bytes_min=plan.block_bytes,
            segments_per_arena=[plan.arena_bytes // segment],
            reuse_registers=reuse_registers(whole),
        )
        whole = plan.arena_bytes + int(planned["control_bytes"])
    options = ["--segment-size", str(segment), "--block-min", str(plan.block_bytes), "--no-lock"]
    options += ["--eviction", plan.eviction] if plan.eviction is not None else []
    with served_arena("replay", whole, None, options=options) as name:
        with open_arena(name, writable=False) as arena:
            if arena.region.payload_bytes != plan.arena_bytes:
                raise AssertionError(
                    f"{arena.region.payload_bytes} payload bytes; expected {plan.arena_bytes}"
                )
        yield name


def _counters(name: str) -> dict[str, int]:
    with open_arena(name, writable=False) as arena:
        return {row["key"]: int(row["value"]) for row in arena.region.counters()}
