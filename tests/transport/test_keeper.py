"""Does `pegashm serve --spill` keep a worker alive, tell it what was asked, and take it along when it ends?"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pegashm import supervisor
from pegashm._native import SPILLED
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.cli import main
from pegashm.config import ServeConfig, SpillConfig
from pegashm.errors import ConfigError
from pegashm.transport.client import TransportClient
from pegashm.transport.keeper import Keeper
from pegashm.transport.options import WorkerOptions
from pegashm.units import GIB, KIB, MIB

from tests.served import KEYS, NAMESPACE, Served, assert_stored, pegashm, refused, status, store
from tests.soak.stamp import payload_for
from tests.transport.rig import FENCE, eventually, judge, key_of
from tests.transport.rig import NAMESPACE as RIG_NAMESPACE

ROUNDS = 20 if os.environ.get("PEGASHM_LONG") else 4


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pegashm-") as folder:
        monkeypatch.setenv("RUNTIME_DIRECTORY", folder)
        yield folder


@pytest.fixture
def spill(tmp_path: Path) -> tuple[str, ...]:
    return ("--size", "32M", "--spill", str(tmp_path / "spill"), "--spill-size", "16M")


def worker_of(name: str) -> int:
    """The worker's pid, once it listens and has its file in use."""
    with open_arena(name, writable=False, map_payload=False) as arena:
        header = arena.region.header
        return int(header["transport_pid"]) if header["spill_usable"] else 0


def counter(name: str, key: str) -> int:
    with open_arena(name, writable=False, map_payload=False) as arena:
        return next(int(entry["value"]) for entry in arena.region.counters() if entry["key"] == key)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_started_watched_and_ended(
    name: str, serve: Callable[..., Served], spill: tuple[str, ...]
) -> None:
    served = serve(*spill).wait_ready()
    first = eventually(lambda: worker_of(name))
    store(name)
    eventually(lambda: counter(name, "spill_stored") == len(KEYS))
    tier = status(name)["spill"]
    assert (True, first, 1) == (tier["worker_alive"], tier["worker_pid"], tier["files_usable"])
    assert tier["file_bytes"] > tier["payload_bytes"] > 0
    text = pegashm("status", "--name", name).stdout
    assert f"transport   pid {first} at" in text
    assert "1 files in use" in text
    assert "amplification" in text

    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: worker_of(name) not in (0, first) and worker_of(name))
    assert "killed by SIGKILL" in served.wait_log("transport worker was")
    assert "again in 0.5 s" in served.log
    os.kill(second, signal.SIGKILL)
    served.wait_log("again in 1.0 s")
    third = eventually(lambda: worker_of(name) not in (0, second) and worker_of(name))
    assert 0 == served.end()
    assert not alive(third)
    assert not status(name)["spill"]["worker_alive"]
    assert_stored(name)


def test_killed_supervisor_takes_its_worker_along(
    name: str, serve: Callable[..., Served], spill: tuple[str, ...]
) -> None:
    first = serve(*spill).wait_ready()
    worker = eventually(lambda: worker_of(name))
    store(name)
    eventually(lambda: counter(name, "spill_stored") == len(KEYS))
    first.end(signal.SIGKILL)
    eventually(lambda: not alive(worker))
    serve(*spill).wait_ready()
    eventually(lambda: worker_of(name) not in (0, worker))
    assert_stored(name)


def test_a_reboot_with_a_supervisor(
    name: str, serve: Callable[..., Served], spill: tuple[str, ...]
) -> None:
    first = serve(*spill).wait_ready()
    store(name)
    eventually(lambda: counter(name, "spill_stored") == len(KEYS))
    first.end(signal.SIGKILL)
    assert 0 == pegashm("purge", "--name", name, "--yes", "--force").returncode
    serve(*spill).wait_ready()
    eventually(lambda: worker_of(name))
    with Cache.attach(name, namespace=NAMESPACE) as cache:
        assert [SPILLED] * len(KEYS) == cache.find(KEYS)[1].tolist()


