"""How do KV bytes move on a CPU engine? Copies between the engine's tensors and the arena, in the background.

One thread takes the jobs in order, as a device's copy stream would, so that a load never overtakes the store that
reads the blocks it writes. The copy itself runs without the GIL. Called by vLLM in each worker process.

After a store the part is reported in the record, and only then can the scheduler publish it. After a load
the generations are read again: a block that changed meanwhile makes the load fail, and vLLM computes it. So does
one whose bytes are not what was stored, where there are checksums (`integrity.py`): it is not even copied.
"""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from pegashm._native import Copier
from pegashm.cache import Copyist
from pegashm.connector.chunks import (
    ChunkLayout,
    PageRef,
    Runs,
    TensorPlace,
    cell_offsets,
    fills_whole_chunks,
    transfer_runs,
)
from pegashm.connector.integrity import Integrity
from pegashm.connector.jobs import ArenaBlocks
from pegashm.connector.reach import Reach
from pegashm.errors import ConfigError
from pegashm.logs import tell
from pegashm.notices import COPY_FAILED
from pegashm.payload_sums import Checksums

__all__ = ["PegaShmCpuWorker"]

_JOIN_S: Final = 5.0
_LOOK_S: Final = 1.0

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


@dataclass(frozen=True, slots=True)
class _Job:
    job_id: int
    blocks: ArenaBlocks
    engine: GPULoadStoreSpec
    is_store: bool
    done: threading.Event


