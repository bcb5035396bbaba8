"""Does the kernel tell the living from the dead, across fork, exec, mappings and SIGKILL?

Real processes and real signals; the facts in the head of `pegashm/liveness.py` are each shown here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from pegashm.arena import open_arena
from pegashm.errors import ArenaMissingError, ResourceError
from pegashm.liveness import (
    OWNER_BYTE,
    SUPERVISOR_BYTE,
    close_lock_file,
    copiers_byte,
    holder_alive,
    live_slots,
    open_lock_file,
    owner_byte,
    range_held,
    try_lock,
    unlock,
)
from pegashm.names import control_path

from tests.arenas import PREFIX


@pytest.fixture
def name() -> Iterator[str]:
    """An empty control object: locks lie beyond its end, so nothing need be in it."""
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    with open(control_path(name), "xb"):
        pass
    yield name
    os.unlink(control_path(name))


@pytest.fixture
def descriptor(name: str) -> Iterator[int]:
    descriptor = open_lock_file(name)
    yield descriptor
    close_lock_file(descriptor)


@contextlib.contextmanager
def child(body: Callable[[], None]) -> Iterator[int]:
    """A forked child that runs `body`, says so, and waits; its pid once it has. Killed at the end."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(read_end)
            body()
            os.write(write_end, b"done")
            signal.pause()
        os._exit(1)
    os.close(write_end)
    try:
        assert b"done" == os.read(read_end, 4), "the child failed before it said that it was done"
        yield pid
    finally:
        os.close(read_end)
        kill(pid)


