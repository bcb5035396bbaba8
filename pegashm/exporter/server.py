"""Who asks over HTTP, and which function answers? A small server: threads, a bound on them, and a table of routes.

GET and HEAD only, nothing is read but the request line and its headers, and each connection has a deadline: what is
served here is numbers for whoever may connect, so there is nothing to authorise and little to attack. Where that is not
acceptable, listen on loopback and put a proxy in front. Answers are made in memory, then sent.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from pegashm import __version__
from pegashm.errors import ConfigError, ResourceError
from pegashm.logs import tell
from pegashm.notices import EXPORTER_ANSWER_FAILED
from pegashm.peers.addresses import Address

__all__ = ["Answer", "Handler", "Request", "Server", "json_answer", "parse_listen", "text_answer"]

_CONNECTIONS_MAX: Final = 32
_CONNECTION_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """`path` without the query; `query`: the last value of each parameter; `headers` by their lower-case names."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Answer]


def text_answer(text: str, *, status: int = 200) -> Answer:
    return Answer(body=text.encode(), content_type="text/plain; charset=utf-8", status=status)


def json_answer(value: Any, *, status: int = 200) -> Answer:
    body = json.dumps(value, separators=(",", ":")).encode()
    return Answer(
        body=body,
        content_type="application/json",
        status=status,
        headers={"Cache-Control": "no-store"},
    )


def parse_listen(text: str) -> Address:
    """Where to listen; ConfigError when it is not HOST:PORT. Port 0: any that is free; host `*` or none: everywhere."""
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    good = colon and not set(host) & set("/[]@ ,") and (bracketed or ":" not in host)
    if not good or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            "--listen must be HOST:PORT (an IPv6 address in brackets), for example 127.0.0.1:9470: "
            f"got {text!r}"
        )
    return Address(host or "*", int(port))


class Server:
    """Listens from its construction on; `address` is where. `routes`: by path; one that ends in "/", but for "/" itself,
    answers for all below it. `tick` is called twice a second."""

    def __init__(
        self, listen: Address, routes: Mapping[str, Handler], tick: Callable[[], None]
    ) -> None:
        self._http = _listen(listen, routes, tick)
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> Address:
        host, port = self._http.server_address[:2]
        return Address(str(host), int(port))

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(_POLL_SECONDS,), name="http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.server_close()


def _listen(
    listen: Address, routes: Mapping[str, Handler], tick: Callable[[], None]
) -> _HttpServer:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    host = "" if listen.host == "*" else listen.host
    kind = type("_HttpServerOfFamily", (_HttpServer,), {"address_family": family})
    try:
        server: _HttpServer = kind((host, listen.port), _Connection)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {listen}: {error.strerror or error}. Choose another --listen HOST:PORT, or end who "
            "has it (`ss -ltnp`)"
        ) from error
    server.routes, server.tick = routes, tick
    return server


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    routes: Mapping[str, Handler]
    tick: Callable[[], None]

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the resolver for our own name and may wait for it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def service_actions(self) -> None:
        self.tick()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a connection that broke: nobody needs to hear of it."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"pegashm/{__version__}"
    sys_version = ""
    timeout = _CONNECTION_SECONDS
    server: _HttpServer

    def do_GET(self) -> None:
        self._send(self._answer())

    def do_HEAD(self) -> None:
        self._send(self._answer())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """A scrape a second is not news."""

    def _answer(self) -> Answer:
        parts = urlsplit(self.path)
        handler = self._handler(parts.path)
        if handler is None:
            paths = ", ".join(sorted(self.server.routes))
            return text_answer(f"nothing is at {parts.path}; there are {paths}\n", status=404)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            return handler(Request(parts.path, query, headers))
        except Exception:  # noqa: BLE001 - one answer must not end the server
            tell(
                EXPORTER_ANSWER_FAILED,
                "exporter: %s could not be answered",
                parts.path,
                subject=parts.path,
                trace=True,
                path=parts.path,
            )
            return text_answer("it could not be answered: see the exporter's log\n", status=500)

    def _handler(self, path: str) -> Handler | None:
        routes = self.server.routes
        if path in routes:
            return routes[path]
        below = [route for route in routes if len(route) > 1 and route.endswith("/")]
        mine = [route for route in below if path.startswith(route)]
        return routes[max(mine, key=len)] if mine else None

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
