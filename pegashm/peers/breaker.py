"""Is this peer worth asking just now? Open after a few failures in a row, tried again after a while.

After `_FAILURES` failures in a row nobody is sent there; after 1 s one request may try (half open), and each further failure
doubles the pause, to 30 s. One success closes it. Used under the fetcher's mutex; the clock is the caller's.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Breaker"]

_FAILURES: Final = 3
_PAUSE_SECONDS: Final = 1.0
_PAUSE_SECONDS_MAX: Final = 30.0


class Breaker:
    """Of one peer."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause = _PAUSE_SECONDS
        self._open_until = 0.0
        self._trying_until = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= _FAILURES

    @property
    def state(self) -> str:
        return "open" if self.is_open else "closed"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent. Nothing is taken: see `started`."""
        return not self.is_open or (now >= self._open_until and now >= self._trying_until)

    def started(self, now: float, seconds: float) -> None:
        """A request is on its way, for at most so long: while open, no second one beside it."""
        if self.is_open:
            self._trying_until = now + seconds

    def succeeded(self) -> None:
        self._failures = 0
        self._pause = _PAUSE_SECONDS
        self._trying_until = 0.0

    def failed(self, now: float) -> bool:
        """True when it opened (or opened again) with this."""
        self._failures += 1
        self._trying_until = 0.0
        if not self.is_open:
            return False
        if self._failures > _FAILURES:
            self._pause = min(2 * self._pause, _PAUSE_SECONDS_MAX)
        self._open_until = now + self._pause
        return True
