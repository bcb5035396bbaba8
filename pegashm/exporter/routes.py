"""What is served at which path? The table of routes, and the exporter that their functions ask.

`Exporter` is what one process of `pegashm exporter` has: a reader, a registry, a server. A route is a function of it and the
request: whoever adds one adds a line to ROUTES; the status page (`page/`) brings its own. A path that ends in "/" (but "/"
itself) answers for all below it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry

from pegashm.exporter.judging import judge
from pegashm.exporter.metrics import ArenaCollector, render
from pegashm.exporter.page import SAMPLE_SECONDS, Page
from pegashm.exporter.reading import Reader
from pegashm.exporter.server import Answer, Handler, Request, Server, json_answer, text_answer
from pegashm.peers.addresses import Address

__all__ = ["ROUTES", "Exporter"]


class Exporter:
    """One arena, watched and served. Nothing runs before `start`."""

    def __init__(
        self,
        name: str,
        listen: Address,
        *,
        survey_seconds: float,
        sample_seconds: float = SAMPLE_SECONDS,
    ) -> None:
        self.reader = Reader(name, survey_seconds=survey_seconds)
        self.started_at_ns = time.time_ns()
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(ArenaCollector(self.reader.read))
        self.page = Page(self.reader, sample_seconds=sample_seconds)
        routes: Mapping[str, Handler] = {
            **{path: functools.partial(answer, self) for path, answer in ROUTES.items()},
            **self.page.routes(),
        }
        self._server = Server(listen, routes, self._tick)

    @property
    def address(self) -> Address:
        """Where it listens: of port 0, the one that the kernel chose."""
        return self._server.address

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()
        self.reader.close()

    def _tick(self) -> None:
        self.reader.let_go()
        self.page.tick()


def _metrics(exporter: Exporter, request: Request) -> Answer:
    body, content_type = render(exporter.registry, request.headers.get("accept", ""))
    return Answer(body=body, content_type=content_type)


def _health(exporter: Exporter, request: Request) -> Answer:
    """200 while engines can use the arena, however degraded; 503 when they cannot."""
    health = judge(exporter.reader.read())
    return json_answer(health.as_dict(), status=200 if health.ready else 503)


def _ready(exporter: Exporter, request: Request) -> Answer:
    """For probes of what needs an arena: 200 or 503, and one line."""
    health = judge(exporter.reader.read())
    if health.ready:
        return text_answer("ready\n")
    return text_answer(f"not ready: {health.reasons[0].text}\n", status=503)


def _live(exporter: Exporter, request: Request) -> Answer:
    """For a probe of the exporter itself, whatever the arena does."""
    return text_answer("alive\n")


ROUTES: Final[dict[str, Callable[[Exporter, Request], Answer]]] = {
    "/metrics": _metrics,
    "/health": _health,
    "/ready": _ready,
    "/live": _live,
}
