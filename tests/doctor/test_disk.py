"""Does the doctor see which paths are no good for a spill file?"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pegashm.doctor.disk import check_spill
from pegashm.machine import mount_of
from pegashm.units import MIB

from tests.doctor.conftest import as_nobody, told, worst
from tests.world.mounts import mounted


def test_memory_is_no_disk() -> None:
    level, says, _ = worst(check_spill("/dev/shm/kv0.spill", None))
    assert ("error", True) == (level, "is memory" in says)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("kv0.spill", "must be absolute"),
        ("{}/none/kv0.spill", "there is no folder"),
        ("{}", "it is a folder"),
    ],
)
def test_paths_that_cannot_be(tmp_path: Path, path: str, words: str) -> None:
    level, says, do = worst(check_spill(path.format(tmp_path), None))
    assert ("error", True) == (level, words in says)
    assert do


def test_a_file_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"a novel")
    level, says, do = worst(check_spill(str(path), None))
    assert ("error", True) == (level, "somebody else's" in says)
    assert f"rm {path}" in do
    assert b"a novel" == path.read_bytes()


def test_folder_of_somebody_else(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, os.stat(folder).st_mode | 0o055)
    findings = as_nobody(lambda: check_spill(str(tmp_path / "kv0.spill"), None))
    level, says, _ = worst(findings)
    assert ("error", True) == (level, "may not make files" in says)


def test_too_large_for_the_disk(tmp_path: Path) -> None:
    level, says, _ = worst(
        told("--spill", f"{tmp_path}/s", "--spill-size", "1P")[f"spill {tmp_path}/s"]
    )
    assert ("error", True) == (level, "does not fit" in says)


def test_leaves_nothing_behind(tmp_path: Path) -> None:
    findings = check_spill(str(tmp_path / "kv0.spill"), MIB)
    assert [] == list(tmp_path.iterdir())
    if mount_of(str(tmp_path)).kind in ("ext4", "xfs"):
        assert "ok" == worst(findings)[0]
        assert any("O_DIRECT works" in finding.says for finding in findings)


def test_containers_own_layer(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    with mounted(f"mount -t overlay -o {options} none {tmp_path}/merged") as prefix:
        path = f"{tmp_path}/merged/kv0.spill"
        level, says, do = worst(told("--spill", path, prefix=prefix)[f"spill {path}"])
    assert ("warning", True) == (level, "container's own layer" in says)
    assert "docker run -v" in do


def test_a_file_system_with_reflinks(tmp_path: Path) -> None:
    """xfs, made in a file: all is well with it, and copies are warned of in words."""
    if not shutil.which("mkfs.xfs"):
        pytest.skip("needs mkfs.xfs")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(f"mount -o loop {image} {folder}") as prefix:
        findings = told("--spill", f"{folder}/s", prefix=prefix)[f"spill {folder}/s"]
    assert any("has reflinks" in finding["says"] for finding in findings)