def kill(pid: int) -> None:
    """SIGKILL and reap: when this returns, the kernel has dropped its locks."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_exclusive_excludes_and_shared_shares(name: str, descriptor: int) -> None:
    other = open_lock_file(name)
    try:
        assert try_lock(descriptor, owner_byte(3))
        assert not try_lock(other, owner_byte(3))
        assert not try_lock(other, owner_byte(3), exclusive=False)
        assert try_lock(other, owner_byte(4))

        assert try_lock(descriptor, copiers_byte(3), exclusive=False)
        assert try_lock(other, copiers_byte(3), exclusive=False)
        assert not try_lock(other, copiers_byte(3)), "shared by two: nobody becomes exclusive"
        unlock(descriptor, copiers_byte(3))
        assert try_lock(other, copiers_byte(3)), "shared by us alone: we do"
    finally:
        close_lock_file(other)
    assert not range_held(descriptor, OWNER_BYTE, 4096), "closing dropped what the other held"


def test_the_holders_own_description_sees_nobody(name: str, descriptor: int) -> None:
    assert try_lock(descriptor, SUPERVISOR_BYTE)
    assert not holder_alive(descriptor, SUPERVISOR_BYTE)
    other = open_lock_file(name)
    assert holder_alive(other, SUPERVISOR_BYTE)
    close_lock_file(other)


def test_a_read_only_descriptor_can_ask_but_not_lock(name: str, descriptor: int) -> None:
    reader = open_lock_file(name, writable=False)
    try:
        assert try_lock(descriptor, SUPERVISOR_BYTE)
        assert try_lock(descriptor, copiers_byte(7), exclusive=False)
        assert holder_alive(reader, SUPERVISOR_BYTE)
        assert [7] == live_slots(reader)
        with pytest.raises(OSError) as refused:
            try_lock(reader, owner_byte(1))
        assert errno.EBADF == refused.value.errno
    finally:
        close_lock_file(reader)


def test_closing_another_descriptor_of_the_file_drops_nothing(name: str, descriptor: int) -> None:
    """The trap of classic locks, which is why these are not classic."""
    assert try_lock(descriptor, SUPERVISOR_BYTE)
    with open(control_path(name), "rb"):
        pass
    other = open_lock_file(name)
    assert holder_alive(other, SUPERVISOR_BYTE)
    close_lock_file(other)


def test_a_killed_holder_is_dead_at_once_and_a_stopped_one_is_not(
    name: str, descriptor: int
) -> None:
    def hold() -> None:
        assert try_lock(open_lock_file(name), owner_byte(5))

    with child(hold) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        assert [5] == live_slots(descriptor)
        assert not try_lock(descriptor, owner_byte(5))
        kill(pid)
        assert [] == live_slots(descriptor)
        assert try_lock(descriptor, owner_byte(5))


def test_a_forked_child_does_not_keep_its_dead_parent_alive(name: str, descriptor: int) -> None:
    read_end, write_end = os.pipe()

    def hold_and_fork() -> None:
        assert try_lock(open_lock_file(name), owner_byte(9))
        pid = os.fork()
        if pid == 0:
            signal.pause()
        os.write(write_end, struct.pack("i", pid))

    with child(hold_and_fork) as parent:
        (grandchild,) = struct.unpack("i", os.read(read_end, 4))
        try:
            assert holder_alive(descriptor, owner_byte(9))
            kill(parent)
            os.kill(grandchild, 0)  # it lives
            assert not holder_alive(descriptor, owner_byte(9))
        finally:
            os.kill(grandchild, signal.SIGKILL)
    os.close(read_end)
    os.close(write_end)


def test_a_started_program_does_not_keep_the_lock(name: str, descriptor: int) -> None:
    read_end, write_end = os.pipe()

    def hold_and_start() -> None:
        assert try_lock(open_lock_file(name), owner_byte(9))
        command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, close_fds=False)
        assert program.stdout is not None
        program.stdout.readline()
        os.write(write_end, struct.pack("i", program.pid))

    with child(hold_and_start) as parent:
        (program,) = struct.unpack("i", os.read(read_end, 4))
        try:
            kill(parent)
            os.kill(program, 0)
            assert not holder_alive(descriptor, owner_byte(9))
        finally:
            os.kill(program, signal.SIGKILL)
    os.close(read_end)
    os.close(write_end)


def test_an_inherited_descriptor_is_inert_and_its_number_stays_taken(
    name: str, descriptor: int
) -> None:
    assert try_lock(descriptor, owner_byte(2))

    def try_everything() -> None:
        for use in (
            lambda: try_lock(descriptor, owner_byte(3)),
            lambda: unlock(descriptor, owner_byte(2)),
            lambda: holder_alive(descriptor, owner_byte(2)),
        ):
            try:
                use()
            except OSError as error:
                assert errno.EBADF == error.errno
            else:
                raise AssertionError("an inherited descriptor still works")
        own = open_lock_file(name)
        assert own != descriptor
        assert not try_lock(own, owner_byte(2)), "the parent still holds it"
        close_lock_file(descriptor)
        close_lock_file(descriptor)
        assert try_lock(own, owner_byte(4))

    with child(try_everything):
        other = open_lock_file(name)
        assert holder_alive(other, owner_byte(2))
        assert holder_alive(other, owner_byte(4))
        close_lock_file(other)


def test_a_mapping_keeps_its_description_alive(name: str, descriptor: int) -> None:
    """The kernel's rule that arena.py obeys: never map through the description that holds a lock."""
    os.truncate(control_path(name), 4096)
    mapped_through = os.open(control_path(name), os.O_RDWR | os.O_CLOEXEC)
    assert try_lock(mapped_through, owner_byte(1))
    memory = mmap.mmap(mapped_through, 4096)
    os.close(mapped_through)
    assert holder_alive(descriptor, owner_byte(1)), "closed, but the mapping holds the description"
    memory.close()
    assert not holder_alive(descriptor, owner_byte(1))


def test_a_forked_child_that_inherits_the_mapped_arena_keeps_no_lock(
    arena_name: Callable[[], str],
) -> None:
    name = arena_name()
    watcher = open_lock_file(name)
    arena = open_arena(name)
    try:
        assert try_lock(arena.control_fd, owner_byte(6))
        with child(lambda: None):  # it inherits the mapping of control region and payload
            arena.close()
            assert not holder_alive(watcher, owner_byte(6))
    finally:
        arena.close()
        close_lock_file(watcher)


def test_descriptors_are_not_inherited_by_programs(descriptor: int) -> None:
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_opening_says_what_is_wrong(name: str) -> None:
    with pytest.raises(ArenaMissingError, match=r"pegashm serve --name nothing-here"):
        open_lock_file("nothing-here")
    if os.geteuid() != 0:
        os.chmod(control_path(name), 0)
        with pytest.raises(ResourceError, match="--group"):
            open_lock_file(name)
    with pytest.raises(ValueError, match="slot"):
        owner_byte(128)
