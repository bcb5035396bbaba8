"""Does `pegashm drain` empty an arena that is in use, keep it so, and give it back?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.fsck import check_name
from pegashm.status import read_status
from pegashm.transport.client import worker_alive

from tests.admin.scenes import attach, key_of, run, said, store
from tests.doctor.conftest import told, worst
from tests.served import Served
from tests.transport.rig import eventually


def outcomes_of(cache: Cache, numbers: range) -> set[int]:
    _, outcomes = cache.find([key_of(n) for n in numbers])
    return set(outcomes.tolist())


def test_an_arena_at_rest_is_emptied_and_comes_back(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(20))
        report = said("drain", "--name", name)
        assert (True, 20, 0) == (report["done"], report["evicted"], report["blocks"])
        handles, outcomes = cache.claim([key_of(1), key_of(2)], 4096)
        assert [_native.DRAINING] * 2 == outcomes.tolist()
        assert not handles.any()
        counters = {row["key"]: row["value"] for row in cache.region.counters()}
        assert 2 == counters["claims_draining"]
        assert 0 == check_name(name).exit_status
        assert said("drain", "--name", name, "--undo")["undone"]
        assert not said("drain", "--name", name, "--undo")["undone"]
        store(cache, range(20))


def test_what_is_pinned_is_waited_for_and_who_holds_it_is_named(
    arena_name: Callable[..., str],
) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(8))
        held, _ = cache.find([key_of(n) for n in range(3)], pin=True)
        status, text = run("drain", "--name", name, "--timeout", "0.3")
        assert (1, True) == (status, "3 pinned" in text)
        assert f"engine a (pid {os.getpid()}" in text
        release = threading.Timer(0.5, lambda: cache.unpin(held))
        release.start()
        report = said("drain", "--name", name, "--timeout", "60")
        release.join()
        assert (True, 3, []) == (report["done"], report["evicted"], report["holders"])


def test_a_claim_in_hand_is_published(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        handles, _ = cache.claim([key_of(1)], 4096)
        assert 1 == said("drain", "--name", name, "--keep", "--timeout", "0.2")["exit_status"]
        assert not cache.publish(handles).any()
        report = said("drain", "--name", name, "--keep")
        assert (0, 1, 0) == tuple(report[key] for key in ("exit_status", "blocks", "evicted"))
        assert _native.OK == cache.find([key_of(1)])[1][0]


def test_what_the_dead_hold_is_taken_back(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    child = os.fork()
    if child == 0:
        try:
            cache = attach(name)
            store(cache, range(3))
            cache.find([key_of(0)], pin=True)
            cache.claim([key_of(9)], 4096)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert said("drain", "--name", name, "--timeout", "60")["done"]


def test_what_waits_for_ssd_is_written_first(
    serve: Callable[..., Served], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that wait up to 2 s for the worker when it begins are on SSD when it is over, and hits again after it all."""
    monkeypatch.setattr("pegashm.admin.drain._WORKER_SECONDS", 60.0)  # it may start slowly
    spill = ("--size", "32M", "--spill", str(tmp_path / "kv.spill"), "--spill-size", "64M")
    first = serve(*spill).wait_ready()
    with attach(name) as cache:
        store(cache, range(20))
    report = said("drain", "--name", name)
    assert (True, 0, 20, 20) == tuple(
        report[key] for key in ("done", "blocks", "evicted", "on_ssd")
    )
    first.end()
    assert 0 == run("purge", "--name", name, "--yes")[0]
    serve(*spill).wait_ready().wait_log("20 blocks found")
    with attach(name) as cache:
        eventually(lambda: outcomes_of(cache, range(20)) == {_native.SPILLED})


