"""Which TCP ports can a test have? None that the kernel gives to connections, so that nobody has it a moment later.

Taken by lot: tests of two processes that start at once would find the same first free one.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

__all__ = ["free_port", "free_ports"]

LOWEST = 10_000
IN_A_ROW = 3  # a transport worker takes the one it is given and the next two


def free_port() -> int:
    """One of 127.0.0.1 with two free ones behind it."""
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """As many, each with two free ones behind it."""
    given_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(100 * count):
            first = LOWEST + secrets.randbelow(given_from - IN_A_ROW - LOWEST)
            try:
                for port in range(first, first + IN_A_ROW):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(first)
            if len(found) == count:
                return found
    raise AssertionError("no three free ports in a row")
