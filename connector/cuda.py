"""How do KV bytes move on a GPU engine? By vLLM's own CPU-offload worker, with the arena for its host memory.

vLLM's CPUOffloadingWorker makes the descriptors, streams and copies, and this file wraps it: blocks of the arena
become its row numbers (`hostregion.py`), a job is joined before it is submitted, a store's part is reported
once its copies have ended and before vLLM hears of it, a load's generations are read again then. With checksums on
a thread of ours hashes: a store's bytes when its copies have ended, a load's while they are being copied; vLLM hears of
a job when both are done. A load that does not hold has then reached the GPU's blocks, which vLLM computes anew, as it
does when a generation has changed: verifying before the copy would only put the two times one after the other. Called by vLLM's
model thread only, which waits for nothing here but what vLLM's own worker waits for. Memory is registered with the
driver in the background (`registration.py`), beginning with the first job: vLLM records its CUDA graphs before,
and a driver call from another thread would break such a recording.

The mapping stays as long as the worker made for it, since that worker holds addresses. When the arena was purged
and created anew, the first job that names the new one drains the old worker and drops it; its registrations end in
their own thread.
vLLM decides when a worker is made whether device code may read host memory by address (its Triton path for
small pages): the worker is made again, between jobs, once all of the mapping is registered.

Reviewed line by line against vLLM 0.32.0 (v1/kv_offload/cpu/gpu_worker.py, shared_offload_region.py,
host_register.py, offloading/worker.py). Not yet run on a GPU, none of it:
- CPUOffloadingWorker on our views: cuMemcpyBatchAsync to and from a shared mapping, and with registered and
  unregistered rows in one batch; the Triton path; streams and events; several GPUs in one engine.
- cudaHostRegister of arenas (tmpfs, hugetlbfs, several files) in chunks, from a thread, while copies run; what it
  costs the engine's own calls; the pace chosen for it; cudaHostUnregister at the end.
- ROCm: vLLM gives it no shared host region, so nothing is registered there and all copies are pageable.
Before the registration has come by, a store makes the model thread wait for its copy, as in vLLM without pinning.
The tests run all but the device: views, row numbers, joins, reports, rebuilding, registration with a driver of theirs.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.utils.torch_utils import PIN_MEMORY
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.gpu_worker import CPUOffloadingWorker
from vllm.v1.kv_offload.cpu.host_register import host_register, host_unregister

from pegashm.cache import Copyist
from pegashm.connector.chunks import ChunkLayout, fills_whole_chunks
from pegashm.connector.hostregion import ArenaHostRegion, row_stride, rows_of
from pegashm.connector.integrity import Integrity
from pegashm.connector.jobs import ArenaBlocks
from pegashm.connector.parting import close_aside
from pegashm.connector.reach import Reach
from pegashm.connector.registration import Driver, Ground, Registrar
from pegashm.logs import tell
from pegashm.notices import CONNECTOR_FAILED, COPY_FAILED
from pegashm.payload_sums import Checksums

__all__ = ["Engine", "PegaShmCudaWorker", "device_driver", "vllm_engine"]

_NO_REGION: Final = bytes(16)
_SHUTDOWN_S: Final = 30.0

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it

# Makes the worker that copies, for one mapping: (KV tensors, blocks per chunk, host memory).
Engine = Callable[[CanonicalKVCaches, int, ArenaHostRegion], OffloadingWorker]


def vllm_engine(
    kv_caches: CanonicalKVCaches, blocks_per_chunk: int, host: ArenaHostRegion
) -> OffloadingWorker:
    """vLLM's worker on our memory."""
    return CPUOffloadingWorker(
        kv_caches=kv_caches,
        blocks_per_chunk=blocks_per_chunk,
        num_cpu_chunks=host.num_chunks,
        mmap_region=host,
    )


def device_driver(kv_caches: CanonicalKVCaches) -> Driver | None:
    """Registers with the driver of the GPU that holds these tensors; None where that is of no use."""
    if not PIN_MEMORY or not current_platform.is_cuda():
        return None
    device = kv_caches.tensors[0].tensor.device

    def register(address: int, nbytes: int) -> bool:
        # A thread begins on GPU 0, where the call would open a context, and take its memory.
        torch.cuda.set_device(device)
        return bool(host_register(address, nbytes))

    return Driver(register, host_unregister)


