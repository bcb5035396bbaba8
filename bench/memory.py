"""Where does a bench get memory with pages of a known size? Mappings, and a tmpfs mount with huge pages of its own.

`anonymous` is a process's own memory, `shared_file` stands for an arena; both are populated on return and say what
share of them really came in huge pages, because the kernel may give small ones and say nothing. Mounting needs root:
without it `huge_tmpfs` yields None, and the bench says that it left the huge pages out. The mount is always undone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HUGE_PAGE_BYTES",
    "Mapping",
    "anonymous",
    "huge_tmpfs",
    "lock",
    "populate",
    "shared_file",
    "view",
]

HUGE_PAGE_BYTES = 2 << 20
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23  # Linux 5.14; Python does not name them yet

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mapping:
    """Populated memory of this process; it goes when the object does."""

    bytes: NDArray[np.uint8]
    address: int
    huge_share: float


def anonymous(size: int, *, huge: bool) -> Mapping:
    """Private memory as malloc would give it, populated, in 4 KiB or in transparent huge pages."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return _populated(memory)


def shared_file(folder: str, size: int) -> Mapping:
    """A shared mapping of a file in `folder` that has no name any more, populated."""
    descriptor, path = tempfile.mkstemp(prefix="pegashm-bench-", dir=folder)
    try:
        os.unlink(path)
        os.posix_fallocate(descriptor, 0, size)
        return _populated(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def huge_tmpfs(size: int) -> Iterator[str | None]:
    """A folder on a tmpfs of ours that gives huge pages; None (nothing mounted) when not root."""
    if os.geteuid() != 0:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pegashm-bench-") as folder:
        options = f"huge=always,size={size},mode=0700"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "pegashm-bench", folder],
            check=False,
            capture_output=True,
        )
        if mounted.returncode:  # a container without the right to mount
            yield None
            return
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def populate(address: int, size: int, advice: int = MADV_POPULATE_WRITE) -> None:
    """Fault in all pages of a range, for writing unless another advice is given."""
    _checked(_libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice), "madvise")


def view(address: int, size: int) -> NDArray[np.uint8]:
    """Bytes that somebody else has mapped; good for as long as they are."""
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def lock(address: int, size: int) -> bool:
    """mlock a range; False where that needs a larger `ulimit -l` or CAP_IPC_LOCK."""
    locked = _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
    if not locked and ctypes.get_errno() not in (errno.EPERM, errno.ENOMEM, errno.EAGAIN):
        _checked(-1, "mlock")
    return bool(locked)


def _populated(memory: mmap.mmap) -> Mapping:
    view = np.frombuffer(memory, np.uint8)
    address = int(view.ctypes.data)
    populate(address, len(memory))
    return Mapping(view, address, _huge_share(address, len(memory)))


def _huge_share(address: int, size: int) -> float:
    """What share of a mapping the processor sees as 2 MiB pages."""
    huge_kib = 0
    for part in re.split(r"\n(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(encoding="utf-8")):
        start, end = (int(word, 16) for word in part.split(" ", 1)[0].split("-"))
        if start < address + size and address < end:
            huge_kib += sum(
                int(found)
                for found in re.findall(r"(?:AnonHuge|ShmemPmd|FilePmd)\w+: +(\d+) kB", part)
            )
    return min(1.0, huge_kib * 1024 / size)


def _checked(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
