"""Does a recorded trace say what was asked for, tell nothing else, and replay as the real broker does?"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegashm.names import trace_path
from pegashm.trace.replaying import ceiling, read_trace, replay
from pegashm.trace.spool import Tracer

from bench.policies.adaptive import Adaptive
from bench.policies.lru import Lru
from bench.policies.simulate import simulate
from bench.policies.workload import agents
from bench.policies.workload import read_trace as bench_read_trace
from tests.admin.scenes import run, said
from tests.served import pegashm

ROOT = Path(__file__).parents[2]


def _hash(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _record(name: str, path: Path, say: Callable[[Tracer], None], *more: str) -> dict[str, Any]:
    """Record in this process what `say` has an engine ask for."""
    report: list[dict[str, Any]] = []
    command = ["trace", "record", "--name", name, "--out", str(path), *more, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pegashm", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    tracer = Tracer(name, 65536)
    deadline = time.monotonic() + 60
    while not tracer.on:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        tracer._look_at = 0.0
        time.sleep(0.02)
    say(tracer)
    if "--requests" not in more:
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    tracer.close()
    assert out, err
    report.append(json.loads(out))
    assert report[0]["exit_status"] == process.returncode
    return report[0]


def _ask(tracer: Tracer, *numbers: int, fingerprint: bytes = b"f" * 32) -> None:
    keys = [_hash(number) + bytes(4) for number in numbers]
    tracer.saw(keys, fingerprint=fingerprint, tokens=48 * len(numbers), group=0)


def test_a_trace_is_what_was_asked_for(arena_name: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"

    def say(tracer: Tracer) -> None:
        _ask(tracer, 1, 2, 3)
        _ask(tracer, 1, 2, 4, 5)
        _ask(tracer, 1, 2, fingerprint=b"g" * 32)

    report = _record(arena_name(), path, say)
    assert (3, 9, 0, 0) == tuple(
        report[key] for key in ("requests", "blocks", "lost", "exit_status")
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    ids = [row["hash_ids"] for row in rows]
    assert ids[0][:2] == ids[1][:2]
    assert len({*ids[0], *ids[1]}) == 5
    assert not set(ids[2]) & set(ids[0]), "another namespace's blocks are others"
    assert (0, 144, 48, 65536) == tuple(
        rows[0][key] for key in ("timestamp", "input_length", "block_tokens", "block_bytes")
    )
    assert all(0 <= block < 1 << 53 for chain in ids for block in chain)


def test_names_tell_nothing_and_go_together_with_a_salt(
    arena_name: Callable[..., str], tmp_path: Path
) -> None:
    salt = tmp_path / "salt"
    salt.write_bytes(b"s" * 32)
    name = arena_name()
    ids = []
    for number, more in enumerate([(), (), ("--salt", str(salt)), ("--salt", str(salt))]):
        path = tmp_path / f"{number}.jsonl"
        _record(name, path, lambda tracer: _ask(tracer, 1, 2), *more, "--requests", "1")
        text = path.read_text()
        assert _hash(1).hex()[:12] not in text
        ids.append(json.loads(text)["hash_ids"])
    assert not set(ids[0]) & set(ids[1])
    assert ids[2] == ids[3]


def test_nothing_came(arena_name: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    result = pegashm(
        "trace", "record", "--name", arena_name(), "--out", str(path), "--seconds", "0.1"
    )
    assert (1, True) == (result.returncode, "nothing came" in result.stderr)


def test_it_ends_with_the_arena(arena_name: Callable[..., str], tmp_path: Path) -> None:
    from pegashm.creation import purge

    name = arena_name()

    def purge_when_it_records() -> None:
        deadline = time.monotonic() + 60
        while not Path(trace_path(name)).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        purge(name, force=True)

    purging = threading.Thread(target=purge_when_it_records)
    purging.start()
    result = pegashm("trace", "record", "--name", name, "--out", str(tmp_path / "t"), "--json")
    purging.join()
    assert json.loads(result.stdout)["gone"], result.stderr


def test_wrong_usage(arena_name: Callable[..., str], tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("")
    name = arena_name()
    status, text = run("trace", "record", "--name", name, "--out", str(there))
    assert (2, True) == (status, "is not overwritten" in text)
    status, text = run("trace", "record", "--name", "test-none", "--out", str(tmp_path / "new"))
    assert (2, True) == (status, "there is no arena" in text)
    status, text = run(
        "trace", "record", "--name", name, "--out", str(tmp_path / "n"), "--salt", str(there)
    )
    assert (2, True) == (status, "a salt has at least 16" in text)
    bad = tmp_path / "bad"
    bad.write_text('{"timestamp": 0}\n')
    status, text = run("trace", "replay", str(bad), "--budget", "1G")
    assert (2, True) == (status, "line 1" in text)
    mooncake = _write(tmp_path / "m", [{"timestamp": 0, "input_length": 512, "hash_ids": [1]}])
    status, text = run("trace", "replay", str(mooncake), "--budget", "1G")
    assert (2, True) == (status, "--block-bytes" in text)
    status, text = run("trace", "replay", str(mooncake), "--budget", "1M", "--block-bytes", "1M")
    assert (2, True) == (status, "is less than 64 blocks" in text)


@pytest.fixture
def workload_file(tmp_path: Path) -> Path:
    """A synthetic workload of sessions, as a trace that says its blocks' size."""
    rows = [
        {"timestamp": r.at_ms, "input_length": r.tokens, "hash_ids": list(r.chain), "block_tokens": 512, "block_bytes": 1 << 20}
        for r in agents(600).requests
    ]  # fmt: skip
    return _write(tmp_path / "agents.jsonl", rows)


def test_replay_is_as_simulated(workload_file: Path) -> None:
    """The real index beside the simulators that the bench proves it with."""
    trace = read_trace(str(workload_file))
    workload = bench_read_trace(workload_file)
    capacity = trace.distinct // 10 // 64 * 64
    for eviction, policy in (("lru", Lru(capacity)), ("adaptive", Adaptive(capacity))):
        ours = replay(trace, capacity << 20, 1 << 20, eviction=eviction)
        theirs = simulate(policy, workload.requests)
        assert capacity == ours.capacity
        assert pytest.approx(theirs.block_rate, abs=0.02) == ours.block_rate
        assert pytest.approx(theirs.tokens_computed / theirs.tokens, abs=0.02) == ours.computed
    unlimited = replay(trace, trace.distinct + 64 << 20, 1 << 20)
    assert pytest.approx(ceiling(trace).block_rate) == unlimited.block_rate
    assert 0 == unlimited.evictions


def test_more_memory_is_never_worse_in_the_table(workload_file: Path) -> None:
    report = said(
        "trace",
        "replay",
        str(workload_file),
        "--budget",
        "64M",
        "--budget",
        "512M",
        "--budget",
        "4G",
    )
    rates = [row["block_rate"] for row in report["budgets"]]
    assert sorted(rates) == rates
    assert rates[-1] <= report["infinite"]["block_rate"] + 1e-9
    assert [64 << 20, 512 << 20, 4 << 30] == [row["budget_bytes"] for row in report["budgets"]]
    status, text = run("trace", "replay", str(workload_file), "--budget", "64M")
    assert (0, True, True) == (status, "no limit" in text, "64 MiB" in text)
