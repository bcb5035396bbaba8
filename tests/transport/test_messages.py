"""Do messages come out as they went in, and does nothing that anybody sends raise or hang?"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegashm.transport.messages import (
    KEYS_MAX,
    MESSAGE_BYTES_MAX,
    VERSION,
    Answer,
    Done,
    Error,
    Malformed,
    Message,
    Ping,
    Pong,
    Promote,
    pack,
    parse,
)

from tests.figures import LONG
from tests.peers.test_messages import mangled
from tests.transport.rig import key_of

QUANTITY = 100_000 if LONG else 10_000  # of each type
KEYS = tuple(key_of(number) for number in range(1, 6))
PROMOTE = Promote(
    request_id=7, region_id=b"r" * 16, namespace_id=0x10002, deadline_ms=1000, keys=KEYS
)
MESSAGES: list[Message] = [
    PROMOTE,
    Promote(request_id=0, region_id=bytes(16), namespace_id=0, deadline_ms=0, keys=(b"k\0\0\0\1",)),
    Done(7, bytes(Answer)),
    Done(2**64 - 1, b""),
    Ping(3),
    Pong(3, 4711, 2**63),
    Error(9, "no such thing: ü"),
]

identifiers = st.integers(0, 2**64 - 1)
keys = st.builds(
    lambda head, group: head + group.to_bytes(4, "big"),
    st.binary(min_size=1, max_size=32),
    st.integers(0, 65535),
)
messages = st.one_of(
    st.builds(
        Promote,
        request_id=identifiers,
        region_id=st.binary(min_size=16, max_size=16),
        namespace_id=st.integers(0, 2**32 - 1),
        deadline_ms=st.integers(0, 2**32 - 1),
        keys=st.lists(keys, min_size=1, max_size=50).map(tuple),
    ),
    st.builds(Done, identifiers, st.lists(st.sampled_from(Answer)).map(bytes)),
    st.builds(Ping, identifiers),
    st.builds(Pong, identifiers, identifiers, identifiers),
    st.builds(Error, identifiers, st.text(max_size=200)),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    assert message == parse(pack(message))


@given(messages)
def test_round_trip_of_anything(message: Message) -> None:
    assert message == parse(pack(message))


def test_golden_bytes() -> None:
    """A worker of one build and an engine of another agree on these."""
    assert bytes.fromhex("5047534d 0100 0300 0300000000000000") == pack(Ping(3))
    expected = (
        b"PGSM" + struct.pack("<HHQ", 1, 1, 7) + b"r" * 16 + struct.pack("<III", 0x10002, 1000, 5)
    )
    expected += b"".join(b"\x24" + key for key in KEYS)
    assert expected == pack(PROMOTE)
    assert b"PGSM" + struct.pack("<HHQI", 1, 2, 8, 2) + b"\0\5" == pack(Done(8, b"\0\5"))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_truncation_and_every_flip(message: Message) -> None:
    frame = pack(message)
    for end in range(len(frame)):
        said = parse(frame[:end])
        assert isinstance(said, Malformed | Error), said  # a shorter text is a text
    assert isinstance(parse(frame + b"\0"), Malformed | Error)
    for at in range(len(frame)):
        for bit in range(8):
            flipped = bytearray(frame)
            flipped[at] ^= 1 << bit
            parse(bytes(flipped))


@given(st.binary(max_size=300))
def test_any_bytes(frame: bytes) -> None:
    parse(frame)
    parse(pack(Ping(1))[:8] + frame)
    for kind in range(7):
        parse(b"PGSM" + struct.pack("<HHQ", VERSION, kind, 1) + frame)


def test_random_bytes_in_quantity(chance: random.Random) -> None:
    for _ in range(QUANTITY):
        parse(chance.randbytes(chance.randrange(200)))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_mangled_in_quantity(message: Message, chance: random.Random) -> None:
    """What is accepted can be packed, and says the same again."""
    frame = pack(message)
    accepted = 0
    for _ in range(QUANTITY):
        mangle = mangled(frame, chance)
        said = parse(mangle)
        if isinstance(said, Malformed):
            assert said.reason
            continue
        accepted += 1
        if not isinstance(said, Error):  # whose text may not have been UTF-8
            assert mangle == pack(said)
    print(f"{QUANTITY} frames, {accepted} accepted")


def said_of(frame: bytes) -> str:
    said = parse(frame)
    assert isinstance(said, Malformed), said
    return said.reason


def test_reasons_name_both_sides() -> None:
    frame = pack(PROMOTE)
    assert "begins with b'PGSM', this one with b'HTTP'" in said_of(b"HTTP" + frame[4:])
    other = frame[:4] + struct.pack("<H", 9) + frame[6:]
    assert "has version 9, this build reads version 1" in said_of(other)
    assert 7 == parse(other).request_id
    assert "no message of type 77" in said_of(frame[:6] + struct.pack("<H", 77) + frame[8:])


def test_counts_beyond_all_bounds() -> None:
    head = b"PGSM" + struct.pack("<HHQ", VERSION, 1, 1) + bytes(16)
    for count in (0, KEYS_MAX + 1, 2**31, 2**32 - 1):
        assert f"PROMOTE of {count} keys" in said_of(head + struct.pack("<III", 1, 1, count))
    assert "ends after 0 of 16384" in said_of(head + struct.pack("<III", 1, 1, KEYS_MAX))
    assert "DONE of 4294967295" in said_of(
        b"PGSM" + struct.pack("<HHQI", VERSION, 2, 1, 2**32 - 1) + b"\0"
    )
    assert "outcome 99" in said_of(b"PGSM" + struct.pack("<HHQI", VERSION, 2, 1, 1) + b"\x63")
    assert "at most" in said_of(pack(Ping(1)) + bytes(MESSAGE_BYTES_MAX))


def test_keys_that_cannot_be() -> None:
    for key in (b"", b"\0\0\0\1", b"k" * 37):
        with pytest.raises(ValueError, match="5 to 36 bytes"):
            pack(
                Promote(
                    request_id=1, region_id=bytes(16), namespace_id=1, deadline_ms=1, keys=(key,)
                )
            )
    frame = pack(PROMOTE)
    group = frame[:-4] + b"\0\1\0\0"
    assert "below 65536" in said_of(group)
