"""Mooncake Store: a master that knows what is where, and clients that hold the memory.

Two ways to use it on one host. `shared`: a process of Mooncake's own holds the pool, clients reach it through shared memory and
must keep their blocks in buffers that it gives them. `embedded`: each client brings a part of the pool (as inside an engine), puts
go to its own part, and bytes between two clients travel over TCP. Metadata by handshake between peers, no etcd. Deleting is forced, or it would wait for the lease that each
lookup and get leaves behind.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bench.rivals.servers import Daemon, free_port, wait_for
from bench.rivals.store import POOL_BYTES, Rows, Servers, Store

__all__ = ["MooncakeServers", "open_store"]

START_SECONDS = 30
BUFFERS_BYTES = 256 << 20  # what one client's own blocks take


@final
class MooncakeServers(Servers):
    """The master, and unless clients bring the memory the process that holds it."""

    def __init__(self, folder: str, binaries: str, *, embedded: bool) -> None:
        super().__init__(folder)
        self.binaries = binaries
        self.embedded = embedded
        self.master: Daemon | None = None
        self.holder: Daemon | None = None
        self.master_port, self.holder_port = free_port(), free_port()

    def start(self) -> None:
        if self.master is None or not self.master.alive():
            command = [os.path.join(self.binaries, "mooncake_master"), f"--port={self.master_port}"]
            command += [f"--metrics_port={free_port()}"]
            self.master = Daemon(command, self.folder)
            wait_for("master", lambda: listens(self.master_port), self.master, START_SECONDS)
        if not self.embedded and (self.holder is None or not self.holder.alive()):
            command = [os.path.join(self.binaries, "mooncake_client"), "--host=127.0.0.1"]
            command += [f"--port={self.holder_port}", f"--global_segment_size={POOL_BYTES}"]
            command += [f"--master_server_address=127.0.0.1:{self.master_port}"]
            command += ["--metadata_server=P2PHANDSHAKE", "--protocol=tcp"]
            self.holder = Daemon(command, self.folder)
            wait_for("holder", lambda: listens(self.holder_port), self.holder, START_SECONDS)

    def config(self, client: int) -> Mapping[str, Any]:
        return {
            "master": f"127.0.0.1:{self.master_port}",
            "holder": "" if self.embedded else f"127.0.0.1:{self.holder_port}",
        }

    @property
    def victims(self) -> Mapping[str, int]:
        assert self.master is not None
        holder = {} if self.holder is None else {"holder of the memory": self.holder.pid}
        return {"master": self.master.pid, **holder}

    def stop(self) -> None:
        for daemon in (self.holder, self.master):
            if daemon is not None:
                daemon.stop()


@final
class MooncakeStore(Store):
    """A client."""

    def __init__(self, master: str, holder: str) -> None:
        from mooncake.store import MooncakeDistributedStore, ReplicateConfig

        self.store = MooncakeDistributedStore()
        self.where = ReplicateConfig()
        self.embedded = not holder
        if self.embedded:
            status = self.store.setup(
                "127.0.0.1", "P2PHANDSHAKE", POOL_BYTES, BUFFERS_BYTES, "tcp", "", master
            )
        else:
            status = self.store.setup_dummy(BUFFERS_BYTES, BUFFERS_BYTES, holder)
        _check("setup", [status])
        if self.embedded:
            self.where.preferred_segment = self.store.get_hostname()

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        if self.embedded:
            memory = super().memory(nbytes)
        else:
            address = self.store.alloc_from_mem_pool(nbytes)
            if not address:
                raise MemoryError(f"Mooncake has no pool of {nbytes} bytes for a client")
            memory = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        _check("register_buffer", [self.store.register_buffer(memory.ctypes.data, nbytes)])
        return memory

    def name(self, block: int) -> Any:
        return super().name(block).hex()

    def exists(self, names: Sequence[Any]) -> int:
        if len(names) == 1:
            return int(self.store.is_exist(names[0]) == 1)
        return int(self.store.batch_is_exist(names).count(1))

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        addresses, sizes = _places(rows)
        _check("batch_put_from", self.store.batch_put_from(names, addresses, sizes, self.where))

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        addresses, sizes = _places(rows)
        came = self.store.batch_get_into(names, addresses, sizes)
        return sum(got == size for got, size in zip(came, sizes, strict=True))

    def delete(self, names: Sequence[Any]) -> None:
        for name in names:
            self.store.remove(name, True)

    def close(self) -> None:
        self.store.close()


def _places(rows: Rows) -> tuple[list[int], list[int]]:
    first, step = rows.ctypes.data, rows.strides[0]
    return [first + i * step for i in range(len(rows))], [step] * len(rows)


def _check(call: str, statuses: Sequence[int]) -> None:
    failed = [status for status in statuses if status != 0]
    if failed:
        raise RuntimeError(f"{call}: {len(failed)} of {len(statuses)} failed, status {failed[0]}")


def listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


def open_store(config: Mapping[str, Any]) -> Store:
    return MooncakeStore(config["master"], config["holder"])
