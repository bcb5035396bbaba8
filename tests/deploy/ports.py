"""Which ports can two hosts of a test have? Each takes the one it is given and the next two."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["free_ports"]


def free_ports() -> tuple[int, int]:
    for first in range(23_000, 32_000, 16):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + 6):
                    probe = held.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first, first + 3
    raise AssertionError("no six free ports in a row")
