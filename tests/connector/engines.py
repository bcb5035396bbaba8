"""How do the tests give a worker an engine: KV tensors, jobs, and for the GPU worker a device that is not there?

`HostEngine` stands where vLLM's CPUOffloadingWorker stands, on CPU tensors, which that class refuses. Its pointers are
vLLM's own: the real `pin_mmap_region`, `compute_sub_block_ptrs` and `_fill_direct_ops` on the real views. Only streams
and events are replaced: a job's bytes move when the test says so, or when somebody waits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.gpu_worker import SingleDirectionOffloadingHandler, pin_mmap_region

from pegashm.cache import Cache
from pegashm.connector.chunks import ChunkLayout
from pegashm.connector.hostregion import ArenaHostRegion
from pegashm.connector.jobs import ArenaBlocks

__all__ = [
    "HYBRID",
    "Device",
    "HostEngine",
    "Pages",
    "blocks_of",
    "claim",
    "gpu_blocks",
    "kv_caches",
]


@dataclass(frozen=True)
class Pages:
    """An engine's KV memory: page bytes of each tensor, and for each group (tensor, data bytes) of its layers."""

    tensors: Sequence[int]
    groups: Sequence[Sequence[tuple[int, int]]]

    @property
    def worker_bytes_per_block(self) -> int:
        return sum(self.tensors)

    def layout(self, *, blocks_per_chunk: int = 1, cells: int = 1) -> ChunkLayout:
        return ChunkLayout(
            worker_bytes_per_block=self.worker_bytes_per_block,
            blocks_per_chunk=blocks_per_chunk,
            cells=cells,
        )


# Two groups that alias the same tensors, the second with less data in a page, as hybrid models have them.
HYBRID = Pages(
    tensors=(1536, 1024, 512),
    groups=(((0, 1536), (1, 1024)), ((0, 1000), (2, 512))),
)


def kv_caches(
    pages: Pages, blocks: int, generator: torch.Generator | None = None
) -> CanonicalKVCaches:
    """Tensors of random bytes, or of zeros without a generator."""

    def tensor(page_bytes: int) -> torch.Tensor:
        if generator is None:
            return torch.zeros((blocks, page_bytes), dtype=torch.int8)
        return torch.randint(-128, 128, (blocks, page_bytes), dtype=torch.int8, generator=generator)

    return CanonicalKVCaches(
        [CanonicalKVCacheTensor(tensor(nbytes), nbytes) for nbytes in pages.tensors],
        [[CanonicalKVCacheRef(index, data) for index, data in group] for group in pages.groups],
    )


def gpu_blocks(
    ids: Sequence[Sequence[int]], first: Sequence[int] | None = None
) -> GPULoadStoreSpec:
    """Engine blocks by group; `first[g]`: which block of its request the first of group g is."""
    return GPULoadStoreSpec(
        [block for group in ids for block in group],
        [len(group) for group in ids],
        list(first) if first is not None else [0] * len(ids),
    )


def claim(cache: Cache, layout: ChunkLayout, count: int, start: int = 0) -> np.ndarray[Any, Any]:
    """Claim blocks for `count` keys; their handles."""
    keys = [f"{start + number:032d}".encode() + bytes(4) for number in range(count)]
    handles, outcomes = cache.claim(keys, layout.chunk_bytes)
    assert handles.all(), outcomes
    return handles


def blocks_of(cache: Cache, handles: np.ndarray[Any, Any]) -> ArenaBlocks:
    """What the scheduler tells the workers about blocks that it has claimed or pinned."""
    offsets, _ = cache.locate(handles)
    return ArenaBlocks(cache.region_id, cache.slot, cache.incarnation, handles, offsets)


