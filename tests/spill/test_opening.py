"""Is every file that is not ours, or not whole, refused with words that help, and left as it is?"""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pegashm.errors import ArenaBusyError, ConfigError, FormatError, PegaShmError, ResourceError
from pegashm.spill.disk import Disk
from pegashm.spill.file import SpillFile
from pegashm.spill.opening import CREATING_SUFFIX, open_file
from pegashm.spill.scan import read_lots, read_regions

from tests.spill.blocks import Memory, append_all, found

SIZE = 4 << 20
ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


def make(path: Path, blocks: int = 5) -> bytes:
    """A spill file with some blocks; its bytes."""
    memory = Memory(blocks, 5000)
    with SpillFile.open_or_create(str(path), SIZE) as file:
        append_all(file, memory.blocks(range(blocks), 5000))
    return path.read_bytes()


def refused(path: Path, kind: type[PegaShmError], *words: str) -> None:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(kind) as caught:
        SpillFile.open_or_create(str(path), SIZE)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert before == (path.read_bytes() if path.is_file() else None)
    assert not path.with_name(path.name + CREATING_SUFFIX).exists()


@pytest.mark.parametrize("content", [b"", b"x", b"#!/bin/sh\n" * 1000, bytes(SIZE)], ids=len)
def test_somebody_elses_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    refused(path, FormatError, "no spill file", "left as it is")


def test_unknown_version(tmp_path: Path) -> None:
    path = tmp_path / "spill"
    content = bytearray(make(path))
    struct.pack_into("<H", content, 16, 2)
    path.write_bytes(content)
    refused(path, FormatError, "format 2.0", "this build reads 1.x", f"rm {path}")


def test_damaged_first_page(tmp_path: Path) -> None:
    path = tmp_path / "spill"
    content = bytearray(make(path))
    content[3000] ^= 1
    path.write_bytes(content)
    refused(path, FormatError, "first page", "damaged", f"rm {path}")


@pytest.mark.parametrize("length", [4096, 5000, SIZE - 1])
def test_truncated(tmp_path: Path, length: int) -> None:
    path = tmp_path / "spill"
    make(path)
    os.truncate(path, length)
    refused(path, FormatError, f"truncated: it has {length} bytes", str(SIZE), f"rm {path}")


def test_truncated_while_open_costs_its_records_only(tmp_path: Path) -> None:
    """What lies behind the new end is an error of the device; the rest is right."""
    path = tmp_path / "spill"
    memory = Memory(10, 5000)
    with SpillFile.open_or_create(str(path), SIZE) as file:
        records = append_all(file, memory.blocks(range(10), 5000))
        os.truncate(path, int(records["file_offset"][6]))
        outcomes = file.fetch(records, memory.addresses(10), bytes(range(32)))
        assert [0] * 6 + [2] * 4 == outcomes.tolist()
        assert file.readable


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spill"
    with SpillFile.open_or_create(str(path), SIZE):
        refused(path, ArenaBusyError, "in use by another process", "fuser")
        program = f"""
from pegashm.spill.file import SpillFile
from pegashm.errors import ArenaBusyError
try:
    SpillFile.open_or_create({str(path)!r}, {SIZE})
except ArenaBusyError:
    print("refused")
"""
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert "refused\n" == done.stdout, done.stderr
    SpillFile.open_or_create(str(path), SIZE).close()


def test_tools_read_beside_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "spill"
    memory = Memory(5, 5000)
    with SpillFile.open_or_create(str(path), SIZE) as file:
        append_all(file, memory.blocks(range(5), 5000))
        opened = open_file(str(path), writable=False)
        disk = Disk(opened.descriptor, direct=opened.direct)
        try:
            headers = read_regions(disk, opened.superblock).in_log_order()
            assert 5 == sum(len(lot.records) for lot in read_lots(disk, opened.superblock, headers))
        finally:
            disk.close()


def test_another_size_than_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spill"
    make(path)
    with SpillFile.open_or_create(str(path), 2 * SIZE) as file:
        assert SIZE == file.superblock.file_bytes
        assert 5 == len(found(file))
    assert f"4 MiB ({SIZE} bytes), not the 8 MiB ({2 * SIZE} bytes) asked for" in caplog.text


def test_too_small(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger size"):
        SpillFile.open_or_create(str(tmp_path / "spill"), 64 << 10)
    assert not list(tmp_path.iterdir())


def test_no_such_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none" / "spill", ResourceError, f"mkdir -p {tmp_path / 'none'}")


def test_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises((FormatError, ResourceError), match=r"regular file|cannot open"):
        SpillFile.open_or_create(str(tmp_path), SIZE)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((FormatError, ResourceError), match=r"regular file|cannot open"):
        SpillFile.open_or_create(str(tmp_path / "pipe"), SIZE)


def test_what_a_killed_creator_left_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "spill"
    (tmp_path / f"spill{CREATING_SUFFIX}").write_bytes(b"half" * 9999)
    assert len(make(path)) == SIZE
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.timeout(300)
def test_killed_while_making_it(tmp_path: Path, seed: int) -> None:
    """SIGKILL anywhere in the creation: afterwards there is a whole file or none, and the next makes it."""
    chance = np.random.default_rng(seed)
    path = tmp_path / "spill"
    program = f"""
import sys
from pegashm.spill.file import SpillFile
print("ready", flush=True)
while True:
    SpillFile.open_or_create({str(path)!r}, {SIZE}).close()
    import os; os.unlink({str(path)!r})
"""
    for _ in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert child.stdout is not None
        assert "ready\n" == child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(float(chance.random()) * 0.1)
        child.kill()
        child.wait()
        child.stdout.close()
        SpillFile.open_or_create(str(path), SIZE).close()
        assert [path] == list(tmp_path.iterdir())


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    folder = tmp_path / "mount"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "pegashm-test", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this container may not mount")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


@as_root
def test_no_space_to_make_it(small_tmpfs: Callable[[str], Path]) -> None:
    folder = small_tmpfs("size=1m")
    with pytest.raises(ResourceError, match=r"no room .* 1 MiB free.*--spill-size"):
        SpillFile.open_or_create(str(folder / "spill"), SIZE)
    assert not list(folder.iterdir())


def test_larger_than_a_file_may_be(tmp_path: Path) -> None:
    program = f"""
from pegashm.spill.file import SpillFile
from pegashm.errors import ResourceError
try:
    SpillFile.open_or_create({str(tmp_path / "spill")!r}, {SIZE})
except ResourceError as error:
    print(error)
"""
    limit = 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "no room for spill file" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@as_root
def test_mounted_read_only(small_tmpfs: Callable[[str], Path]) -> None:
    folder = small_tmpfs("size=16m")
    make(folder / "spill")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    refused(folder / "spill", ResourceError, "mounted read-only", "remount,rw")
    opened = open_file(str(folder / "spill"), writable=False)  # tools still read it
    Disk(opened.descriptor, direct=opened.direct).close()


def test_no_permission(tmp_path: Path) -> None:
    """As a user without rights: root has them all."""
    path = tmp_path / "spill"
    make(path)
    path.chmod(0o400)
    for folder in [tmp_path, *tmp_path.parents]:
        if os.geteuid() == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    if os.geteuid() != 0:
        refused(path, ResourceError, "no permission", "0600")
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            open_file(str(path))
        except ResourceError as error:
            code = 0 if "no permission" in str(error) else 2
        finally:
            os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
