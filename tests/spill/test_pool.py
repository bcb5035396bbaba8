"""Does the pool of threads under a spill file move each byte to its place, and say what went wrong with which run?"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from pegashm._native import DiskPool

from tests.figures import LONG
from tests.fuzz.programs import ADDRESS, THREAD, Program, build, run
from tests.spill.blocks import Memory

SOURCE = Path(__file__).with_name("pool.cpp")
SECONDS = 60 if LONG else 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("flags", [THREAD, ADDRESS], ids=["thread", "address"])
def test_several_callers_under_a_sanitizer(
    flags: tuple[str, ...], seed: int, tmp_path: Path
) -> None:
    program = build(Program(source=SOURCE, flags=flags))
    out = run(program, SECONDS, seed, tmp_path / "file", folder=tmp_path, seconds=SECONDS + 120)
    assert int(out.split()[0]) >= 3  # of one life of the pool, with three callers


def words(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_end_of_file_is_an_error_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 8192)
    memory = Memory(4, 4096)
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    pool = DiskPool(2)
    errors = pool.transfer(
        descriptor,
        words(0, 4096, 8192, 12288),
        memory.addresses(4),
        words(*[4096] * 4),
        write=False,
    )
    assert [0, 0, errno.EIO, errno.EIO] == errors.tolist()
    assert (memory.slots[:2] == ord("x")).all()
    assert not memory.slots[2:].any()
    os.close(descriptor)
    assert [errno.EBADF] == pool.transfer(
        descriptor, words(0), memory.addresses(1), words(4096), write=False
    ).tolist()
    assert pool.close()


def test_nothing_to_do_and_nothing_left(tmp_path: Path) -> None:
    pool = DiskPool(1)
    assert 0 == len(pool.transfer(0, words(), words(), words(), write=False))
    assert [0, 0] == pool.transfer(0, words(1, 2), words(0, 0), words(0, 0), write=True).tolist()
    assert 0 == pool.waiting_seconds
    with pytest.raises(ValueError, match="2 offsets, 1 addresses"):
        pool.start(0, words(1, 2), words(1), words(1, 2), write=False)
    assert pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.start(0, words(), words(), words(), write=False)
    assert pool.close()


def test_a_dropped_transfer_is_finished_first(tmp_path: Path) -> None:
    """Nobody else keeps the arrays that the threads work with."""
    (tmp_path / "file").write_bytes(b"y" * (1 << 20))
    memory = Memory(256, 4096)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    pool = DiskPool(2, 4096)
    for _ in range(50):
        offsets = (np.arange(256) * 4096).astype(np.uint64)
        pool.start(
            descriptor, offsets, memory.addresses(256), np.full(256, 4096, np.uint64), write=False
        )
    assert (memory.slots == ord("y")).all()
    os.close(descriptor)
    assert pool.close()
