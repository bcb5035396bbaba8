"""What is behind the status page's routes? The sampling, and the answers of api/state and api/history.

One `Page` an exporter. `tick` is called often, by one thread, and samples when it is time; the handlers are called by the
server's threads. All of them read through one `Reader`, and what they answer is kept for a second, so that many open
pages cost what one does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from pegashm import __version__
from pegashm.exporter.definitions import MISS_REASONS
from pegashm.exporter.judging import Health, judge
from pegashm.exporter.page.amounts import MISSES, PLOTTED, amounts_of
from pegashm.exporter.page.files import HEADERS, file_routes
from pegashm.exporter.page.history import HISTORY_SECONDS, SAMPLE_SECONDS, SPANS, History
from pegashm.exporter.page.noticed import Noticed
from pegashm.exporter.page.state import state_of
from pegashm.exporter.reading import Reader, Reading
from pegashm.exporter.server import Answer, Handler, Request, json_answer, text_answer

__all__ = ["Page"]

_KEPT_SECONDS: Final = 0.9
_RATE_SECONDS: Final = 60.0
_MISS_SECONDS: Final = 900.0


class Page:
    """The status page of the arena that `reader` reads."""

    def __init__(self, reader: Reader, *, sample_seconds: float = SAMPLE_SECONDS) -> None:
        """`sample_seconds`: another for tests only; the spans of the plots are counted with the default."""
        self._reader = reader
        self._sample_seconds = sample_seconds
        self._started_at = time.time()
        self._history = History(PLOTTED, MISSES)
        self._noticed = Noticed()
        self._before: tuple[Reading, Health] | None = None
        self._sample_at = 0.0
        self._mutex = threading.Lock()
        self._answer: Answer | None = None
        self._answered_at = 0.0

    def routes(self) -> Mapping[str, Handler]:
        return {**file_routes(), "/api/state": self._state, "/api/history": self._past}

    def tick(self) -> None:
        """Sample when it is time."""
        now = time.monotonic()
        if now < self._sample_at:
            return
        # On the beat, unless we were stopped for longer than one.
        self._sample_at = max(self._sample_at + self._sample_seconds, now)
        reading = self._reader.read()
        if self._before is not None and reading is self._before[0]:
            return  # as fresh as it gets
        health = judge(reading)
        before, self._before = self._before, (reading, health)
        self._noticed.compare(reading.taken_at_ns / 1e9, before, self._before)
        seconds = (reading.taken_at_ns - before[0].taken_at_ns) / 1e9 if before else 0.0
        values = _values(before[0], reading) if before and seconds > 0 else None
        self._history.add(reading.taken_at_ns / 1e9, seconds, values)

    def _state(self, _request: Request) -> Answer:
        with self._mutex:
            now = time.monotonic()
            if self._answer is None or now > self._answered_at + _KEPT_SECONDS:
                reading = self._reader.read()
                document = state_of(reading, judge(reading))
                self._answer = _with_headers(json_answer(document | self._own()))
                self._answered_at = time.monotonic()
            return self._answer

    def _own(self) -> dict[str, Any]:
        """What the exporter says of itself and has noticed."""
        return {
            "exporter": {
                "version": __version__,
                "incarnation": self._history.incarnation,
                "started_at": self._started_at,
                "sample_seconds": self._sample_seconds,
                "history_seconds": HISTORY_SECONDS,
                "history_bytes": self._history.nbytes,
            },
            "last_minute": self._history.recent(_RATE_SECONDS),
            "misses": self._misses(),
            "events": self._noticed.rows(),
        }

    def _misses(self) -> dict[str, Any]:
        """By reason, of the last _MISS_SECONDS, the most first."""
        recent = self._history.recent(_MISS_SECONDS)
        rows: list[dict[str, Any]] = [
            {"reason": reason, "text": text, "blocks": int(recent[f"missed_{reason}"])}
            for reason, text in MISS_REASONS.items()
        ]
        rows = sorted((row for row in rows if row["blocks"]), key=lambda row: -row["blocks"])
        return {"seconds": recent["seconds"], "rows": rows}

    def _past(self, request: Request) -> Answer:
        try:
            span, after = (int(request.query.get(name, "0")) for name in ("span", "after"))
        except ValueError:
            span, after = 0, 0
        if span not in SPANS:
            spans = ", ".join(map(str, SPANS))
            return text_answer(
                f"span must be one of {spans} (seconds), after a number: api/history?span=900\n",
                status=400,
            )
        answer = self._history.answer(span, after, request.query.get("of", ""))
        return _with_headers(json_answer(answer))


def _values(old: Reading, new: Reading) -> dict[str, float | None] | None:
    """What one sample keeps; None where the two readings are not of one arena."""
    if not new.is_open or old.region_id != new.region_id:
        return None
    before, now = amounts_of(old.counters), amounts_of(new.counters)
    values: dict[str, float | None] = {
        name: float(max(0, now[name] - before[name])) for name in (*PLOTTED, *MISSES)
    }
    if new.survey is not None:
        strides = new.survey.strides
        values["ready_bytes"] = float(
            sum(part.ready * strides[part.segment] for part in new.survey.parts)
        )
        if new.survey.reuse:
            window = new.survey.reuse[0]
            values["hit_rate"], values["ceiling"] = window.hit_rate, window.ceiling
    return values


def _with_headers(answer: Answer) -> Answer:
    return Answer(
        body=answer.body,
        content_type=answer.content_type,
        status=answer.status,
        headers={**answer.headers, **HEADERS},
    )
