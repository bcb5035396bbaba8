"""How is a process made to die at one line of our Python, and how are those lines counted?

What the native core does is stopped at crash points (`crash.hpp`); creation, adoption, removal and attaching are
written in Python, where every line is a place to die. A tracer sees each line of the traced files *before* it
runs, in every thread: killed there, all lines before have had their effect and none after. No hook in the
package is needed. Lines are named by file and number, so nothing here knows what they do. Runs in the child.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

__all__ = ["FILES", "Line", "Tracer", "of_a_region", "of_a_worker"]

# Whatever changes shared objects or takes locks. What only computes (layout, machine, config) does neither.
FILES = (
    "adoption.py",
    "arena.py",
    "cache.py",
    "creation.py",
    "fsck.py",
    "liveness.py",
    "payload_watch.py",
    "populate.py",
    "reaper.py",
    "supervisor.py",
)


def of_a_region(path: Path) -> str:
    """Its name if it is one of FILES, else nothing."""
    return path.name if path.parent.name == "pegashm" and path.name in FILES else ""


def of_a_worker(path: Path) -> str:
    """As that, of all that the transport worker runs for its spill files."""
    package = path.parent.name
    ours = path.parent.parent.name == "pegashm" and package in ("spill", "transport")
    return f"{package}/{path.name}" if ours else ""


class Line(NamedTuple):
    """A line of the package, and the how-manieth time it is passed."""

    file: str
    number: int
    pass_number: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.number} (pass {self.pass_number})"


class Tracer:
    """Counts the lines this process passes, and kills it at one of them."""

    def __init__(self, fatal: Line | None, named: Callable[[Path], str] = of_a_region) -> None:
        """`named`: what a file is called whose lines count, nothing for others."""
        self.passes: Counter[tuple[str, int]] = Counter()
        self._fatal = fatal
        self._named = named
        self._known: dict[str, str] = {}  # by path, its name or ""

    def start(self) -> None:
        threading.settrace(self._call)
        sys.settrace(self._call)

    def stop(self) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _call(self, frame: FrameType, _event: str, _: Any) -> Any:
        return self._line if self._file(frame) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            key = self._file(frame), frame.f_lineno
            self.passes[key] += 1
            fatal = self._fatal
            # Not "equal": two threads may count at once.
            if fatal is not None and key == fatal[:2] and self.passes[key] >= fatal.pass_number:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._line

    def _file(self, frame: FrameType) -> str:
        path = frame.f_code.co_filename
        if path not in self._known:
            self._known[path] = self._named(Path(path))
        return self._known[path]
