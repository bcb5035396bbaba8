"""How does the supervisor speak to whoever reads its log?

One line a message on standard error, as text or as one JSON object. `sys.stderr` is looked up at each
message, so that a progress bar on a terminal can stand in for it and keep the lines above itself.
"""

import contextlib
import json
import logging
import sys
import time

__all__ = ["configure", "is_json", "logger"]

logger = logging.getLogger("pegashm")


def configure(*, as_json: bool) -> None:
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def is_json() -> bool:
    """What `configure` was told, for a child process that is to log alike."""
    return any(isinstance(handler.formatter, _JsonFormatter) for handler in logger.handlers)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Nobody may be reading the log any more; that must not stop the supervisor.
        with contextlib.suppress(OSError):
            print(self.format(record), file=sys.stderr, flush=True)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{clock} {record.levelname.lower():<7} {record.getMessage()}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        return json.dumps(fields, ensure_ascii=False)
