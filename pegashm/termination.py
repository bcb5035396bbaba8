"""Has somebody asked this process to end?

SIGTERM and SIGINT only leave a byte in a pipe, which the main loop waits for instead of sleeping: no
code of ours runs in a handler, and nothing is interrupted halfway. Blocking the signals would not do:
libraries start threads before us (a numeric one on import), and those would be killed in our stead.
Used by the main thread; works for process 1 of a container, which ignores signals without a handler.
"""

import os
import select
import signal
from types import FrameType, TracebackType
from typing import Final

__all__ = ["StoppedError", "Termination"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """Somebody asked us to end in the middle of a step that can be given up."""


class Termination:
    """A context in which termination is asked for through `wait` and `check` only."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __enter__(self) -> "Termination":  # noqa: PYI034 - typing.Self came with Python 3.11
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._handlers_before = {number: signal.signal(number, _nothing) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def wait(self, seconds: float) -> bool:
        """Sleep that long; True at once when termination is asked for, and ever after."""
        if not self.signal_name and select.select([self._read_fd], [], [], max(0.0, seconds))[0]:
            for number in os.read(self._read_fd, 64):
                if number in _SIGNALS:
                    self.signal_name = signal.Signals(number).name
        return bool(self.signal_name)

    def check(self) -> None:
        """Raise StoppedError when termination is asked for."""
        if self.wait(0):
            raise StoppedError(self.signal_name)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Only here so that the interpreter catches the signal; the byte in the pipe is what counts."""
