"""LMCache in server mode: a server that owns a pool in shared memory, asked over ZeroMQ by the adapters that vLLM's connector uses.

A chunk is 16 tokens of one layer without heads, so that a block lies in one piece on both sides: the least work that LMCache can
have with it. Blocks are known by the tokens before them, so a call's blocks are one chain and a lookup is a prefix. A get is
what an engine does: look up (which holds the chunks), then retrieve. The server copies nothing; the client copies to and from the
pool. Nothing can be deleted but all at once.
"""

from __future__ import annotations

import itertools
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bench.rivals.servers import Daemon, free_port, wait_for
from bench.rivals.store import POOL_BYTES, POPULATE_WRITE, Rows, Servers, Store
from bench.rivals.stores.mooncake import listens

__all__ = ["LmcacheServers", "open_store"]

START_SECONDS = 90
CHUNK_TOKENS = 16
HEAD_BYTES = 2 << 20  # before the caller's blocks: LMCache takes block 0 for "none"
POOL_GIB = 4 * POOL_BYTES >> 30  # its eviction is asynchronous, and must not be what is measured
QUIET = {
    "LMCACHE_LOG_LEVEL": "WARNING",
    "LMCACHE_DISABLE_BANNER": "1",
    "LMCACHE_TRACK_USAGE": "false",
}
POLL_SECONDS = 20e-6
RESULT_SECONDS = 60


@final
class LmcacheServers(Servers):
    """`lmcache server`."""

    daemon: Daemon | None = None

    def __init__(self, folder: str, program: str) -> None:
        super().__init__(folder)
        self.program = program
        self.shared = f"pegashm-bench-lmcache-{os.getpid()}-{free_port()}"
        self.port = free_port()

    def start(self) -> None:
        command = [self.program, "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--supported-transfer-mode", "auto", "--shm-name", self.shared]
        command += ["--chunk-size", str(CHUNK_TOKENS), "--l1-size-gb", str(POOL_GIB)]
        command += ["--no-l1-use-lazy", "--eviction-policy", "LRU", "--max-workers", "2"]
        command += ["--http-host", "127.0.0.1", "--http-port", str(free_port())]
        command += ["--disable-observability"]
        self.daemon = Daemon(command, self.folder, environment=QUIET)
        wait_for("LMCache", lambda: listens(self.port), self.daemon, START_SECONDS)

    def config(self, client: int) -> Mapping[str, Any]:
        return {"url": f"tcp://127.0.0.1:{self.port}"}

    @property
    def victims(self) -> Mapping[str, int]:
        assert self.daemon is not None
        return {"server": self.daemon.pid}

    @property
    def processes(self) -> Sequence[int]:
        assert self.daemon is not None
        return self.daemon.processes()

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()
        for left in os.listdir("/dev/shm"):
            if self.shared in left:
                os.unlink(f"/dev/shm/{left}")


