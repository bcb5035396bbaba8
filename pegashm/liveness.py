"""Who is alive? The kernel says: each process holds a lock on a byte of its own.

The locks are open-file-description locks (`F_OFD_SETLK`) on bytes far beyond the end of the control
object, so they touch no data. The kernel drops them when the last reference to the description goes,
that is when its holder is dead and not before, whatever PID namespace either side lives in.

Three facts decide how this file is written; `tests/test_liveness.py` shows each of them.
 1. The lock belongs to the *description*, not to the process: two descriptors made by dup() or fork()
    share it, two made by open() do not. Every holder therefore opens its own, and asking through the
    description that holds a lock always answers "nobody".
 2. A forked child inherits the description and would keep its dead parent alive. `O_CLOEXEC` covers
    exec; for a plain fork the child swaps each descriptor for an inert one before any other code runs
    (inert, not closed: the number must not be reused under objects that still remember it).
 3. A memory mapping holds a reference to the description it was made through, and a child inherits
    mappings too. So a lock description is never mapped: `arena.py` maps through another one.

Classic fcntl locks are not used: closing *any* descriptor of the file would drop them.
Called by everything that attaches, supervises, reaps or reports. Nothing here waits.
"""

import errno
import fcntl
import os
import struct
import threading
from typing import Final

from pegashm.errors import ArenaMissingError, ResourceError
from pegashm.names import control_path

__all__ = [
    "COPIERS_BYTE",
    "OWNER_BYTE",
    "REGISTRY_BYTE",
    "SLOT_COUNT",
    "SUPERVISOR_BYTE",
    "TRANSPORT_BYTE",
    "USED_BYTE",
    "close_lock_file",
    "copiers_byte",
    "holder_alive",
    "live_slots",
    "open_guarded",
    "open_lock_file",
    "owner_byte",
    "range_held",
    "read_only_message",
    "try_lock",
    "unlock",
]

_BASE: Final = 1 << 40
SUPERVISOR_BYTE: Final = _BASE
REGISTRY_BYTE: Final = _BASE + 1
TRANSPORT_BYTE: Final = _BASE + 2
OWNER_BYTE: Final = _BASE + 1024
COPIERS_BYTE: Final = _BASE + 2048
USED_BYTE: Final = (
    _BASE  # of a payload file, not of the control object: shared by all that have it mapped
)
SLOT_COUNT: Final = 128

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (0, as OFD locks demand), padding.
_FLOCK: Final = struct.Struct("hhqqi4x")

# Descriptors a forked child must give up. The mutex is held across fork, so that no descriptor is
# inherited between its open() and its entry here.
_descriptors: Final[set[int]] = set()
_mutex: Final = threading.Lock()


def owner_byte(slot: int) -> int:
    """Held exclusively by the client process itself, for life."""
    return OWNER_BYTE + _checked(slot)


def copiers_byte(slot: int) -> int:
    """Held shared by every process that copies for that client, the client included."""
    return COPIERS_BYTE + _checked(slot)


def open_lock_file(name: str, *, writable: bool = True) -> int:
    """A new open file description of the control object; close it with `close_lock_file`.

    Read-only is enough to ask who is alive, not to lock exclusively.
    """
    path = control_path(name)
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
    with _mutex:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            raise ArenaMissingError(
                f'there is no arena "{name}" ({path} does not exist): '
                f"start it with `pegashm serve --name {name} --size 64G`"
            ) from None
        except PermissionError as error:
            raise ResourceError(_permission_message(name, path)) from error
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            raise ResourceError(read_only_message(path)) from error
        _descriptors.add(descriptor)
    return descriptor


def open_guarded(path: str, flags: int, mode: int = 0o600) -> int:
    """A descriptor of any file that a forked child gives up, so that locks taken through it end with this process.

    Close it with `close_lock_file`. OSError as from os.open.
    """
    with _mutex:
        descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
        _descriptors.add(descriptor)
    return descriptor


def close_lock_file(descriptor: int) -> None:
    """Close it, which drops every lock taken through it. A second call does nothing."""
    with _mutex:
        if descriptor in _descriptors:
            _descriptors.discard(descriptor)
            os.close(descriptor)


def try_lock(descriptor: int, byte: int, exclusive: bool = True) -> bool:
    """Take the lock now or not at all. Taken again through the same description, it is replaced."""
    request = _FLOCK.pack(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(descriptor: int, byte: int) -> None:
    request = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)


def holder_alive(descriptor: int, byte: int) -> bool:
    """Whether somebody holds this byte, shared or not, through *another* description than this one."""
    return range_held(descriptor, byte, 1)


def range_held(descriptor: int, first: int, count: int) -> bool:
    """Whether any of `count` bytes is held through another description; works on a read-only one."""
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, request)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def live_slots(descriptor: int) -> list[int]:
    """Client slots whose owner, or a process that copies for it, is alive."""
    return [
        slot
        for slot in range(SLOT_COUNT)
        if holder_alive(descriptor, owner_byte(slot))
        or holder_alive(descriptor, copiers_byte(slot))
    ]


def _checked(slot: int) -> int:
    if not 0 <= slot < SLOT_COUNT:
        raise ValueError(f"client slot must be in 0..{SLOT_COUNT - 1}, got {slot}")
    return slot


def _permission_message(name: str, path: str) -> str:
    try:
        facts = os.stat(path)
        owner = f"it belongs to uid {facts.st_uid}, gid {facts.st_gid}, mode {facts.st_mode & 0o777:04o}"
    except OSError:
        owner = "its owner cannot be read"
    return (
        f'no permission to open arena "{name}" ({path}) as uid {os.geteuid()}: {owner}. Run as that '
        "user, or start the supervisor with `--group` naming a group both are in"
    )


def read_only_message(path: str) -> str:
    return (
        f"{path} cannot be opened for writing: {os.path.dirname(path)} is mounted read-only here, and engines "
        f"and supervisors write to it. Type `mount -o remount,rw {os.path.dirname(path)}`, or in a "
        "container mount it without `:ro` (status and dump work as it is)"
    )


def _disarm_in_child() -> None:
    """Let go of the parent's descriptions; every later use of these descriptors fails with EBADF."""
    try:
        # O_PATH descriptors refuse reads, writes and locks alike.
        inert = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        for descriptor in _descriptors:
            os.close(descriptor)
        _descriptors.clear()
    else:
        for descriptor in _descriptors:
            os.dup2(inert, descriptor, inheritable=False)
        os.close(inert)
    _mutex.release()


os.register_at_fork(
    before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_disarm_in_child
)
