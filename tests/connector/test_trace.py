"""Does the connector tell a recorder what its requests ask for, whole and once, and does the bench read what comes of it?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pegashm.cache import Mode
from pegashm.connector.attachment import Attachment
from pegashm.connector.manager import PegaShmManager
from pegashm.connector.settings import Settings
from pegashm.trace.recorder import Limits, record
from pegashm.trace.spool import Spool

from tests.connector.conftest import NAMESPACE
from tests.connector.test_manager import CHUNK_BYTES, ask, end_step, keys_of, request, store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def manager(arena_name: Callable[..., str]) -> Iterator[PegaShmManager]:
    name = arena_name()
    attachment = Attachment(Settings(arena=name, required=True), NAMESPACE, "engine")
    made = PegaShmManager(
        attachment, mode=Mode.READ_WRITE, chunk_bytes=CHUNK_BYTES, writers=1, events=False
    )
    yield made
    made.shutdown()


def _now(manager: PegaShmManager) -> None:
    """As after two seconds: it looks whether somebody records."""
    manager._tracer._look_at = 0.0


def test_a_request_is_told_once_and_whole(manager: PegaShmManager) -> None:
    keys = keys_of("a", 6)
    with Spool(manager._attachment.arena_name) as spool:
        _now(manager)
        store(manager, keys[:3], request(manager, keys))
        context = request(manager, keys, "r")
        ask(manager, keys, context)
        end_step(manager)
        ask(manager, keys, context)  # the next step asks again
        ask(manager, keys[2:], request(manager, keys, "s"))  # the engine has the first two itself
        heard = list(spool.take())
    assert [6, 6] == [len(asked.keys) for asked in heard]
    assert heard[0].keys == heard[1].keys == tuple(bytes(key)[:16] for key in keys)
    assert (96, CHUNK_BYTES, NAMESPACE.fingerprint) == (
        heard[0].tokens, heard[0].block_bytes, heard[0].fingerprint
    )  # fmt: skip


def test_of_several_groups_the_first_stands_for_the_request(manager: PegaShmManager) -> None:
    groups = [keys_of("a", 4, group) for group in range(2)]
    with Spool(manager._attachment.arena_name) as spool:
        _now(manager)
        context = request(manager, groups[0] + groups[1])
        for group in groups:
            ask(manager, group, context)
        (heard,) = spool.take()
    assert (0, 4) == (heard.group, len(heard.keys))


def test_nobody_records(manager: PegaShmManager) -> None:
    keys = keys_of("a", 4)
    ask(manager, keys, request(manager, keys))
    assert not manager._tracer.on


def test_recorded_traffic_is_replayed_by_the_bench(manager: PegaShmManager, tmp_path: Path) -> None:
    """Conversations through the connector, recorded, through `bench.replay` and `pegashm trace replay`: the same hits."""
    path = tmp_path / "live.jsonl"
    turns = [(talk, 4 + 3 * turn) for turn in range(6) for talk in range(20)]
    steps = iter(turns)

    def serve_one(_seconds: float) -> bool:
        _now(manager)
        turn = next(steps, None)
        if turn is None:
            return True
        talk, blocks = turn
        keys = keys_of(f"talk {talk}", blocks)
        context = request(manager, keys, f"{turn}")
        ask(manager, keys, context)
        end_step(manager)
        store(manager, keys, context)
        return False

    with path.open("w", encoding="utf-8") as out:
        recorded = record(
            manager._attachment.arena_name, out, salt=b"s" * 32, limits=Limits(), wait=serve_one
        )
    assert (len(turns), 0) == (recorded.requests, recorded.lost)
    bench = _output("bench.replay", "--trace", str(path), "--budget", "4M", "--block-bytes", "16K")
    ours = _output(
        "pegashm", "trace", "replay", str(path), "--block-bytes", "16K", "--budget", "4M", "--json"
    )
    said = json.loads(ours)
    assert (len(turns), sum(blocks for _, blocks in turns)) == (said["requests"], said["blocks"])
    rate = f"{said['budgets'][0]['block_rate']:.2%}"
    assert said["budgets"][0]["capacity"] == 256
    assert f"{said['infinite']['block_rate']:.2%}" in bench
    assert rate in bench, bench


def _output(*words: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout
