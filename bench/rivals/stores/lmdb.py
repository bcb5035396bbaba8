"""LMDB in /dev/shm: an embedded store that processes share through one memory-mapped file, without a server.

Fastest settings that keep it whole across killed processes: written through the map (`writemap`), no syncs (there is no disk), one
transaction a batch. A get copies from the mapped page straight into the caller's buffer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from bench.rivals.store import POOL_BYTES, Rows, Servers, Store

__all__ = ["LmdbServers", "open_store"]


@final
class LmdbServers(Servers):
    """No process at all: a folder."""

    def start(self) -> None:
        if not hasattr(self, "path"):
            self.path = tempfile.mkdtemp(prefix="pegashm-bench-lmdb-", dir="/dev/shm")

    def config(self, client: int) -> Mapping[str, Any]:
        return {"path": self.path}

    @property
    def victims(self) -> Mapping[str, int]:
        return {}

    def stop(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@final
class LmdbStore(Store):
    """An environment with one database."""

    def __init__(self, path: str) -> None:
        import lmdb

        self.environment = lmdb.open(
            os.path.join(path, "blocks"),
            map_size=POOL_BYTES,
            writemap=True,
            map_async=True,
            sync=False,
            metasync=False,
            readahead=False,
            subdir=False,
        )

    def exists(self, names: Sequence[Any]) -> int:
        with self.environment.begin(buffers=True) as transaction:
            if len(names) == 1:
                return int(transaction.get(names[0]) is not None)
            return sum(map(transaction.cursor().set_key, names))  # quicker than get and getmulti

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        with self.environment.begin(write=True) as transaction:
            transaction.cursor().putmulti(list(zip(names, map(memoryview, rows), strict=True)))

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        came = 0
        with self.environment.begin(buffers=True) as transaction:
            for name, row in zip(names, rows, strict=True):
                found = transaction.get(name)
                if found is not None:
                    np.copyto(row, np.frombuffer(found, np.uint8))
                    came += 1
        return came

    def delete(self, names: Sequence[Any]) -> None:
        with self.environment.begin(write=True) as transaction:
            for name in names:
                transaction.delete(name)

    def close(self) -> None:
        self.environment.close()


def open_store(config: Mapping[str, Any]) -> Store:
    return LmdbStore(config["path"])
