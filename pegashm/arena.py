"""How does a process open an arena that somebody created, in time that does not depend on its size?

The header in `/dev/shm/pegashm.NAME.control` is judged by reading it (a file cut short under us would
kill a reader of a mapping), then the payload files it names are opened and all is mapped. There are
three answers, at once and without any deadline: an Arena, ArenaNotReadyError, or never (FormatError).
A forked child inherits the mappings but is nobody's client: every use there is a ValueError that says so.
Called by engines, tools and the supervisor. Creating and removing are in `creation.py`; who may use
what is said by the locks of `liveness.py`, which callers take through `Arena.control_fd`.
"""

import contextlib
import errno
import os
import stat
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from pegashm._native import HEADER_BYTES, Region, check_header, header_info
from pegashm.errors import ArenaNotReadyError, FormatError, ResourceError
from pegashm.liveness import (
    SUPERVISOR_BYTE,
    USED_BYTE,
    close_lock_file,
    holder_alive,
    open_lock_file,
    read_only_message,
    try_lock,
)
from pegashm.names import control_path

__all__ = ["Arena", "HeaderVerdict", "control_path", "is_linked", "open_arena", "read_header"]

_READY: Final = 0
_NOT_YET: Final = 1
_ATTEMPTS: Final = 8

_mapped: Final[weakref.WeakSet[Region]] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class HeaderVerdict:
    """What a header says: ready, not yet (until its creator goes on), or never, and why.

    `info` holds its fields, checked only when it is ready; empty when there is no whole header.
    """

    answer: int
    reason: str
    info: dict[str, Any]

    @property
    def ready(self) -> bool:
        return self.answer == _READY

    @property
    def not_yet(self) -> bool:
        return self.answer == _NOT_YET


@dataclass(frozen=True, slots=True)
class Arena:
    """An opened arena. `control_fd` is its own open file description, never mapped: locks go there."""

    name: str
    region: Region
    control_fd: int
    # Two threads share control_fd and so cannot exclude each other by its locks: reaping needs this.
    reaping: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def is_linked(self) -> bool:
        """Whether the name still leads to this arena; False once it was purged (or created anew)."""
        return is_linked(self.name, self.control_fd)

    def close(self) -> None:
        """Unmap, then drop every lock taken through `control_fd`. A second call does nothing."""
        if self.region.closed:  # the descriptor's number may be another arena's by now
            return
        self.region.close()
        close_lock_file(self.control_fd)

    def __enter__(self) -> "Arena":  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_arena(name: str, *, writable: bool = True, map_payload: bool = True) -> Arena:
    """Open and map the arena `name`.

    Raises ArenaMissingError, ArenaNotReadyError, FormatError, or ResourceError (no permission).
    """
    for _ in range(_ATTEMPTS):
        control_fd = open_lock_file(name, writable=writable)
        try:
            verdict = read_header(control_fd)
            if verdict.not_yet:
                raise ArenaNotReadyError(_not_ready_message(name, control_fd, verdict.reason))
            if not verdict.ready:
                raise FormatError(
                    f'arena "{name}" cannot be opened: {verdict.reason}. Use the PegaShm that made it, '
                    f"or remove it with `pegashm purge --name {name} --yes` and start it anew"
                )
            region = _map(
                name, verdict.info, control_fd, writable=writable, map_payload=map_payload
            )
        except _ReplacedError:
            close_lock_file(control_fd)
            continue
        except BaseException:
            close_lock_file(control_fd)
            raise
        return Arena(name, region, control_fd)
    raise ArenaNotReadyError(
        f'arena "{name}" was purged and created anew {_ATTEMPTS} times just now'
    )


def read_header(control_fd: int) -> HeaderVerdict:
    """Judge the header behind a descriptor without mapping it."""
    head = os.pread(control_fd, HEADER_BYTES, 0)
    if len(head) < HEADER_BYTES:
        return HeaderVerdict(_NOT_YET, "its creator has only begun", {})
    answer, reason = check_header(head, os.fstat(control_fd).st_size)
    return HeaderVerdict(answer, reason, header_info(head))


def is_linked(name: str, control_fd: int) -> bool:
    """Whether the control object's name leads to what `control_fd` has open."""
    try:
        named = os.stat(control_path(name), follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(control_fd)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _not_ready_message(name: str, control_fd: int, reason: str) -> str:
    if holder_alive(control_fd, SUPERVISOR_BYTE):
        return f'arena "{name}" is not ready: {reason}. Its supervisor lives: wait for it'
    return (
        f'arena "{name}" is not ready: {reason}, and nobody is at work on it: whoever created or removed it '
        f"was killed. Start it again with `pegashm serve --name {name}` and its options, or remove it with "
        f"`pegashm purge --name {name} --yes`"
    )


class _ReplacedError(Exception):
    """What we opened is no longer what the name means: begin again."""


def _map(
    name: str, info: dict[str, Any], control_fd: int, *, writable: bool, map_payload: bool
) -> Region:
    # Mapped through descriptions of their own, closed right after: a mapping keeps its description,
    # and with it any lock, alive in forked children (see liveness.py).
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.ExitStack() as opened:
        try:
            map_fd = opened.enter_context(_open(control_path(name), flags))
            arenas = info["arenas"] if map_payload else []
            arena_fds = [
                opened.enter_context(_open_payload(name, arena, flags)) for arena in arenas
            ]
        except FileNotFoundError as error:
            if not is_linked(name, control_fd) or not read_header(control_fd).ready:
                raise _ReplacedError from error
            raise FormatError(
                f'arena "{name}" is damaged: its payload file {error.filename} is gone. '
                f"Remove the rest with `pegashm purge --name {name} --yes`"
            ) from error
        # Nobody creates an arena of this name before the control object is unlinked: still linked now, it is
        # still the one whose payload files we have just opened.
        if not is_linked(name, map_fd) or not is_linked(name, control_fd):
            raise _ReplacedError
        region = Region(map_fd, arena_fds, writable=writable)
    _mapped.add(region)
    return region


@contextlib.contextmanager
def _open_payload(name: str, arena: dict[str, Any], flags: int) -> Iterator[int]:
    path = _text(arena["path"])
    with _open(path, flags) as descriptor:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size < arena["bytes"]:
            raise FormatError(
                f'arena "{name}" is damaged: {path} should be a file of {arena["bytes"]} bytes, it has '
                f"{facts.st_size}. Remove it with `pegashm purge --name {name} --yes`"
            )
        # The mapping keeps this description, and so this lock: as long as anybody uses the file, a supervisor
        # that sees it but not our /dev/shm (another container's) leaves it alone. See `creation.py`.
        try_lock(descriptor, USED_BYTE, exclusive=False)
        yield descriptor


@contextlib.contextmanager
def _open(path: str, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags)
    except PermissionError as error:
        raise ResourceError(f"no permission to open {path} as uid {os.geteuid()}") from error
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a path out of a damaged header can be anything
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            raise ResourceError(read_only_message(path)) from error
        raise FormatError(f"cannot open {path!r}, which a header names: {error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _text(path: str | bytes) -> str:
    return path if isinstance(path, str) else os.fsdecode(path)


def _disown_in_child() -> None:
    """What the parent claims and pins is the parent's: a child that used its client would undo it."""
    for region in list(_mapped):
        region.disown(
            f"the arena was opened by process {os.getppid()}, which forked this one: open or attach again here"
        )


os.register_at_fork(after_in_child=_disown_in_child)