@final
class LmcacheStore(Store):
    """The scheduler's and the worker's side of a connector, for one engine of one process."""

    deletes = False

    def __init__(self, url: str) -> None:
        os.environ.update(QUIET)
        import zmq

        self.url = url
        self.context = zmq.Context()
        self.numbers = itertools.count(1)
        self.held: list[tuple[str, list[int]]] = []  # by lookups that nobody followed up
        self.sides: dict[int, tuple[Any, Any]] = {}
        self.pieces: list[NDArray[np.uint8]] = []

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        """Source and target are one KV cache to LMCache."""
        if not self.pieces:
            mapped = mmap.mmap(-1, HEAD_BYTES + 2 * nbytes)
            mapped.madvise(POPULATE_WRITE)
            self.cache = np.frombuffer(mapped, np.uint8)
            self.pieces = [self.cache[HEAD_BYTES:][:nbytes], self.cache[HEAD_BYTES + nbytes :]]
        return self.pieces.pop(0)

    def prepare(self, block_bytes: int) -> None:
        """Register the buffers as a KV cache of blocks of this size: a model of its own for LMCache."""
        if block_bytes not in self.sides:
            self.sides[block_bytes] = self._register(block_bytes)
        self.scheduler, self.worker = self.sides[block_bytes]
        self.block_bytes = block_bytes

    def _register(self, block_bytes: int) -> tuple[Any, Any]:
        import torch
        from lmcache.integration.vllm.vllm_multi_process_adapter import (
            LMCacheMPSchedulerAdapter,
            LMCacheMPWorkerAdapter,
            ParallelStrategy,
        )

        one = ParallelStrategy(
            mla_only=True, vllm_world_size=1, vllm_worker_id=0, tp_size=1, pp_size=1, n_servers=1
        )
        model = f"bench-{block_bytes}"
        scheduler = LMCacheMPSchedulerAdapter([self.url], self.context, model, CHUNK_TOKENS, one)
        worker = LMCacheMPWorkerAdapter(self.url, self.context, model, CHUNK_TOKENS, one)
        blocks = len(self.cache) // block_bytes
        words = torch.from_numpy(self.cache[: blocks * block_bytes]).view(torch.bfloat16)
        worker.register_kv_caches(
            {"layer": words.view(blocks, CHUNK_TOKENS, -1)}, layout_hints={"kv_layout": "NHD"}
        )
        return scheduler, worker

    def name(self, block: int) -> Any:
        self._let_go()
        return block

    def exists(self, names: Sequence[Any]) -> int:
        request = f"lookup-{os.getpid()}-{next(self.numbers)}"
        tokens = _tokens(names)
        found = self._look_up(request, tokens)
        self.held.append((request, tokens[: found * CHUNK_TOKENS]))
        return found

    def put(self, names: Sequence[Any], rows: Rows) -> None:
        from lmcache.integration.vllm.vllm_multi_process_adapter import LoadStoreOp

        request = f"store-{os.getpid()}-{next(self.numbers)}"
        tokens = _tokens(names)
        op = LoadStoreOp(tokens, [self._blocks(rows)], 0, len(tokens))
        event = self.worker.create_recorded_event()
        self.worker.submit_store_request(request, op, event)
        stored = self.worker.store_futures.pop(request, None)
        self.worker.store_events.pop(request, None)
        if stored is None or not stored.result(timeout=RESULT_SECONDS):
            raise RuntimeError("LMCache did not store")
        self.scheduler.end_session(request)

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        from lmcache.integration.vllm.vllm_multi_process_adapter import LoadStoreOp

        request = f"load-{os.getpid()}-{next(self.numbers)}"
        tokens = _tokens(names)
        found = self._look_up(request, tokens)
        if found:
            op = LoadStoreOp(tokens, [self._blocks(rows)[:found]], 0, found * CHUNK_TOKENS)
            event = self.worker.create_recorded_event()
            self.worker.submit_retrieve_request(request, op, event)
            loaded = self.worker.retrieve_futures.pop(request, None)
            self.worker.retrieve_events.pop(request, None)
            if loaded is None or not loaded[0].result(timeout=RESULT_SECONDS):
                raise RuntimeError("LMCache did not load")
        self.scheduler.cleanup_lookup_result(request)
        self.scheduler.end_session(request)
        return found

    def delete(self, names: Sequence[Any]) -> None:
        """All that nobody holds: there is no less."""
        self._let_go()
        self.scheduler.reset_cache()

    def close(self) -> None:
        for scheduler, worker in self.sides.values():
            worker.shutdown()
            scheduler.shutdown()

    def _look_up(self, request: str, tokens: list[int]) -> int:
        self.scheduler.maybe_submit_lookup_request(request, tokens)
        while (found := self.scheduler.check_lookup_result(request)) is None:
            time.sleep(POLL_SECONDS)
        if not self.scheduler.is_healthy:
            raise ConnectionError("LMCache's adapter holds the server for dead")
        return int(found) // CHUNK_TOKENS

    def _let_go(self) -> None:
        """Give back what lookups held, outside of what is timed."""
        for request, tokens in self.held:
            if tokens:
                self.scheduler.free_lookup_locks(tokens, 0, len(tokens), request)
            self.scheduler.cleanup_lookup_result(request)
            self.scheduler.end_session(request)
        self.held.clear()

    def _blocks(self, rows: Rows) -> list[int]:
        """Numbers of these blocks in the registered KV cache."""
        first = (rows.ctypes.data - self.cache.ctypes.data) // self.block_bytes
        return list(range(first, first + len(rows)))


def _tokens(blocks: Sequence[int]) -> list[int]:
    """A prompt of which each chunk is one block."""
    tokens = []
    for block in blocks:
        tokens += [block >> 20, block & 0xFFFFF, *range(CHUNK_TOKENS - 2)]
    return tokens


def open_store(config: Mapping[str, Any]) -> Store:
    return LmcacheStore(config["url"])
