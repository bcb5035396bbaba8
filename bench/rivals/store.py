"""What must a store be able to do in order to be measured, and what does its server side look like from here?

`Store` is a client in a worker process: everything it is asked is timed by worker.py, which calls nothing else in between.
`Servers` is what the bench itself starts, kills and starts again. Blocks are numbered; a chain is blocks of consecutive numbers
that are put in order, as the blocks of a prompt are; `name` turns a number into whatever the store calls a key, outside
of all timing.
"""

from __future__ import annotations

import hashlib
import mmap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["POOL_BYTES", "Rows", "Servers", "Store"]

POOL_BYTES = 1 << 30  # of every store that asks how much memory it may use
POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14

Rows = NDArray[np.uint8]
"""One block a row, of the caller's memory."""


class Store(ABC):
    """One client of one store."""

    deletes = True  # delete() takes these blocks and no others

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        """The caller's buffers: ordinary memory, unless the store works only from a kind of its own."""
        mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapped.madvise(POPULATE_WRITE)
        return np.frombuffer(mapped, np.uint8)

    def prepare(self, block_bytes: int) -> None:  # noqa: B027 (most have nothing to prepare)
        """The blocks to come have this size."""

    def name(self, block: int) -> Any:
        """What the store calls this block. A hash of 32 bytes, as engines have them, unless it takes none."""
        return hashlib.blake2b(block.to_bytes(8, "little"), digest_size=32).digest()

    @abstractmethod
    def exists(self, names: Sequence[Any]) -> int:
        """How many of these are there: asked in one call, one answer a key, as far as the store knows such a call."""

    @abstractmethod
    def put(self, names: Sequence[Any], rows: Rows) -> None:
        """Store the rows under these names; on return another client can have them."""

    @abstractmethod
    def get(self, names: Sequence[Any], rows: Rows) -> int:
        """Copy the blocks into the rows; how many came."""

    @abstractmethod
    def delete(self, names: Sequence[Any]) -> None:
        """Give their memory back to the store (never timed)."""

    def close(self) -> None:  # noqa: B027 (nothing to give back)
        """Leave in good order."""


class Servers(ABC):
    """The processes of a store that are no clients, and how to reach them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder  # of this store's own: sockets, logs

    @abstractmethod
    def start(self) -> None:
        """Start all that do not run, and return when clients can be served."""

    @abstractmethod
    def config(self, client: int) -> Mapping[str, Any]:
        """What client number so-and-so must know (JSON)."""

    @property
    @abstractmethod
    def victims(self) -> Mapping[str, int]:
        """Process ids by the role that each plays: what the bench kills. Empty when the store has no server."""

    @property
    def processes(self) -> Sequence[int]:
        """All process ids: what takes time and memory while nobody asks anything."""
        return list(self.victims.values())

    @abstractmethod
    def stop(self) -> None:
        """End all and remove what they left."""
