"""What exactly will be created: where the payload lies, in how many segments, on which nodes?

A memory cap means the cap: payload and control region together never exceed --size, so the number of
segments is what remains after the control region that so many segments need. The same function judges
an existing arena: given its segment and block size, would today's --size have made this many segments?
Reads the machine (mounts, nodes) and creates nothing.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pegashm._native import REUSE_RANK_COUNT, plan_region
from pegashm.config import NUMA_AUTO, NUMA_NONE, ServeConfig
from pegashm.errors import ConfigError, ResourceError
from pegashm.machine import Mount, hugetlb_advice, hugetlb_mount, mount_of, numa_nodes, page_bytes
from pegashm.names import SHM_DIRECTORY, payload_path
from pegashm.units import GIB, KIB, MIB, format_bytes

if TYPE_CHECKING:
    from pegashm._native import FormatPlan

__all__ = [
    "UNBOUND",
    "Layout",
    "Place",
    "choose_nodes",
    "choose_place",
    "default_block_bytes_min",
    "default_segment_bytes",
    "plan_layout",
    "plan_segments",
    "reuse_registers",
]

UNBOUND: Final = -1
_BLOCK_BYTES_DEFAULT: Final = 64 * KIB
_RECORD_COUNT_MAX: Final = 1 << 24
_PATH_BYTES_MAX: Final = 176
_REUSE_REGISTERS: Final = 1 << 14  # a standard error of 0.8 %
_REUSE_REGISTERS_LEAST: Final = 1 << 8
_REUSE_SHARE: Final = 128  # of --size, at most so small a part


@dataclass(frozen=True, slots=True)
class Place:
    """The directory of the payload files, what is mounted there and with which pages it backs them."""

    directory: str
    mount: Mount
    page_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An arena that can be created: every number that goes into its header."""

    place: Place
    segment_bytes: int
    block_bytes_min: int
    segments_per_arena: tuple[int, ...]
    nodes: tuple[int, ...]
    paths: tuple[str, ...]
    plan: "FormatPlan"


def plan_layout(config: ServeConfig) -> Layout:
    """The layout of a new arena; ConfigError or ResourceError when there can be none."""
    place = choose_place(config)
    nodes = choose_nodes(config)
    segment_bytes = _segment_bytes(config, place, len(nodes))
    block_bytes_min = config.block_bytes_min or default_block_bytes_min(
        config.size_bytes, segment_bytes
    )
    spilled, remote = config.spill_record_count, config.remote_bucket_count
    reuse = reuse_registers(config.size_bytes)
    counts = plan_segments(
        config.size_bytes, segment_bytes, block_bytes_min, len(nodes), spilled, remote, reuse
    )
    token = "" if place.directory == SHM_DIRECTORY else secrets.token_hex(8)
    return Layout(
        place=place,
        segment_bytes=segment_bytes,
        block_bytes_min=block_bytes_min,
        segments_per_arena=counts,
        nodes=nodes,
        paths=tuple(
            _path(config.name, place.directory, arena, token) for arena in range(len(nodes))
        ),
        plan=_plan(segment_bytes, block_bytes_min, counts, spilled, remote, reuse),
    )


def reuse_registers(size_bytes: int) -> int:
    """How many registers estimate the reuse ceiling: 16384 (2 MiB), fewer in an arena below 256 MiB."""
    registers = _REUSE_REGISTERS
    while (
        registers > _REUSE_REGISTERS_LEAST
        and registers * REUSE_RANK_COUNT * 4 * _REUSE_SHARE > size_bytes
    ):
        registers //= 2
    return registers


