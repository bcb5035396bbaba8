"""How does systemd (or any manager that speaks its protocol) learn how we are?

One datagram a message to the socket named by NOTIFY_SOCKET, as sd_notify(3) describes; without that
variable every call does nothing. Thirty lines, so no dependency. Called by the supervisor's main
thread only. A manager that does not listen must never stop the supervisor: send errors are dropped.
"""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

__all__ = ["Notifier"]

_READY: Final = "READY=1"


class Notifier:
    """The service manager's ear; `watchdog_seconds` is how often it wants a sign of life (0: never)."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # A leading @ means the abstract namespace, whose real first byte is zero.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if path:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)
        self.watchdog_seconds = _watchdog_seconds(environment) if path else 0.0

    def ready(self, status: str) -> None:
        self._send(f"{_READY}\nSTATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def extend_start(self, seconds: int) -> None:
        """Starting still makes progress: do not time it out for that long."""
        self._send(f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000}")

    def watchdog(self) -> None:
        if self.watchdog_seconds:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        # The manager may be gone or slow; being supervised is a courtesy, not a need.
        with contextlib.suppress(OSError):
            self._socket.sendto(message.encode(), self._address)


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """Half of what the manager tolerates; 0 when the watchdog is off or meant for another process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "0")
    return int(text) / 2e6 if text.isdecimal() else 0.0
