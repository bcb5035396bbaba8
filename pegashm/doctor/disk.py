"""Is a path fit for `pegashm serve --spill`? File system, O_DIRECT, room, and whose file is there.

Tries out what the spill file will be used for, in a file without a name in the same folder, which is gone afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Final

from pegashm.doctor.finding import Finding, error, ok, warning
from pegashm.machine import mount_of
from pegashm.units import MIB, format_bytes

__all__ = ["check_spill"]

_FICLONE: Final = 0x40049409
_PAGE: Final = 4096
_MAGIC: Final = b"PEGASPL1"
_MEMORY: Final = ("tmpfs", "ramfs", "hugetlbfs")
_NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "fuse", "lustre")


def check_spill(path: str, size_bytes: int | None) -> list[Finding]:
    """All that is to be said of one --spill PATH."""
    check = f"spill {path}"
    folder = os.path.dirname(path)
    if not os.path.isabs(path):
        return [error(check, "a --spill path must be absolute", f"--spill {os.path.abspath(path)}")]
    if not os.path.isdir(folder):
        return [error(check, f"there is no folder {folder}", f"mkdir -p {folder}")]
    if os.path.isdir(path):
        return [error(check, "it is a folder; --spill names a file", f"--spill {path}/kv0.spill")]
    findings = [*_kind(check, folder), *_existing(check, path)]
    if any(finding.level for finding in findings if finding.says.startswith("somebody else's")):
        return findings
    if not os.access(folder, os.W_OK | os.X_OK):
        return [
            *findings,
            error(
                check,
                f"uid {os.geteuid()} may not make files in {folder}",
                f"chown {os.geteuid()} {folder}",
            ),
        ]
    return [*findings, *_room(check, path, folder, size_bytes), *_tried(check, folder)]


def _kind(check: str, folder: str) -> list[Finding]:
    mount = mount_of(folder)
    if mount.kind in _MEMORY:
        return [
            error(
                check,
                f"{folder} is memory ({mount.kind} at {mount.point}): blocks there survive no reboot and cost what the arena costs",
                "name a file on an SSD",
            )
        ]
    if mount.kind == "overlay":
        return [
            warning(
                check,
                f"{folder} is a container's own layer (overlay at {mount.point}): gone with the container, and slow",
                "docker run -v /nvme:/nvme ... --spill /nvme/kv0.spill   (Kubernetes: a hostPath or a local volume)",
            )
        ]
    if mount.kind.split(".")[0] in _NETWORK:
        return [
            warning(
                check,
                f"{folder} is {mount.kind}: every miss would wait for a network",
                "name a file on a local SSD",
            )
        ]
    if mount.kind == "btrfs":
        return [
            warning(
                check,
                f"{folder} is on btrfs, which writes each overwritten page to a new place: the file falls to pieces",
                f"chattr +C {folder}   before the file is made, or use ext4 or xfs",
            )
        ]
    return [ok(check, f"{mount.kind} at {mount.point}")]


def _existing(check: str, path: str) -> list[Finding]:
    """What is there under this name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    except OSError as problem:
        return [
            error(
                check,
                f"somebody else's: cannot be opened ({problem.strerror})",
                f"ls -l {path}   and let uid {os.geteuid()} read and write it, or name another file",
            )
        ]
    try:
        head = os.pread(descriptor, len(_MAGIC), 0)
        nbytes = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if head != _MAGIC:
        return [
            error(
                check,
                f"somebody else's: a file of {format_bytes(nbytes)} is there that is no spill file, and will not be written to",
                f"name another file, or remove it: rm {path}",
            )
        ]
    return [
        ok(check, f"a spill file of {format_bytes(nbytes)} is there: `pegashm fsck --spill {path}`")
    ]


def _room(check: str, path: str, folder: str, size_bytes: int | None) -> list[Finding]:
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    if size_bytes is None:
        return [ok(check, f"{format_bytes(free)} free")]
    there = os.path.getsize(path) if os.path.exists(path) else 0
    if size_bytes > free + there:
        return [
            error(
                check,
                f"{format_bytes(free)} free: a file of {format_bytes(size_bytes)} does not fit",
                "give a smaller --spill-size, or make room",
            )
        ]
    return [ok(check, f"{format_bytes(free)} free, room for {format_bytes(size_bytes)}")]


def _tried(check: str, folder: str) -> list[Finding]:
    """Reserve, write past the page cache, and see whether pages can be shared with another file."""
    findings: list[Finding] = []
    try:
        with _nameless(folder, 0) as plain:
            os.posix_fallocate(plain, 0, MIB)
            findings.append(_reflinks(check, folder, plain))
    except OSError as problem:
        findings.append(
            error(
                check,
                f"space cannot be reserved there (fallocate: {os.strerror(problem.errno or 0)})",
                "use ext4 or xfs with room on it",
            )
        )
    alignment = _direct_alignment(folder)
    if alignment is None or alignment > _PAGE:
        findings.append(
            warning(
                check,
                f"{folder} refuses O_DIRECT in pages of {_PAGE} bytes"
                + (f" (it wants {alignment})" if alignment else "")
                + ": its bytes pass through the page cache, which is slower and takes memory",
                "use ext4 or xfs on a local disk with sectors of 4096 bytes or less",
            )
        )
    else:
        findings.append(ok(check, f"O_DIRECT works, aligned to {alignment} bytes"))
    return findings


def _reflinks(check: str, folder: str, source: int) -> Finding:
    try:
        with _nameless(folder, 0) as target:
            fcntl.ioctl(target, _FICLONE, source)
    except OSError as problem:
        if problem.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL):
            return ok(check, "no reflinks: each write goes to the file's own blocks")
        return ok(check, f"whether it has reflinks cannot be told ({problem.strerror})")
    return ok(check, "has reflinks: a copy (`cp --reflink`) of the file makes later writes slower")


def _direct_alignment(folder: str) -> int | None:
    """The smallest write that goes past the page cache; None where none does."""
    try:
        with _nameless(folder, os.O_DIRECT) as descriptor, mmap.mmap(-1, 64 * _PAGE) as memory:
            memory[:] = b"\xa5" * len(memory)
            view = memoryview(memory)
            try:
                for alignment in (512, _PAGE, 16 * _PAGE, 64 * _PAGE):
                    try:
                        if os.pwrite(descriptor, view[:alignment], 0) == alignment:
                            return alignment
                    except OSError as problem:
                        if problem.errno != errno.EINVAL:
                            raise
            finally:
                view.release()
    except OSError:
        return None
    return None


@contextlib.contextmanager
def _nameless(folder: str, flags: int) -> Iterator[int]:
    """A file that nobody sees and that is gone with its descriptor."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    except OSError as problem:
        if problem.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
        name = os.path.join(folder, f".pegashm-doctor-{os.getpid()}-{flags}")
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        os.unlink(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