class _NotStartedError(Exception):
    """A job that was joined, of which nothing is being copied."""


@dataclass(frozen=True, slots=True)
class _Job:
    blocks: ArenaBlocks
    is_store: bool
    hashed: "Future[bool] | None" = None  # a load's bytes, begun when it was submitted


@dataclass(frozen=True, slots=True)
class _Landed:
    """A job whose copies have ended. `hashed`: what has to end before vLLM hears of it, None: nothing."""

    job: _Job
    result: TransferResult
    hashed: "Future[bool] | None"


class _Mapped:
    """One mapping and the worker that copies on it, made when first needed."""

    def __init__(
        self,
        reach: Reach,
        copyist: Copyist,
        *,
        kv_caches: CanonicalKVCaches,
        layout: ChunkLayout,
        cell: int,
        driver: Driver | None,
        engine: Engine,
    ) -> None:
        self.reach = reach
        self.copyist = copyist
        self._kv_caches = kv_caches
        self._layout = layout
        self._cell = cell
        self._driver = driver
        self._engine = engine
        self._stride = row_stride(layout, copyist.region.header["block_bytes_min"])
        self._registrar: Registrar | None = None
        self._worker: OffloadingWorker | None = None
        self._worker_knows_pinned = False

    def rows(self, offsets: NDArray[np.uint64]) -> NDArray[np.int32]:
        return rows_of(offsets, self._stride, self.copyist.region.payload_bytes)

    def worker(self, *, idle: bool) -> OffloadingWorker:
        """The worker for the next job. `idle`: none is under way, so another may take its place."""
        pinned = self._registered()
        if self._worker is not None and idle and pinned and not self._worker_knows_pinned:
            self._worker.shutdown()
            self._worker = None
        if self._worker is None:
            host = ArenaHostRegion(self.copyist.region, self._layout, self._cell, registered=pinned)
            self._worker = self._engine(self._kv_caches, self._layout.blocks_per_chunk, host)
            self._worker_knows_pinned = pinned
            if self._registrar is None and self._driver is not None:
                self._registrar = Registrar(self._plan(), self._segments_ready, self._driver)
        return self._worker

    def holds(self, blocks: ArenaBlocks) -> bool:
        """Whether these are still the blocks that the scheduler pinned."""
        return bool(self.copyist.generations_hold(blocks.handles).all())

    def wait(self, job_ids: set[int]) -> None:
        if self._worker is not None:
            self._worker.wait(job_ids)

    def get_finished(self) -> list[TransferResult]:
        return [] if self._worker is None else list(self._worker.get_finished())

    def close(self, wait_s: float) -> None:
        """Copies first, then registrations, then the mapping and the locks that it was safe by.

        `wait_s`: how long to wait for the end of the registrations, which comes by itself.
        """
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None
        if self._registrar is None:
            if wait_s:
                self.reach.close()
            else:
                close_aside(self.reach)
            return
        self._registrar.retire(then=self.reach.close)
        if wait_s and not self._registrar.join(wait_s):
            tell(
                CONNECTOR_FAILED,
                "unregistering memory has not ended in %.0f s: the end of this process does it",
                wait_s,
                subject="unregister",
                to=logger,
            )

    def _registered(self) -> bool:
        return self._registrar is not None and self._registrar.complete

    def _segments_ready(self) -> int:
        return int(self.copyist.region.header["segments_ready"])

    def _plan(self) -> Ground:
        header = self.copyist.region.header
        return Ground(
            address=self.copyist.payload_address,
            arena_bytes=tuple(arena["bytes"] for arena in header["arenas"]),
            segment_bytes=header["segment_bytes"],
            stride=self._stride,
        )


