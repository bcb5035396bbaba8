"""One death from beginning to end: an arena, a survivor, debris, a child that dies, and the judgement.

Called by the tests for each (operation, point, pass); `passed` asks the checked build which points an
operation passes, by letting it run to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pegashm.cache import Cache

from tests.arenas import make_arena, remove_arena
from tests.crash.blocks import SHAPE, namespace
from tests.crash.forker import Forker
from tests.crash.judge import Verdict, judge
from tests.crash.operations import MAIN, OPERATIONS, Operation

__all__ = ["Death", "die", "passed"]

BY_NAME = {operation.name: operation for operation in OPERATIONS}


@dataclass(frozen=True, slots=True)
class Death:
    """A child that dies doing `operation`, the `pass_number`-th time that it passes `point`."""

    operation: str
    point: int
    pass_number: int
    probe: bool  # whether the living use the arena before they repair it

    def __str__(self) -> str:
        when = "after others went on" if self.probe else "at once"
        return f"{self.operation!r} killed at {self.point}:{self.pass_number}, repaired {when}"


@contextlib.contextmanager
def scene(operation: Operation, forker: Forker) -> Iterator[Cache]:
    """A small arena with a living client, as the operation wants to find it."""
    name = make_arena(SHAPE)
    try:
        with Cache.attach(name, namespace=namespace(MAIN), label="survivor") as survivor:
            operation.before(survivor)
            for debris in operation.debris:
                ended = run(BY_NAME[debris.operation], forker, survivor, debris.crash)
                assert ended == ("killed", signal.SIGKILL), (
                    f"{debris}: {ended} {forker.last_words()}"
                )
            if operation.reaped:
                survivor.reap_dead()
            yield survivor
    finally:
        remove_arena(name)


def run(
    operation: Operation, forker: Forker, survivor: Cache, crash: str, log: str = ""
) -> tuple[str, int]:
    """Let a child do it, die as `crash` says, and say how it ended."""
    spec = crash
    if operation.stop_at is not None:
        stop = f"{operation.stop_at}:1"
        spec = f"{stop}:stop" if crash in ("", stop) else f"{stop}:stop,{crash}"
    pid = forker.start(operation.name, survivor.name, spec, log)
    ended = forker.wait(pid)
    if operation.stop_at is not None and ended[0] == "stopped":
        operation.meanwhile(survivor)
        os.kill(pid, signal.SIGKILL if crash == f"{operation.stop_at}:1" else signal.SIGCONT)
        ended = forker.wait(pid)
    return ended


def passed(operation: Operation, forker: Forker, log: Path) -> Counter[int]:
    """How often the operation passes each point when nobody dies; it must end well, and be judged well."""
    log.write_text("")
    with scene(operation, forker) as survivor:
        ended = run(operation, forker, survivor, "", str(log))
        assert ended == ("exited", 0), f"{operation.name}: {ended} {forker.last_words()}"
        verdict = judge(survivor, probe=True)
    assert not verdict.complaints, f"{operation.name}, nobody killed: {verdict.complaints}"
    return Counter(map(int, log.read_text().split()))


def die(death: Death, forker: Forker) -> Verdict:
    operation = BY_NAME[death.operation]
    with scene(operation, forker) as survivor:
        ended = run(operation, forker, survivor, f"{death.point}:{death.pass_number}")
        verdict = judge(survivor, probe=death.probe)
    if ended[0] == "hung":
        verdict.hangs += 1
    if ended != ("killed", signal.SIGKILL):
        verdict.complaints.append(f"the child ended as {ended}: {forker.last_words()}")
    return verdict
