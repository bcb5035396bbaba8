"""A transport worker that is killed or stopped at one line of what it does for, or wants of, other hosts.

Run as `python -m tests.peers.traced JSON`. As `tests.crash.tracing`, for one process of several, which then has to be watched by
the test: with SIGSTOP it stays, with its sockets, locks and claims, until it is told to go on.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from pegashm.transport import worker

from tests.crash.tracing import Line, Tracer

__all__ = ["FILES"]

FILES = {
    "peers": ("caller.py", "fetcher.py", "fetching.py", "known.py", "leases.py", "serving.py"),
    "fabric": (
        "tcp.py", "tcp_channel.py", "tcp_leases.py", "tcp_reading.py", "tcp_serving.py",
        "verbs.py", "verbs_memory.py", "verbs_queue.py", "verbs_reading.py", "verbs_serving.py",
    ),
    "transport": ("desk.py",),
}  # fmt: skip


def named(path: Path) -> str:
    package = path.parent.name
    return f"{package}/{path.name}" if path.name in FILES.get(package, ()) else ""


class Stopper(Tracer):
    """As a Tracer; `number`: what is sent at the line, once."""

    def __init__(self, line: Line | None, number: int) -> None:
        super().__init__(None, named)
        self._line_wanted = line
        self._number = number

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        # What only defines things is no step.
        in_a_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED
        return super()._call(frame, event, _) if in_a_function else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        super()._line(frame, event, _)
        wanted = self._line_wanted
        if event == "line" and wanted is not None:
            key = self._file(frame), frame.f_lineno
            if key == wanted[:2] and self.passes[key] >= wanted.pass_number:
                self._line_wanted = None
                os.kill(os.getpid(), self._number)
        return self._line


def main() -> int:
    order = json.loads(sys.argv[1])
    line = Line(*order["line"]) if order["line"] else None
    tracer = Stopper(line, signal.Signals[order["signal"]])
    tracer.start()
    status = worker.main([order["options"]])
    tracer.stop()
    if order["passes"]:
        passes = sorted([*key, count] for key, count in tracer.passes.items())
        Path(order["passes"]).write_text(json.dumps(passes))
    return status


if __name__ == "__main__":
    sys.exit(main())