def test_supervisors_and_workers_killed_at_random_moments(
    name: str, serve: Callable[..., Served], spill: tuple[str, ...], chance: random.Random
) -> None:
    """Whoever dies, in whatever order: the next supervisor has a worker again, and every byte found is right."""
    keys = [key_of(number) for number in range(1, 401)]
    judged = 0
    for _ in range(ROUNDS):
        served = serve(*spill).wait_ready()
        with open_arena(name) as arena, Cache.attach(name, namespace=RIG_NAMESPACE) as cache:
            with TransportClient(arena) as client:
                until = time.monotonic() + 0.5 + chance.random()
                while time.monotonic() < until:
                    store_block(cache, chance.choice(keys))
                    handles, _ = cache.find(chance.sample(keys, 8))
                    cache.evict(handles[handles != 0])
                    client.promote(chance.sample(keys, 16), cache.namespace_id, 500)
                    client.replies()
                    judged += judge(cache, chance.sample(keys, 16))
                    if chance.random() < 0.02 and (worker := worker_of(name)):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(worker, signal.SIGKILL)
            served.end(signal.SIGKILL)
            judged += judge(cache, keys)
    serve(*spill).wait_ready()
    eventually(lambda: worker_of(name))
    with Cache.attach(name, namespace=RIG_NAMESPACE) as cache:
        before = counter(name, "spill_stored")  # where processes start slowly nothing came so far
        keys += [key_of(number) for number in range(401, 409)]
        for key in keys[-8:]:
            store_block(cache, key)
        eventually(lambda: counter(name, "spill_stored") > before)

        def out_of_memory() -> int:
            handles, _ = cache.find(keys)
            cache.evict(handles[handles != 0])
            return int((cache.find(keys)[1] == SPILLED).sum())

        spilled = eventually(out_of_memory)
    assert judged > 0
    assert 0 == counter(name, "spill_damaged")
    print(f"{ROUNDS} supervisors killed, {judged} blocks judged, {spilled} on SSD at the end")


def store_block(cache: Cache, key: bytes) -> None:
    handles, outcomes = cache.claim([key], 64 * KIB)
    if outcomes[0]:
        return
    offsets, _ = cache.locate(handles)
    view = cache.region.payload(int(offsets[0]), 64 * KIB)
    np.frombuffer(view, np.uint8)[:] = payload_for(key, FENCE, 64 * KIB, nonce=1)
    del view
    cache.publish(handles)


def test_without_spill_no_worker(name: str, serve: Callable[..., Served]) -> None:
    serve().wait_ready()
    time.sleep(0.5)
    tier = status(name)["spill"]
    assert (False, 0, 0) == (tier["worker_alive"], tier["worker_pid"], tier["record_count"])
    assert "transport" not in pegashm("status", "--name", name).stdout


def test_a_file_that_cannot_be_used_does_not_stop_the_supervisor(
    name: str, serve: Callable[..., Served], tmp_path: Path
) -> None:
    (tmp_path / "spill").write_text("a diary")
    served = serve(
        "--size", "32M", "--spill", str(tmp_path / "spill"), "--spill-size", "16M"
    ).wait_ready()
    served.wait_log("no spill file can be used")
    served.wait_log("again in 1.0 s")
    store(name)
    assert_stored(name)
    assert 0 == served.end()
    assert "a diary" == (tmp_path / "spill").read_text()


# -- options -------------------------------------------------------------------------------------


