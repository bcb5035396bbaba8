"""Who brings a block that is not in memory: the promoter, or the fetcher?

Requests of engines, and those of other hosts for what is on our SSD, come to this desk. What is on SSD here goes to the
promoter, all else to the fetcher; when both have answered, their answers are put together into one. Either may be
absent (no --spill, no --peers), and then its blocks are MISSING. `submit` may be called from any thread; `pump` and
`expire` by the worker's main thread. How long each part took is counted in the region (`latencies.py`).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from pegashm import _native
from pegashm.transport.latencies import observe
from pegashm.transport.messages import Answer, Done, Promote
from pegashm.transport.promoter import Reply

__all__ = ["Bringer", "Desk"]

_OURS: Final = b""


class Bringer(Protocol):
    """What promoter and fetcher have in common."""

    def submit(self, peer: bytes, request: Promote) -> None: ...
    def expire(self, now: float) -> None: ...
    def replies(self) -> list[Reply]: ...


@dataclass(slots=True)
class _Order:
    """A request, and what has been answered of it."""

    request_id: int
    done: Callable[[Done], None]
    outcomes: bytearray
    open: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What one bringer was asked for: the places of its keys in the order, since when."""

    order: _Order
    places: list[int]
    name: str
    since: float


class Desk:
    """`table` lists what is on SSD; None without --spill. `region`: where latencies are counted."""

    def __init__(
        self,
        table: _native.SpillTable | None,
        promoter: Bringer | None,
        fetcher: Bringer | None,
        *,
        region: _native.Region | None = None,
    ) -> None:
        self._region = region
        self._table = table
        self._promoter = promoter
        self._fetcher = fetcher
        self._mutex = threading.Lock()
        self._tickets = itertools.count(1)
        self._parts: dict[int, _Part] = {}  # by ticket; one space for both bringers

    def submit(self, request: Promote, done: Callable[[Done], None], *, fetch: bool = True) -> None:
        """`done` is called once, from some thread. `fetch` False: only from SSD."""
        count = len(request.keys)
        on_ssd = np.zeros(count, np.bool_)
        if self._table is not None and self._promoter is not None:
            on_ssd = self._table.find(request.keys, request.namespace_id)["payload_bytes"] != 0
        near, far = np.flatnonzero(on_ssd).tolist(), np.flatnonzero(~on_ssd).tolist()
        order = _Order(request.request_id, done, bytearray([Answer.MISSING]) * count, 0)
        lots: list[tuple[Bringer, int, Promote]] = []
        now = time.monotonic()
        with self._mutex:
            for name, bringer, places in (
                ("promote", self._promoter, near),
                ("fetch", self._fetcher if fetch else None, far),
            ):
                if bringer is None or not places:
                    continue
                ticket = next(self._tickets)
                order.open += 1
                self._parts[ticket] = _Part(order, places, name, now)
                keys = tuple(request.keys[at] for at in places)
                lots.append((bringer, ticket, replace(request, request_id=ticket, keys=keys)))
        if not lots:
            done(Done(order.request_id, bytes(order.outcomes)))
        for bringer, _, part in lots:
            bringer.submit(_OURS, part)

    def expire(self, now: float) -> None:
        for bringer in (self._promoter, self._fetcher):
            if bringer is not None:
                bringer.expire(now)

    def pump(self) -> None:
        """Pass on what has been answered."""
        for bringer in (self._promoter, self._fetcher):
            for reply in [] if bringer is None else bringer.replies():
                self._answered(reply.done)

    def _answered(self, done: Done) -> None:
        with self._mutex:
            part = self._parts.pop(done.request_id)
            order = part.order
            for place, outcome in zip(part.places, done.outcomes, strict=True):
                order.outcomes[place] = outcome
            order.open -= 1
            complete = not order.open
        if self._region is not None:
            observe(self._region, part.name, time.monotonic() - part.since)
        if complete:
            order.done(Done(order.request_id, bytes(order.outcomes)))
