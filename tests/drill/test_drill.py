"""The drill: PegaShm's life in a fleet, from the wheel to the purge, on a real vLLM engine. What does the operator see?

    install from the wheel            its commands are there
    start by the units' command lines ok, and an engine hits
    SIGKILL to the supervisor         degraded: unsupervised; the engine hits on; a new one: ok, "re-adopted"
    fill the pool                     evictions, and hits from SSD
    exhaust the SSD's daily budget    degraded: budget_spent
    lose a peer                       the peer is not usable; what it had is computed
    upgrade                           another version in the metrics; the engine hits on
    drain                             stores stop; all blocks go; the engine computes
    purge                             down: missing; the engine goes on without

After each step health, metrics, page, `pegashm top` or log are asked, as an operator would, and every answer of the engine
is compared with that of an engine without us. One test: each step needs those before it. `make drill` runs it and tells the steps.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pegashm.arena import open_arena
from pegashm.units import MIB

from tests import flavours
from tests.arenas import PREFIX, remove_arena
from tests.deploy.builds import Build, from_wheel
from tests.drill.operator import Operator, wait_until
from tests.drill.units import command_of
from tests.e2e.conftest import expected, models, start  # noqa: F401 - fixtures
from tests.e2e.engines import Child, Engine, counter, new_prompt
from tests.ports import free_port

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (os.environ.get("PEGASHM_DRILL") or os.environ.get("PEGASHM_LONG")),
        reason="minutes on real engines: make drill",
    ),
]

TOKENS = 512  # of a prompt of 550: four whole blocks of 128
BLOCKS = 4
FILLERS = 36
SIZE = "48M"
DAILY_WRITES = 64 * MIB


class Fleet:
    """What systemd would run: units of one host or another, each with a log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []

    def run(self, unit: str, instance: str, build: Build, environment: Mapping[str, str]) -> Child:
        command, variables = command_of(unit, instance, bin_of(build), environment)
        log = self.folder / f"{len(self.children)}-{unit.partition('@')[0]}.log"
        self.children.append(Child(command, log, variables))
        return self.children[-1]

    def end(self) -> None:
        for child in reversed(self.children):
            child.kill()


def bin_of(build: Build) -> Path:
    return Path(build.python).parent


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """Of our arena, and of the other host's."""
    made = [f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}" for _ in range(2)]
    yield made[0], made[1]
    for name in made:
        remove_arena(name)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.end()


