"""What does one check say? A level, a sentence, and for all but `ok` what to type."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

__all__ = ["Finding", "Level", "error", "ok", "warning"]


class Level(enum.IntEnum):
    """How bad it is, which is also the exit status of `pegashm doctor`."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """`check`: the name of the check, for scripts. `type`: what to type, empty where nothing is to be done."""

    check: str
    level: Level
    says: str
    type: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "level": self.level.name.lower(),
            "says": self.says,
            "type": self.type,
        }


def ok(check: str, says: str) -> Finding:
    return Finding(check, Level.OK, says)


def warning(check: str, says: str, do: str) -> Finding:
    """It works, but less well than it could; or it will not for long."""
    return Finding(check, Level.WARNING, says, do)


def error(check: str, says: str, do: str) -> Finding:
    """It does not work like this."""
    return Finding(check, Level.ERROR, says, do)
