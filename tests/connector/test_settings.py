"""Does a mistake in an engine's settings say what it is and what would do?"""

from __future__ import annotations

from typing import Any

import pytest

from pegashm.cache import Mode
from pegashm.connector.settings import Settings, settings_of
from pegashm.errors import ConfigError
from pegashm.payload_sums import Checksums

ARENA = {"PEGASHM_ARENA": "kv0"}


def test_the_arena_is_all_it_takes() -> None:
    assert Settings(arena="kv0") == settings_of({}, ARENA)


def test_everything_set() -> None:
    extra = {
        "mode": "load-only",
        "weights_version": 7,
        "reserved_bytes": "1M",
        "maximum_bytes": "2G",
        "copy_threads": "4",
        "checksums": "on",
        "spill_deadline_ms": 250,
        "block_size": 64,
        "spec_name": "ours",
    }
    assert Settings(
        arena="kv0",
        required=True,
        mode=Mode.LOAD_ONLY,
        weights_version="7",
        reserved_bytes=1 << 20,
        maximum_bytes=2 << 30,
        copy_threads=4,
        checksums=Checksums.ON,
        spill_deadline_ms=250,
    ) == settings_of(extra, ARENA | {"PEGASHM_REQUIRED": "1"})


@pytest.mark.parametrize("text", ["", "0", "no", "false", "2"])
def test_only_a_yes_makes_the_arena_required(text: str) -> None:
    assert not settings_of({}, ARENA | {"PEGASHM_REQUIRED": text}).required


@pytest.mark.parametrize("text", ["1", "true", "Yes", " on "])
def test_ways_to_say_yes(text: str) -> None:
    assert settings_of({}, ARENA | {"PEGASHM_REQUIRED": text}).required


@pytest.mark.parametrize(
    ("extra", "environment", "says"),
    [
        ({}, {}, "PEGASHM_ARENA=NAME"),
        ({"mod": "read-write"}, ARENA, r"unknown keys \['mod'\]: PegaShm knows .*'mode'"),
        ({"mode": "readwrite"}, ARENA, "read-write, save-only, load-only, got 'readwrite'"),
        ({"copy_threads": 0}, ARENA, "1 to 64, got 0"),
        (
            {"spill_deadline_ms": "soon"},
            ARENA,
            "spill_deadline_ms must be a whole number, got 'soon'",
        ),
        (
            {"spill_deadline_ms": 3_600_000},
            ARENA,
            r"0 \(never wait for SSD\) to 60000, got 3600000",
        ),
        ({"copy_threads": 65}, ARENA, "1 to 64, got 65"),
        ({"copy_threads": "two"}, ARENA, "copy_threads must be a whole number, got 'two'"),
        ({"reserved_bytes": "much"}, ARENA, "much"),
        ({"checksums": "xxh3"}, ARENA, "checksums must be one of off, on, required, got 'xxh3'"),
        ({}, ARENA | {"PEGASHM_CHECKSUMS": "1"}, "PEGASHM_CHECKSUMS must be one of off, on, requ"),
        ({"maximum_bytes": 4e9}, ARENA, "maximum_bytes must be a size"),
        ({"blocks_per_chunks": 2}, ARENA, "Did you mean 'blocks_per_chunk'"),
        ({}, {"PEGASHM_ARENA": "../kv0"}, "arena name '../kv0' cannot be used"),
    ],
)
def test_mistakes(extra: dict[str, Any], environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(extra, environment)


@pytest.mark.parametrize(
    ("extra", "environment", "meant"),
    [
        ({}, {}, None),
        ({}, {"PEGASHM_CHECKSUMS": ""}, None),
        ({}, {"PEGASHM_CHECKSUMS": "on"}, Checksums.ON),
        ({}, {"PEGASHM_CHECKSUMS": "required"}, Checksums.REQUIRED),
        ({"checksums": False}, {"PEGASHM_CHECKSUMS": "on"}, Checksums.OFF),
        ({"checksums": True}, {}, Checksums.ON),
    ],
)
def test_checksums_from_the_extra_config_or_else_the_environment(
    extra: dict[str, Any], environment: dict[str, str], meant: Checksums | None
) -> None:
    assert meant is settings_of(extra, ARENA | environment).checksums
