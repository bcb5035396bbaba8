"""Does `pegashm fsck --spill` see what is in a spill file, and what has changed in it?"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pegashm.cli import main
from pegashm.spill.file import Append, SpillFile
from pegashm.spill.format import BLOCK_FIELDS, PAGE_BYTES, SpillNamespace
from pegashm.units import MIB

FILE_BYTES = 16 * MIB
PAYLOAD_BYTES = 64 << 10
BLOCKS = 100
NAMESPACE = SpillNamespace(b"n" * 32, "model-a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A spill file with 100 blocks, the last ten of keys that were there before."""
    made = tmp_path / "kv.spill"
    with (
        SpillFile.open_or_create(str(made), FILE_BYTES) as file,
        mmap.mmap(-1, PAYLOAD_BYTES) as memory,
    ):
        memory[:] = b"payload!" * (PAYLOAD_BYTES // 8)
        held = np.frombuffer(memory, np.uint8)
        rows = np.zeros(BLOCKS, BLOCK_FIELDS)
        rows["key"][:, 0] = 1 + np.arange(BLOCKS) % 90
        rows["key_bytes"], rows["payload_bytes"] = 32, PAYLOAD_BYTES
        rows["address"] = held.ctypes.data
        done = 0
        while done < BLOCKS:
            appended = file.append(NAMESPACE, rows[done : done // 5 * 5 + 5])
            done += len(appended.records)
            if appended.outcome is Append.REGION_FULL:
                file.advance()
        del held
    return made


def fsck(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fsck", *arguments])


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_what_is_there(path: Path) -> None:
    done = fsck("--spill", str(path), "--payloads", "--json")
    assert 0 == done.exit_code
    seen = json.loads(done.output)
    assert (BLOCKS, 10, BLOCKS) == (seen["records"], seen["superseded"], seen["payloads_checked"])
    assert BLOCKS * PAYLOAD_BYTES == seen["payload_bytes"]
    assert [("model-a", BLOCKS)] == [(n["label"], n["records"]) for n in seen["namespaces"]]
    assert not seen["in_use"]
    assert "clean" in fsck("--spill", str(path)).output


def test_beside_its_writer(path: Path) -> None:
    with SpillFile.open_or_create(str(path), FILE_BYTES):
        done = fsck("--spill", str(path), "--json")
        assert 0 == done.exit_code
        assert json.loads(done.output)["in_use"]


def test_a_changed_payload_is_named_when_payloads_are_read(path: Path) -> None:
    flip(path, 3 * PAGE_BYTES + 5)
    assert 0 == fsck("--spill", str(path)).exit_code
    done = fsck("--spill", str(path), "--payloads")
    assert 1 == done.exit_code
    assert f"damage at {3 * PAGE_BYTES}" in done.output
    assert "smartctl" in done.output


def test_a_changed_frame_page_ends_its_chain(path: Path) -> None:
    flip(path, 2 * PAGE_BYTES + 300)
    done = fsck("--spill", str(path), "--json")
    assert 1 == done.exit_code
    seen = json.loads(done.output)
    assert {"damage": 1} == seen["counts"]
    assert seen["records"] < BLOCKS


def files_that_are_none(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "missing"
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"#!/bin/sh\n" * 1000)
    yield foreign
    short = tmp_path / "short"
    short.write_bytes(b"x")
    yield short


def test_what_cannot_be_checked(tmp_path: Path) -> None:
    for path in files_that_are_none(tmp_path):
        done = fsck("--spill", str(path))
        assert 2 == done.exit_code, done.output
        assert str(path) in done.output + done.stderr
        assert "cannot check" in done.output + done.stderr


def test_options_that_do_not_go_together(path: Path) -> None:
    assert "needs no repair" in fsck("--spill", str(path), "--repair").stderr
    assert "--spill PATH with --payloads" in fsck("--payloads").stderr
    assert "or --spill PATH" in fsck().stderr
