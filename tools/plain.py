"""How does a value from shared memory become something that can be printed?

Labels, paths and keys were written by other processes, or by whatever damaged the region: nothing here
trusts them. `plain` turns bytes into hex and numpy values into Python ones, so that `json` takes them;
`shown` makes text that cannot move a terminal's cursor; `age_text` and `time_text` are the units a
person reads. Pure functions, called by `collect`, `render` and `watch`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["NS_PER_SECOND", "age_text", "plain", "shown", "time_text"]

NS_PER_SECOND = 1_000_000_000
TIME_NS_MAX = 253_402_300_799 * NS_PER_SECOND  # the year 9999, the last that strftime agrees on


def plain(value: Any) -> Any:
    """The same value in types that JSON has; bytes become hex."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # lone surrogates are no JSON
    return value


def shown(value: Any) -> str:
    """Text for a terminal: what is not printable appears as an escape, never as itself."""
    text = value if isinstance(value, str) else str(plain(value))
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def age_text(age_ns: int | None) -> str:
    """How long ago, in one unit; a time in the future (a damaged record, a moved clock) says so."""
    if age_ns is None:
        return "-"
    if age_ns < 0:
        return "in the future"
    seconds = age_ns / NS_PER_SECOND
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def time_text(time_ns: int) -> str:
    """A wall-clock time in ISO form, UTC; 0 is "never"."""
    if not time_ns:
        return "never"
    if not 0 < time_ns < TIME_NS_MAX:
        return f"no time ({time_ns} ns)"
    whole, part = divmod(time_ns, NS_PER_SECOND)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{stamp}.{part // 1_000_000:03d}Z"