def test_without_anybody_who_writes_to_ssd_nothing_is_waited_for(
    serve: Callable[..., Served], name: str, tmp_path: Path
) -> None:
    spill = ("--size", "32M", "--spill", str(tmp_path / "kv.spill"), "--spill-size", "64M")
    serve(*spill).wait_ready().end(signal.SIGKILL)
    with attach(name) as cache:
        store(cache, range(20))
        eventually(lambda: not worker_alive(cache.arena))
    report = said("drain", "--name", name, "--timeout", "8")
    assert (True, 0, 20) == tuple(report[key] for key in ("done", "blocks", "evicted"))


def test_a_worker_that_stands_still_is_waited_for_only_so_long(
    serve: Callable[..., Served], name: str, tmp_path: Path
) -> None:
    """It looks alive, and writes nothing: drained all the same, and nothing is wrong when it goes on."""
    spill = ("--size", "32M", "--spill", str(tmp_path / "kv.spill"), "--spill-size", "64M")
    serve(*spill).wait_ready()
    with attach(name) as cache:
        eventually(lambda: cache.region.header["spill_usable"])
        worker = int(cache.region.header["transport_pid"])
        os.kill(worker, signal.SIGSTOP)
        try:
            store(cache, range(20))
            report = said("drain", "--name", name, "--timeout", "30")
        finally:
            os.kill(worker, signal.SIGCONT)
        assert (True, 0, 20) == tuple(report[key] for key in ("done", "blocks", "evicted"))
        eventually(lambda: not cache.region.blocks()["pins"].any())
        assert outcomes_of(cache, range(20)) <= {_native.MISSING, _native.SPILLED}
    assert 0 == check_name(name).exit_status


def test_killed_while_it_waits(arena_name: Callable[..., str]) -> None:
    """The arena goes on being drained; the next call brings it to its end."""
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(8))
        held, _ = cache.find([key_of(1)], pin=True)
        command = [sys.executable, "-m", "pegashm", "drain", "--name", name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as waiting:
            eventually(lambda: 1 == len(cache.region.blocks()))
            waiting.kill()
        assert _native.DRAINING == cache.claim([key_of(9)], 4096)[1][0]
        cache.unpin(held)
        report = said("drain", "--name", name, "--timeout", "30")
        assert (True, 0, 1) == tuple(report[key] for key in ("done", "blocks", "evicted"))
    assert 0 == check_name(name).exit_status


def test_it_stays_drained_and_says_so(serve: Callable[..., Served], name: str) -> None:
    """Over the death of the supervisor, and in status, doctor and the successor's log."""
    serve().wait_ready()
    assert said("drain", "--name", name)["done"]
    assert read_status(name).draining_since_ns
    assert "pegashm drain" in "\n".join(read_status(name).lines())
    level, says, do = worst(told("--name", name)[f"arena {name}"])
    assert ("warning", True, True) == (level, "being drained" in says, "--undo" in do)
    with open_arena(name) as arena:
        pid = arena.region.header["supervisor_pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while read_status(name).supervisor_alive and time.monotonic() < deadline:
        time.sleep(0.05)
    successor = serve()
    assert "is being drained" in successor.wait_log("drained")
    with attach(name) as cache:
        assert _native.DRAINING == cache.claim([key_of(1)], 4096)[1][0]


def test_engines_go_on(arena_name: Callable[..., str]) -> None:
    """Two engines at work while the arena is drained: they see misses and refusals, nothing else, and it ends."""
    name = arena_name()
    stop, seen = threading.Event(), set[int]()

    def engine(letter: str) -> None:
        keys = [key_of(n) for n in range(16)]
        with attach(name, letter) as cache:
            while not stop.is_set():
                handles, outcomes = cache.claim(keys, 4096)
                seen.update(outcomes.tolist())
                cache.publish(handles[handles != 0])
                found, outcomes = cache.find(keys, pin=True)
                seen.update(outcomes.tolist())
                cache.unpin(found)

    threads = [threading.Thread(target=engine, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    try:
        _until(lambda: _native.EXISTS in seen)
        report = said("drain", "--name", name, "--timeout", "60")
        _until(lambda: {_native.DRAINING, _native.MISSING} <= seen)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert report["done"]
    assert 0 == check_name(name).exit_status


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.002)
