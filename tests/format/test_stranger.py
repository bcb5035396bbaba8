"""Can a stranger read a used arena with FORMAT.md alone, and does the native module see the same?

Fills a region through the index, then compares each table of `Region` with the raw bytes decoded by the
document: block records, clients, namespaces, segments, counters, journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pegashm.cache import Cache, Mode
from pegashm.keys import namespace_of
from pegashm.names import control_path

from tests.format.spec import Stranger, sizes_of

KEYS = [
    bytes([index]) * size + (7 + index).to_bytes(4, "big") for index, size in enumerate((32, 20, 1))
]
PENDING_KEY = b"p" * 32 + bytes(4)
PAYLOAD_BYTES = 5000
FREE, CLAIMED, READY = 0, 1, 2


@pytest.fixture
def cache(arena_name: Callable[..., str]) -> Iterator[Cache]:
    """An arena with three published blocks (the first pinned, the last evicted) and a claimed one."""
    fence = namespace_of({"model": "stranger"}, label="stranger's", maximum_bytes=1 << 17)
    with Cache.attach(
        arena_name(), namespace=fence, engine_id=b"engine-1", label="the label", mode=Mode.SAVE_ONLY
    ) as opened:
        handles, _ = opened.claim(KEYS, PAYLOAD_BYTES)
        opened.publish(handles)
        opened.pin(handles[:1])
        opened.evict(handles[2:])
        opened.claim([PENDING_KEY], PAYLOAD_BYTES)
        yield opened


@pytest.fixture
def stranger(cache: Cache) -> Stranger:
    return Stranger(Path(control_path(cache.name)).read_bytes())


def number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode()


def test_block_records(cache: Cache, stranger: Stranger) -> None:
    """Every record that is not FREE reads the same both ways, and all others are FREE."""
    blocks = {int(block["record"]): block for block in cache.region.blocks()}
    assert 3 == len(blocks)
    for record in range(stranger.number("record_count")):
        row = stranger.row("blocks", "Block records", record)
        state = number(row["state"])
        if record not in blocks:
            assert FREE == state & 0xFF
            continue
        block = blocks[record]
        assert int(block["state"]) == state & 0xFF
        assert int(block["generation"]) == state >> 24
        assert bytes(block["key"]).ljust(32, b"\0") == row["key"]
        identity = number(row["identity"])
        assert int(block["namespace_id"]) == identity & 0xFFFFFFFF
        assert int(block["group"]) == identity >> 32 & 0xFFFF
        assert int(block["key_bytes"]) == identity >> 48 & 0xFF
        pins = row["pins"]
        assert [number(pins[:8]), number(pins[8:])] == [int(word) for word in block["pins"]]
        for name in ("payload_offset", "payload_bytes", "claimed_at_ns", "published_at_ns"):
            assert int(block[name]) == number(row[name]), name
        touch = stranger.number("touches_offset") + record * 8
        assert int(block["touched"]) == number(stranger.data[touch : touch + 8])


def test_states_and_pins_are_what_was_done(cache: Cache, stranger: Stranger) -> None:
    """Two READY, the first with our pin bit; one CLAIMED with our slot as owner."""
    rows = [
        stranger.row("blocks", "Block records", record)
        for record in range(stranger.number("record_count"))
    ]
    by_key = {row["key"]: row for row in rows if number(row["state"]) & 0xFF != FREE}
    pinned, plain, pending = (
        by_key[key[:-4].ljust(32, b"\0")] for key in (KEYS[0], KEYS[1], PENDING_KEY)
    )
    assert READY == number(pinned["state"]) & 0xFF == number(plain["state"]) & 0xFF
    assert 1 << cache.slot == number(pinned["pins"])
    assert 0 == number(plain["pins"])
    assert CLAIMED == number(pending["state"]) & 0xFF
    assert cache.slot == number(pending["state"]) >> 8 & 0xFFFF


def test_clients(cache: Cache, stranger: Stranger) -> None:
    (client,) = cache.region.clients()
    row = stranger.row("clients", "Clients", cache.slot)
    assert client["incarnation"] << 8 | 1 == number(row["state"])
    for name in ("pid", "started_at", "attached_at_ns", "namespace_id", "mode"):
        assert client[name] == number(row[name]), name
    assert "the label" == text(row["label"]) == client["label"]
    assert "engine-1" == text(row["engine_id"]) == client["engine_id"]
    assert Mode.SAVE_ONLY == client["mode"]


def test_namespaces(cache: Cache, stranger: Stranger) -> None:
    (seen,) = cache.region.namespaces()
    row = stranger.row("namespaces", "Namespaces", seen["id"] & 0xFFFF)
    assert seen["id"] >> 16 << 16 | 1 == number(row["state"])
    assert bytes(seen["fingerprint"]) == row["fingerprint"]
    for name in ("reserved_bytes", "maximum_bytes", "resident_bytes", "created_at_ns"):
        assert seen[name] == number(row[name]), name
    assert "stranger's" == text(row["label"]) == seen["label"]
    assert 1 << 17 == seen["maximum_bytes"]
    assert 3 * 8192 == seen["resident_bytes"]  # two READY and one CLAIMED, of two pages each


def test_segments(cache: Cache, stranger: Stranger) -> None:
    """The segment that serves 5000 bytes is tagged with two pages; the others are unassigned."""
    for segment in cache.region.segments():
        start = stranger.number("segments_offset") + segment["index"] * sizes_of("Segments")[-1]
        word = number(stranger.data[start : start + 8])
        assert segment["stride_bytes"] == (word >> 40) * 4096
        assert {0: "unassigned", 1: "assigned", 2: "changing"}[word & 0xFF] == segment["state"]
    assert {0, 8192} == {segment["stride_bytes"] for segment in cache.region.segments()}


def test_counters(cache: Cache, stranger: Stranger) -> None:
    seen = {}
    for index in range(256):
        label = stranger.number("counter_labels_offset") + index * 64
        kind, size = (number(stranger.data[label + at : label + at + 4]) for at in (0, 4))
        value = stranger.number("counter_values_offset") + index * 64
        if kind:
            key = stranger.data[label + 8 : label + 8 + size].decode()
            seen[key] = ({1: "counter", 2: "gauge"}[kind], number(stranger.data[value : value + 8]))
    counters = {
        counter["key"]: (counter["type"], counter["value"]) for counter in cache.region.counters()
    }
    assert counters == seen
    assert ("counter", 4) == seen["claims"]
    assert ("counter", 1) == seen["evictions"]


def test_journal(cache: Cache, stranger: Stranger) -> None:
    """Three publishes and the eviction, in order, each entry where its sequence number says."""
    last, events = cache.region.journal(0)
    assert 4 == last == stranger.number("journal_head")
    rows = [stranger.row("journal", "Journal", sequence) for sequence in range(1, 5)]
    for event, row in zip(events, rows, strict=True):
        what = number(row["what"])
        assert event["sequence"] == number(row["sequence"])
        assert event["event"] == {1: "publish", 2: "evict"}[what & 0xFF]
        key_bytes, group = what >> 8 & 0xFF, what >> 16 & 0xFFFF
        assert (event["group"], event["namespace_id"]) == (group, what >> 32)
        assert event["handle"] == number(row["handle"])
        assert row["key"][:key_bytes] == bytes(event["key"])[:key_bytes]
    assert [key[:-4] for key in (*KEYS, KEYS[2])] == [
        row["key"][: number(row["what"]) >> 8 & 0xFF] for row in rows
    ]
