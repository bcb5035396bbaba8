"""Does `pegashm explain` say what became of a key, for every end that a key can have?"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.keys import FACTS, differing_facts, facts_of, namespace_of

from tests.admin.scenes import attach, hash_of, key_of, run, said, store
from tests.arenas import Shape

MODEL = {"vllm": "0.32.0", "weights": "abc", "dtype": "bfloat16", "parallel": [1, 1]}


def _why(name: str, number: int, *arguments: str) -> tuple[str, str]:
    report = said("explain", "--name", name, "--key", hash_of(number).hex(), *arguments)
    told = report["keys"][0]
    return told["reason"], told["says"]


def test_a_key_that_is_there(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(3))
        cache.find([key_of(1)], pin=True)
        report = said("explain", "--name", name, "--key", hash_of(1).hex())
        place = report["keys"][0]["places"][0]
    assert 0 == report["exit_status"]
    assert ("ready", "ready", 4096) == (report["keys"][0]["reason"], place["state"], place["bytes"])
    assert [os.getpid()] == [client["pid"] for client in place["pinned_by"]]


def test_never_seen(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(3))
    reason, says = _why(name, 77)
    assert ("never_seen", True) == (reason, "since the arena was made" in says)
    assert 1 == said("explain", "--name", name, "--key", hash_of(77).hex())["exit_status"]


def test_evicted_and_about_when(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(3))
        handles, _ = cache.find([key_of(1)])
        time.sleep(0.01)
        before = time.time_ns()
        cache.evict(handles)
        after = time.time_ns()
        time.sleep(0.01)
        store(cache, range(10, 12))
        report = said("explain", "--name", name, "--key", hash_of(1).hex())
    told = report["keys"][0]
    assert "evicted" == told["reason"]
    assert ["publish", "evict"] == [event["event"] for event in told["events"]]
    evicted = told["events"][1]
    assert evicted["after_ns"] <= before
    assert after <= evicted["before_ns"]
    assert "between" in told["says"]


def test_claimed_by_the_living_and_by_the_dead(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name, "a") as cache:
        cache.claim([key_of(1)], 4096)
        reason, says = _why(name, 1)
        assert ("storing", True) == (reason, f"engine a (pid {os.getpid()}" in says)
        child = os.fork()
        if child == 0:
            try:
                attach(name, "b").claim([key_of(2)], 4096)
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        reason, says = _why(name, 2)
    assert ("storing", True) == (reason, f"pid {child}" in says and "is dead" in says)


def test_damaged(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(2))
        handles, _ = cache.find([key_of(0)])
        _native.mark_damaged(cache.region, handles)
    assert "damaged" == _why(name, 0)[0]
    assert "ready" == _why(name, 1)[0]


def test_on_ssd(arena_name: Callable[..., str]) -> None:
    name = arena_name(Shape(spill_records=16))
    with attach(name) as cache:
        table = _native.SpillTable(cache.region)
        table.clear()
        table.set_usable(1)
        rows = np.zeros(1, dtype=_native.SPILL_FIELDS)
        rows["key"][0] = np.frombuffer(hash_of(5), np.uint8)
        rows["key_bytes"], rows["namespace_id"] = 32, cache.namespace_id
        rows["payload_bytes"], rows["sequence"], rows["file_offset"] = 4096, 1, 8192
        assert table.store(rows).all()
        assert ("on_ssd", True) == (_why(name, 5)[0], "file 0" in _why(name, 5)[1])
        table.set_usable(0)
        assert "on_ssd_out_of_use" == _why(name, 5)[0]
        del table


def test_at_another_host(arena_name: Callable[..., str]) -> None:
    name = arena_name(Shape(remote_buckets=64))
    with attach(name) as cache:
        table = _native.RemoteTable(cache.region)
        table.clear()
        table.describe(
            3, host_id=b"h" * 16, incarnation=b"i" * 16, address="10.0.0.9:7420", sequence=1, events=1, heard_at_ns=1
        )  # fmt: skip
        table.set_usable(3, True)
        table.add(3, _native.remote_hashes(cache.region, [key_of(6)], cache.namespace_id), 2)
        reason, says = _why(name, 6)
        assert ("other_host", True) == (reason, "10.0.0.9:7420" in says and "ssd" in says)
        del table


def test_in_another_namespace_and_in_what_that_differs(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    other = {**MODEL, "weights": "xyz", "parallel": [2, 2]}
    with (
        Cache.attach(name, namespace=namespace_of(MODEL, label="mine")) as mine,
        Cache.attach(name, namespace=namespace_of(other, label="theirs")) as theirs,
    ):
        store(mine, range(1))
        store(theirs, range(4))
        reason, says = _why(name, 3, "--namespace", "mine")
        assert "other_namespace" == reason
        assert "differs in weights, parallel" in says
        assert "'theirs'" in says
        assert "ready" == _why(name, 3)[0]
        assert "ready" == _why(name, 3, "--namespace", "theirs")[0]
        assert "ready" == _why(name, 0, "--namespace", "mine")[0]


def test_evicted_before_the_reach_of_the_journal(arena_name: Callable[..., str]) -> None:
    """Adaptive eviction remembers what the journal has forgotten."""
    name = arena_name()
    with open_arena(name) as arena:
        arena.region.set_eviction("adaptive")
        ring = int(arena.region.header["journal_entry_count"])
    with attach(name) as cache:
        store(cache, range(1, 2))
        cache.evict(cache.find([key_of(1)])[0])
        for number in range(ring):
            handles, _ = cache.claim([key_of(500)], 4096)
            cache.publish(handles)
            cache.evict(handles)
            if number * 2 > ring + 10:
                break
        reason, says = _why(name, 1)
        assert ("evicted_long_ago", True) == (reason, "before event" in says)
        reason, says = _why(name, 2000)
        assert ("never_seen", True) == (reason, "as far as the journal reaches" in says)


def test_a_request_ends_at_its_first_miss(arena_name: Callable[..., str], tmp_path: Path) -> None:
    name = arena_name()
    path = tmp_path / "keys"
    path.write_text("# a request\n" + "\n".join(hash_of(n).hex() for n in range(8)) + "\n")
    with attach(name) as cache:
        store(cache, range(8))
        assert (0, True) == (
            run("explain", "--name", name, "--request-file", str(path))[0],
            "all 8 blocks" in run("explain", "--name", name, "--request-file", str(path))[1],
        )
        cache.evict(cache.find([key_of(3)])[0])
        report = said("explain", "--name", name, "--request-file", str(path))
        assert (3, 1) == (report["first_miss"], report["exit_status"])
        _status, text = run("explain", "--name", name, "--request-file", str(path))
        assert "the first 3 of 8 blocks are there" in text
        assert "of the 4 behind it 4 are there and useless" in text
        path.write_text(json.dumps([key_of(n).hex() for n in range(3)]))
        assert 0 == said("explain", "--name", name, "--request-file", str(path))["exit_status"]


def test_recent(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    other = {**MODEL, "dtype": "float16"}
    with (
        Cache.attach(name, namespace=namespace_of(MODEL, label="one")) as one,
        Cache.attach(name, namespace=namespace_of(other, label="two")) as two,
    ):
        store(one, range(10))
        cache_handles, _ = one.find([key_of(n) for n in range(4)])
        one.evict(cache_handles)
        store(one, range(4))
        store(two, range(2))
        report = said("explain", "--name", name, "--recent")
        assert {"evicted": 4, "other_namespace": 2, "new": 10} == report["reasons"]
        assert (16, 4) == (report["publishes"], report["evictions"])
        assert [["dtype"]] == [pair["differing_facts"] for pair in report["pairs"]]
        own = said("explain", "--name", name, "--recent", "--namespace", "two")
        assert {"evicted": 0, "other_namespace": 2, "new": 0} == own["reasons"]
        text = run("explain", "--name", name, "--recent")[1]
        assert "the two differ in dtype" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of"),
        (("--recent", "--key", "00"), "give one of"),
        (("--key", "zz"), "is no key"),
        (("--request-file", "/none"), "cannot read"),
        (("--key", "00", "--namespace", "none"), "no namespace is called"),
    ],
)
def test_wrong_usage(
    arena_name: Callable[..., str], arguments: tuple[str, ...], words: str
) -> None:
    status, text = run("explain", "--name", arena_name(), *arguments)
    assert (2, True) == (status, words in text), text


def test_facts_by_themselves() -> None:
    """Digests stand at their places, and two sets of them differ where the facts do."""
    one, other = facts_of(MODEL), facts_of({**MODEL, "dtype": "float16", "unknown": 1})
    assert (["dtype"], []) == differing_facts(one, other)
    assert ([], ["seed"]) == differing_facts(one, facts_of({**MODEL, "seed": 0}))
    assert (["reset"], []) == differing_facts(one, facts_of({"reset": "x"}, one))
    assert len(set(FACTS)) == len(FACTS) <= 24


def test_facts_survive_a_registration_that_does_not_know_them(
    arena_name: Callable[..., str],
) -> None:
    """As the transport worker's, which has the fingerprint from a spill file; and they come when an engine does."""
    name = arena_name()
    namespace = namespace_of(MODEL, label="model")
    bare: Any = {"fingerprint": namespace.fingerprint, "label": "from SSD", "now_ns": 1}
    with open_arena(name) as arena:
        arena.region.register_namespace(**bare)
        assert not any(arena.region.namespaces()[0]["facts"])
        with Cache.attach(name, namespace=namespace):
            assert namespace.facts == arena.region.namespaces()[0]["facts"]
            arena.region.register_namespace(**bare)
            assert namespace.facts == arena.region.namespaces()[0]["facts"]
