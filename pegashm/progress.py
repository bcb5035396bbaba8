"""How does a person see how far populating is?

A bar on a terminal (rich), a line every few seconds in a log. Ticked by the supervisor's main loop; it
only reads the `Progress` that the populating threads write.
"""

import logging
import sys
import time
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from pegashm.logs import logger, tell
from pegashm.notices import ARENA_POPULATING
from pegashm.populate import Progress
from pegashm.units import format_bytes

__all__ = ["ProgressView"]

_LINE_SECONDS: Final = 5.0


class ProgressView:
    """Shows a `Progress` until it is finished; a context, so that a terminal is always given back."""

    def __init__(self, total_bytes: int, progress: Progress) -> None:
        self._total_bytes = total_bytes
        self._progress = progress
        self._started = time.monotonic()
        self._line_at = self._started + _LINE_SECONDS
        self._ended = False
        self._bar = (
            _make_bar() if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO) else None
        )

    def __enter__(self) -> "ProgressView":  # noqa: PYI034 - typing.Self came with Python 3.11
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("populating", total=self._total_bytes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_bar()

    def tick(self, finished: bool) -> bool:
        """Show what is new; True exactly once, when it is finished."""
        if self._ended:
            return False
        done = self._progress.done_bytes
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() >= self._line_at and not finished:
            self._line_at = time.monotonic() + _LINE_SECONDS
            tell(ARENA_POPULATING, "%s", self._line(done), bytes=done)
        if finished:
            self._ended = True
            self._stop_bar()
        return finished

    def _line(self, done: int) -> str:
        seconds = time.monotonic() - self._started
        share = 100 * done // self._total_bytes
        rest = seconds * (self._total_bytes - done) / done if done else 0.0
        return (
            f"populating: {format_bytes(done)} of {format_bytes(self._total_bytes)} ({share} %), "
            f"{self._progress.segments_ready} segments ready, about {rest:.0f} s to go"
        )

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _make_bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
