"""How does a long-running process of ours speak to whoever reads its log?

One line an event on standard error, as text or as one JSON object. Which events there are is in `notices.py`; each line
is written by `tell`, which also sees to it that the same is not said again and again: the next line says how many like it
were left out. Ids are those of the dump and of the metrics: slot, pid, namespace (fingerprint), host_id, spill_file.

JSON: `time` (ISO 8601, UTC), `epoch` (seconds), `level`, `event`, `message`, then `arena`, `process` and `process_pid` (who
speaks), the event's own ids, and `suppressed` where lines were left out. Fields are added, never renamed.

The connector speaks through its engine's log instead: `tell(..., to=logger)`. `sys.stderr` is looked up at each message,
so that a progress bar on a terminal can stand in for it and keep the lines above itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from pegashm.errors import ConfigError
from pegashm.notices import Notice

__all__ = [
    "FORMATS",
    "LEVELS",
    "Limiter",
    "LogConfig",
    "configuration",
    "configure",
    "logger",
    "tell",
]

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
_SUBJECTS_MAX: Final = 1024

logger = logging.getLogger("pegashm")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What the operator asked for (--log-format, --log-level), and who speaks."""

    format: str = "text"
    level: str = "info"
    arena: str = ""
    process: str = ""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"--log-format is one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.level not in LEVELS:
            raise ConfigError(f"--log-level is one of {', '.join(LEVELS)}, got {self.level!r}")


_configuration: LogConfig | None = None


def configure(config: LogConfig) -> None:
    """From now on this process's lines go to standard error, in this way. Again: in another way."""
    global _configuration  # noqa: PLW0603 - a process has one log
    _configuration = config
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter(config) if config.format == "json" else _TextFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(config.level.upper())
    logger.propagate = False


def configuration() -> LogConfig | None:
    """What `configure` was told, for a child process that is to log alike; None before that."""
    return _configuration


def tell(
    notice: Notice,
    text: str,
    *arguments: object,
    subject: object = "",
    to: logging.Logger | None = None,
    trace: bool = False,
    **ids: Any,
) -> None:
    """Say that something happened. `text` with `arguments` as for a logger; `ids` become fields of their own.

    `subject`: of whom, when the same may happen to several: each has its own share of lines. `to`: an engine's logger,
    which knows nothing of ids: the line then carries the event's name. `trace`: with the traceback in hand.
    """
    sink = logger if to is None else to
    if not sink.isEnabledFor(notice.level):
        return
    suppressed = 0
    if notice.every_seconds:
        allowed, suppressed = _limiter.ask(notice, subject)
        if not allowed:
            return
    if suppressed:
        text += " (%d more like it since the last line)"
        arguments = (*arguments, suppressed)
    if to is not None:
        said = f"PegaShm [{notice.name}]: {text}"
        to.log(notice.level, said, *arguments, exc_info=trace, stacklevel=2)
        return
    fields = {**ids, **({"suppressed": suppressed} if suppressed else {})}
    logger.log(
        notice.level,
        text,
        *arguments,
        exc_info=trace,
        extra={"pegashm_event": notice.name, "pegashm_fields": fields},
    )


class Limiter:
    """Whether a notice may be told now, and how many like it were not. Bounded in subjects. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._told: dict[tuple[str, object], tuple[float, int]] = {}  # when, left out since

    def ask(self, notice: Notice, subject: object = "") -> tuple[bool, int]:
        now = self._clock()
        key = (notice.name, subject)
        with self._mutex:
            at, left_out = self._told.pop(key, (None, 0))
            quiet = at is not None and now < at + notice.every_seconds
            self._told[key] = (at, left_out + 1) if quiet and at is not None else (now, 0)
            while len(self._told) > _SUBJECTS_MAX:
                self._told.pop(next(iter(self._told)))
        return (False, 0) if quiet else (True, left_out)


_limiter = Limiter()


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Nobody may be reading the log any more; that must not stop the supervisor.
        with contextlib.suppress(OSError):
            print(self.format(record), file=sys.stderr, flush=True)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        event = getattr(record, "pegashm_event", record.name)
        line = f"{clock} {record.levelname.lower():<7} [{event}] {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def __init__(self, config: LogConfig) -> None:
        super().__init__()
        self._speaker = {"arena": config.arena, "process": config.process}

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, tz=timezone.utc)
        fields = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "epoch": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": getattr(record, "pegashm_event", record.name),
            "message": record.getMessage(),
            **{key: value for key, value in self._speaker.items() if value},
            "process_pid": os.getpid(),
            **getattr(record, "pegashm_fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)
