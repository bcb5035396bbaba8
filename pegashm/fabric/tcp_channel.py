"""How do bytes go through one accepted socket without ever waiting, plain or by TLS?

The serving side's loops know streams that take or give what they can right now. `Plain` is the socket itself:
`sendmsg` of many runs of the arena in one call. `Secure` is TLS 1.3 over it, in which the kernel's copy is preceded by an
encryption: run after run. Both say None for "not now". OSError means that the stream is over.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Final, Protocol

__all__ = ["Channel", "Plain", "Secure"]

# One write of TLS must be repeated as it was when the socket was full: small enough to be cheap to repeat.
_WRITE_BYTES: Final = 64 << 10


class Channel(Protocol):
    """One accepted socket."""

    @property
    def pending(self) -> bool:
        """Whether bytes have come that the kernel does not know of any more."""

    def fileno(self) -> int: ...
    def receive(self, into: memoryview) -> int | None:
        """How many bytes have come; 0 when no more will; None: not now."""

    def send(self, views: Sequence[memoryview]) -> int | None:
        """How many bytes of these were taken; None: not now."""

    def close(self) -> None: ...


class Plain:
    """A TCP socket."""

    pending = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, into: memoryview) -> int | None:
        try:
            return self._sock.recv_into(into)
        except BlockingIOError:
            return None

    def send(self, views: Sequence[memoryview]) -> int | None:
        try:
            return self._sock.sendmsg(views)
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._sock.close()


class Secure:
    """TLS over one. The handshake is done by the first receive or send that can."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        self._sock = context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )

    @property
    def pending(self) -> bool:
        return self._sock.pending() > 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, into: memoryview) -> int | None:
        try:
            return self._sock.recv_into(into)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def send(self, views: Sequence[memoryview]) -> int | None:
        sent = 0
        try:
            for view in views:
                for at in range(0, len(view), _WRITE_BYTES):
                    sent += self._sock.send(view[at : at + _WRITE_BYTES])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return sent or None
        return sent

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()
