"""How much may still be written to SSD today? Bytes of the last 24 hours, hour by hour, against a limit.

What counts are the bytes that reach the devices, pages and padding included. A new worker learns from the blocks
that it finds in its files what was written before it (blocks overwritten since are not known any more, so
a ring that turns several times a day is counted from the worker's start). Thread-safe: the spiller asks, writers spend.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm.spill.format import strides_of

__all__ = ["WriteBudget"]

_HOURS: Final = 24
_HOUR_NS: Final = 3_600_000_000_000


class WriteBudget:
    """`limit_bytes` of writes in any 24 hours (to the hour); 0: no limit, they are only counted."""

    def __init__(self, limit_bytes: int, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.limit_bytes = limit_bytes
        self._now_ns = now_ns
        self._mutex = threading.Lock()
        self._hours: dict[int, int] = {}  # hour since the epoch -> bytes

    def found(self, records: NDArray[Any]) -> None:
        """Blocks that lie in a file: those of the last 24 hours were written in them."""
        hours = records["published_at_ns"] // np.uint64(_HOUR_NS)
        recent = hours > np.uint64(max(0, self._hour() - _HOURS))
        if not recent.any():
            return
        sizes = strides_of(records["payload_bytes"])
        now = self._hour()
        with self._mutex:
            for hour in np.unique(hours[recent]).tolist():
                nbytes = int(sizes[hours == hour].sum())
                at = min(int(hour), now)  # a clock that was set back
                self._hours[at] = self._hours.get(at, 0) + nbytes

    def left(self) -> int | None:
        """Bytes that may still be written now; None: any number."""
        return max(self.limit_bytes - self.spent(), 0) if self.limit_bytes else None

    def spend(self, nbytes: int) -> None:
        hour = self._hour()
        with self._mutex:
            self._hours[hour] = self._hours.get(hour, 0) + nbytes

    def spent(self) -> int:
        """Bytes written in the last 24 hours."""
        oldest = self._hour() - _HOURS
        with self._mutex:
            for hour in [hour for hour in self._hours if hour <= oldest]:
                del self._hours[hour]
            return sum(self._hours.values())

    def _hour(self) -> int:
        return self._now_ns() // _HOUR_NS
