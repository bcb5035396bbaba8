"""What an engine on one host computed, does an engine on another load, with the same outputs? And when the way breaks?

Two hosts: network namespaces with a cable between them where the machine gives them, keys and all, else two addresses of one machine.
Each has a supervisor, its transport worker and a real vLLM engine. Answers are compared with those of an engine
without us. Requests wait for the other host as long as they must where the test is about what comes.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.errors import ConfigError
from pegashm.peers.keys import make_keys
from pegashm.peers.report import read_peers

from tests.arenas import PREFIX, remove_arena
from tests.e2e.engines import Engine, Supervisor, counter, new_prompt
from tests.peers.hosts import Network, why_not
from tests.ports import free_port
from tests.transport.rig import eventually

Start = Callable[..., Any]
Expected = Callable[..., list[list[int]]]

PATIENT = {"spill_deadline_ms": 60_000}
SIZE = "64M"
TOKENS = 512
BLOCKS = 4  # of a prompt
PROMPTS = 6


@dataclass(slots=True)
class Side:
    """One of the two hosts."""

    name: str
    supervisor: Supervisor
    prefix: list[str]

    def figure(self, key: str) -> int:
        with open_arena(self.name) as arena:
            return counter(arena, key)

    def hints(self) -> int:
        """Blocks of the other host that lookups here see."""
        with open_arena(self.name) as arena:
            return sum(int(host["hints"]) for host in arena.region.remote_hosts() if host["usable"])

    def worker(self) -> int:
        with open_arena(self.name) as arena:
            return int(arena.region.header["transport_pid"])

    def evict_all(self) -> None:
        with Cache.attach(self.name, namespace=None, label="evicts") as cache:

            def empty() -> bool:
                left = cache.region.blocks()
                left = left[left["state"] == 2]
                handles = left["generation"] << 24 | left["record"]
                return not len(handles) or not cache.evict(handles.astype("uint64")).any()

            eventually(empty)


@pytest.fixture(scope="module")
def hosts(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Side]]:
    folder = tmp_path_factory.mktemp("hosts")
    network = Network(2) if why_not() is None else None
    if network is not None:
        addresses = [f"{address}:7420" for address in network.addresses]
        prefixes = [network.prefix(0), network.prefix(1)]
    else:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        prefixes = [[], []]
    keys = [folder / f"keys{number}" for number in range(2)]
    for mine in keys:
        make_keys(str(mine))
    lines = [
        f"{(mine / 'host.pub').read_text().strip()} {address}\n"
        for mine, address in zip(keys, addresses, strict=True)
    ]
    names = [f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}" for _ in range(2)]
    made = []
    try:
        for number, name in enumerate(names):
            (keys[number] / "allowed").write_text("".join(lines))
            options = ["--segment-size", "4M", "--no-lock", "--fabric", "tcp"]
            options += ["--spill", str(folder / f"{number}.spill"), "--spill-size", "128M"]
            options += ["--listen", addresses[number], "--keys", str(keys[number])]
            options += ["--peers", ",".join(addresses)]
            supervisor = start_shared(
                Supervisor,
                name,
                SIZE,
                options=options,
                prefix=prefixes[number],
                log=f"host{number}",
            ).ready()
            made.append(Side(name, supervisor, prefixes[number]))
        for side in made:
            eventually(lambda: _met(side.name))  # noqa: B023 - called at once
        yield made
    finally:
        for side in made:
            side.supervisor.kill()
        for name in names:
            remove_arena(name)
        if network is not None:
            network.close()


def _met(name: str) -> bool:
    try:
        report = read_peers(name).as_dict()
    except ConfigError:  # its worker has not written yet
        return False
    return len(report["peers"]) == 1 and bool(report["peers"][0]["usable"])


@pytest.fixture(scope="module")
def engines(
    hosts: list[Side], models: Callable[..., Path], start_shared: Start
) -> tuple[Engine, Engine]:
    a, b = (
        start_shared(
            Engine,
            models("qwen3"),
            side.name,
            extra=PATIENT,
            prefix=side.prefix,
            log=f"engine{number}",
        )
        for number, side in enumerate(hosts)
    )
    return a.ready(), b.ready()


def test_what_a_computed_b_loads(
    hosts: list[Side], engines: tuple[Engine, Engine], expected: Expected
) -> None:
    (a, b), (one, other) = hosts, engines
    prompts = [new_prompt(f"over there {number}") for number in range(PROMPTS)]
    correct = expected(*prompts)
    assert correct == [one.ask(prompt)[0].tokens for prompt in prompts]
    eventually(lambda: b.hints() >= BLOCKS * PROMPTS)
    answers = [other.ask(prompt)[0] for prompt in prompts]
    assert correct == [answer.tokens for answer in answers]
    assert [TOKENS] * PROMPTS == [answer.cached for answer in answers]
    assert BLOCKS * PROMPTS == b.figure("remote_fetched") == a.figure("remote_served")
    assert 0 == b.figure("remote_damaged") == b.figure("loads_failed")
    print(f"{b.figure('remote_bytes_fetched')} bytes fetched")


def test_all_at_once_and_both_ways(
    hosts: list[Side], engines: tuple[Engine, Engine], expected: Expected
) -> None:
    one, other = engines
    prompts = [new_prompt(f"both ways {number}") for number in range(2 * PROMPTS)]
    correct = expected(*prompts)
    had = [side.hints() for side in hosts]
    one.ask_later(*prompts[:PROMPTS])
    other.ask_later(*prompts[PROMPTS:])
    one.answers(), other.answers()
    for side, before in zip(hosts, had, strict=True):
        eventually(lambda: side.hints() >= before + BLOCKS * PROMPTS)  # noqa: B023
    one.ask_later(*prompts[PROMPTS:])
    other.ask_later(*prompts[:PROMPTS])
    crossed = other.answers() + one.answers()
    assert correct == [answer.tokens for answer in crossed]
    assert [TOKENS] * 2 * PROMPTS == [answer.cached for answer in crossed]


def test_what_a_has_on_ssd_b_loads(
    hosts: list[Side], engines: tuple[Engine, Engine], expected: Expected
) -> None:
    (a, _), (one, other) = hosts, engines
    prompts = [new_prompt(f"on its SSD {number}") for number in range(PROMPTS)]
    correct = expected(*prompts)
    stored = a.figure("spill_stored")
    assert correct == [one.ask(prompt)[0].tokens for prompt in prompts]
    eventually(lambda: a.figure("spill_stored") >= stored + BLOCKS * PROMPTS)
    a.evict_all()
    promoted = a.figure("spill_promoted")
    answers = [other.ask(prompt)[0] for prompt in prompts]
    assert correct == [answer.tokens for answer in answers]
    assert [TOKENS] * PROMPTS == [answer.cached for answer in answers]
    assert a.figure("spill_promoted") >= promoted + BLOCKS * PROMPTS


def test_a_worker_that_stops_or_dies_costs_hits_only(
    hosts: list[Side], engines: tuple[Engine, Engine], expected: Expected
) -> None:
    """Stopped while B asks: computed at the deadline or before. Killed: computed. Back: loaded again."""
    (a, b), (one, other) = hosts, engines
    prompts = [new_prompt(f"not over there {number}") for number in range(3)]
    correct = expected(*prompts)
    had = b.hints()
    assert correct == [one.ask(prompt)[0].tokens for prompt in prompts]
    eventually(lambda: b.hints() >= had + BLOCKS * 3)
    stopped = a.worker()
    os.kill(stopped, signal.SIGSTOP)
    try:
        answer = other.ask(prompts[0])[0]
        assert (correct[0], 0) == (answer.tokens, answer.cached)
    finally:
        os.kill(stopped, signal.SIGCONT)
    os.kill(stopped, signal.SIGKILL)
    answer = other.ask(prompts[1])[0]
    assert correct[1] == answer.tokens
    eventually(lambda: a.worker() not in (0, stopped), 60.0)
    eventually(lambda: b.hints() >= BLOCKS, 60.0)
    answer = other.ask(prompts[2])[0]
    assert (correct[2], TOKENS) == (answer.tokens, answer.cached)