class PegaShmCpuWorker(OffloadingWorker):
    """vLLM's OffloadingWorker over CPU tensors. `cell`: this worker's place in a chunk.

    `failed_jobs` collects load jobs whose bytes may not be used; the connector reports their requests.
    """

    def __init__(
        self,
        kv_caches: CanonicalKVCaches,
        *,
        layout: ChunkLayout,
        cell: int,
        arena: str,
        copy_threads: int,
        checksums: Checksums = Checksums.OFF,
    ) -> None:
        self._caches = kv_caches  # keeps the tensors whose addresses we use
        self._layout = layout
        self._cell = cell
        self._tensors = tensor_places(kv_caches)
        self._groups = page_refs(kv_caches)
        used = cell_offsets(self._tensors, layout.blocks_per_chunk)[-1]
        if used > layout.cell_bytes:
            raise ConfigError(
                f"this engine's KV tensors take {used} bytes a chunk, its configuration says "
                f"{layout.cell_bytes}: this vLLM lays its cache out in a way PegaShm does not know"
            )
        self._reach = Reach(arena)
        self._copier = Copier(copy_threads)
        self._integrity = Integrity(checksums, layout, cell, threads=copy_threads)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pending: dict[int, _Job] = {}
        self._results: queue.SimpleQueue[TransferResult] = queue.SimpleQueue()
        self.failed_jobs: set[int] = set()
        self._thread = threading.Thread(target=self._serve, name="pegashm-copy", daemon=True)
        self._thread.start()

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        return self._submit(job_id, dst_spec, src_spec, is_store=True)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._submit(job_id, src_spec, dst_spec, is_store=False)

    def _submit(
        self, job_id: int, blocks: LoadStoreSpec, engine: GPULoadStoreSpec, *, is_store: bool
    ) -> bool:
        assert isinstance(blocks, ArenaBlocks)
        job = _Job(job_id, blocks, engine, is_store, threading.Event())
        self._pending[job_id] = job
        self._jobs.put(job)
        return True

    def get_finished(self) -> list[TransferResult]:
        """Jobs that ended. `success` is always True, as vLLM demands; see `failed_jobs`."""
        self._end_what_nobody_copies()
        results = []
        while not self._results.empty():
            result = self._results.get()
            self._pending.pop(result.job_id, None)
            results.append(result)
        return results

    def wait(self, job_ids: set[int]) -> None:
        """vLLM is about to reuse the blocks of these jobs: wait for the copies, which wait for nobody."""
        for job_id in job_ids:
            job = self._pending.get(job_id)
            while job is not None and not job.done.wait(_LOOK_S):
                self._end_what_nobody_copies()

    def shutdown(self) -> None:
        self._jobs.put(None)
        self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            self._copier.close()
            self._integrity.close()
            self._reach.close()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            start = time.perf_counter()
            copied = 0
            try:
                copied = self._store(job) if job.is_store else self._load(job)
            except BaseException:  # noqa: BLE001 - told, with the traceback
                tell(
                    COPY_FAILED,
                    "copy job %d failed: a load is computed, a store is dropped",
                    job.job_id,
                    to=logger,
                    trace=True,
                )
            self._end(job, copied, time.perf_counter() - start)

    def _end(self, job: _Job, copied: int, elapsed: float) -> None:
        if not copied and not job.is_store and len(job.engine.block_ids):
            self.failed_jobs.add(job.job_id)
        self._results.put(TransferResult(job.job_id, True, copied, elapsed))
        job.done.set()

    def _end_what_nobody_copies(self) -> None:
        """Without its thread no job would ever end: none of its bytes is being copied then, so they end here."""
        if self._thread.is_alive():
            return
        for job in self._pending.values():
            if not job.done.is_set():
                self._end(job, 0, 0.0)

    def _store(self, job: _Job) -> int:
        copyist = self._reach.join(job.blocks, self._layout.chunk_bytes)
        if copyist is None:
            return 0  # the claims stay with the scheduler, which will not publish them
        copied = False
        try:
            if not fills_whole_chunks(
                self._layout, job.engine.group_sizes, len(job.blocks.handles)
            ):
                return 0
            runs = self._runs(job, copyist)
            self._copier.copy(runs.arena, runs.engine, runs.sizes)
            self._integrity.stored(copyist, job.blocks)
            copied = True
        finally:
            copyist.part_done(job.blocks.handles, copied)
        return runs.total_bytes

    def _load(self, job: _Job) -> int:
        copyist = self._reach.join(job.blocks, self._layout.chunk_bytes)
        if copyist is None or not copyist.generations_hold(job.blocks.handles).all():
            return 0
        if not self._integrity.may_load(copyist, job.blocks):
            copyist.region.count("loads_failed", len(job.blocks.handles))
            return 0
        runs = self._runs(job, copyist)
        copied = self._copier.copy(runs.engine, runs.arena, runs.sizes)
        if not copyist.generations_hold(job.blocks.handles).all():
            copyist.region.count("loads_failed", len(job.blocks.handles))
            return 0
        copyist.region.count("bytes_loaded", copied)
        return copied

    def _runs(self, job: _Job, copyist: Copyist) -> Runs:
        return transfer_runs(
            layout=self._layout,
            cell=self._cell,
            tensors=self._tensors,
            groups=self._groups,
            block_ids=job.engine.block_ids,
            group_sizes=job.engine.group_sizes,
            block_indices=job.engine.block_indices,
            chunk_addresses=job.blocks.offsets + np.uint64(copyist.payload_address),
        )


def tensor_places(kv_caches: CanonicalKVCaches) -> list[TensorPlace]:
    """Addresses and strides of vLLM's canonical tensors (rows of int8, one a block)."""
    return [
        TensorPlace(
            address=cache.tensor.data_ptr(),
            row_stride_bytes=cache.tensor.stride(0) * cache.tensor.element_size(),
            page_bytes=cache.page_size_bytes,
            rows=cache.tensor.shape[0],
        )
        for cache in kv_caches.tensors
    ]


def page_refs(kv_caches: CanonicalKVCaches) -> Sequence[Sequence[PageRef]]:
    """For each KV group, the page of each of its layers."""
    return [
        [PageRef(ref.tensor_idx, ref.page_size_bytes) for ref in refs]
        for refs in kv_caches.group_data_refs
    ]
