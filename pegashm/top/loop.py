"""How does `pegashm top` run? It reads, draws, waits for a key or the time, and does it again, until q or Ctrl-C.

On a terminal it draws on the other screen, which is gone afterwards; in a pipe it prints a line for each moment, or one screen. An arena that is missing
is waited for: engines and supervisors come and go under a running `top`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Final

import click
from rich.console import Console
from rich.live import Live

from pegashm.exporter.judging import judge
from pegashm.exporter.reading import Reader
from pegashm.top.rates import Moment, moment
from pegashm.top.screen import LINE_HEAD, line, screen

__all__ = ["once", "watch"]

_SURVEY_SECONDS_LEAST: Final = 5.0  # a survey is a pass over all records
_INTERVALS: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_PIPE_SIZE: Final = (120, 40)
_HEAD_EVERY: Final = 30
_CANNOT_TELL: Final = 2


def once(name: str, interval: float, *, as_json: bool) -> int:
    """One moment of `interval` seconds, on standard output; the exit status."""
    with contextlib.closing(_reader(name, interval)) as reader:
        now = moment(reader.read(), None)
        if now.reading.is_open:
            time.sleep(interval)
            now = moment(reader.read(), now.reading)
    health = judge(now.reading)
    exit_status = _CANNOT_TELL if not now.reading.is_open else 0 if health.status == "ok" else 1
    if as_json:
        click.echo(
            json.dumps(
                {
                    "name": name,
                    "state": now.reading.state,
                    "health": health.as_dict(),
                    **now.as_dict(),
                    **_more(now),
                    "exit_status": exit_status,
                }
            )
        )
        return exit_status
    console = _console()
    console.print(screen(now, width=console.width, height=console.height, interval=interval))
    return exit_status


def watch(name: str, interval: float, count: int | None) -> int:
    """Until q, Ctrl-C, or `count` moments."""
    with (
        contextlib.closing(_reader(name, interval)) as reader,
        contextlib.suppress(KeyboardInterrupt),
    ):
        if sys.stdout.isatty():
            _on_terminal(reader, interval, count)
        else:
            _in_pipe(reader, interval, count)
    return 0


def _on_terminal(reader: Reader, interval: float, count: int | None) -> None:
    console = _console()
    now, paused, seen = moment(reader.read(), None), False, 0
    with _keys() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while count is None or seen < count:
            size = console.size
            drawn = screen(
                now, width=size.width, height=size.height, interval=interval, paused=paused
            )
            live.update(drawn, refresh=True)
            key = keyboard.wait(interval)
            if key in ("q", "Q", "\x03", "\x1b"):
                return
            if key in ("p", "P"):
                paused = not paused
            interval = _stepped(interval, key)
            if not paused:
                now = moment(reader.read(), now.reading)
                seen += 1


def _in_pipe(reader: Reader, interval: float, count: int | None) -> None:
    before, seen = reader.read(), 0
    while count is None or seen < count:
        time.sleep(interval)
        now = moment(reader.read(), before)
        if seen % _HEAD_EVERY == 0:
            click.echo(LINE_HEAD)
        click.echo(line(now))
        sys.stdout.flush()
        before, seen = now.reading, seen + 1


def _reader(name: str, interval: float) -> Reader:
    return Reader(
        name,
        survey_seconds=max(interval, _SURVEY_SECONDS_LEAST),
        fresh_seconds=min(0.1, interval / 2),
    )


def _console() -> Console:
    if sys.stdout.isatty():
        return Console(highlight=False, emoji=False)
    width, height = _PIPE_SIZE
    width = int(os.environ.get("COLUMNS") or width)
    return Console(file=sys.stdout, width=width, height=height, highlight=False, emoji=False)


def _stepped(interval: float, key: str) -> float:
    if key in ("+", "="):
        return max((each for each in _INTERVALS if each < interval), default=interval)
    if key == "-":
        return min((each for each in _INTERVALS if each > interval), default=interval)
    return interval


class _Keyboard:
    """Single keys, if standard input is a terminal."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def wait(self, seconds: float) -> str:
        """The key that was pressed within so many seconds; empty when none was."""
        if self._descriptor is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return ""
        return os.read(self._descriptor, 1).decode("latin-1")


@contextlib.contextmanager
def _keys() -> Iterator[_Keyboard]:
    if not sys.stdin.isatty():
        yield _Keyboard(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield _Keyboard(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _more(now: Moment) -> dict[str, object]:
    """What the screen shows besides, for scripts."""
    reading = now.reading
    survey = reading.survey
    return {
        "survey_age_seconds": round(survey.age_seconds, 1) if survey else None,
        "blocks": dict(survey.tally) if survey else {},
        "pinned": survey.pinned if survey else 0,
        "windows": [window.as_dict() for window in survey.reuse] if survey else [],
        "clients": sum(1 for client in reading.clients if client.alive),
        "namespaces": {each.label: each.resident_bytes for each in reading.namespaces},
    }
