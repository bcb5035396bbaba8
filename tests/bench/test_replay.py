"""Is the real broker what the simulators say it is? The same requests through both, one engine and several.

With one engine the order is the same, so hits and evictions of LRU are equal to the last block. Arenas, engine
processes and their payload are real; nothing stays behind.
"""

import os

import pytest

from bench.policies.lru import Lru
from bench.policies.simulate import ceiling, optimum, simulate
from bench.policies.workload import CONVERSATION, read_trace
from bench.replay_broker import Plan, replay

BLOCK_BYTES = 32768  # an arena has 4 MiB at least
BUDGET = 4 * 64 * BLOCK_BYTES
TRACE = read_trace(CONVERSATION, 150)


@pytest.fixture(autouse=True)
def nothing_left() -> object:
    yield
    assert not [
        name for name in os.listdir("/dev/shm") if f"pegashm.bench-replay-{os.getpid()}" in name
    ]


def test_one_engine_does_what_the_simulated_lru_does() -> None:
    plan = Plan(block_bytes=BLOCK_BYTES, budget=BUDGET, eviction="lru")

    replayed = replay(TRACE, plan)
    simulated = simulate(Lru(plan.capacity), TRACE.requests)

    assert 256 == plan.capacity
    assert (0, 0) == (replayed.wrong, replayed.refused)
    assert simulated == replayed.score


@pytest.mark.parametrize("layout", ["shared", "isolated"])
@pytest.mark.parametrize("deal", ["round-robin", "session"])
def test_several_engines_never_read_wrong_bytes(layout: str, deal: str) -> None:
    plan = Plan(block_bytes=BLOCK_BYTES, budget=2 * BUDGET, engines=2, layout=layout, deal=deal)  # type: ignore[arg-type]

    replayed = replay(TRACE, plan)

    assert 0 == replayed.wrong
    assert 0 < replayed.score.hits <= ceiling(TRACE).hits
    assert len(TRACE.requests) == replayed.score.requests


def test_a_block_of_several_copies_takes_several_places() -> None:
    plan = Plan(block_bytes=BLOCK_BYTES, budget=BUDGET, copies=8)

    replayed = replay(TRACE, plan)

    assert 32 == plan.capacity
    assert 0 == replayed.wrong
    assert replayed.score.hits <= optimum(TRACE, plan.capacity).hits
