"""Does the doctor see what is wrong with memory? Each test makes it wrong for real, in a namespace or a child of its own."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from pegashm.doctor import memory
from pegashm.machine import memory_limit
from pegashm.units import GIB, MIB

from tests.doctor.conftest import as_nobody, told, worst
from tests.world.mounts import mounted

# Still root by number, so that this Python can be read; without root's way past permissions.
WITHOUT_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def test_shm_as_small_as_containers_get_it() -> None:
    with mounted("mount -t tmpfs -o size=64m none /dev/shm") as prefix:
        level, says, do = worst(told(prefix=prefix)["shm"])
        assert ("warning", True, True) == (level, "64 MiB" in says, "--shm-size" in do)
        level, says, do = worst(told("--size", "1G", prefix=prefix)["shm"])
        assert ("error", True) == (level, "does not fit" in says)
        assert "remount,size=" in do


def test_shm_read_only() -> None:
    with mounted("mount -t tmpfs -o ro none /dev/shm") as prefix:
        level, says, do = worst(told(prefix=prefix)["shm"])
    assert ("error", True, True) == (level, "read-only" in says, "remount,rw" in do)


def test_shm_that_is_no_tmpfs(tmp_path: Path) -> None:
    with mounted(f"mount --bind {tmp_path} /dev/shm") as prefix:
        level, says, do = worst(told(prefix=prefix)["shm"])
    assert "error" == level
    assert "expected a tmpfs" in says
    assert do.startswith("mount -t tmpfs")


def test_shm_that_others_may_not_write_to() -> None:
    with mounted("mount -t tmpfs -o size=2g,mode=0755,uid=65534 none /dev/shm") as prefix:
        level, says, do = worst(told(prefix=(*prefix, *WITHOUT_OVERRIDE))["shm"])
    assert ("error", True) == (level, "may not make files" in says)
    assert "chmod 1777 /dev/shm" == do


def test_control_region_on_small_pages_and_what_is_to_be_typed_helps() -> None:
    """The advice, typed, makes the warning go."""
    with mounted("mount -t tmpfs -o size=2g none /dev/shm") as prefix:
        level, says, do = worst(told(prefix=prefix)["huge pages, control"])
        assert ("warning", True) == (level, "4 KiB" in says)
        assert do.startswith("mount -o remount,huge=advise /dev/shm")
    with mounted(
        "mount -t tmpfs -o size=2g none /dev/shm", "mount -o remount,huge=advise /dev/shm"
    ) as prefix:
        assert "ok" == worst(told(prefix=prefix)["huge pages, control"])[0]


def test_kernel_that_denies_huge_pages(tmp_path: Path) -> None:
    setting = tmp_path / "shmem_enabled"
    setting.write_text("always within_size advise never [deny] force\n")
    target = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    with mounted(f"mount --bind {setting} {target}") as prefix:
        level, says, do = worst(told(prefix=prefix)["huge pages, control"])
    assert ("warning", True, True) == (level, "denies" in says, "echo never" in do)


def test_payload_folder(tmp_path: Path) -> None:
    with mounted(f"mount -t tmpfs none {tmp_path}") as prefix:
        level, _, do = worst(
            told("--directory", str(tmp_path), prefix=prefix)["huge pages, payload"]
        )
        assert ("warning", True) == (level, f"huge=advise {tmp_path}" in do)
    level, says, _ = worst(told("--directory", str(tmp_path / "none"))["huge pages, payload"])
    assert ("error", True) == (level, "is no folder" in says)
    with mounted(f"mount -t tmpfs -o huge=advise none {tmp_path}") as prefix:
        findings = told("--directory", str(tmp_path), prefix=prefix)["huge pages, payload"]
        assert "ok" == worst(findings)[0]


def test_payload_folder_on_disk() -> None:
    if memory.mount_of("/root").is_tmpfs:
        pytest.skip("the root file system is a tmpfs here")
    level, says, _ = worst(told("--directory", "/root")["huge pages, payload"])
    assert ("error", True) == (level, "write the arena back" in says)


def test_huge_pages_reserved_and_not_mounted(tmp_path: Path) -> None:
    """A pool as the kernel would show it, and no hugetlbfs of that size."""
    pool = tmp_path / "hugepages-2048kB"
    pool.mkdir()
    for name, value in {"nr_hugepages": 8, "free_hugepages": 8}.items():
        (pool / name).write_text(f"{value}\n")
    unmount = "for m in $(awk '$3 == \"hugetlbfs\" {print $2}' /proc/mounts); do umount $m; done"
    with mounted(f"mount --bind {tmp_path} /sys/kernel/mm/hugepages", f"({unmount})") as prefix:
        level, says, do = worst(told(prefix=prefix)["huge pages, reserved"])
    assert ("warning", True) == (level, "8 pages of 2 MiB" in says)
    assert "mount -t hugetlbfs" in do


def test_arena_larger_than_the_memory() -> None:
    limit, _ = memory_limit()
    level, says, _ = worst(told("--size", str(2 * limit + GIB))["memory"])
    assert ("error", True) == (level, "is more than" in says)
    assert "ok" == worst(told("--size", "64M")["memory"])[0]


def test_little_may_be_locked() -> None:
    def limited() -> list[memory.Finding]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (MIB, 2 * MIB))
        return (
            memory.check_memlock(64 * MIB) + memory.check_memlock(MIB) + memory.check_memlock(None)
        )

    too_little, enough, unknown = as_nobody(limited)
    assert "warning" == worst([too_little])[0]
    assert "2 MiB" in too_little.says
    assert "LimitMEMLOCK=infinity" in too_little.type
    assert "ok" == worst([enough])[0]
    assert "warning" == worst([unknown])[0]


def test_nodes_that_we_may_not_use(tmp_path: Path) -> None:
    """A machine of nine nodes, of which this process has those that it really has."""
    nodes = tmp_path / "nodes"
    nodes.write_text("0-8\n")
    folder = "/sys/devices/system/node"
    if not Path(folder, "has_memory").exists():
        pytest.skip("this kernel tells of no nodes")
    binds = [f"mount --bind {nodes} {folder}/{name}" for name in ("has_memory", "has_cpu")]
    with mounted(*binds) as prefix:
        level, says, do = worst(told(prefix=prefix)["numa"])
    assert ("warning", True) == (level, "8" in says)
    assert "--numa" in do
