"""Is there memory for an arena, may it be used, and does it come in large pages?

/dev/shm (where the control region always lies) or the folder of --directory, huge pages, locking, NUMA. `size_bytes` is
what `pegashm serve --size` will be given, where that is known.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

from pegashm.doctor.finding import Finding, error, ok, warning
from pegashm.machine import (
    free_bytes,
    hugetlb_advice,
    hugetlb_mount,
    memlock_limit,
    memory_limit,
    mount_of,
    numa_nodes,
    space_advice,
)
from pegashm.names import SHM_DIRECTORY
from pegashm.units import GIB, KIB, MIB, format_bytes

__all__ = [
    "check_huge_control",
    "check_huge_payload",
    "check_hugetlb",
    "check_memlock",
    "check_memory",
    "check_numa",
    "check_shm",
]

_SMALL_BYTES: Final = GIB  # what containers give by default is 64 MiB
_SHMEM_ENABLED: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_POOLS: Final = Path("/sys/kernel/mm/hugepages")


def check_shm(size_bytes: int | None) -> list[Finding]:
    """/dev/shm: a tmpfs, writable, with room."""
    mount = mount_of(SHM_DIRECTORY)
    if not mount.is_tmpfs or mount.point != SHM_DIRECTORY:
        return [
            error(
                "shm",
                f"{SHM_DIRECTORY} lies on {mount.kind} mounted at {mount.point}: expected a tmpfs of its own",
                f"mount -t tmpfs -o size=50%,mode=1777 none {SHM_DIRECTORY}",
            )
        ]
    facts = os.statvfs(SHM_DIRECTORY)
    if facts.f_flag & os.ST_RDONLY:
        return [
            error(
                "shm",
                f"{SHM_DIRECTORY} is mounted read-only: engines and supervisors write to it",
                f"mount -o remount,rw {SHM_DIRECTORY}   (in a container: mount it without :ro)",
            )
        ]
    if not os.access(SHM_DIRECTORY, os.W_OK | os.X_OK):
        return [
            error(
                "shm",
                f"uid {os.geteuid()} may not make files in {SHM_DIRECTORY}",
                f"chmod 1777 {SHM_DIRECTORY}",
            )
        ]
    total, free = facts.f_blocks * facts.f_frsize, free_bytes(mount)
    room = f"{SHM_DIRECTORY} has {format_bytes(total)}, {format_bytes(free)} of it free"
    if size_bytes is not None and size_bytes > free:
        return [
            error(
                "shm",
                f"{room}: an arena of {format_bytes(size_bytes)} does not fit",
                space_advice(mount, size_bytes),
            )
        ]
    if size_bytes is None and total < _SMALL_BYTES:
        return [
            warning(
                "shm",
                f"{room}: too little for a cache that is worth it (containers get 64 MiB unless told otherwise)",
                space_advice(mount, 16 * GIB),
            )
        ]
    return [ok("shm", room)]


def check_huge_control() -> list[Finding]:
    """Whether the control region, which every lookup reads, gets 2 MiB pages."""
    mount = mount_of(SHM_DIRECTORY)
    enabled = _shmem_enabled()
    if enabled == "deny":
        return [
            warning(
                "huge pages, control",
                f"the kernel denies tmpfs huge pages ({_SHMEM_ENABLED} is deny): lookups walk 4 KiB pages",
                f"echo never > {_SHMEM_ENABLED} && mount -o remount,huge=advise {SHM_DIRECTORY}",
            )
        ]
    if enabled is None:
        return [ok("huge pages, control", "this kernel has no huge pages for tmpfs")]
    if mount.gives_huge_pages or enabled == "force":
        how = f"huge={mount.huge}" if mount.gives_huge_pages else "shmem_enabled=force"
        return [ok("huge pages, control", f"{SHM_DIRECTORY} gives 2 MiB pages ({how})")]
    return [
        warning(
            "huge pages, control",
            f"{SHM_DIRECTORY} gives 4 KiB pages (huge={mount.huge}); with 2 MiB pages lookups are up to 1.8 times "
            "faster, and nothing else on this machine changes, since only who asks for them gets them",
            f"mount -o remount,huge=advise {SHM_DIRECTORY}   before `pegashm serve` makes the arena; to keep it, in /etc/fstab:  "
            f"tmpfs {SHM_DIRECTORY} tmpfs rw,nosuid,nodev,huge=advise 0 0",
        )
    ]


def check_huge_payload(directory: str) -> list[Finding]:
    """Whether the payload, in the folder of --directory, gets large pages."""
    check = "huge pages, payload"
    if not os.path.isdir(directory):
        return [error(check, f"{directory} is no folder", f"mkdir -p {directory}")]
    mount = mount_of(directory)
    if mount.is_hugetlb:
        size = os.statvfs(mount.point).f_bsize
        return [ok(check, f"{directory} is a hugetlbfs with pages of {format_bytes(size)}")]
    if not mount.is_tmpfs:
        return [
            error(
                check,
                f"{directory} lies on {mount.kind}: the kernel would write the arena back to it, and it may be slow memory",
                f"mount -t tmpfs -o size=SIZE,huge=advise none {directory}",
            )
        ]
    if mount.gives_huge_pages:
        return [ok(check, f"{directory} gives 2 MiB pages (huge={mount.huge})")]
    return [
        warning(
            check,
            f"{directory} gives 4 KiB pages; 2 MiB pages populate some 15 times faster and copy faster",
            f"mount -o remount,huge=advise {mount.point}   or `pegashm serve --hugepages 2M`",
        )
    ]


def check_hugetlb() -> list[Finding]:
    """Reserved huge pages, and whether there is a mount through which to use them."""
    check, findings = "huge pages, reserved", []
    for pool in sorted(_POOLS.glob("hugepages-*kB")):
        page = int(pool.name.removeprefix("hugepages-").removesuffix("kB")) * KIB
        total, free = (_number(pool / name) for name in ("nr_hugepages", "free_hugepages"))
        if not total:
            continue
        said = f"{total} pages of {format_bytes(page)} are reserved, {free} of them free"
        mount = hugetlb_mount(page)
        if mount is None:
            size = f"{page // MIB}M"
            findings.append(
                warning(
                    check,
                    f"{said}, but no hugetlbfs with such pages is mounted that uid {os.geteuid()} may write to: nobody can use them",
                    f"mkdir -p /mnt/huge{size} && mount -t hugetlbfs -o pagesize={size},uid={os.geteuid()} none /mnt/huge{size}",
                )
            )
        elif not free:
            findings.append(
                warning(
                    check,
                    f"{said}: another arena of `pegashm serve --hugepages` finds none",
                    hugetlb_advice(page, 16 * GIB).strip("`"),
                )
            )
        else:
            findings.append(ok(check, f"{said}, mounted at {mount.point}"))
    return findings or [ok(check, "none; only `pegashm serve --hugepages` needs them")]


def check_memory(size_bytes: int | None) -> list[Finding]:
    """What this process may use, by the machine and its control group."""
    limit, whose = memory_limit()
    if size_bytes is not None and size_bytes > limit:
        return [
            error(
                "memory",
                f"an arena of {format_bytes(size_bytes)} is more than {format_bytes(limit)}, {whose}",
                "give a smaller --size, or raise the limit (systemd: MemoryMax=, docker: --memory, Kubernetes: limits.memory)",
            )
        ]
    return [ok("memory", f"{format_bytes(limit)}: {whose}")]


def check_memlock(size_bytes: int | None) -> list[Finding]:
    """Whether an arena can be locked, so that none of it is swapped out."""
    allowed = memlock_limit()
    if allowed == "any amount":
        return [ok("memlock", "any amount of memory may be locked")]
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    enough = hard == resource.RLIM_INFINITY or (
        hard >= size_bytes if size_bytes is not None else hard >= _SMALL_BYTES
    )
    if enough:
        return [ok("memlock", f"{format_bytes(hard)} may be locked" if hard >= 0 else "any amount")]
    need = f"an arena of {format_bytes(size_bytes)}" if size_bytes is not None else "an arena"
    return [
        warning(
            "memlock",
            f"this process may lock {format_bytes(hard)}, too little for {need}: unlocked pages may be swapped out, and RDMA cannot "
            "register them",
            "ulimit -l unlimited   as root, before `pegashm serve`; systemd: LimitMEMLOCK=infinity; docker run --ulimit memlock=-1",
        )
    ]


def check_numa() -> list[Finding]:
    """Nodes, and whether we may use all of them."""
    nodes = numa_nodes()
    allowed = _allowed_nodes()
    missing = [node for node in nodes if allowed and node not in allowed]
    if missing:
        return [
            warning(
                "numa",
                f"this process may use memory of node(s) {_join(allowed)}, but nodes {_join(nodes)} exist: the others' memory stays unused",
                "remove the restriction (cpuset.mems of the control group, `numactl --membind`, docker --cpuset-mems), or serve with "
                f"--numa {_join(allowed)}",
            )
        ]
    if len(nodes) == 1:
        return [ok("numa", "one memory node")]
    return [ok("numa", f"memory nodes {_join(nodes)}: --numa auto makes one payload arena on each")]


def _shmem_enabled() -> str | None:
    try:
        text = _SHMEM_ENABLED.read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0]


def _allowed_nodes() -> list[int]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Mems_allowed_list:"):
            nodes: list[int] = []
            for part in line.split(":")[1].strip().split(","):
                first, _, last = part.partition("-")
                nodes += range(int(first), int(last or first) + 1)
            return nodes
    return []


def _join(numbers: list[int] | tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
