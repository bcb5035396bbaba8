"""What does `pegashm fsck` answer to a person and to a script?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pegashm.cli import main
from pegashm.names import SHM_DIRECTORY, control_path, payload_path

from tests.fsck.scene import Hand, filled

CLEAN, FINDINGS, CANNOT_TELL = 0, 1, 2


def fsck(name: str, *options: str, expect: int) -> str:
    done = CliRunner().invoke(main, ["fsck", "--name", name, *options])
    assert expect == done.exit_code, done.output
    return done.output


def document(name: str, *options: str, expect: int) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(fsck(name, "--json", *options, expect=expect))
    assert expect == read["exit_status"]
    return read


def test_clean_then_damaged_then_repaired() -> None:
    with filled() as arena:
        assert "clean" in fsck(arena.name, expect=CLEAN)
        assert document(arena.name, "--live", expect=CLEAN)["live"]
        hand = Hand(arena)
        hand.put(hand.block(hand.ready[0]), 0x99)
        told = fsck(arena.name, expect=FINDINGS)
        assert f"pegashm fsck --name {arena.name} --repair" in told
        assert "I14 state word (damage), 1" in told
        assert {"I14": 1} | document(arena.name, expect=FINDINGS)["counts"]
        repaired = document(arena.name, "--repair", expect=CLEAN)
        assert 1 == repaired["repaired_counts"]["I14"]
        assert "clean" in fsck(arena.name, "--repair", expect=CLEAN)


def test_check_writes_nothing() -> None:
    with filled() as arena:
        hand = Hand(arena)
        hand.put(hand.block(hand.ready[0]), 0x99)
        before = Path(control_path(arena.name)).read_bytes()
        fsck(arena.name, expect=FINDINGS)
        assert before == Path(control_path(arena.name)).read_bytes()


@pytest.mark.parametrize("offset", [0, 8, 16, 80, 208, 600])
def test_unreadable_header_says_what_to_type(offset: int) -> None:
    """I1."""
    with filled() as arena:
        hand = Hand(arena)
        hand.put(offset, 0x1234)
        assert f"pegashm purge --name {arena.name}" in fsck(arena.name, expect=CANNOT_TELL)
        assert document(arena.name, "--repair", expect=CANNOT_TELL)["error"]


def test_unfinished_and_missing() -> None:
    with filled() as arena:
        Hand(arena).put(0, 0)
        assert "pegashm serve" in fsck(arena.name, expect=CANNOT_TELL)
    assert "pegashm serve" in fsck("test-no-such-arena", expect=CANNOT_TELL)


@pytest.mark.parametrize("kept", [None, 4096])
def test_payload_file_gone_or_short(kept: int | None) -> None:
    """I2."""
    with filled() as arena:
        path = payload_path(arena.name, SHM_DIRECTORY, 0)
        os.unlink(path) if kept is None else os.truncate(path, kept)
        told = fsck(arena.name, "--repair", expect=FINDINGS)
        assert path in told
        assert f"pegashm purge --name {arena.name} --yes" in told
