"""How does a test get an arena of its own, as small as it likes, and leave nothing behind?

Made by the very functions the supervisor uses, without its process: nobody populates, locks or reaps
unless the test does. Names carry the pid of the test run, so that `sweep` can tell what a killed run left
in /dev/shm from what a living one uses. Called by `conftest.py` and by the soak; not a test itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pegashm._native import plan_region
from pegashm.arena import Arena, open_arena
from pegashm.creation import create, lock_control, purge
from pegashm.layout import UNBOUND, Layout, Place
from pegashm.liveness import close_lock_file
from pegashm.machine import mount_of
from pegashm.names import SHM_DIRECTORY, payload_path
from pegashm.units import KIB

__all__ = ["PREFIX", "Shape", "make_arena", "remove_arena", "sweep", "temporary_arena"]

PREFIX = "test-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a test's arena. The default holds 64 blocks of 4 KiB, or 16 of 16 KiB, or 4 of 64 KiB."""

    segment_bytes: int = 64 * KIB
    block_bytes_min: int = 4 * KIB
    segments_per_arena: tuple[int, ...] = (4,)
    segments_ready: int | None = None  # None: all
    spill_records: int = 0
    remote_buckets: int = 0  # of eight hints
    reuse_registers: int = 0  # a power of two; 0: nothing is counted

    @property
    def payload_bytes(self) -> int:
        return self.segment_bytes * sum(self.segments_per_arena)


def make_arena(shape: Shape, name: str | None = None) -> str:
    """Create an arena whose segments are ready for use; its name. The caller removes it."""
    name = name or f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    arenas = len(shape.segments_per_arena)
    layout = Layout(
        place=Place(SHM_DIRECTORY, mount_of(SHM_DIRECTORY), 4 * KIB),
        segment_bytes=shape.segment_bytes,
        block_bytes_min=shape.block_bytes_min,
        segments_per_arena=shape.segments_per_arena,
        nodes=(UNBOUND,) * arenas,
        paths=tuple(payload_path(name, SHM_DIRECTORY, arena) for arena in range(arenas)),
        plan=plan_region(
            segment_bytes=shape.segment_bytes,
            block_bytes_min=shape.block_bytes_min,
            segments_per_arena=shape.segments_per_arena,
            spill_records=shape.spill_records,
            remote_buckets=shape.remote_buckets,
            reuse_registers=shape.reuse_registers,
        ),
    )
    lock_fd = lock_control(name)
    try:
        create(name, lock_fd, layout, gid=None, checkpoint=lambda _done, _total: None)
    finally:
        close_lock_file(lock_fd)
    with open_arena(name) as arena:
        ready = shape.segments_ready
        arena.region.set_segments_ready(sum(shape.segments_per_arena) if ready is None else ready)
    return name


def remove_arena(name: str) -> None:
    """Remove it whatever state it is in, whoever uses it still."""
    purge(name, force=True)
    for left in Path(SHM_DIRECTORY).glob(f"pegashm.{name}.*"):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_arena(shape: Shape | None = None) -> Iterator[Arena]:
    """An arena opened for writing, removed at the end."""
    name = make_arena(shape or Shape())
    try:
        with open_arena(name) as arena:
            yield arena
    finally:
        remove_arena(name)


def sweep() -> list[str]:
    """Remove what test runs left that were killed before they could clean up."""
    swept = []
    for left in Path(SHM_DIRECTORY).glob(f"pegashm.{PREFIX}*"):
        pid = left.name.removeprefix(f"pegashm.{PREFIX}").split("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            left.unlink(missing_ok=True)
            swept.append(left.name)
    return swept
