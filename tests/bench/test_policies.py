"""Do the simulated policies do what their names say, and do replays count what they should?

The named ones against libCacheSim on the same references (within a point of hit rate; skipped where it is not installed), all of
them against rules that any cache keeps, LRU against a list, Belady against every choice there is.
"""

import itertools
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.policies import oracle
from bench.policies.base import Policy
from bench.policies.belady import Belady
from bench.policies.lru import Lru
from bench.policies.simulate import POLICIES, ceiling, optimum, replay_references, simulate
from bench.policies.workload import (
    CONVERSATION,
    Request,
    Workload,
    agents,
    blocks_of,
    read_trace,
    runs_of,
    scans,
    sessions,
)

POINTS_MOST = 1.0


def chain_of(path: tuple[int, ...]) -> tuple[int, ...]:
    """Block ids of a path in a tree: equal beginnings, equal ids."""
    ids: list[int] = []
    node = 0
    for step in path:
        node = node * 4 + step + 1
        ids.append(node)
    return tuple(ids)


chains = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple).map(chain_of),
    min_size=1,
    max_size=30,
)


def workload(requests: list[tuple[int, ...]]) -> Workload:
    return Workload("test", [Request(0, len(chain) * 512, chain) for chain in requests])


@given(requests=chains, capacity=st.integers(1, 12))
@settings(deadline=None)
@pytest.mark.parametrize("name", POLICIES)
def test_a_cache_has_what_was_stored_and_no_more_than_fits(
    name: str, requests: list[tuple[int, ...]], capacity: int
) -> None:
    policy: Policy = POLICIES[name](capacity)
    seen: set[int] = set()

    for chain in requests:
        before = policy.prefix(chain)
        assert policy.request(chain) == before <= sum(block in seen for block in chain)
        seen.update(chain)
        held = [block for block in seen if block in policy]
        assert len(held) <= capacity
        assert capacity < len(seen) or len(held) == len(seen) or name == "W-TinyLFU"
        for block in chain[:before]:
            assert block in policy or before < len(chain), "a pinned block went"


@given(requests=chains, capacity=st.integers(1, 12))
@settings(deadline=None)
def test_nobody_beats_the_optimum(requests: list[tuple[int, ...]], capacity: int) -> None:
    work = workload(requests)
    best = optimum(work, capacity)

    assert best.hits <= ceiling(work).hits
    for make in POLICIES.values():
        assert simulate(make(capacity), work.requests).hits <= best.hits


@given(references=st.lists(st.integers(0, 4), min_size=1, max_size=10), capacity=st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_the_optimum_is_the_best_of_all_choices(references: list[int], capacity: int) -> None:
    @cache
    def best(place: int, held: frozenset[int]) -> int:
        if place == len(references):
            return 0
        block = references[place]
        wanted = held | {block}
        choices = itertools.combinations(sorted(wanted), min(capacity, len(wanted)))
        return (block in held) + max(best(place + 1, frozenset(kept)) for kept in choices)

    requests = [(block,) for block in references]

    policy = Belady(capacity, requests)
    assert best(0, frozenset()) == sum(policy.request(chain) for chain in requests)


@given(references=st.lists(st.integers(0, 9), max_size=60), capacity=st.integers(1, 6))
def test_lru_is_a_list(references: list[int], capacity: int) -> None:
    policy = Lru(capacity)
    recent: list[int] = []

    for block in references:
        assert policy.access(block) == (block in recent)
        recent = [block, *(other for other in recent if other != block)][:capacity]


@pytest.mark.skipif(
    not oracle.available(), reason="libCacheSim is not installed: pip install libcachesim"
)
@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("name", oracle.TWINS)
def test_named_policies_agree_with_libcachesim(name: str, share: float) -> None:
    for work in (read_trace(CONVERSATION, 2500), scans(1200), agents(1200)):
        references = [block for request in work.requests for block in request.chain]
        capacity = int(work.distinct * share)
        twin = oracle.TWINS[name]

        ours = replay_references(twin.ours(capacity), references)
        theirs = oracle.hit_rate(twin, capacity, references)

        assert abs(ours - theirs) * 100 <= POINTS_MOST, work.name


def test_suffixes_go_before_prefixes() -> None:
    """A chain too long for the cache leaves its beginning there."""
    for make in POLICIES.values():
        policy = make(8)
        policy.request(range(20))
        policy.request(range(20))
        assert policy.prefix(range(20)) > 0


def test_the_trace_reads_as_its_source_says() -> None:
    trace = read_trace(CONVERSATION)

    assert (12031, 288500, 182790) == (len(trace.requests), trace.references, trace.distinct)
    assert 0.366 == round(ceiling(trace).block_rate, 3)


def test_both_forms_of_a_trace_read_alike(tmp_path: Path) -> None:
    rows = [(0, 700, [0, 1]), (30, 5000, [0, 2, 3, 9])]
    text, json_lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("# head\n" + "".join(f"{at} {n} {runs_of(c)}\n" for at, n, c in rows))
    json_lines.write_text("".join(
        json.dumps({"timestamp": at, "input_length": n, "output_length": 1, "hash_ids": c}) + "\n"
        for at, n, c in rows
    ))  # fmt: skip

    assert read_trace(text).requests == read_trace(json_lines).requests
    assert (0, 2, 3, 9) == read_trace(text).requests[1].chain
    (tmp_path / "b.txt").write_text("nonsense\n")
    with pytest.raises(SystemExit, match="line 1"):
        read_trace(tmp_path / "b.txt")


@given(blocks=st.lists(st.integers(0, 50), min_size=1))
def test_runs_say_the_same_blocks(blocks: list[int]) -> None:
    assert tuple(blocks) == blocks_of(runs_of(blocks))


def test_sessions_are_those_who_go_on() -> None:
    turns = [
        [0, 1, 2, 3],  # a session; block 3 is not full yet
        [0, 10, 11],  # another one that begins alike
        [0, 1, 2, 4, 5],  # the first goes on
        [0, 10, 11, 12],  # the second one
        [0, 1, 20, 21],  # branches off the first: a session of its own
        [30],
    ]

    numbers = sessions([Request(0, 1, tuple(chain)) for chain in turns])

    assert [0, 1, 0, 1, 4, 5] == numbers


@pytest.mark.parametrize("make", [scans, agents])
def test_synthetic_workloads_are_chains_and_the_same_every_time(make: object) -> None:
    assert callable(make)
    work, again = make(400), make(400)
    before: dict[int, tuple[int, ...]] = {}

    assert work.digest == again.digest
    assert all(a.at_ms <= b.at_ms for a, b in itertools.pairwise(work.requests))
    for request in work.requests:
        for depth, block in enumerate(request.chain):
            prefix = tuple(request.chain[:depth])
            assert before.setdefault(block, prefix) == prefix, "one block after two prefixes"