def config_of(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> ServeConfig:
    seen: list[ServeConfig] = []
    monkeypatch.setattr(supervisor, "serve", seen.append)
    result = CliRunner().invoke(
        main, ["serve", "--name", "x", "--size", "64M", *arguments], env=environment
    )
    assert result.exit_code == 0, result.output
    return seen[0]


def test_options_from_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_of(monkeypatch).spill is None
    typed = config_of(
        monkeypatch, "--spill", "/a", "--spill", "/b", "--spill-size", "2T", "--spill-records",
        "1000", "--spill-admission", "second-touch", "--spill-daily-writes", "3T", "--spill-backlog",
        "1G", "--spill-backlog-seconds", "7", "--evict-low", "0.03", "--evict-high", "0.06",
        "--spill-sync-seconds", "1",
    ).spill  # fmt: skip
    expected = SpillConfig(
        paths=("/a", "/b"),
        file_bytes=2048 * GIB,
        records=1000,
        admission="second-touch",
        daily_bytes=3072 * GIB,
        sync_seconds=1.0,
        backlog_bytes=GIB,
        backlog_seconds=7.0,
        low=0.03,
        high=0.06,
    )
    assert expected == typed
    environment = {
        "PEGASHM_SPILL": "/a /b",
        "PEGASHM_SPILL_SIZE": "2T",
        "PEGASHM_SPILL_RECORDS": "1000",
        "PEGASHM_SPILL_ADMISSION": "second-touch",
        "PEGASHM_SPILL_DAILY_WRITES": "3T",
        "PEGASHM_SPILL_BACKLOG": "1G",
        "PEGASHM_SPILL_BACKLOG_SECONDS": "7",
        "PEGASHM_SPILL_SYNC_SECONDS": "1",
        "PEGASHM_EVICT_LOW": "0.03",
        "PEGASHM_EVICT_HIGH": "0.06",
    }
    assert expected == config_of(monkeypatch, **environment).spill
    file = tmp_path / "kv0.toml"
    file.write_text(
        'spill = ["/a", "/b"]\nspill-size = "2T"\nspill-records = 1000\nspill-admission = "second-touch"\n'
        'spill-daily-writes = "3T"\nspill-backlog = "1G"\nspill-backlog-seconds = 7\n'
        "spill-sync-seconds = 1.0\nevict-low = 0.03\nevict-high = 0.06\n"
    )
    assert expected == config_of(monkeypatch, "--config", str(file)).spill


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = config_of(monkeypatch, "--spill", "/a", "--spill-size", "1G").spill
    assert SpillConfig(paths=("/a",), file_bytes=GIB) == plain


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--spill", "/a"], "--spill needs --spill-size"),
        (["--spill-size", "1G"], "need --spill PATH"),
        (["--spill", "a", "--spill-size", "1G"], "absolute path"),
        (["--spill", "/a", "--spill-size", "1M"], "at least 16 MiB"),
        (["--spill", "/a", "--spill", "/a", "--spill-size", "1G"], "different files"),
        (["--spill", "/a", "--spill-size", "1G", "--evict-low", "0.3"], "low <= high"),
        (["--spill", "/a", "--spill-size", "1G", "--spill-backlog-seconds", "0"], "above 0"),
        (["--spill", "/a", "--spill-size", "1G", "--spill-sync-seconds", "-1"], "0 to 3600"),
    ],
)
def test_refusals(name: str, arguments: list[str], text: str) -> None:
    assert text in refused(name, "--size", "64M", *arguments, exit_status=2)


def test_the_workers_options_as_json() -> None:
    options = WorkerOptions(
        name="kv0", spill=SpillConfig(paths=("/a b", "/c"), file_bytes=64 * MIB), group="llm"
    )
    assert options == WorkerOptions.from_json(options.to_json())
    for text in ("", "[]", "{}", '{"spill": {}}', options.to_json().replace('"kv0"', '"../x"')):
        with pytest.raises(ConfigError):
            WorkerOptions.from_json(text)


def test_backoff_doubles_to_30_seconds_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is ours; the children are real and end at once."""
    now = [1000.0]
    monkeypatch.setattr("pegashm.transport.keeper.time.monotonic", lambda: now[0])
    options: dict[str, Any] = {"paths": ("/no/such/folder/spill",), "file_bytes": 16 * MIB}
    keeper = Keeper(
        ServeConfig(name="no-such-arena", size_bytes=32 * MIB, spill=SpillConfig(**options))
    )
    pauses = []
    for _ in range(3):
        keeper.tick()
        assert keeper.pid
        os.waitid(os.P_PID, keeper.pid, os.WEXITED | os.WNOWAIT)
        keeper.tick()
        assert not keeper.pid
        pauses.append(keeper._start_at - now[0])
        now[0] = keeper._start_at
    assert [0.5, 1.0, 2.0] == pauses
    keeper._pause = 20.0
    keeper._again_later(now[0])
    assert 30.0 == keeper._pause
    now[0] += 100
    keeper.tick()
    os.waitid(os.P_PID, keeper.pid, os.WEXITED | os.WNOWAIT)
    now[0] += 61
    keeper.tick()
    assert 0.5 == keeper._start_at - now[0]
    keeper.stop()
