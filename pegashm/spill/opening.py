"""Which file is ours, and may we have it? Making, opening and locking a spill file.

A new file is made as PATH.creating (all space reserved, first page written, synced) and then renamed, so PATH
itself is always a whole spill file or somebody else's: whatever has no valid first page is refused and left as it
is. Who opens for writing holds an OFD lock on one byte beyond the end, dropped by the kernel with the last
transfer of a dead process; readers (tools) take none. All errors say what to type. Called by
`SpillFile` and by tools; what the regions hold is `scan`'s question.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from pegashm.errors import ArenaBusyError, FormatError, PegaShmError, ResourceError
from pegashm.liveness import close_lock_file, open_guarded, try_lock
from pegashm.logs import tell
from pegashm.notices import SPILL_NOT_DIRECT, SPILL_SIZE_KEPT
from pegashm.spill.disk import Pages
from pegashm.spill.format import (
    PAGE_BYTES,
    Superblock,
    pack_superblock,
    plan_superblock,
    unpack_superblock,
)
from pegashm.units import format_bytes

__all__ = ["CREATING_SUFFIX", "LOCK_BYTE", "OpenFile", "open_file", "open_or_create"]

CREATING_SUFFIX: Final = ".creating"
LOCK_BYTE: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """A descriptor (of `liveness.close_lock_file`) and what the first page says."""

    path: str
    descriptor: int
    direct: bool
    superblock: Superblock


def open_or_create(path: str, size_bytes: int, *, region_bytes: int | None = None) -> OpenFile:
    """Open it for writing, making it first when nothing has that name. An existing one keeps its size."""
    if not os.path.lexists(path):
        _create(path, size_bytes, region_bytes)
    opened = open_file(path)
    if opened.superblock.file_bytes != size_bytes:
        tell(
            SPILL_SIZE_KEPT,
            "spill file %s has %s (%d bytes), not the %s (%d bytes) asked for: it is used as it is. To change its "
            "size, stop the supervisor and type `rm %s` (what is in it is lost)",
            path,
            format_bytes(opened.superblock.file_bytes),
            opened.superblock.file_bytes,
            format_bytes(size_bytes),
            size_bytes,
            path,
            path=path,
        )
    return opened


def open_file(path: str, *, writable: bool = True) -> OpenFile:
    """Open an existing one. Read-only takes no lock: what is read may be overwritten meanwhile."""
    descriptor, direct = _open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        if writable and not try_lock(descriptor, LOCK_BYTE):
            raise ArenaBusyError(
                f"spill file {path} is in use by another process: each file belongs to one transport worker. "
                f"Give this one another path, or find the other: `fuser -v {path}`"
            )
        superblock = unpack_superblock(_first_page(path, descriptor), path)
        size = os.fstat(descriptor).st_size
        if size < superblock.file_bytes:
            raise FormatError(
                f"spill file {path} is truncated: it has {size} bytes, its first page says "
                f"{superblock.file_bytes}. Type `rm {path}` to start with an empty one"
            )
    except BaseException:
        close_lock_file(descriptor)
        raise
    return OpenFile(path=path, descriptor=descriptor, direct=direct, superblock=superblock)


def _create(path: str, size_bytes: int, region_bytes: int | None) -> None:
    """Make PATH.creating whole, then give it its name. Whoever dies on the way leaves PATH.creating only."""
    superblock = plan_superblock(
        size_bytes // PAGE_BYTES * PAGE_BYTES,
        region_bytes,
        file_id=secrets.token_bytes(16),
        created_at_ns=time.time_ns(),
    )
    making = path + CREATING_SUFFIX
    descriptor, _ = _open(making, os.O_RDWR | os.O_CREAT)
    try:
        # Who finds it locked, or finds that it got its name meanwhile, leaves it to the other.
        if not try_lock(descriptor, LOCK_BYTE) or not _is_named(descriptor, making):
            raise ArenaBusyError(
                f"another process is making spill file {path} just now: try again when it is done"
            )
        _reserve(descriptor, path, superblock.file_bytes)
        _write_first_page(descriptor, making, pack_superblock(superblock))
        if os.path.lexists(path):
            raise ArenaBusyError(f"{path} came to be while it was being made: try again")
        os.rename(making, path)
        _sync_folder(path)
    except BaseException as error:
        if not isinstance(error, ArenaBusyError):
            with contextlib.suppress(OSError):
                os.unlink(making)
        if isinstance(error, OSError):
            raise ResourceError(f"cannot make spill file {path}: {error.strerror}") from error
        raise
    finally:
        close_lock_file(descriptor)


def _open(path: str, flags: int) -> tuple[int, bool]:
    """(descriptor, whether it bypasses the page cache)"""
    try:
        try:
            descriptor, direct = open_guarded(path, flags | os.O_DIRECT, 0o600), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            descriptor, direct = open_guarded(path, flags, 0o600), False
    except OSError as error:
        raise _cannot_open(path, error) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        close_lock_file(descriptor)
        raise FormatError(
            f"{path} is no regular file, and a spill file is one: on a bare device make a file system first "
            "(for example `mkfs.xfs`), mount it, and name a file in it"
        )
    if not direct:
        tell(
            SPILL_NOT_DIRECT,
            "%s: this file system refuses O_DIRECT, so its bytes pass through the page cache (slower, and it "
            "takes memory from others); ext4 and xfs do not",
            path,
            path=path,
        )
    return descriptor, direct


def _cannot_open(path: str, error: OSError) -> PegaShmError:
    folder = os.path.dirname(os.path.abspath(path))
    if error.errno == errno.ENOENT:
        return ResourceError(
            f"cannot open spill file {path}: there is no such file or folder. Type `mkdir -p {folder}`, or name "
            "another path"
        )
    if error.errno == errno.EROFS:
        return ResourceError(
            f"spill file {path} cannot be written: {folder} is mounted read-only. Type `mount -o remount,rw` for it, "
            "or name another path"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ResourceError(
            f"no permission to write spill file {path} as uid {os.geteuid()}: expected a file of that user's, mode "
            f"0600, in a folder it may write to, and not immutable. See `ls -l {path}` and `lsattr {path}`"
        )
    return ResourceError(f"cannot open spill file {path}: {error.strerror}")


def _first_page(path: str, descriptor: int) -> bytes:
    page = Pages(1)
    try:
        read = os.preadv(descriptor, [page.memory], 0)
    except OSError as error:
        raise ResourceError(
            f"the first page of spill file {path} cannot be read: {error.strerror}"
        ) from error
    if read < PAGE_BYTES:
        raise FormatError(
            f"{path} exists and is no spill file (it has {read} bytes, a spill file at least {PAGE_BYTES}): it is "
            "left as it is. Name another path, or remove it if it is not needed"
        )
    return page.rows.tobytes()


def _reserve(descriptor: int, path: str, nbytes: int) -> None:
    os.ftruncate(descriptor, 0)
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        facts = os.statvfs(os.path.dirname(os.path.abspath(path)))
        raise ResourceError(
            f"no room for spill file {path} of {format_bytes(nbytes)}: {error.strerror}; the file system has "
            f"{format_bytes(facts.f_bavail * facts.f_frsize)} free. Free some, or give a smaller --spill-size"
        ) from error


def _write_first_page(descriptor: int, path: str, content: bytes) -> None:
    page = Pages(1)
    page.rows[0] = np.frombuffer(content, np.uint8)
    written = os.pwritev(descriptor, [page.memory], 0)
    if written != PAGE_BYTES:
        raise ResourceError(f"{path}: only {written} bytes of the first page could be written")
    os.fsync(descriptor)


def _is_named(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
