"""What does this machine give: mounts, page sizes, NUMA nodes, memory and locking limits?

Everything is read from /proc and /sys when asked and nothing is changed. The functions that end in
`_advice` say what to type when something better could be had, or what was asked for is not there.
Called by the supervisor before it creates memory; on no path of an engine.
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pegashm.errors import ResourceError
from pegashm.units import GIB, MIB, format_bytes

__all__ = [
    "Mount",
    "free_bytes",
    "hugetlb_advice",
    "hugetlb_mount",
    "memlock_advice",
    "memlock_limit",
    "memory_limit",
    "mount_of",
    "node_cpus",
    "numa_nodes",
    "page_bytes",
    "space_advice",
    "thp_advice",
]

_CAP_IPC_LOCK: Final = 14
_NODES: Final = Path("/sys/devices/system/node")
_THP_MODES_USED: Final = ("always", "within_size", "advise")


@dataclass(frozen=True, slots=True)
class Mount:
    """The file system that holds a directory: what it is and where it is mounted."""

    point: str
    kind: str
    options: tuple[str, ...]

    @property
    def is_hugetlb(self) -> bool:
        return self.kind == "hugetlbfs"

    @property
    def is_tmpfs(self) -> bool:
        return self.kind == "tmpfs"

    @property
    def huge(self) -> str:
        """The `huge=` option of a tmpfs: always, within_size, advise or never."""
        for option in self.options:
            if option.startswith("huge="):
                return option.removeprefix("huge=")
        return "never"

    @property
    def gives_huge_pages(self) -> bool:
        return self.is_tmpfs and self.huge in _THP_MODES_USED


def mount_of(directory: str) -> Mount:
    """The mount that holds `directory`, by longest prefix of its real path."""
    real = os.path.realpath(directory)
    holders = [m for m in _mounts() if _is_under(real, m.point)]
    # Of several mounts on one point the last one is on top.
    return max(reversed(holders), key=lambda m: len(m.point), default=Mount("/", "unknown", ()))


def hugetlb_mount(page_bytes: int) -> Mount | None:
    """A writable hugetlbfs mount with pages of that size, if there is one."""
    for mount in _mounts():
        usable = mount.is_hugetlb and os.access(mount.point, os.W_OK | os.X_OK)
        if usable and os.statvfs(mount.point).f_bsize == page_bytes:
            return mount
    return None


def page_bytes(mount: Mount) -> int:
    """The page size that will back payload there, as far as it can be known beforehand."""
    if mount.is_hugetlb:
        return os.statvfs(mount.point).f_bsize
    if mount.gives_huge_pages:
        return 2 * MIB
    return os.sysconf("SC_PAGE_SIZE")


def free_bytes(mount: Mount) -> int:
    """What can still be allocated on that mount."""
    facts = os.statvfs(mount.point)
    if not mount.is_hugetlb or facts.f_blocks:  # a hugetlbfs without size= reports no blocks at all
        return facts.f_bavail * facts.f_frsize
    pool = _hugetlb_pool(facts.f_bsize)
    pages = {name: _read_int(pool / f"{name}_hugepages") for name in ("free", "resv", "surplus")}
    overcommit = _read_int(pool / "nr_overcommit_hugepages")
    return (pages["free"] - pages["resv"] + overcommit - pages["surplus"]) * facts.f_bsize


def numa_nodes() -> tuple[int, ...]:
    """Nodes with memory and processors of their own; (0,) where the kernel tells of none."""
    with_memory = _read_list(_NODES / "has_memory")
    with_cpus = _read_list(_NODES / "has_cpu")
    return tuple(sorted(set(with_memory) & set(with_cpus))) or (0,)


def node_cpus(node: int) -> frozenset[int]:
    return frozenset(_read_list(_NODES / f"node{node}" / "cpulist"))


def memory_limit() -> tuple[int, str]:
    """The most memory that can be had here now, and what sets that limit."""
    limit = _meminfo("MemAvailable") + _meminfo("SwapFree")
    name = "what this machine has available (MemAvailable + SwapFree)"
    for path in _cgroup_limit_files():
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < limit:
            limit, name = int(text), f"the memory limit of this control group ({path})"
    return limit, name


def memlock_advice(nbytes: int) -> str | None:
    """Why locking `nbytes` would fail and what to type; None when it should work.

    A soft limit below the hard one is raised on the way, since any process may do so.
    """
    if _has_capability(_CAP_IPC_LOCK):
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if _within(nbytes, soft):
        return None
    if _within(nbytes, hard):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        return None
    return (
        f"may lock {format_bytes(hard)} of memory, the arena needs {format_bytes(nbytes)}: "
        "run `ulimit -l unlimited` as root before starting, set LimitMEMLOCK=infinity in the systemd "
        "unit, or `docker run --ulimit memlock=-1`"
    )


def memlock_limit() -> str:
    """How much this process may lock, in words."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = soft == resource.RLIM_INFINITY or _has_capability(_CAP_IPC_LOCK)
    return "any amount" if unlimited else format_bytes(soft)


def thp_advice(mount: Mount) -> str | None:
    """How a tmpfs would give 2 MiB pages; None when it does or cannot."""
    if not mount.is_tmpfs or mount.gives_huge_pages:
        return None
    return (
        f"{mount.point} gives 4 KiB pages; 2 MiB pages populate some 15 times faster, and copies and lookups gain. "
        f"Allow them with `mount -o remount,huge=advise {mount.point}` before creating the arena, or use "
        "`mount -t tmpfs -o size=SIZE,huge=advise none DIR` and --directory DIR, or --hugepages 2M"
    )


def space_advice(mount: Mount, needed: int) -> str:
    """What to type when a tmpfs is too small for `needed` bytes more."""
    facts = os.statvfs(mount.point)
    used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    gib = -(-(used + needed) // GIB)
    text = f"`mount -o remount,size={gib}G {mount.point}`"
    if mount.point == "/dev/shm":
        text += f", or in a container `docker run --shm-size={gib}g` (Kubernetes: an emptyDir of medium Memory)"
    return text


def hugetlb_advice(page_bytes: int, needed: int) -> str:
    """What to type when `needed` bytes of huge pages are not free."""
    pool = _hugetlb_pool(page_bytes)
    total, free = (_read_int(pool / name) for name in ("nr_hugepages", "free_hugepages"))
    pages = total - free + -(-needed // page_bytes)
    return f"`echo {pages} > {pool}/nr_hugepages` (now {total}, {free} of them free)"


def _hugetlb_pool(page_bytes: int) -> Path:
    return Path(f"/sys/kernel/mm/hugepages/hugepages-{page_bytes >> 10}kB")


def _mounts() -> list[Mount]:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            point = left.split()[4].replace("\\040", " ")
            kind, _, options = right.split()[:3]
            found.append(Mount(point, kind, tuple(options.split(","))))
    return found


def _is_under(path: str, point: str) -> bool:
    return point in ("/", path) or path.startswith(point + "/")


def _read_list(path: Path) -> list[int]:
    """A kernel list such as `0-3,8`; empty when there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return []
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def _read_int(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise ResourceError(f"/proc/meminfo has no {key}: is /proc mounted?")


def _cgroup_limit_files() -> list[Path]:
    """memory.max of our cgroup (v2) and of all above it; the v1 limit as a container sees it."""
    files = [Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return files
    root = Path("/sys/fs/cgroup")
    for line in lines:
        if line.startswith("0::"):
            group = root / line[3:].lstrip("/")
            files += [g / "memory.max" for g in (group, *group.parents) if g.is_relative_to(root)]
    return files


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _within(nbytes: int, limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or nbytes <= limit
