"""Does an engine go on, with the right answers, while everything around it is killed, stopped and purged?

One engine answers prompts all the time, four at once, with prefixes in common, from an arena that is much too small.
Around it supervisors are killed, stopped and replaced; other clients that store, load, pin, claim and hold the registry are
stopped and killed at random; the arena itself is purged and made anew. The engine compares its KV bytes with the arena's
after each store and each load (`watched.py`), and its answers with those of an engine without us.

The second test kills the storing engines themselves, in the middle of their stores, on a machine with no time to spare:
whoever comes after them loads what they have published, and only what they had.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pegashm.creation import purge
from pegashm.errors import PegaShmError

from tests.arenas import PREFIX, remove_arena
from tests.contract.hostage import POSITIONS
from tests.contract.hostages import Hostage, Keeper
from tests.e2e.engines import ANSWER_SECONDS, HERE, Child, Engine, engine_environment, new_prompt
from tests.e2e.engines import transfer_config as transfer_of
from tests.figures import LONG, report
from tests.served import Served

SECONDS = 60.0 if LONG else 25.0
VICTIMS = 2
SERVE = ("--size", "28M", "--segment-size", "4M", "--no-lock")
FAMILIES, MEMBERS, AT_ONCE = 4, 4, 4
HOSTAGES_MAX = 3
HITS_SECONDS = 60.0


class WatchedEngine(Engine):
    """`watched.py` on a model."""

    def __init__(
        self,
        model: Path,
        arena: str,
        ledger: Path,
        log: Path,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        ledger.mkdir(exist_ok=True)
        setup = {"options": {"model": str(model), **(options or {})}, "transfer": transfer_of()}
        script = [str(HERE / "watched.py"), json.dumps(setup)]
        environment = engine_environment(
            arena, {"PEGASHM_TEST_LEDGER": str(ledger), "PEGASHM_REQUIRED": "0"}
        )
        Child.__init__(self, script, log, environment, talks=True, warm=True)

    def watched(self) -> dict[str, Any]:
        self._say({"watched": True})
        return self._read(ANSWER_SECONDS)


@dataclass
class Storm:
    """Everything around the engine, and what is done to it."""

    name: str
    keeper: Keeper
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    served: Served | None = None
    hostages: list[Hostage] = field(default_factory=list)
    go_on_at: float | None = None

    def blow(self) -> None:
        """One thing that happens."""
        what, weights = zip(
            (self.kill_supervisor, 4), (self.stop_supervisor, 4), (self.take_hostage, 12),
            (self.kill_hostage, 12), (self.stop_hostage, 6), (self.purge, 1), strict=True,
        )  # fmt: skip
        self.look_after()
        self.chance.choices(what, weights)[0]()

    def start_supervisor(self) -> None:
        if self.served is None or self.served.process.poll() is not None:
            self.forget_supervisor()
            self.served = Served(self.name, *SERVE)
            self.done["supervisors"] += 1

    def look_after(self) -> None:
        """There is a supervisor again soon, and whoever was stopped goes on, or not."""
        self.start_supervisor()
        self.hostages = [one for one in self.hostages if one.state() not in "-ZX"]
        if self.go_on_at is not None and time.monotonic() >= self.go_on_at:
            assert self.served is not None
            self.served.process.send_signal(signal.SIGCONT)
            self.go_on_at = None

    def kill_supervisor(self) -> None:
        if self.served is not None:
            self.served.process.kill()
            self.done["kills"] += 1
            self.forget_supervisor()

    def stop_supervisor(self) -> None:
        if self.served is not None and self.go_on_at is None:
            self.served.process.send_signal(signal.SIGSTOP)
            self.go_on_at = time.monotonic() + self.chance.random()
            self.done["stops"] += 1

    def forget_supervisor(self) -> None:
        self.go_on_at = None
        if self.served is not None:
            self.served.process.kill()
            self.served.rest()
            self.served = None

    def take_hostage(self) -> None:
        if len(self.hostages) >= HOSTAGES_MAX:
            return
        # Mostly clients that work; those that take the whole arena are as long there as they live.
        position = self.chance.choices(["busy", *POSITIONS], [24] + [1] * len(POSITIONS))[0]
        try:
            self.hostages.append(
                self.keeper.take(self.name, position, seed=self.chance.getrandbits(32))
            )
            self.done["clients"] += 1
        except AssertionError as error:  # there was no arena to attach to just then
            if "failed" not in str(error):
                raise

    def kill_hostage(self) -> None:
        if self.hostages:
            self.hostages.pop(self.chance.randrange(len(self.hostages))).kill()
            self.done["kills"] += 1

    def stop_hostage(self) -> None:
        if self.hostages:
            hostage = self.chance.choice(self.hostages)
            if hostage.state() not in "TtZX-":
                hostage.stop()
                self.done["stops"] += 1

    def purge(self) -> None:
        """The arena goes; the supervisor notices and ends, the next one makes it anew."""
        try:
            purge(self.name, force=True)
            self.done["purges"] += 1
        except PegaShmError:
            return

    def over(self) -> None:
        """The sky clears: a supervisor, and nobody else."""
        for hostage in self.hostages:
            hostage.kill()
        self.hostages.clear()
        self.forget_supervisor()
        self.start_supervisor()
        assert self.served is not None
        self.served.wait_ready()


@pytest.fixture
def storm(chance: random.Random) -> Iterator[Storm]:
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    with Keeper() as keeper:
        one = Storm(name, keeper, chance)
        try:
            one.start_supervisor()
            assert one.served is not None
            one.served.wait_ready()
            yield one
        finally:
            one.forget_supervisor()
            for hostage in one.hostages:
                hostage.kill()
            remove_arena(name)


def prompts_in_families(name: str) -> list[list[int]]:
    """Prompts that begin alike: two or three chunks in common, then their own."""
    return [
        new_prompt(f"{name} {family}")[: 128 * (2 + family % 2)]
        + new_prompt(f"{name} {family} {member}", 100 + 60 * member)
        for family in range(FAMILIES)
        for member in range(MEMBERS)
    ]


def test_an_engine_in_a_storm(
    models: Callable[..., Path],
    start: Callable[..., Any],
    expected: Callable[..., list[list[int]]],
    storm: Storm,
    chance: random.Random,
    tmp_path: Path,
) -> None:
    prompts = prompts_in_families("storm")
    engine = start(WatchedEngine, models("qwen3"), storm.name, tmp_path / "ledger")
    correct = expected(*prompts)
    engine.ready()
    requests = different = loaded = 0
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        chosen = chance.sample(range(len(prompts)), AT_ONCE)
        engine.ask_later(*(prompts[number] for number in chosen))
        while not engine.has_answered():
            storm.blow()
            time.sleep(chance.random() * 0.3)
            assert time.monotonic() < until + ANSWER_SECONDS, "the engine hangs"
        answers = engine.answers()
        requests += len(answers)
        loaded += sum(answer.cached for answer in answers)
        different += sum(
            answer.tokens != correct[number] for number, answer in zip(chosen, answers, strict=True)
        )
        engine.forget("everything" if chance.random() < 0.04 else "own")
    storm.over()
    again = 0
    deadline = time.monotonic() + HITS_SECONDS
    while again < 256 and time.monotonic() < deadline:
        engine.ask(prompts[0])
        engine.forget()
        again = engine.ask(prompts[0])[0].cached
        engine.forget()
    seen = engine.watched()
    report(
        "storm",
        kills=storm.done["kills"],
        stops=storm.done["stops"],
        supervisors=storm.done["supervisors"],
        clients=storm.done["clients"],
        purges=storm.done["purges"],
        requests=requests,
        tokens_loaded=loaded,
        chunks_stored=seen["chunks_stored"],
        chunks_loaded=seen["chunks_loaded"],
        outputs_different=different,
        wrong_bytes=len(seen["wrong"]),
        longest_step_ms=round(seen["longest_step_s"] * 1e3),
        hangs=0,
    )
    assert [] == seen["wrong"]
    assert 0 == different
    assert again >= 256, "no hits after the storm"
    assert seen["chunks_loaded"] > 0


# dsv2's own answers change with the batch, without us too: it is asked one prompt at a time.
KINDS: dict[str, tuple[dict[str, Any], int]] = {"qwen3": ({}, 4), "dsv2": ({"block_size": 16}, 1)}


@pytest.mark.skipif(
    not LONG, reason="long form only: engines are started many times (PEGASHM_LONG=1)"
)
@pytest.mark.parametrize("kind", KINDS)
def test_engines_killed_while_they_store(
    kind: str,
    models: Callable[..., Path],
    start: Callable[..., Any],
    chance: random.Random,
    tmp_path: Path,
) -> None:
    """Long prompts, so that there is much to store; a SIGKILL some time after they were asked; busy loops beside."""
    options, at_once = KINDS[kind]
    model, name = models(kind), f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    ledger = tmp_path / "ledger"
    prompts = [
        [new_prompt(f"victim {victim} {number}", 2000 + 450 * number) for number in range(4)]
        for victim in range(VICTIMS)
    ]
    served = Served(name, "--size", "384M", "--segment-size", "8M", "--no-lock").wait_ready()
    loops: list[subprocess.Popen[bytes]] = []
    different = loaded = wrong = compared = 0
    try:
        alone = start(Engine, model, None, options=options)
        reader = start(WatchedEngine, model, name, ledger, options=options)
        alone.ready()
        reader.ready()
        loops += [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(2 * (os.cpu_count() or 1))
        ]
        for those in prompts:
            correct = [alone.ask(prompt)[0].tokens for prompt in those]
            victim = start(WatchedEngine, model, name, ledger, options=options).ready()
            began = time.monotonic()
            victim.ask(new_prompt(f"warm {secrets.token_hex(4)}", len(those[-1])))
            usual = time.monotonic() - began
            victim.ask_later(*those[:at_once])
            time.sleep((0.2 + chance.random()) * usual * at_once)
            victim.kill()
            for _ in range(2):  # what the victim stored; then what the reader itself did
                for begin in range(0, len(those), at_once):
                    numbers = range(begin, begin + at_once)
                    answers = reader.ask(*(those[number] for number in numbers))
                    loaded += sum(answer.cached for answer in answers)
                    different += sum(
                        answer.tokens != correct[number]
                        for number, answer in zip(numbers, answers, strict=True)
                    )
                reader.forget()
        seen = reader.watched()
        wrong = len(seen["wrong"])
        compared = seen["chunks_stored"] + seen["chunks_loaded"] + seen["looked_again"]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        served.process.kill()
        served.rest()
        remove_arena(name)
    report(
        "storm",
        kind=kind,
        kills=VICTIMS,
        tokens_loaded=loaded,
        chunks_compared=compared,
        outputs_different=different,
        wrong_bytes=wrong,
    )
    assert (0, 0) == (different, wrong)
    assert loaded > 0
