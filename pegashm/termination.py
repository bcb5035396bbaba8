"""Has somebody asked this process to end?

SIGTERM and SIGINT are blocked and waited for, never delivered: no handler runs in the middle of
anything, and waiting for the next tick is waiting for the signal. Made by the main thread before any
other thread starts, so that all inherit the blocked signals; works for process 1 of a container.
"""

import signal
from types import TracebackType
from typing import Final

__all__ = ["StoppedError", "Termination"]

_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})


class StoppedError(Exception):
    """Somebody asked us to end in the middle of a step that can be given up."""


class Termination:
    """A context in which termination is asked for through `wait` and `check` only."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __enter__(self) -> "Termination":  # noqa: PYI034 - typing.Self came with Python 3.11
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What came in after the first one asks for the same: drop it, so that it does not kill us now.
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self, seconds: float) -> bool:
        """Sleep that long; True at once when termination is asked for, and ever after."""
        if not self.signal_name:
            received = signal.sigtimedwait(_SIGNALS, max(0.0, seconds))
            if received is not None:
                self.signal_name = signal.Signals(received.si_signo).name
        return bool(self.signal_name)

    def check(self) -> None:
        """Raise StoppedError when termination is asked for."""
        if self.wait(0):
            raise StoppedError(self.signal_name)
