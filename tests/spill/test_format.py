"""Do the pages say what FORMAT.md says, byte for byte, and is a page with any bit changed no page?

Golden bytes are spelled out by hand from the tables; whoever changes a table changes them here, and the version.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash

from pegashm.errors import ConfigError, FormatError
from pegashm.spill import format as spill_format
from pegashm.spill.format import (
    PAGE_BYTES,
    RECORD_FIELDS,
    FramePlace,
    RegionHeader,
    SpillNamespace,
    Superblock,
    default_region_bytes,
    judge_frames,
    pack_frame,
    pack_region_header,
    pack_superblock,
    plan_superblock,
    unpack_records,
    unpack_region_header,
    unpack_superblock,
)

FILE_ID = bytes.fromhex("00112233445566778899aabbccddeeff")
SUPERBLOCK = Superblock(
    file_id=FILE_ID,
    file_bytes=0x0101_0000,
    region_bytes=0x0020_0000,
    region_count=8,
    created_at_ns=0x1122334455667788,
)
PLACE = FramePlace(region_index=2, sequence=9, offset=0x40_3000, number=1, nbytes=0x5000)
NAMESPACE = SpillNamespace(bytes(range(100, 132)), "Qwen3 ä")


def records() -> np.ndarray:
    rows = np.zeros(2, RECORD_FIELDS)
    rows["key"][0] = np.arange(1, 33)
    rows["key"][1, :5] = 0xEE
    rows["key_bytes"] = 32, 5
    rows["group"] = 1, 0x0203
    rows["file_offset"] = 0x40_4000, 0x40_6000
    rows["payload_bytes"] = 0x1001, 0x2000
    rows["checksum"] = 0x0123456789ABCDEF, 0
    rows["sum_layout"] = 0x0001_0000_0000_1001, 0
    rows["published_at_ns"] = 77, 78
    rows["sequence"] = 9
    return rows


def with_checksum(page: bytes) -> bytes:
    """As FORMAT.md has it: XXH3-64 of bytes 16 to 4095, at 8."""
    return page[:8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(page[16:])) + page[16:]


def golden(magic: bytes, *parts: bytes) -> bytes:
    start = magic + bytes(8) + bytes.fromhex("0100 0000 00100000") + FILE_ID
    return with_checksum(b"".join([start, *parts]).ljust(PAGE_BYTES, b"\0"))


def frame_page() -> bytes:
    return pack_frame(FILE_ID, PLACE, NAMESPACE, records())


def judge(pages: np.ndarray, place: FramePlace = PLACE) -> tuple[np.ndarray, np.ndarray]:
    def column(value: int) -> np.ndarray:
        return np.full(len(pages), value, np.uint64)

    holds, damaged, _ = judge_frames(
        pages,
        FILE_ID,
        regions=column(place.region_index),
        sequences=column(place.sequence),
        offsets=column(place.offset),
        numbers=column(place.number),
        ends=column(0x60_1000),
    )
    return holds, damaged


def as_pages(*pages: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(pages), np.uint8).reshape(-1, PAGE_BYTES)


def every_flip(page: bytes) -> np.ndarray:
    """The page once for each byte, with one bit of that byte changed."""
    pages = np.tile(np.frombuffer(page, np.uint8), (PAGE_BYTES, 1))
    row = np.arange(PAGE_BYTES)
    pages[row, row] ^= (1 << (row % 8)).astype(np.uint8)
    return pages


def test_superblock_bytes() -> None:
    expected = golden(
        b"PEGASPL1",
        bytes.fromhex("0000010100000000 0000200000000000 0800000000000000 8877665544332211"),
    )
    assert expected == pack_superblock(SUPERBLOCK)
    assert SUPERBLOCK == unpack_superblock(expected, "x")


def test_region_header_bytes() -> None:
    expected = golden(
        b"PEGASPLR", bytes.fromhex("0300000000000000 0900000000000000 8877665544332211")
    )
    header = RegionHeader(3, 9, 0x1122334455667788)
    assert expected == pack_region_header(FILE_ID, header)
    assert header == unpack_region_header(expected, FILE_ID, 3)
    assert unpack_region_header(expected, FILE_ID, 4) is None
    assert unpack_region_header(expected, bytes(16), 3) is None


def test_frame_bytes() -> None:
    first = bytes(range(1, 33)) + bytes.fromhex(
        "20 00 0100 00000000 0110000000000000 0010000000000000 efcdab8967452301"
        "0110000000000100 4d00000000000000 00000000000000000000000000000000"
    )
    second = (
        b"\xee" * 5
        + bytes(27)
        + bytes.fromhex(
            "05 00 0302 00000000 0020000000000000 0030000000000000 0000000000000000"
            "0000000000000000 4e00000000000000 00000000000000000000000000000000"
        )
    )
    assert 96 == len(first) == len(second)
    expected = golden(
        b"PEGASPLF",
        bytes.fromhex(
            "0200000000000000 0900000000000000 0030400000000000 0100000000000000 0050000000000000"
            "02000000 0800 0000"
        ),
        bytes(range(100, 132)),
        "Qwen3 ä".encode().ljust(64, b"\0"),
        bytes(256 - 184),
        first,
        second,
    )
    assert expected == frame_page()
    holds, damaged = judge(as_pages(expected))
    assert holds.all()
    assert not damaged.any()
    unpacked, page_of, namespaces = unpack_records(as_pages(expected))
    assert (records() == unpacked).all()
    assert [0, 0] == page_of.tolist()
    assert [NAMESPACE] == namespaces


def test_format_md_names_every_magic() -> None:
    text = (Path(spill_format.__file__).parents[1] / "_core" / "FORMAT.md").read_text()
    for magic in ("PEGASPL1", "PEGASPLR", "PEGASPLF"):
        assert magic in text


def test_any_flip_of_a_superblock_is_refused() -> None:
    for page in every_flip(pack_superblock(SUPERBLOCK)):
        with pytest.raises(FormatError):
            unpack_superblock(page.tobytes(), "x")


def test_any_flip_of_a_region_header_makes_it_none() -> None:
    page = pack_region_header(FILE_ID, RegionHeader(3, 9, 1))
    assert not [
        row
        for row, flipped in enumerate(every_flip(page))
        if unpack_region_header(flipped.tobytes(), FILE_ID, 3)
    ]


def test_any_flip_of_a_frame_page_makes_it_no_frame() -> None:
    holds, damaged = judge(every_flip(frame_page()))
    assert not holds.any()
    assert damaged.sum() > PAGE_BYTES - 100  # all but what says whose page it is


@pytest.mark.parametrize(
    "wrong",
    [
        {"region_index": 3},
        {"sequence": 8},
        {"offset": 0x40_4000},
        {"number": 2},
        {"nbytes": 0x5001},
        {"nbytes": 0x1000},
        {"nbytes": 0x2000},  # the second record ends behind it
        {"nbytes": 0x20_0000},  # ends behind the region
        {"nbytes": 2**64 - 4096},
    ],
    ids=str,
)
def test_a_frame_counts_only_where_it_says_it_is(wrong: dict[str, int]) -> None:
    """Even with a checksum that holds: pages are bounded before they are believed."""
    fields = {name: getattr(PLACE, name) for name in FramePlace.__slots__} | wrong
    rows = records()
    rows["file_offset"] += np.uint64(fields["offset"] - PLACE.offset)
    page = pack_frame(FILE_ID, FramePlace(**fields), NAMESPACE, rows)
    assert not judge(as_pages(page))[0].any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key_bytes", 0),
        ("key_bytes", 33),
        ("key_bytes", 4),  # the key goes on behind it
        ("payload_bytes", 0),
        ("payload_bytes", 2**64 - 1),
        ("payload_bytes", 0x2001),
        ("file_offset", 0x40_3000),  # the frame's own page
        ("file_offset", 0x40_6001),
        ("file_offset", 0x40_2000),  # before the frame
    ],
)
def test_a_record_that_cannot_be_ends_the_chain(field: str, value: int) -> None:
    rows = records()
    rows[field][1] = value
    page = pack_frame(FILE_ID, PLACE, NAMESPACE, rows)
    assert not judge(as_pages(page))[0].any()


def test_labels_are_cut_between_characters() -> None:
    page = pack_frame(FILE_ID, PLACE, SpillNamespace(bytes(32), "ä" * 40), records())
    assert "ä" * 32 == unpack_records(as_pages(page))[2][0].label
    page = pack_frame(FILE_ID, PLACE, SpillNamespace(bytes(32), "xä" * 40), records())
    assert 64 >= len(unpack_records(as_pages(page))[2][0].label.encode())


def test_sizes_of_regions() -> None:
    """32 blocks of 2 MiB and their pages fit in a region, 128 in a large file's; a small one has eight regions."""
    region = (64 << 20) + (64 << 10)
    assert region == default_region_bytes(4 << 30)
    assert 4 * region == default_region_bytes(16 << 30) == default_region_bytes(2 << 40)
    small = plan_superblock(16 << 20, None, file_id=FILE_ID, created_at_ns=0)
    assert 8 == small.region_count
    assert small.region_end(7) <= 16 << 20
    with pytest.raises(ConfigError, match="larger size"):
        plan_superblock(64 << 10, None, file_id=FILE_ID, created_at_ns=0)
    with pytest.raises(ConfigError, match="two regions"):
        plan_superblock(1 << 20, 1 << 20, file_id=FILE_ID, created_at_ns=0)
