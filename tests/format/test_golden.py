"""Is the control region, byte by byte, what FORMAT.md says it is?

Three witnesses that share no code: the document's tables, bytes committed here, and the native module.
A change of the format changes all three in one commit; one that changes only some of them fails here.
To write the golden bytes anew after a deliberate change: python -m tests.format.test_golden
"""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from pegashm import _native

from tests.format.spec import ARENA_BYTES, Field, Stranger, fields_of, sizes_of

GOLDEN = Path(__file__).parent / "data" / "header.hex"
REGION_ID = bytes(range(0xA0, 0xB0))
CREATED_AT_NS = 0x1122_3344_5566_7788
ARENAS = (("/dev/shm/pegashm.golden.arena0", 2, 0), ("/dev/shm/pegashm.golden.arena1", 1, -1))
SEGMENT_BYTES, BLOCK_BYTES_MIN = 65536, 4096
HEADER = fields_of("Header")
NUMBERS = [
    field
    for field in HEADER
    if field.name not in ("region_id", "arenas", "reserved")
    and not field.name.startswith("transport_path")
]


def formatted() -> bytearray:
    """A control region with nothing random in it."""
    segments = [count for _, count, _ in ARENAS]
    shape = {"segment_bytes": SEGMENT_BYTES, "block_bytes_min": BLOCK_BYTES_MIN}
    more = {"spill_records": 100, "remote_buckets": 10, "reuse_registers": 64}
    plan = _native.plan_region(**shape, **more, segments_per_arena=segments)
    control = bytearray(plan["control_bytes"])
    _native.format_region(
        control,
        **shape,
        **more,
        region_id=REGION_ID,
        segments_per_arena=segments,
        arena_paths=[path for path, _, _ in ARENAS],
        numa_nodes=[node for _, _, node in ARENAS],
        page_bytes=4096,
        created_at_ns=CREATED_AT_NS,
    )
    return control


def dump(header: bytes) -> str:
    """Sixteen bytes a line behind their offset; lines of zeros are left out."""
    lines = (
        f"{offset:4d} {header[offset : offset + 16].hex(' ')}"
        for offset in range(0, len(header), 16)
        if any(header[offset : offset + 16])
    )
    return "\n".join(lines) + "\n"


def undump(text: str) -> bytes:
    header = bytearray(_native.HEADER_BYTES)
    for line in text.splitlines():
        offset, *values = line.split()
        header[int(offset) : int(offset) + 16] = bytes.fromhex("".join(values))
    return bytes(header)


def test_golden_bytes() -> None:
    """A freshly formatted header is, byte for byte, the one committed here."""
    assert undump(GOLDEN.read_text()) == bytes(formatted()[: _native.HEADER_BYTES])


def test_header_table_has_no_gap_and_no_overlap() -> None:
    """Each byte of the header belongs to exactly one row."""
    at = 0
    for field in HEADER:
        assert at == field.offset, field
        at += field.size
    assert _native.HEADER_BYTES == at


@pytest.mark.parametrize("heading", ["Namespaces", "Clients", "Block records", "Journal"])
def test_table_has_no_gap_and_no_overlap(heading: str) -> None:
    """The rows of each table fill exactly the size its heading names."""
    at = 0
    for field in fields_of(heading):
        assert at == field.offset, field
        at += field.size
    assert sizes_of(heading)[-1] == at


def test_formatted_header_is_what_the_document_says() -> None:
    """Read with the tables alone, a header says what it was made from."""
    control = bytes(formatted())
    plan = _native.plan_region(
        segment_bytes=SEGMENT_BYTES,
        block_bytes_min=BLOCK_BYTES_MIN,
        segments_per_arena=[2, 1],
        spill_records=100,
        remote_buckets=10,  # rounded up to a page
        reuse_registers=64,
    )
    stranger = Stranger(control)
    expected = {
        "magic": int.from_bytes(b"PEGASHM1", "little"),
        "format_major": _native.FORMAT_MAJOR,
        "format_minor": _native.FORMAT_MINOR,
        "header_bytes": _native.HEADER_BYTES,
        "layout_signature": _native.LAYOUT_SIGNATURE,
        "created_at_ns": CREATED_AT_NS,
        "segment_bytes": SEGMENT_BYTES,
        "block_bytes_min": BLOCK_BYTES_MIN,
        "page_bytes": 4096,
        "arena_count": 2,
        "segments_ready": 0,
        "journal_head": 0,
        **plan,
    }
    assert expected == {name: stranger.number(name) for name in expected}
    assert REGION_ID == stranger.header["region_id"].raw(control)
    assert plan["control_bytes"] == len(control)
    for index, (path, segments, node) in enumerate(ARENAS):
        assert (segments * SEGMENT_BYTES, node, path) == stranger.arena(index)
    for field in HEADER:
        if field.name == "reserved":
            assert not any(field.raw(control)), field


def test_tables_lie_one_after_another() -> None:
    """Each table starts on a cache line, where the one before it has ended at the earliest."""
    stranger = Stranger(bytes(formatted()))
    records = stranger.number("record_count")
    tables = {
        "namespaces": 256 * 256,
        "clients": 128 * 192,
        "counter_labels": 256 * 64,
        "counter_values": 256 * 64,
        "segments": stranger.number("segment_count") * 64,
        "free_bits": records // 8,
        "blocks": records * 128,
        "touches": records * 8,
        "sums": records * 64,
        "buckets": stranger.number("bucket_count") * 64,
        "journal": stranger.number("journal_entry_count") * 64,
        "spill": stranger.number("spill_record_count") * 128,
        "remote_hosts": 512 + 4096 * 128 if stranger.number("remote_bucket_count") else 0,
        "remote": stranger.number("remote_bucket_count") * 64,
    }
    end = _native.HEADER_BYTES
    for table, size in tables.items():
        offset = stranger.number(f"{table}_offset")
        assert 0 == offset % 64
        assert end <= offset, table
        end = offset + size
    end = -(-end // 4096) * 4096 + 5760 * 16 + 64 * 128  # the reuse table
    assert end <= stranger.number("control_bytes")
    assert stranger.number("payload_bytes") == SEGMENT_BYTES * stranger.number("segment_count")


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_header_info_reads_each_field_where_the_document_has_it(field: Field) -> None:
    """A pattern put at a field's offset appears under that name, whole, and under no other."""
    header = bytearray(_native.HEADER_BYTES)
    blank = _native.header_info(bytes(header))
    pattern = bytes((secrets.randbelow(255) + 1) for _ in range(field.size))
    header[field.offset : field.offset + field.size] = pattern

    info = _native.header_info(bytes(header))

    changed = {name for name, value in info.items() if value != blank[name]} - {"arenas"}
    assert {field.name} == changed
    assert int.from_bytes(pattern, "little") == info[field.name]


def test_header_info_reads_arenas_where_the_document_has_them() -> None:
    info = _native.header_info(bytes(formatted()))
    seen = [(a["bytes"], a["numa_node"], a["path"]) for a in info["arenas"]]
    assert [(count * SEGMENT_BYTES, node, path) for path, count, node in ARENAS] == seen
    assert REGION_ID == info["region_id"]
    assert "" == info["transport_path"]
    assert ARENA_BYTES * 16 == next(f.size for f in HEADER if f.name == "arenas")


if __name__ == "__main__":
    GOLDEN.write_text(dump(bytes(formatted()[: _native.HEADER_BYTES])))