class PegaShmCudaWorker(OffloadingWorker):
    """vLLM's OffloadingWorker over GPU tensors. `cell`: this worker's place in a chunk.

    `failed_jobs` collects load jobs whose bytes may not be used; the connector reports their requests.
    `driver` None: nothing is registered, all copies are pageable.
    """

    def __init__(
        self,
        kv_caches: CanonicalKVCaches,
        *,
        layout: ChunkLayout,
        cell: int,
        arena: str,
        driver: Driver | None,
        engine: Engine = vllm_engine,
        hash_threads: int = 1,
        checksums: Checksums = Checksums.OFF,
    ) -> None:
        self._caches = kv_caches
        self._layout = layout
        self._cell = cell
        self._arena = arena
        self._driver = driver
        self._engine = engine
        self._mapped: _Mapped | None = None
        self._integrity = Integrity(checksums, layout, cell, threads=hash_threads)
        self._pending: dict[int, _Job] = {}
        self._landed: dict[int, _Landed] = {}
        self._results: list[TransferResult] = []
        self.failed_jobs: set[int] = set()

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        return self._submit(job_id, dst_spec, src_spec, is_store=True)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._submit(job_id, src_spec, dst_spec, is_store=False)

    def get_finished(self) -> list[TransferResult]:
        """Jobs that ended. `success` is always True, as vLLM demands; see `failed_jobs`."""
        self._collect()
        results, self._results = self._results, []
        return results

    def wait(self, job_ids: set[int]) -> None:
        """vLLM is about to reuse the blocks of these jobs: wait for the copies, which wait for nobody."""
        if self._mapped is not None:
            self._mapped.wait(job_ids)

    def shutdown(self) -> None:
        self._unmap(wait_s=_SHUTDOWN_S)
        self._integrity.close()

    # -- one job -----------------------------------------------------------------------------------

    def _submit(
        self, job_id: int, blocks: LoadStoreSpec, gpu: GPULoadStoreSpec, *, is_store: bool
    ) -> bool:
        """True always, as vLLM demands: a job that is refused is one that has ended."""
        assert isinstance(blocks, ArenaBlocks)
        mapped = self._join(blocks)
        if mapped is None or not (is_store or mapped.holds(blocks)):
            # Without a word about a store's parts: its claims may be another's by now.
            self._end(job_id, failed_load=not is_store and len(gpu.block_ids) > 0)
            return True
        if is_store and not fills_whole_chunks(self._layout, gpu.group_sizes, len(blocks.handles)):
            mapped.copyist.part_done(blocks.handles, False)
            self._end(job_id, failed_load=False)
            return True
        try:
            self._start(mapped, job_id, blocks, gpu, is_store=is_store)
        except _NotStartedError as error:
            tell(
                COPY_FAILED,
                "copies cannot be started: %s",
                error,
                subject=str(error),
                to=logger,
            )
            if is_store:
                mapped.copyist.part_done(blocks.handles, False)
            self._end(job_id, failed_load=not is_store)
            return True
        hashed = None
        if self._integrity.on and not is_store:
            hashed = self._integrity.later(lambda: self._integrity.may_load(mapped.copyist, blocks))
        self._pending[job_id] = _Job(blocks, is_store, hashed)
        return True

    def _start(
        self,
        mapped: _Mapped,
        job_id: int,
        blocks: ArenaBlocks,
        gpu: GPULoadStoreSpec,
        *,
        is_store: bool,
    ) -> None:
        """Hand a job to vLLM's worker. _NotStartedError: none of its copies is under way."""
        try:
            host = CPULoadStoreSpec(mapped.rows(blocks.offsets))
            worker = mapped.worker(idle=not self._pending)
        except Exception as error:
            raise _NotStartedError(repr(error)) from error
        try:
            if is_store:
                accepted = worker.submit_store(job_id, gpu, host)
            else:
                accepted = worker.submit_load(job_id, host, gpu)
        except Exception as error:
            self._settle()
            raise _NotStartedError(repr(error)) from error
        if not accepted:
            raise _NotStartedError("vLLM's worker refused")

    def _settle(self) -> None:
        """Some copies of a job that failed while it was submitted may be under way: after this none is.

        If even that fails the GPU is lost, and so is the engine: that error is the one to show.
        """
        if self._caches.tensors[0].tensor.device.type != "cpu":
            torch.accelerator.synchronize()

    def _collect(self) -> None:
        """Ask the worker what has ended; report parts and check generations before vLLM hears of it."""
        mapped = self._mapped
        if mapped is None:
            return
        for result in mapped.get_finished():
            job = self._pending.pop(result.job_id, None)
            if job is None:
                continue  # it failed while it was submitted, and was ended then
            hashed = job.hashed
            if job.is_store and result.success and self._integrity.on:
                hashed = self._integrity.later(_storing(self._integrity, mapped, job))
            self._landed[result.job_id] = _Landed(job, result, hashed)
        self._end_landed(mapped)

    def _end_landed(self, mapped: _Mapped) -> None:
        """Account for jobs whose copies have ended, and whose hashing has."""
        for job_id, landed in list(self._landed.items()):
            if landed.hashed is not None and not landed.hashed.done():
                continue
            del self._landed[job_id]
            try:
                failed = not self._account(mapped, landed)
            except Exception:  # noqa: BLE001 - told, with the traceback
                tell(
                    COPY_FAILED,
                    "copy job %d could not be accounted for: a load is computed, a store is dropped",
                    job_id,
                    to=logger,
                    trace=True,
                )
                failed = True
            self._end(job_id, failed_load=failed and not landed.job.is_store, result=landed.result)

    def _account(self, mapped: _Mapped, landed: _Landed) -> bool:
        """Whether the bytes of a job that ended may be used."""
        job, result = landed.job, landed.result
        held = landed.hashed is None or _outcome(landed.hashed)
        if job.is_store:
            mapped.copyist.part_done(job.blocks.handles, bool(result.success) and held)
            return True
        if not result.success or not held or not mapped.holds(job.blocks):
            mapped.copyist.region.count("loads_failed", len(job.blocks.handles))
            return False
        mapped.copyist.region.count("bytes_loaded", result.transfer_size or 0)
        return True

    def _end(self, job_id: int, *, failed_load: bool, result: TransferResult | None = None) -> None:
        if failed_load:
            self.failed_jobs.add(job_id)
        if result is None or failed_load:
            self._results.append(TransferResult(job_id, True))
        else:
            self._results.append(
                TransferResult(job_id, True, result.transfer_size, result.transfer_time)
            )

    # -- one mapping -------------------------------------------------------------------------------

    def _join(self, blocks: ArenaBlocks) -> _Mapped | None:
        """The mapping that holds these blocks, its client joined; None: nothing may be copied."""
        if blocks.region_id == _NO_REGION:
            return None
        mapped = self._mapped
        if mapped is not None and mapped.copyist.region_id == blocks.region_id:
            joined = mapped.reach.join(blocks, self._layout.chunk_bytes)
            return None if joined is None else mapped
        return self._map(blocks)

    def _map(self, blocks: ArenaBlocks) -> _Mapped | None:
        """Move to the arena that `blocks` are in; a job of an arena that is gone moves nothing."""
        reach = Reach(self._arena)
        copyist = reach.join(blocks, self._layout.chunk_bytes)
        if copyist is None:
            reach.close()
            return None
        self._unmap(wait_s=0)
        self._mapped = _Mapped(
            reach,
            copyist,
            kv_caches=self._caches,
            layout=self._layout,
            cell=self._cell,
            driver=self._driver,
            engine=self._engine,
        )
        return self._mapped

    def _unmap(self, *, wait_s: float) -> None:
        """Drain the worker of the mapping in use and drop both; its results stay to be fetched."""
        mapped = self._mapped
        if mapped is None:
            return
        try:
            mapped.wait(set(self._pending))
            self._collect()
        except Exception:  # noqa: BLE001 - told, with the traceback
            tell(
                COPY_FAILED,
                "copies under way have ended in an error: loads are computed, stores are dropped",
                subject="under way",
                to=logger,
                trace=True,
            )
        self._integrity.drain()
        self._end_landed(mapped)
        for (
            job_id,
            job,
        ) in self._pending.items():  # the worker has lost them: their parts stay unsaid
            self._end(job_id, failed_load=not job.is_store)
        self._pending.clear()
        self._mapped = None
        mapped.close(wait_s)


def _storing(integrity: Integrity, mapped: _Mapped, job: _Job) -> Callable[[], bool]:
    def store() -> bool:
        integrity.stored(mapped.copyist, job.blocks)
        return True

    return store


def _outcome(hashed: "Future[bool]") -> bool:
    """What hashing said; an error of ours is told and means that the bytes may not be used."""
    try:
        return hashed.result()
    except Exception:  # noqa: BLE001 - told, with the traceback
        tell(
            COPY_FAILED,
            "hashing failed: a load is computed, a store is dropped",
            subject="hashing",
            to=logger,
            trace=True,
        )
        return False
