"""How did it go so far? A ring of samples, bounded, in the exporter's memory.

One sample every SAMPLE_SECONDS for HISTORY_SECONDS: 4,320 rows of single precision, 0.4 MB in all, made once. Amounts are what
was counted between two samples, so that a plot needs no counter resets; levels are what stood at the sample. A sample
without a reading (no arena, or another one than before) is a gap. Nothing is kept across a restart: what must be kept
is for Prometheus. Called by one thread that samples and many that ask.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["HISTORY_SECONDS", "LEVELS", "SAMPLE_SECONDS", "SPANS", "History"]

SAMPLE_SECONDS: Final = 5.0
HISTORY_SECONDS: Final = 6 * 3600
# Seconds shown -> samples that make one point of it.
SPANS: Final[Mapping[int, int]] = {900: 1, 3600: 2, 6 * 3600: 12}
LEVELS: Final = ("hit_rate", "ceiling", "ready_bytes")


class History:
    """The last hours of one exporter; `incarnation` tells its numbers from those of another."""

    def __init__(self, plotted: tuple[str, ...], counted: tuple[str, ...] = ()) -> None:
        """Names of what is counted between samples: for `answer` and `recent`, and for `recent` only."""
        self._plotted = plotted
        self._amounts = (*plotted, *counted)
        self.incarnation = secrets.token_hex(6)
        self._names = (*self._amounts, *LEVELS)
        self._rows = int(HISTORY_SECONDS / SAMPLE_SECONDS) + max(SPANS.values())
        self._at = np.zeros(self._rows)
        self._values = np.full((self._rows, len(self._names)), np.nan, dtype=np.float32)
        self._seconds = np.zeros(self._rows, dtype=np.float32)
        self._count = 0  # samples ever; sample n lies in row n % rows
        self._mutex = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self._at.nbytes + self._values.nbytes + self._seconds.nbytes

    def add(self, at: float, seconds: float, values: Mapping[str, float | None] | None) -> None:
        """One sample: `values` of the last `seconds`; None: there was no reading to compare with."""
        row = np.full(len(self._names), np.nan, dtype=np.float32)
        if values is not None:
            for index, name in enumerate(self._names):
                value = values.get(name)
                row[index] = np.nan if value is None else value
        with self._mutex:
            place = self._count % self._rows
            self._at[place], self._seconds[place], self._values[place] = at, seconds, row
            self._count += 1

    def recent(self, seconds: float) -> dict[str, float]:
        """What was counted in the last `seconds`, and over how many of them, as "seconds"."""
        with self._mutex:
            wanted = min(self._count, self._rows, round(seconds / SAMPLE_SECONDS))
            rows = np.arange(self._count - wanted, self._count) % self._rows
            values, lengths = self._values[rows], self._seconds[rows]
        counted = ~np.isnan(values[:, : len(self._amounts)]).any(axis=1)
        sums = np.nansum(values[counted, : len(self._amounts)].astype(np.float64), axis=0)
        found = dict(zip(self._amounts, sums.tolist(), strict=True))
        return found | {"seconds": float(lengths[counted].sum())}

    def answer(self, span: int, after: int, incarnation: str) -> dict[str, Any]:
        """Points of the last `span` seconds that are newer than point `after` of this incarnation, as columns.

        Amounts as rates a second. A point is made of whole samples, and only when all of them are there.
        """
        each = SPANS[span]
        with self._mutex:
            count, points = self._count, self._count // each
            oldest = max(points - span // int(SAMPLE_SECONDS * each), 0)
            # A row may have been overwritten since its sample.
            oldest = max(oldest, -(-(count - self._rows) // each))
            known = incarnation == self.incarnation and oldest <= after <= points
            first = after if known else oldest
            rows = np.arange(first * each, points * each) % self._rows
            at, values, seconds = self._at[rows], self._values[rows], self._seconds[rows]
        return {
            "incarnation": self.incarnation,
            "at": time.time(),
            "point_seconds": SAMPLE_SECONDS * each,
            "after": first,
            "newest": points,
            "columns": self._columns(at, values, seconds, each),
        }

    def _columns(
        self, at: NDArray[np.float64], values: NDArray[Any], seconds: NDArray[Any], each: int
    ) -> dict[str, list[float | None]]:
        points = len(at) // each
        shaped = values.reshape(points, each, len(self._names)).astype(np.float64)
        lengths = seconds.reshape(points, each).astype(np.float64)
        known = ~np.isnan(shaped)
        columns: dict[str, list[float | None]] = {
            "at": np.round(at.reshape(points, each)[:, -1], 1).tolist()
        }
        for index, name in enumerate(self._names):
            if name not in self._plotted and name not in LEVELS:
                continue
            there = known[:, :, index]
            some = (there.sum(axis=1) > 0).tolist()
            sums = np.where(there, shaped[:, :, index], 0.0).sum(axis=1)
            over = (
                np.where(there, lengths, 0.0).sum(axis=1)
                if name in self._amounts
                else there.sum(axis=1)
            )
            mean = np.divide(sums, over, out=np.zeros(points), where=over > 0)
            columns[name] = [
                _rounded(value) if good else None
                for value, good in zip(mean.tolist(), some, strict=True)
            ]
        return columns


def _rounded(value: float) -> float:
    """Five digits: what a plot can show, in few bytes."""
    return float(f"{value:.5g}")
