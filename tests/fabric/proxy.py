"""Something that stands between a reader and a server of sockets and does to their bytes what a test asks for.

A real TCP proxy, with threads in the test's process. Each direction can be altered (`change`), held at an exact byte
until it is let go, or cut there; what went through is kept, for who wants to send it again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["DOWN", "UP", "Proxy"]

UP: Final = "up"  # from the reader to the server
DOWN: Final = "down"

Change = Callable[[bytes, int], bytes]  # (bytes, how many came before them on this stream)


class Proxy:
    """Listens on 127.0.0.1 for streams to `port`."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.changes: dict[str, Change] = {}
        self.hold_at: dict[str, int] = {}
        self.cut_at: dict[str, int] = {}
        self.held = threading.Event()  # some stream has come to where it is held
        self.go_on = threading.Event()
        self.seen: dict[str, list[bytearray]] = {UP: [], DOWN: []}
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def let_go(self) -> None:
        """Hold and cut nothing any more, and send what was held."""
        self.hold_at.clear()
        self.cut_at.clear()
        self.go_on.set()

    def again(self) -> None:
        """After let_go(): what is said from now on counts for new streams."""
        self.held.clear()
        self.go_on.clear()

    def close(self) -> None:
        self.go_on.set()
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                reader, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._sockets += [reader, server]
            for direction, source, sink in ((UP, reader, server), (DOWN, server, reader)):
                self.seen[direction].append(bytearray())
                self._start(self._pump, direction, source, sink, self.seen[direction][-1])

    def _pump(
        self, direction: str, source: socket.socket, sink: socket.socket, seen: bytearray
    ) -> None:
        passed = 0
        try:
            while data := source.recv(64 << 10):
                if change := self.changes.get(direction):
                    data = change(data, passed)
                seen += data[: max(0, (1 << 20) - len(seen))]
                for limit, act in ((self.cut_at, self._cut), (self.hold_at, self._hold)):
                    at = limit.get(direction)
                    if at is not None and passed + len(data) > at >= passed:
                        sink.sendall(data[: at - passed])
                        data = data[at - passed :]
                        passed = at
                        act(source, sink)
                sink.sendall(data)
                passed += len(data)
        except OSError:
            pass
        finally:
            for sock in (source, sink):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _hold(self, source: socket.socket, sink: socket.socket) -> None:
        self.held.set()
        self.go_on.wait()

    def _cut(self, source: socket.socket, sink: socket.socket) -> None:
        self.held.set()
        raise ConnectionResetError
