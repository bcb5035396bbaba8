"""Which TCP ports can a test have? None that the kernel gives to connections, so that nobody has it a moment later.

Taken by lot: tests of two processes that start at once would find the same first free one. What was given stays given, since
it may be used only a while later; each of several test processes gives from a part of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

__all__ = ["free_port", "free_ports"]

LOWEST = 10_000
IN_A_ROW = 3  # a transport worker takes the one it is given and the next two
_given: list[int] = []


def free_port() -> int:
    """One of 127.0.0.1 with two free ones behind it."""
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """As many, each with two free ones behind it."""
    begin, size = _own_part()
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(100 * count):
            first = begin + secrets.randbelow(size - IN_A_ROW)
            if any(abs(first - other) < IN_A_ROW for other in _given):
                continue
            try:
                for port in range(first, first + IN_A_ROW):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(first)
            _given.append(first)
            if len(found) == count:
                return found
    raise AssertionError("no three free ports in a row")


def _own_part() -> tuple[int, int]:
    """Where the ports of this process of pytest-xdist begin, and how many there are."""
    given_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (given_from - LOWEST) // workers
    return LOWEST + worker * size, size
