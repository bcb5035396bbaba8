"""How is PegaShm measured beside its rivals? As its connector uses it on a CPU: claim, copy, publish; find and pin, copy, unpin.

One copying thread, as the rivals have. The arena lies in /dev/shm, on pages of 4 KiB, or (`huge`) on a tmpfs of the bench's own with pages of
2 MiB, as docs recommend. The supervisor is a real one. Nothing is written to SSD and no checksums are kept, as the rivals keep none. A client
maps all pages when it attaches: with pages of 4 KiB the first touch of each costs a process a fault, 0.2 s/GiB in all (the bench of
starts measures that), which the rivals' processes have behind them as well.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from bench.rivals.store import POOL_BYTES, Rows, Servers, Store

__all__ = ["PegaShmServers", "open_store"]

START_SECONDS = 60
GROUP = bytes(4)


@final
class PegaShmServers(Servers):
    """`pegashm serve` and its arena."""

    def __init__(self, folder: str, *, huge: bool = False) -> None:
        super().__init__(folder)
        self.huge = huge
        self.mount = contextlib.ExitStack()
        self.directory: str | None = None
        self.name = f"bench-rivals-{os.getpid()}-{abs(hash(folder)) % 10_000}"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        from bench.memory import huge_tmpfs
        from bench.served import run_pegashm, wait_until_populated

        if self.huge and self.directory is None:
            self.directory = self.mount.enter_context(huge_tmpfs(2 * POOL_BYTES))
            if self.directory is None:
                raise RuntimeError("mounting a tmpfs with huge pages needs root")
        where = [] if self.directory is None else ["--directory", self.directory]
        told = ["serve", "--name", self.name, "--size", str(POOL_BYTES), *where]
        self.child = run_pegashm(told)
        wait_until_populated(self.child, self.name, time.monotonic() + START_SECONDS)

    def config(self, client: int) -> Mapping[str, Any]:
        return {"arena": self.name}

    @property
    def victims(self) -> Mapping[str, int]:
        assert self.child is not None
        return {"supervisor": self.child.pid}

    def stop(self) -> None:
        from bench.served import run_pegashm

        if self.child is not None:
            self.child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(START_SECONDS)
            self.child.kill()
        run_pegashm(["purge", "--name", self.name, "--yes", "--force"]).wait()
        self.mount.close()


@final
class PegaShmStore(Store):
    """An attached client, in the place of an engine's scheduler and worker at once."""

    def __init__(self, arena: str) -> None:
        from pegashm._native import OK, Copier
        from pegashm.cache import Cache
        from pegashm.keys import namespace_of

        self.ok = bytes([OK])
        namespace = namespace_of({"bench": "rivals"}, label="bench.rivals")
        self.cache = Cache.attach(arena, namespace=namespace, label="bench")
        self.copier = Copier(1)
        region = self.cache.region
        self.base = np.uint64(region.payload_address)
        region.populate(0, region.payload_bytes)

    def name(self, block: int) -> Any:
        return super().name(block) + GROUP

    def exists(self, names: Sequence[Any]) -> int:
        _, outcomes = self.cache.find(names)
        return outcomes.tobytes().count(self.ok)

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        handles, outcomes = self.cache.claim(names, rows.shape[1])
        if outcomes.any():
            raise RuntimeError(f"claim answered {outcomes.tolist()}")
        offsets, sizes = self.cache.locate(handles)
        self.copier.copy(offsets + self.base, self._addresses(rows), sizes)
        self.cache.publish(handles)

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        handles, _ = self.cache.find(names, pin=True)
        offsets, sizes = self.cache.locate(handles)
        self.copier.copy(self._addresses(rows), offsets + self.base, sizes)
        self.cache.unpin(handles)
        return int(np.count_nonzero(handles))

    def delete(self, names: Sequence[Any]) -> None:
        handles, _ = self.cache.find(names)
        self.cache.evict(handles[handles != 0])

    def close(self) -> None:
        self.copier.close()
        self.cache.close()

    @staticmethod
    def _addresses(rows: Rows) -> np.ndarray[Any, np.dtype[np.uint64]]:
        steps = np.arange(len(rows), dtype=np.uint64) * np.uint64(rows.strides[0])
        return steps + np.uint64(rows.ctypes.data)


def open_store(config: Mapping[str, Any]) -> Store:
    return PegaShmStore(config["arena"])
