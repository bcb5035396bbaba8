"""Is an arena that cannot be used refused at once, with both sides named?

One header field at a time is changed to what another build, another program or an accident would have
left there; the files are cut short, emptied and removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.errors import ArenaMissingError, ArenaNotReadyError, FormatError
from pegashm.names import SHM_DIRECTORY, control_path, payload_path

from tests.arenas import Shape
from tests.format.spec import fields_of

FIELDS = {field.name: field for field in fields_of("Header")}


def store(name: str, field: str, value: int) -> None:
    """Write one header field of an arena that exists."""
    with Path(control_path(name)).open("r+b") as control:
        control.seek(FIELDS[field].offset)
        control.write(value.to_bytes(FIELDS[field].size, "little"))


def test_other_major_version_is_refused_naming_both(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    store(name, "format_major", _native.FORMAT_MAJOR + 1)
    with pytest.raises(FormatError) as refusal:
        open_arena(name)
    assert f"{_native.FORMAT_MAJOR + 1}.{_native.FORMAT_MINOR}" in str(refusal.value)
    assert f"this build reads {_native.FORMAT_MAJOR}." in str(refusal.value)
    assert name in str(refusal.value)


def test_larger_minor_version_is_opened(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    store(name, "format_minor", _native.FORMAT_MINOR + 7)
    with open_arena(name) as arena:
        assert _native.FORMAT_MINOR + 7 == arena.region.header["format_minor"]


def test_other_layout_is_refused_naming_both(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    other = _native.LAYOUT_SIGNATURE ^ 1
    store(name, "layout_signature", other)
    with pytest.raises(FormatError) as refusal:
        open_arena(name)
    assert f"{other:016x}" in str(refusal.value)
    assert f"{_native.LAYOUT_SIGNATURE:016x}" in str(refusal.value)


def test_something_else_under_our_name_is_refused(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    store(name, "magic", int.from_bytes(b"NOTOURS!", "little"))
    with pytest.raises(FormatError, match="not a PegaShm"):
        open_arena(name)


def test_missing_magic_means_not_yet(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    store(name, "magic", 0)
    with pytest.raises(ArenaNotReadyError, match="creator"):
        open_arena(name)


def test_absent_arena_is_missing_and_says_what_to_type() -> None:
    with pytest.raises(ArenaMissingError, match="pegashm serve --name test-absent"):
        open_arena("test-absent")


@pytest.mark.parametrize("kept", [0, 1, 8, 4095, 4096, 5000, -4096, -1])
def test_control_file_cut_short_is_refused(arena_name: Callable[..., str], kept: int) -> None:
    """From an empty file to one that lacks its last byte."""
    name = arena_name()
    path = control_path(name)
    os.truncate(path, kept if kept >= 0 else Path(path).stat().st_size + kept)
    with pytest.raises((FormatError, ArenaNotReadyError)) as refusal:
        open_arena(name)
    if kept >= 4096 or kept < 0:
        assert "truncated" in str(refusal.value)


def test_longer_control_file_is_opened(arena_name: Callable[..., str]) -> None:
    """Control objects are rounded up to what backs them."""
    name = arena_name()
    path = control_path(name)
    os.truncate(path, Path(path).stat().st_size + (2 << 20))
    with open_arena(name) as arena:
        assert arena.region.tally()["record_count"] == arena.region.tally()["free"]


@pytest.mark.parametrize("kept", [0, 4096, -1])
def test_payload_file_cut_short_is_refused(arena_name: Callable[..., str], kept: int) -> None:
    """Whoever wrote past its end would die of SIGBUS."""
    name = arena_name(Shape(segments_per_arena=(2, 1)))
    path = payload_path(name, SHM_DIRECTORY, 1)
    os.truncate(path, kept if kept >= 0 else Path(path).stat().st_size + kept)
    with pytest.raises(FormatError, match="arena1"):
        open_arena(name)


def test_payload_file_gone_is_refused(arena_name: Callable[..., str]) -> None:
    name = arena_name(Shape(segments_per_arena=(2, 1)))
    os.unlink(payload_path(name, SHM_DIRECTORY, 0))
    with pytest.raises(FormatError, match="arena0 is gone"):
        open_arena(name)


def test_payload_file_may_be_absent_for_who_reads_only_control(
    arena_name: Callable[..., str],
) -> None:
    name = arena_name()
    os.unlink(payload_path(name, SHM_DIRECTORY, 0))
    with open_arena(name, writable=False, map_payload=False) as arena:
        assert [] == arena.region.clients()
        with pytest.raises(ValueError, match="not mapped"):
            arena.region.payload(0, 1)


def test_read_only_region_refuses_to_be_written(arena_name: Callable[..., str]) -> None:
    with open_arena(arena_name(), writable=False) as arena:
        with pytest.raises(ValueError, match="read-only"):
            arena.region.set_segments_ready(1)
        with pytest.raises(ValueError, match="read-only"):
            arena.region.repair()
        assert arena.region.payload(0, 16).readonly


@pytest.mark.parametrize(
    "shape",
    [
        {"segment_bytes": 65536, "block_bytes_min": 4096, "segments_per_arena": [0]},
        {"segment_bytes": 65536, "block_bytes_min": 4096, "segments_per_arena": []},
        {"segment_bytes": 65537, "block_bytes_min": 4096, "segments_per_arena": [1]},
        {"segment_bytes": 65536, "block_bytes_min": 4095, "segments_per_arena": [1]},
        {"segment_bytes": 4096, "block_bytes_min": 8192, "segments_per_arena": [1]},
        {"segment_bytes": 1 << 37, "block_bytes_min": 4096, "segments_per_arena": [1]},
        {"segment_bytes": 1 << 30, "block_bytes_min": 4096, "segments_per_arena": [1 << 10]},
    ],
)
def test_region_the_format_cannot_hold_is_no_plan(shape: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no such region"):
        _native.plan_region(**shape)  # type: ignore[arg-type]
