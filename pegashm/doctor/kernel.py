"""Does this kernel have what PegaShm uses, and does its clock tell the time?

io_uring is not used (DESIGN.md says why); what the kernel says about it is told for those who compare.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
import time
from pathlib import Path
from typing import Final

from pegashm.doctor.finding import Finding, error, ok, warning

__all__ = ["check_clock", "check_io_uring", "check_kernel"]

_LEAST: Final = (5, 14)  # MADV_POPULATE_WRITE
_BUILT_AFTER: Final = 1_760_000_000  # October 2025: this build was made later
_IO_URING_SETUP: Final = 425
_IO_URING_DISABLED: Final = Path("/proc/sys/kernel/io_uring_disabled")
_TIMEX_BYTES: Final = 208
_TIME_ERROR: Final = 5


def check_kernel() -> list[Finding]:
    """Linux, 64 bits, little-endian, new enough to populate memory without touching it."""
    if sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return [
            error(
                "kernel",
                f"{platform.machine()} is not a 64-bit little-endian machine: the shared format is",
                "run it on x86-64 or 64-bit ARM",
            )
        ]
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdecimal()]
    if tuple(numbers) < _LEAST:
        return [
            warning(
                "kernel",
                f"Linux {release} is older than {_LEAST[0]}.{_LEAST[1]}: it cannot populate memory ahead (MADV_POPULATE_WRITE)",
                "upgrade the kernel",
            )
        ]
    return [ok("kernel", f"Linux {release} on {platform.machine()}")]


def check_io_uring() -> list[Finding]:
    """For information only."""
    disabled = _IO_URING_DISABLED.read_text().strip() if _IO_URING_DISABLED.exists() else "0"
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)
    descriptor = libc.syscall(_IO_URING_SETUP, 1, params)
    if descriptor >= 0:
        os.close(descriptor)
        return [ok("io_uring", "available (PegaShm does not use it)")]
    why = {
        errno.ENOSYS: "this kernel has none, or a container's filter hides it",
        errno.EPERM: f"not permitted (kernel.io_uring_disabled is {disabled}, or a container's filter)",
    }.get(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return [ok("io_uring", f"{why} (PegaShm does not use it)")]


def check_clock(newest_ns: int = 0) -> list[Finding]:
    """Realtime: not before this build, nor before what an arena has written down (`newest_ns`), and synchronised.

    Ages, the reuse windows and the daily write budget are told by it; no lock and no promise depends on it.
    """
    now_ns = time.time_ns()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_ns / 1e9))
    set_it = "timedatectl set-ntp true   (or: chronyc makestep)"
    if now_ns / 1e9 < _BUILT_AFTER:
        return [error("clock", f"it is {shown} by this machine's clock, which cannot be", set_it)]
    if newest_ns > now_ns + 60 * 10**9:
        ahead = (newest_ns - now_ns) // 10**9
        return [
            error(
                "clock",
                f"it is {shown}, and an arena has something written {ahead} s later: the clock was set back. Ages and reuse windows are "
                "wrong until that time has come again",
                set_it,
            )
        ]
    if _is_unsynchronised():
        return [
            warning(
                "clock",
                f"it is {shown}; the kernel says that nothing keeps the clock right (adjtimex: not synchronised). Logs and ages of several hosts "
                "cannot be compared",
                set_it,
            )
        ]
    return [ok("clock", f"{shown}, synchronised")]


def _is_unsynchronised() -> bool:
    """By adjtimex with nothing to set; False where it may not be asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    return bool(libc.adjtimex(timex) == _TIME_ERROR)