def step(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def test_drill(
    names: tuple[str, str],
    fleet: Fleet,
    models: Callable[..., Path],  # noqa: F811
    start: Callable[..., Any],  # noqa: F811
    expected: Callable[..., list[list[int]]],  # noqa: F811
    tmp_path: Path,
) -> None:
    if reason := flavours.missing_tool():
        pytest.skip(reason)
    name, other_name = names
    prompts = {what: new_prompt(f"drill {what}") for what in ("first", "later", "there", "drained")}
    fillers = [new_prompt(f"drill filler {number}") for number in range(FILLERS)]

    step("install from the wheel")
    build = from_wheel(tmp_path / "installed", {})
    assert "pegashm, version" in subprocess.check_output(
        [bin_of(build) / "pegashm", "--version"], text=True
    )
    upgraded = {"pyproject.toml": {'version = "0.1.0"': 'version = "0.1.1"'}}

    step("start by the units' command lines")
    ours, theirs, http = (f"127.0.0.1:{free_port()}" for _ in range(3))
    environment = {
        "PEGASHM_SIZE": SIZE,
        "PEGASHM_SEGMENT_SIZE": "4M",
        "PEGASHM_SPILL": str(tmp_path / "kv.spill"),
        "PEGASHM_SPILL_SIZE": "256M",
        "PEGASHM_SPILL_DAILY_WRITES": str(DAILY_WRITES),
        "PEGASHM_LISTEN": ours,
        "PEGASHM_PEERS": f"{ours},{theirs}",
        "PEGASHM_FABRIC": "tcp",
        "PEGASHM_EXPORTER_LISTEN": http,
        "PEGASHM_SURVEY_SECONDS": "0.5",
    }
    there = {"PEGASHM_SIZE": SIZE, "PEGASHM_SEGMENT_SIZE": "4M", "PEGASHM_LISTEN": theirs}
    there |= {"PEGASHM_PEERS": environment["PEGASHM_PEERS"], "PEGASHM_FABRIC": "tcp"}
    supervisor = fleet.run("pegashm@.service", name, build, environment)
    other = fleet.run("pegashm@.service", other_name, build, there)
    exporter = fleet.run("pegashm-exporter@.service", name, build, environment)
    operator = Operator(name, http, bin_of(build))
    wait_until(lambda: answers(http), exporter.said)
    operator.sees_health("ok")
    engine = start(
        Engine, models("qwen3"), name, extra={"spill_deadline_ms": 60_000}, python=build.python
    )
    neighbour = start(Engine, models("qwen3"), other_name, python=build.python)
    engine.ready()
    assert expected(prompts["first"])[0] == engine.ask(prompts["first"])[0].tokens
    hits_again(engine, prompts["first"], expected)
    operator.sees_metric(BLOCKS, "pegashm_lookups_total", result="hit")
    operator.sees_metric(BLOCKS, "pegashm_blocks", tier="memory", state="ready")
    operator.sees_metric(1, "pegashm_clients", state="alive")
    assert operator.top()["health"]["status"] == "ok"
    operator.types("doctor", "--name", name, status=doctor_status(operator))

    step("SIGKILL to the supervisor")
    supervisor.kill()
    operator.sees_health("degraded", "unsupervised")
    assert 0.0 == operator.metric("pegashm_supervisor_up")
    hits_again(engine, prompts["first"], expected)
    supervisor = fleet.run("pegashm@.service", name, build, environment)
    operator.sees_health("ok")
    wait_until(lambda: "re-adopted" in supervisor.said(), supervisor.said)
    hits_again(engine, prompts["first"], expected)

    step("lose a peer")
    neighbour.ready()
    assert expected(prompts["there"])[0] == neighbour.ask(prompts["there"])[0].tokens
    operator.sees_metric(BLOCKS, "pegashm_blocks", tier="remote", state="hinted")
    hits_again(engine, prompts["there"], expected)
    operator.sees_metric(BLOCKS, "pegashm_peer_fetches_total", result="fetched")
    neighbour.kill()
    other.kill()
    kill_worker(other_name)
    operator.sees_health("degraded", "peers_unusable")
    assert operator.metric("pegashm_peers", state="usable") == 0.0
    wait_until(lambda: "[peer_gone]" in supervisor.said(), supervisor.said)
    hits_again(engine, prompts["first"], expected)

    step("fill the pool, and exhaust the SSD's budget")
    for filler in fillers:
        assert expected(filler)[0] == engine.ask(filler)[0].tokens
    operator.sees_metric(1, "pegashm_evictions_total")
    operator.sees_metric(1, "pegashm_spill_daily_written_bytes")
    operator.sees_health("degraded", "budget_spent")
    wait_until(lambda: "[spill_budget_spent]" in supervisor.said(), supervisor.said)
    page = operator.page()
    assert page["memory"]["ready"] > 0
    assert page["ssd"]["budget_used_bytes"] >= 0.98 * DAILY_WRITES
    before = ssd_hits(name)
    for filler in fillers:
        engine.forget()
        assert expected(filler)[0] == engine.ask(filler)[0].tokens
    assert ssd_hits(name) > before, "some of it must have come back from SSD"

    step("upgrade")
    newer = from_wheel(tmp_path / "newer", upgraded)
    for child in (supervisor, exporter):
        child.process.send_signal(signal.SIGTERM)
        child.process.wait(60)
    hits_again(engine, fillers[-1], expected)
    supervisor = fleet.run("pegashm@.service", name, newer, environment)
    exporter = fleet.run("pegashm-exporter@.service", name, newer, environment)
    operator = Operator(name, http, bin_of(newer))
    wait_until(lambda: answers(http), exporter.said)
    wait_until(lambda: operator.metric("pegashm_supervisor_up") == 1.0, supervisor.said)
    assert 1.0 == operator.metric("pegashm_build_info", version="0.1.1")
    wait_until(lambda: "re-adopted" in supervisor.said(), supervisor.said)
    hits_again(engine, fillers[-1], expected)

    step("drain")
    operator.types("drain", "--name", name)
    operator.sees_health("degraded", "draining")
    assert 0.0 == operator.metric("pegashm_blocks", tier="memory", state="ready")
    answer = engine.ask(prompts["drained"])[0]
    assert (expected(prompts["drained"])[0], 0) == (answer.tokens, answer.cached)
    wait_until(
        lambda: operator.metric("pegashm_blocks", tier="memory", state="ready") == 0.0,
        lambda: "a drained arena took blocks",
    )

    step("purge")
    operator.types("purge", "--name", name, "--yes", status=1)  # an engine lives, and a supervisor
    engine_goes_on_without = new_prompt("drill without")
    operator.types("purge", "--name", name, "--yes", "--force")
    assert 1 == supervisor.process.wait(60), "its arena was taken from it"
    operator.sees_health("down", "missing")
    answer = engine.ask(engine_goes_on_without)[0]
    assert (expected(engine_goes_on_without)[0], 0) == (answer.tokens, answer.cached)
    step("done")


def hits_again(engine: Engine, prompt: list[int], expected: Callable[..., list[list[int]]]) -> None:  # noqa: F811
    """The same answer, and all but its tail from the cache."""
    engine.forget()
    answer = engine.ask(prompt)[0]
    assert (expected(prompt)[0], TOKENS) == (answer.tokens, answer.cached)


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5):
        return True
    return False


def doctor_status(operator: Operator) -> int:
    """What this machine deserves: warnings at most, since an arena is served on it."""
    done = subprocess.run(
        [str(operator.bin_folder / "pegashm"), "doctor", "--name", operator.name, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout
    return done.returncode


def kill_worker(name: str) -> None:
    """A host that is lost loses its transport worker too (which dies with its supervisor by itself)."""
    with contextlib.suppress(Exception), open_arena(name) as arena:
        os.kill(int(arena.region.header["transport_pid"]), signal.SIGKILL)


def ssd_hits(name: str) -> int:
    with open_arena(name) as arena:
        return counter(arena, "spill_promoted")
