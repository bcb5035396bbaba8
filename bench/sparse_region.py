"""How does a bench get a real index of a million blocks without the memory for a million payloads?

A region of the native module on two nameless files in memory: the control region in full, the payload arena
sparse, since no payload byte is ever touched. Blocks are 4 KiB here only to make that many; a lookup does not depend
on their size. Nobody but this process and the children that inherit the two descriptors can see it, so the kernel
locks of FORMAT.md are not needed. Pages of the control region are 4 KiB, as in /dev/shm as it usually is mounted; given a folder
on a tmpfs with huge pages (`memory.huge_tmpfs`) they are what a /dev/shm gives that was remounted with huge=advise.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import final

from pegashm import _native

__all__ = ["SparseRegion"]

BLOCK_BYTES = 4096
FILL_BATCH = 4096


@final
class SparseRegion:
    """A region with room for `block_count` blocks of 4 KiB, open in this process."""

    def __init__(
        self,
        block_count: int,
        segment_blocks: int,
        *,
        remote_buckets: int = 0,
        reuse_registers: int = 0,
        folder: str | None = None,
    ) -> None:
        segments = -(-block_count // segment_blocks)
        segment_bytes = segment_blocks * BLOCK_BYTES
        self.plan = _native.plan_region(
            segment_bytes=segment_bytes,
            block_bytes_min=BLOCK_BYTES,
            segments_per_arena=[segments],
            remote_buckets=remote_buckets,
            reuse_registers=reuse_registers,
        )
        self.control_fd = _nameless(folder)
        self.arena_fd = os.memfd_create("pegashm-bench-arena")
        os.posix_fallocate(self.control_fd, 0, self.plan["control_bytes"])
        os.ftruncate(self.arena_fd, self.plan["payload_bytes"])
        with mmap.mmap(self.control_fd, self.plan["control_bytes"]) as control:
            _native.format_region(
                control,
                region_id=os.urandom(16),
                segment_bytes=segment_bytes,
                block_bytes_min=BLOCK_BYTES,
                segments_per_arena=[segments],
                arena_paths=["/nameless"],
                numa_nodes=[-1],
                page_bytes=4096,
                created_at_ns=time.time_ns(),
                remote_buckets=remote_buckets,
                reuse_registers=reuse_registers,
            )
        self.region = _native.Region(self.control_fd, [self.arena_fd])
        self.region.set_segments_ready(segments)
        self.namespace_id = self.region.register_namespace(
            bytes(32), label="bench", now_ns=time.time_ns()
        )

    def attach(self, slot: int) -> int:
        """Mark a client slot attached; its incarnation."""
        return self.region.attach_client(
            slot,
            pid=os.getpid(),
            started_at=0,
            now_ns=time.time_ns(),
            namespace_id=self.namespace_id,
            mode=0,
            engine_id=b"bench",
            label="bench",
        )

    def fill(self, keys: Sequence[bytes]) -> int:
        """Claim and publish a block for each key; how many were (the index may refuse a few)."""
        client = _native.Client(self.region, 0, self.attach(0))
        published = 0
        for at in range(0, len(keys), FILL_BATCH):
            handles, _ = client.claim(keys[at : at + FILL_BATCH], self.namespace_id, BLOCK_BYTES)
            published += int((client.publish(handles[handles != 0]) == _native.OK).sum())
        return published

    def __enter__(self) -> SparseRegion:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.region.close()
        os.close(self.control_fd)
        os.close(self.arena_fd)


def _nameless(folder: str | None) -> int:
    """A file in memory that nobody else can open; in `folder`, with that mount's pages."""
    if folder is None:
        return os.memfd_create("pegashm-bench-control")
    descriptor, path = tempfile.mkstemp(prefix="pegashm-bench-", dir=folder)
    os.unlink(path)
    return descriptor