@dataclass
class Device:
    """What the test says about the device, and what happened: jobs in flight, engines made, events in order."""

    at_once: bool = True
    refuses: Exception | None = None
    engines: list[HostEngine] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def engine(
        self, caches: CanonicalKVCaches, blocks_per_chunk: int, host: ArenaHostRegion
    ) -> OffloadingWorker:
        if self.refuses is not None:
            raise self.refuses
        self.engines.append(HostEngine(self, caches, blocks_per_chunk, host))
        return self.engines[-1]


class HostEngine(OffloadingWorker):
    """CPUOffloadingWorker without a device. See the file's head."""

    def __init__(
        self,
        device: Device,
        caches: CanonicalKVCaches,
        blocks_per_chunk: int,
        host: ArenaHostRegion,
    ) -> None:
        pin_mmap_region(host)
        self.host_memory_is_pinned = host.is_pinned
        self.gpu = [
            cache.tensor.view(torch.int8).view((-1, cache.page_size_bytes))
            for cache in caches.tensors
        ]
        self.cpu = [
            host.create_next_worker_view(cache.page_size_bytes * blocks_per_chunk)
            for cache in caches.tensors
        ]
        self._device = device
        self._refs = caches.group_data_refs
        self._per_chunk = blocks_per_chunk
        self._host = host
        self._flying: dict[int, tuple[np.ndarray[Any, Any], ...]] = {}
        self._landed: dict[int, int] = {}

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._submit(job_id, src_spec, dst_spec, to_host=True)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._submit(job_id, dst_spec, src_spec, to_host=False)

    def get_finished(self) -> list[TransferResult]:
        landed, self._landed = self._landed, {}
        return [TransferResult(job, True, nbytes, 0.001) for job, nbytes in landed.items()]

    def wait(self, job_ids: set[int]) -> None:
        for job_id in job_ids & self._flying.keys():
            self.land(job_id)

    def shutdown(self) -> None:
        self.wait(set(self._flying))
        self._device.events.append("engine ended")
        self.cpu.clear()
        self._host.cleanup()

    def land(self, job_id: int) -> None:
        """The device carries out a job."""
        destinations, sources, sizes = self._flying.pop(job_id)
        for to, source, nbytes in zip(
            destinations.tolist(), sources.tolist(), sizes.tolist(), strict=True
        ):
            ctypes.memmove(to, source, nbytes)
        self._landed[job_id] = int(sizes.sum())
        self._device.events.append(f"job {job_id} landed")

    def _submit(self, job_id: int, gpu: GPULoadStoreSpec, host: Any, *, to_host: bool) -> bool:
        handler = SimpleNamespace(
            layer_refs_per_group=self._refs,
            src_tensors=self.gpu if to_host else self.cpu,
            dst_tensors=self.cpu if to_host else self.gpu,
            src_blocks_per_chunk=1 if to_host else self._per_chunk,
            dst_blocks_per_chunk=self._per_chunk if to_host else 1,
        )
        count = sum(
            size * len(refs) for size, refs in zip(gpu.group_sizes, self._refs, strict=True)
        )
        sources, destinations, sizes = (np.zeros(count, dtype=np.int64) for _ in range(3))
        gpu_from = host_from = done = 0
        for group, (size, first) in enumerate(zip(gpu.group_sizes, gpu.block_indices, strict=True)):
            if size == 0:
                continue
            skip = first % self._per_chunk
            rows = -(-(size + skip) // self._per_chunk)
            ours = gpu.block_ids[gpu_from : gpu_from + size]
            theirs = host.block_ids[host_from : host_from + rows]
            done, _ = SingleDirectionOffloadingHandler._fill_direct_ops(
                handler,
                group,
                ours if to_host else theirs,
                theirs if to_host else ours,
                size,
                0 if to_host else skip,
                skip if to_host else 0,
                sources,
                destinations,
                sizes,
                done,
            )
            gpu_from += size
            host_from += rows
        assert (gpu_from, host_from) == (len(gpu.block_ids), len(host.block_ids))
        self._flying[job_id] = (destinations, sources, sizes)
        if self._device.at_once:
            self.land(job_id)
        return True
