"""How is what others do wrong told to the operator, without letting them fill the log?

One line a subject in ten seconds; the next line says how many were swallowed. Bounded in subjects. Thread-safe.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from pegashm.logs import logger

__all__ = ["Complaints"]

_EVERY_SECONDS: Final = 10.0
_SUBJECTS_MAX: Final = 1024


class Complaints:
    """`say` may be called for every bad message."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}  # subject -> (when, swallowed since)

    def say(self, subject: str, text: str) -> None:
        now = time.monotonic()
        with self._mutex:
            at, swallowed = self._said.pop(subject, (-_EVERY_SECONDS, 0))
            quiet = now < at + _EVERY_SECONDS
            self._said[subject] = (at, swallowed + 1) if quiet else (now, 0)
            while len(self._said) > _SUBJECTS_MAX:
                self._said.pop(next(iter(self._said)))
        if not quiet:
            more = f" ({swallowed} more like it since the last line)" if swallowed else ""
            logger.warning("%s%s", text, more)