def plan_segments(
    size_bytes: int,
    segment_bytes: int,
    block_bytes_min: int,
    arena_count: int,
    spill_records: int = 0,
    remote_buckets: int = 0,
    reuse: int = 0,
) -> tuple[int, ...]:
    """Segments of each arena so that all of it, control region included, fits in `size_bytes`."""
    count = size_bytes // segment_bytes
    while count >= arena_count:
        counts = _split(count, arena_count)
        plan = _plan(segment_bytes, block_bytes_min, counts, spill_records, remote_buckets, reuse)
        excess = plan["payload_bytes"] + plan["control_bytes"] - size_bytes
        if excess <= 0:
            return counts
        # At least one fewer; far too many only when the control region alone is huge.
        count -= max(1, excess // (2 * segment_bytes))
    needed = _plan(
        segment_bytes, block_bytes_min, (1,) * arena_count, spill_records, remote_buckets, reuse
    )
    raise ConfigError(
        f"--size {format_bytes(size_bytes)} is too small: {arena_count} arena(s) with one segment of "
        f"{format_bytes(segment_bytes)} each and the control region take "
        f"{format_bytes(needed['payload_bytes'] + needed['control_bytes'])}. "
        "Give a larger --size or a smaller --segment-size"
    )


def choose_place(config: ServeConfig) -> Place:
    """Where the payload goes: /dev/shm, the operator's directory, or a hugetlbfs mount we find."""
    if config.hugepage_bytes is not None:
        mount = hugetlb_mount(config.hugepage_bytes)
        if mount is None:
            size = f"{config.hugepage_bytes // MIB}M"
            raise ResourceError(
                f"no writable hugetlbfs with {format_bytes(config.hugepage_bytes)} pages is mounted. Type "
                f"`mkdir -p /mnt/huge{size} && mount -t hugetlbfs -o pagesize={size} none /mnt/huge{size}` "
                f"and reserve pages with {hugetlb_advice(config.hugepage_bytes, config.size_bytes)}"
            )
        return Place(mount.point, mount, config.hugepage_bytes)
    directory = config.directory or SHM_DIRECTORY
    if not os.path.isdir(directory):
        raise ResourceError(
            f"directory {directory} does not exist: create it, or mount a tmpfs there"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ResourceError(f"directory {directory} is not writable for uid {os.geteuid()}")
    mount = mount_of(directory)
    return Place(os.path.normpath(directory), mount, page_bytes(mount))


def choose_nodes(config: ServeConfig) -> tuple[int, ...]:
    """One entry an arena: the node it is bound to, or UNBOUND."""
    if config.numa == NUMA_NONE:
        return (UNBOUND,)
    present = numa_nodes()
    if config.numa == NUMA_AUTO:
        return present[:16] if len(present) > 1 else (UNBOUND,)
    assert not isinstance(config.numa, str)
    missing = sorted(set(config.numa) - set(present))
    if missing:
        raise ResourceError(
            f"--numa names node(s) {_join(missing)}, but nodes with memory and processors here are "
            f"{_join(present)} (see `lscpu` or `numactl -H`)"
        )
    return config.numa


def _segment_bytes(config: ServeConfig, place: Place, arena_count: int) -> int:
    if config.segment_bytes is not None:
        if config.segment_bytes % place.page_bytes:
            raise ConfigError(
                f"--segment-size {format_bytes(config.segment_bytes)} must be a multiple of the "
                f"{format_bytes(place.page_bytes)} pages of {place.directory}"
            )
        return config.segment_bytes
    return default_segment_bytes(config.size_bytes, place.page_bytes, arena_count)


def default_segment_bytes(size_bytes: int, page_bytes: int, arena_count: int) -> int:
    """About 64 segments, each at least a page of what backs it and at least one an arena."""
    near = 1 << max(0, (size_bytes // 64).bit_length() - 1)
    wanted = min(max(near, 4 * MIB), GIB)
    while wanted > 64 * KIB and size_bytes < 2 * arena_count * wanted:
        wanted //= 2  # a small arena: rather smaller segments than none
    return max(wanted, page_bytes)


def default_block_bytes_min(size_bytes: int, segment_bytes: int) -> int:
    """64 KiB, or more where that would make more records than the format can number."""
    block_bytes = _BLOCK_BYTES_DEFAULT
    while size_bytes // block_bytes > _RECORD_COUNT_MAX:
        block_bytes *= 2
    return min(block_bytes, segment_bytes)


def _plan(
    segment_bytes: int,
    block_bytes_min: int,
    counts: Sequence[int],
    spill_records: int,
    remote_buckets: int,
    reuse: int,
) -> "FormatPlan":
    try:
        return plan_region(
            segment_bytes=segment_bytes,
            block_bytes_min=block_bytes_min,
            segments_per_arena=counts,
            spill_records=spill_records,
            remote_buckets=remote_buckets,
            reuse_registers=reuse,
        )
    except ValueError as error:
        raise ConfigError(
            f"{sum(counts)} segments of {format_bytes(segment_bytes)} with blocks from "
            f"{format_bytes(block_bytes_min)} do not fit the format ({error}): "
            "give a larger --block-min or --segment-size, or fewer --spill-records"
        ) from error


def _split(count: int, parts: int) -> tuple[int, ...]:
    return tuple(count // parts + (1 if part < count % parts else 0) for part in range(parts))


def _path(name: str, directory: str, arena: int, token: str) -> str:
    path = payload_path(name, directory, arena, token)
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise ConfigError(
            f"the path of a payload file may have {_PATH_BYTES_MAX} bytes, {path} has "
            f"{len(os.fsencode(path))}: give a shorter --directory"
        )
    return path


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
