"""Ray's object store: immutable objects in shared memory, kept by a raylet, found by references that only their owner hands out.

There are no names: a driver finds what it put itself (`shared_names` is off), and its objects go when it does. A lookup is ray.wait without
waiting. A get gives arrays in shared memory, which are copied into the caller's buffers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from bench.rivals.servers import Daemon, free_port, wait_for
from bench.rivals.store import POOL_BYTES, Rows, Servers, Store

__all__ = ["RayServers", "open_store"]

START_SECONDS = 60
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


@final
class RayServers(Servers):
    """A head node: its control store and its raylet."""

    daemon: Daemon | None = None

    def __init__(self, folder: str, program: str) -> None:
        super().__init__(folder)
        self.program = program

    def start(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()
        self.port = free_port()
        command = [self.program, "start", "--head", "--block", "--port", str(self.port)]
        command += ["--object-store-memory", str(POOL_BYTES), "--num-cpus", "2"]
        command += ["--include-dashboard", "false", "--disable-usage-stats"]
        command += ["--temp-dir", f"{self.folder}/s", "--node-ip-address", "127.0.0.1"]
        self.daemon = Daemon(command, self.folder, environment=QUIET)
        log = self.daemon.log
        wait_for(
            "Ray", lambda: "Ray runtime started" in log.read_text(), self.daemon, START_SECONDS
        )

    def config(self, client: int) -> Mapping[str, Any]:
        return {"address": f"127.0.0.1:{self.port}"}

    @property
    def victims(self) -> Mapping[str, int]:
        return {"raylet": self._process("raylet"), "control store": self._process("gcs_server")}

    @property
    def processes(self) -> Sequence[int]:
        assert self.daemon is not None
        return self.daemon.processes()

    def _process(self, name: str) -> int:
        for pid in self.processes:
            if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == name:
                return pid
        raise RuntimeError(f"Ray has no process {name}")

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()


@final
class RayStore(Store):
    """A driver."""

    def __init__(self, address: str) -> None:
        import ray

        self.ray = ray
        ray.init(address=address, log_to_driver=False, logging_level="error")
        self.references: dict[int, Any] = {}

    def name(self, block: int) -> Any:
        return block

    def exists(self, names: Sequence[Any]) -> int:
        references = [self.references[name] for name in names if name in self.references]
        if not references:
            return 0
        ready, _ = self.ray.wait(
            references, num_returns=len(references), timeout=0, fetch_local=False
        )
        return len(ready)

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        for name, row in zip(names, rows, strict=True):
            self.references[name] = self.ray.put(row)

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        arrays = self.ray.get([self.references[name] for name in names])
        for array, row in zip(arrays, rows, strict=True):
            np.copyto(row, array)
        return len(arrays)

    def delete(self, names: Sequence[Any]) -> None:
        for name in names:
            del self.references[name]

    def close(self) -> None:
        self.ray.shutdown()


def open_store(config: Mapping[str, Any]) -> Store:
    sys.stdout = sys.stderr  # what Ray prints is no answer of ours
    return RayStore(config["address"])
