"""Do messages come out as they went in, and does nothing that anybody sends raise or hang?"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable

import numpy as np
import pytest

from pegashm.fabric.interface import OPAQUE_BYTES_MAX
from pegashm.peers.messages import (
    CHUNK_BYTES_MAX,
    KEYS_MAX,
    LEASE_MS_MAX,
    MESSAGE_BYTES_MAX,
    ROW_FIELDS,
    VERSION,
    Chunk,
    Hello,
    Introduce,
    Introduced,
    Malformed,
    Message,
    Offer,
    Outcome,
    Pin,
    Pinned,
    Reason,
    Refused,
    Release,
    Released,
    Snapshot,
    Welcome,
    pack,
    parse,
    sums_of,
)

from tests.transport.rig import key_of

FUZZED = 1_000_000 if os.environ.get("PEGASHM_LONG") else 20_000
KEYS = tuple(key_of(number) for number in range(1, 6))
HOST, LIFE = b"h" * 16, b"i" * 16


def rows(*entries: tuple[int, int, int, Outcome, int]) -> np.ndarray:
    table = np.zeros(len(entries), ROW_FIELDS)
    for row, (offset, nbytes, sum_bytes, outcome, sum_count) in enumerate(entries):
        table[row] = (offset, nbytes, sum_bytes, outcome, sum_count, 0)
    return table


PINNED = Pinned(
    request_id=8,
    lease_id=77,
    lease_ms=5000,
    load=12,
    grant=b"ticket",
    rows=rows(
        (4096, 8192, 4096, Outcome.OK, 2),
        (0, 0, 0, Outcome.MISSING, 0),
        (65536, 4096, 0, Outcome.OK, 0),
        (1 << 40, 16384, 16384, Outcome.OK, 1),
        (0, 0, 0, Outcome.NOT_NOW, 0),
    ),
    sums=np.array([1, 2**64 - 1, 3], np.uint64),
)
MESSAGES: list[Message] = [
    Hello(request_id=1, host_id=HOST, incarnation=LIFE, hash_version=1, address="10.0.0.7:7420"),
    Welcome(
        request_id=2,
        host_id=HOST,
        incarnation=LIFE,
        hash_version=65535,
        stream_port=7421,
        load=1000,
        offers=(Offer("verbs", b"\0\1"), Offer("tcp", b"x" * OPAQUE_BYTES_MAX)),
    ),
    Introduce(request_id=3, sender=HOST, incarnation=LIFE, fabric="tcp", introduction=b"hello"),
    Introduced(4, b"secret"),
    Pin(
        request_id=7,
        sender=HOST,
        incarnation=LIFE,
        fingerprint=b"f" * 32,
        lease_ms=LEASE_MS_MAX,
        wait_ms=0,
        bytes_max=2**64 - 1,
        fabric="tcp",
        keys=(*KEYS, b"k\0\0\0\1"),
    ),
    PINNED,
    Release(request_id=9, sender=HOST, incarnation=LIFE, lease_id=2**64 - 1),
    Released(request_id=9, lease_id=77, intact=True, held=b"\1\0\1"),
    Snapshot(10, HOST, LIFE),
    Chunk(request_id=10, number=3, last=False, body=b"\0" * 100),
    Refused(11, Reason.OVERLOADED, "too much: ü"),
]
each = pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)


@each
def test_round_trip(message: Message) -> None:
    assert message == parse(pack(message))


def test_golden_bytes() -> None:
    """Hosts of different builds agree on these."""
    head = b"PGSP" + struct.pack("<HHQ", 1, 7, 9)
    assert head + HOST + LIFE + b"\xff" * 8 == pack(MESSAGES[6])
    head = b"PGSP" + struct.pack("<HHQ", 1, 5, 7)
    body = HOST + LIFE + b"f" * 32 + struct.pack("<IIQ", 60_000, 0, 2**64 - 1) + b"\3tcp"
    body += struct.pack("<I", 6) + b"".join(bytes((len(k),)) + k for k in (*KEYS, b"k\0\0\0\1"))
    assert head + body == pack(MESSAGES[4])
    assert 32 == ROW_FIELDS.itemsize
    row = struct.pack("<QQQBB6x", 4096, 8192, 4096, 0, 2)
    assert pack(PINNED)[16 + 8 + 4 + 2 + 2 + 6 + 4 :].startswith(row)


@each
def test_every_truncation_and_every_flip(message: Message) -> None:
    frame = pack(message)[:2000]
    for end in range(len(frame)):
        said = parse(frame[:end])
        shorter = isinstance(message, Chunk | Refused)  # a shorter text is a text
        assert isinstance(said, Malformed) or (shorter and isinstance(said, type(message))), said
    for at in range(min(len(frame), 400)):
        for bit in range(8):
            flipped = bytearray(frame)
            flipped[at] ^= 1 << bit
            parse(bytes(flipped))


def mangled(frame: bytes, chance: random.Random) -> bytes:
    """Another frame of the same type: bytes set, cut out, put in, doubled, lengths and counts blown up."""
    data = bytearray(frame)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = 16 + chance.randrange(max(1, len(data) - 16))
        match chance.randrange(7):
            case 0:
                data[at : at + 1] = chance.randbytes(1)
            case 1:
                data[at : at + chance.randrange(1, 9)] = b""
            case 2:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                edge = chance.choice((0, 1, KEYS_MAX, KEYS_MAX + 1, 2**31, 2**32 - 1))
                data[at : at + 4] = struct.pack("<I", edge)
            case 4:
                edge = chance.choice((0, 1, 2**63, 2**64 - 1))
                data[at : at + 8] = struct.pack("<Q", edge)
            case 5:
                data += data[at:]
            case _:
                del data[at:]
    return bytes(data)


@each
def test_fuzz_of_each_type(message: Message, chance: random.Random) -> None:
    """PEGASHM_LONG=1: 10^6 frames of each type. What is accepted can be packed, and says the same again."""
    frame = pack(message)
    if len(frame) > 1000:
        frame = pack(
            Welcome(
                request_id=2, host_id=HOST, incarnation=LIFE, hash_version=1, stream_port=1, load=0,
                offers=(Offer("tcp", b"x" * 40),),
            )
        )  # fmt: skip
    accepted = 0
    started = time.monotonic()
    for number in range(FUZZED):
        mangle = mangled(frame, chance) if number % 4 else frame[:8] + chance.randbytes(40)
        said = parse(mangle)
        if isinstance(said, Malformed):
            assert said.reason
            continue
        accepted += 1
        if not isinstance(said, Refused):  # whose text may not have been UTF-8
            assert pack(said) == mangle
    print(f"{FUZZED} frames, {accepted} accepted, {time.monotonic() - started:.1f} s")


def said_of(frame: bytes) -> str:
    said = parse(frame)
    assert isinstance(said, Malformed), said
    return said.reason


def test_reasons_name_both_sides() -> None:
    frame = pack(MESSAGES[4])
    assert "begins with b'PGSP', this one with b'HTTP'" in said_of(b"HTTP" + frame[4:])
    other = frame[:4] + struct.pack("<H", 9) + frame[6:]
    assert "has version 9, this build reads version 1" in said_of(other)
    said = parse(other)
    assert isinstance(said, Malformed)
    assert (7, 9) == (said.request_id, said.other_version)
    assert "no message of type 77" in said_of(frame[:6] + struct.pack("<H", 77) + frame[8:])
    assert "at most" in said_of(pack(MESSAGES[0]) + bytes(MESSAGE_BYTES_MAX))
    assert "not sent by PegaShm" in said_of(b"")


def test_counts_beyond_all_bounds() -> None:
    head = b"PGSP" + struct.pack("<HHQ", VERSION, 5, 1) + bytes(64) + struct.pack("<IIQ", 1, 1, 1)
    for count in (0, KEYS_MAX + 1, 2**31, 2**32 - 1):
        assert f"says {count} keys" in said_of(head + b"\3tcp" + struct.pack("<I", count))
    assert "ends at byte" in said_of(head + b"\3tcp" + struct.pack("<I", KEYS_MAX))
    bad_group = b"\6" + b"k" + b"\0\1\0\0" + b"x"
    assert "group 65536" in said_of(head + b"\3tcp" + struct.pack("<I", 1) + b"\5k\0\1\0\0")
    assert "" != said_of(head + b"\3tcp" + struct.pack("<I", 1) + bad_group)


def changed(**fields: object) -> Callable[[np.ndarray], None]:
    def change(table: np.ndarray) -> None:
        for name, value in fields.items():
            table[name][0] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(outcome=99),
        changed(nbytes=0),
        changed(outcome=Outcome.MISSING),
        changed(sum_count=9),
        changed(sum_count=1),
        changed(sum_bytes=0),
        changed(sum_bytes=4097),
        changed(sum_bytes=2**64 - 1),
        changed(reserved=1),
    ],
)
def test_rows_that_contradict_themselves(change: Callable[[np.ndarray], None]) -> None:
    frame = bytearray(pack(PINNED))
    table = PINNED.rows.copy()
    change(table)
    at = 16 + 8 + 4 + 2 + 2 + 6 + 4
    frame[at : at + table.nbytes] = table.tobytes()
    assert isinstance(parse(bytes(frame)), Malformed)


def test_sums_of_each_row() -> None:
    assert [[1, 2**64 - 1], [], [], [3], []] == sums_of(PINNED)


def test_what_cannot_be_sent() -> None:
    for bad in (
        Chunk(request_id=1, number=0, last=True, body=bytes(CHUNK_BYTES_MAX + 1)),
        Introduced(1, bytes(OPAQUE_BYTES_MAX + 1)),
        Snapshot(1, b"short", LIFE),
        Hello(request_id=1, host_id=HOST, incarnation=LIFE, hash_version=70_000),
        Pin(
            request_id=1, sender=HOST, incarnation=LIFE, fingerprint=bytes(32), lease_ms=0,
            wait_ms=0, bytes_max=1, fabric="tcp", keys=KEYS,
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            pack(bad)
