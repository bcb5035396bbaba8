"""When several supervisors of one name start at once, does exactly one serve?

Raced in processes that wait at one barrier and then take the very steps of `pegashm serve` up to serving, from
every state an arena can be in; with `purge` among them too. And as an operator would: two commands at once.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from pegashm import creation, supervisor
from pegashm.arena import is_linked, open_arena
from pegashm.config import ServeConfig
from pegashm.errors import ArenaBusyError
from pegashm.names import SHM_DIRECTORY, control_path, payload_path
from pegashm.systemd import Notifier
from pegashm.termination import Termination
from pegashm.units import MIB

from tests.figures import LONG
from tests.served import Served, objects, status
from tests.world.actors import wait_until

RACERS = 4
SERVING, REFUSED, BROKEN = b"s", b"r", b"b"


class Race:
    """Forked processes that are let go at once; each says one letter and waits to be ended."""

    def __init__(self, bodies: list[Callable[[], bytes]]) -> None:
        self._go, self._ready = os.pipe(), os.pipe()
        self._said: list[int] = []
        self.pids: list[int] = []
        for body in bodies:
            read_end, write_end = os.pipe()
            pid = os.fork()
            if pid == 0:
                self._run(body, write_end)
            os.close(write_end)
            self._said.append(read_end)
            self.pids.append(pid)

    def _run(self, body: Callable[[], bytes], write_end: int) -> None:
        signal.alarm(60)
        answer = BROKEN
        try:
            os.close(self._go[1])
            os.write(self._ready[1], b"x")
            os.read(self._go[0], 1)
            answer = body()
        except BaseException as error:  # noqa: BLE001 - told to the test, which fails
            answer = BROKEN + f"{type(error).__name__}: {error}".encode()
        finally:
            os.write(write_end, answer)
            os.close(write_end)
            signal.pause()
            os._exit(0)

    def run(self) -> list[bytes]:
        """Let them go; what each said."""
        for _ in self.pids:
            os.read(self._ready[0], 1)
        os.close(self._go[1])
        return [os.read(said, 4096) for said in self._said]

    def end(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for descriptor in (self._go[0], *self._ready, *self._said):
            os.close(descriptor)


@contextlib.contextmanager
def race(bodies: list[Callable[[], bytes]]) -> Iterator[list[bytes]]:
    started = Race(bodies)
    try:
        yield started.run()
    finally:
        started.end()


def start_serving(name: str) -> Callable[[], bytes]:
    """All of a supervisor's start; it then holds the lock until it is killed."""
    config = ServeConfig(
        name=name, size_bytes=4 * MIB, segment_bytes=256 << 10, numa="none", lock=False
    )

    def body() -> bytes:
        with Termination() as termination:
            try:
                lock_fd, _ = supervisor._create_or_check(config, termination, Notifier({}))
            except ArenaBusyError as error:
                return REFUSED if "has a living supervisor already" in str(error) else BROKEN
            assert is_linked(name, lock_fd), "serves what nobody can find"
            open_arena(name).close()
            return SERVING

    return body


def start_purging(name: str) -> Callable[[], bytes]:
    def body() -> bytes:
        with contextlib.suppress(ArenaBusyError):
            creation.purge(name, force=False)
        return REFUSED

    return body


def leave_nothing(name: str) -> None:
    creation.purge(name, force=True)


def leave_unfinished(name: str) -> None:
    """A creator died with its payload reserved and its control object half written."""
    leave_nothing(name)
    with open(control_path(name), "xb") as control:
        control.write(bytes(8192))
    with open(payload_path(name, SHM_DIRECTORY, 0), "xb") as payload:
        payload.write(b"left")


def leave_ready(name: str) -> None:
    leave_nothing(name)
    with race([start_serving(name)]) as said:
        assert [SERVING] == said


@pytest.mark.parametrize("leave", [leave_nothing, leave_unfinished, leave_ready])
@pytest.mark.parametrize("purgers", [0, 2])
def test_of_many_that_start_at_once_exactly_one_serves(
    name: str,
    leave: Callable[[str], None],
    purgers: int,
    figures: Counter[str],
    chance: random.Random,
) -> None:
    for _ in range(90 if LONG else 8):
        leave(name)
        bodies = [start_serving(name)] * RACERS + [start_purging(name)] * purgers
        chance.shuffle(bodies)
        with race(bodies) as said:
            figures["races"] += 1
            counts = Counter(said)
            assert RACERS + purgers == counts[SERVING] + counts[REFUSED], said
            # A purge that is at work refuses them as a supervisor would: then it may be that none serves.
            assert counts[SERVING] in ({0, 1} if purgers else {1}), said
            if counts[SERVING]:
                with open_arena(name) as arena:
                    assert arena.is_linked()
                assert 2 == len(objects(name))
        figures["kills"] += RACERS + purgers


def test_two_commands_at_once_one_serves_and_the_other_says_why(
    serve: Callable[..., Served], name: str, figures: Counter[str]
) -> None:
    for _ in range(8 if LONG else 2):
        pair = [serve("--size", "8M", "--no-lock") for _ in range(2)]
        figures["races"] += 1
        wait_until(lambda: any(one.process.poll() is not None for one in pair), "one refused")  # noqa: B023
        loser, winner = sorted(pair, key=lambda one: one.process.poll() is None)
        assert 1 == loser.process.returncode
        said = loser.rest()
        assert f'arena "{name}" has a living supervisor already (' in said
        assert "Traceback" not in said
        figures["refusals"] += 1
        winner.wait_ready()
        assert winner.process.pid == status(name)["supervisor_pid"]
        assert 0 == winner.end()
        creation.purge(name, force=False)
    assert not Path(control_path(name)).exists()


def test_a_purge_that_comes_late_does_not_take_what_was_made_meanwhile(
    name: str, figures: Counter[str]
) -> None:
    """It has opened the arena's control object when another purges it and a third makes it anew."""
    serving = start_serving(name)
    with race([serving]) as said:
        assert [SERVING] == said
    late = os.fork()
    if late == 0:

        def stop_there(frame: FrameType, event: str, _: object) -> None:
            if event == "return" and frame.f_code.co_name == "open_lock_file":
                sys.setprofile(None)
                os.kill(os.getpid(), signal.SIGSTOP)

        code = 99
        with contextlib.suppress(BaseException):
            sys.setprofile(stop_there)
            try:
                creation.purge(name, force=False)
                code = 0
            except ArenaBusyError:
                code = 1
        os._exit(code)
    assert os.WIFSTOPPED(os.waitpid(late, os.WUNTRACED)[1])
    figures["stops"] += 1
    creation.purge(name, force=False)
    with race([serving]) as said:
        assert [SERVING] == said
        os.kill(late, signal.SIGCONT)
        assert 1 == os.waitstatus_to_exitcode(os.waitpid(late, 0)[1]), "one lives: it is refused"
        figures["races"] += 1
        assert 2 == len(objects(name))
    assert "unsupervised" == status(name)["state"]


def test_names_do_not_get_in_each_others_way(name: str, figures: Counter[str]) -> None:
    """One name may begin with another; what is made and purged under one stays out of the other's."""
    other = f"{name}-{secrets.token_hex(2)}"
    try:
        with race([start_serving(name), start_serving(other)]) as said:
            assert [SERVING, SERVING] == said
        creation.purge(name, force=False)
        assert set() == {path for path in objects(name) if other not in path}
        assert "unsupervised" == status(other)["state"]
        figures["races"] += 1
    finally:
        creation.purge(other, force=True)
