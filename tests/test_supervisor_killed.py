"""Is a supervisor safe to kill at any instruction?

Children are forked that kill themselves at the n-th system call they make, for every n; real supervisors are killed at random.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import pytest

from pegashm import creation, supervisor
from pegashm.arena import open_arena
from pegashm.config import ServeConfig
from pegashm.errors import ArenaBusyError
from pegashm.liveness import close_lock_file, open_lock_file, owner_byte, try_lock
from pegashm.names import control_path, pending_path
from pegashm.systemd import Notifier
from pegashm.termination import Termination
from pegashm.units import MIB

from tests.served import Served, assert_stored, objects, status, store

SYSTEM_MODULES = {"posix", "posix_ipc", "fcntl", "mmap", "io", "_io"}


def killed_at(call: int, body: Callable[[], object]) -> bool:
    """Run `body` in a child that SIGKILLs itself before its n-th system call from our code; whether it did.

    What lies between two system calls nobody else can see, so this is every state that matters.
    """
    pid = os.fork()
    if pid == 0:
        seen = 0

        def count(frame: FrameType, event: str, function: object) -> None:
            nonlocal seen
            ours = "pegashm" in frame.f_code.co_filename
            if event == "c_call" and ours and defining_module(function) in SYSTEM_MODULES:
                seen += 1
                if seen == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        with contextlib.suppress(BaseException):
            sys.setprofile(count)
            body()
            sys.setprofile(None)
            code = 0
        os._exit(code)
    _, wait_status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(wait_status):
        assert signal.SIGKILL == os.WTERMSIG(wait_status)
        return True
    assert 0 == os.WEXITSTATUS(wait_status), f"failed instead of being killed at call {call}"
    return False


def defining_module(function: object) -> str:
    """The module of a C function, or of the type whose method it is."""
    owner = getattr(function, "__self__", None)
    return owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__


def start_once(config: ServeConfig) -> bool:
    """All of a supervisor's start but populating; whether the arena was there before."""
    with Termination() as termination:
        lock_fd, existed = supervisor._create_or_check(config, termination, Notifier({}))
        try:
            open_arena(config.name).close()
        finally:
            close_lock_file(lock_fd)
    return existed


def every_call(body: Callable[[], object], judge: Callable[[], None]) -> int:
    """Kill `body` at its first call, its second, ... until it gets through; `judge` after each."""
    call = 1
    while killed_at(call, body):
        judge()
        call += 1
    judge()
    return call


def test_killed_anywhere_in_creation_elsewhere_the_next_start_begins_anew(
    name: str, tmp_path: Path
) -> None:
    """With --directory; in /dev/shm, and at each line: tests/crash/test_lines.py."""
    directory = str(tmp_path)
    config = ServeConfig(name=name, size_bytes=4 * MIB, directory=directory, numa="none")
    plain = ServeConfig(name=name, size_bytes=4 * MIB, numa="none")

    def judge() -> None:
        # Started without --directory where that is allowed, a leftover elsewhere must still go.
        created = status(name)["state"] == "unsupervised"
        existed = start_once(config if created else plain)
        assert existed == created
        assert 2 == len(objects(name) | objects(name, directory))
        creation.purge(name, force=False)
        assert set() == objects(name) | objects(name, directory)

    assert every_call(lambda: start_once(config), judge) > 40


def test_killed_anywhere_in_purge_nothing_stays_that_purge_cannot_find(
    name: str, tmp_path: Path
) -> None:
    config = ServeConfig(name=name, size_bytes=4 * MIB, directory=str(tmp_path), numa="none")
    start_once(config)

    def judge() -> None:
        if status(name)["state"] == "unsupervised":
            assert start_once(config), "still there, so still whole"
            assert not Path(pending_path(name)).exists()
        else:
            creation.purge(name, force=False)
            assert set() == objects(name) | objects(name, str(tmp_path))
            start_once(config)

    assert every_call(lambda: creation.purge(name, force=False), judge) > 20


def test_supervisors_killed_at_random_moments_lose_nothing(
    name: str, serve: Callable[..., Served], chance: Any
) -> None:
    serve().wait_ready().end(signal.SIGKILL)
    store(name)
    for _ in range(6):
        served = serve()
        time.sleep(chance.uniform(0.05, 0.6))
        served.end(signal.SIGKILL)
        assert_stored(name)
    served = serve().wait_ready()
    served.wait_log("re-adopted")
    with open_arena(name) as arena:
        assert 8 == arena.region.tally()["ready"]
        assert np.uint64(0) == arena.region.blocks()["pins"].sum()


def test_a_leftover_that_somebody_uses_is_not_taken_away(name: str) -> None:
    """Its magic is gone, so it looks unfinished, but a client holds its lock: damaged, not leftover."""
    config = ServeConfig(name=name, size_bytes=4 * MIB, numa="none")
    start_once(config)
    with open(control_path(name), "r+b") as file:
        file.write(bytes(8))
    client = open_lock_file(name)
    assert try_lock(client, owner_byte(0))
    with pytest.raises(ArenaBusyError, match="damaged header"):
        start_once(config)
    close_lock_file(client)
    assert not start_once(config)
