"""How do bytes move between one open file and memory? A descriptor, its own threads, and what they have moved.

One pool a file: a device that hangs holds nobody but those who wait for this file. `pages` is memory for what
is not payload: headers and frame pages, aligned as O_DIRECT wants them. Called by `scan` and `file`; tests
put a disk of their own in its place that writes down what it is told.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pegashm._native import DiskPool, DiskTransfer
from pegashm.liveness import close_lock_file
from pegashm.spill.format import PAGE_BYTES

__all__ = ["PIECE_BYTES", "THREADS", "Disk", "Pages"]

# Measured with bench/spill.py: see DESIGN.md, "SSD tier: the file".
THREADS: Final = 8
PIECE_BYTES: Final = 1 << 20

Words = NDArray[np.uint64]


class Pages:
    """Page-aligned memory of our own, as rows of 4096 bytes."""

    def __init__(self, count: int) -> None:
        self.memory = mmap.mmap(-1, max(count, 1) * PAGE_BYTES)
        self.rows: NDArray[np.uint8] = np.frombuffer(self.memory, np.uint8).reshape(-1, PAGE_BYTES)
        self.address = int(self.rows.ctypes.data)

    def __len__(self) -> int:
        return len(self.rows)

    def addresses(self, count: int) -> Words:
        """Of the first `count` rows."""
        return (self.address + PAGE_BYTES * np.arange(count)).astype(np.uint64)


class Disk:
    """One open file. Offsets, addresses and sizes are multiples of 4096 when it is `direct`."""

    def __init__(
        self,
        descriptor: int,
        *,
        direct: bool,
        threads: int = THREADS,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.descriptor = descriptor
        self.direct = direct
        self._pool = DiskPool(threads, piece_bytes)

    @property
    def waiting_seconds(self) -> float:
        """How long the oldest unfinished transfer has been under way."""
        return self._pool.waiting_seconds

    def start(self, offsets: Words, addresses: Words, sizes: Words, *, write: bool) -> DiskTransfer:
        return self._pool.start(self.descriptor, offsets, addresses, sizes, write=write)

    def transfer(
        self, offsets: Words, addresses: Words, sizes: Words, *, write: bool
    ) -> NDArray[np.int32]:
        """An errno for each run, 0 where all went well; the caller's thread helps."""
        return self.start(offsets, addresses, sizes, write=write).wait(helping=True)

    def sync(self) -> None:
        """What was written is on the medium, as far as the device says the truth. OSError when not."""
        os.fdatasync(self.descriptor)

    def close(self, patience_seconds: float = 1.0) -> bool:
        """False when the device hangs: then the descriptor stays open until the process ends."""
        if not self._pool.close(patience_seconds):
            return False
        with contextlib.suppress(OSError):  # of a device that is gone; closed it is nonetheless
            close_lock_file(self.descriptor)
        return True
