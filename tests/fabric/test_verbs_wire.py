"""What the two sides of the verbs fabric tell each other: the same after packing and parsing, and any other bytes are refused."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegashm.fabric.interface import GRANT_BYTES_MAX, OPAQUE_BYTES_MAX
from pegashm.fabric.verbs_memory import CHUNK_BYTES, Chunks, Place
from pegashm.fabric.verbs_wire import (
    CONNECTIONS_MAX,
    RAILS_MAX,
    Address,
    Answer,
    AnswerRail,
    End,
    Introduction,
    IntroductionRail,
    Offer,
    Row,
    pack_answer,
    pack_grant,
    pack_introduction,
    pack_offer,
    parse_answer,
    parse_grant,
    parse_introduction,
    parse_offer,
)
from pegashm.units import GIB, KIB, MIB

from tests.figures import LONG
from tests.peers.test_messages import mangled

QUANTITY = 100_000 if LONG else 5_000  # of each kind
addresses = st.builds(
    Address,
    gid=st.binary(min_size=16, max_size=16),
    lid=st.integers(0, 0xFFFF),
    node=st.integers(-1, 1023),
    mtu=st.integers(1, 5),
    reads=st.integers(1, 255),
)
ends = st.builds(End, st.integers(1, (1 << 24) - 1), st.integers(0, (1 << 24) - 1))
words = st.integers(0, (1 << 64) - 1)
identities = st.binary(min_size=16, max_size=16)
offers = st.builds(
    Offer, identities, st.lists(addresses, min_size=1, max_size=RAILS_MAX).map(tuple)
)
introductions = st.builds(
    Introduction,
    identities,
    words,
    st.lists(words, max_size=CONNECTIONS_MAX - 1).map(tuple),
    st.lists(
        st.builds(IntroductionRail, st.integers(0, 255), addresses, ends),
        min_size=1,
        max_size=RAILS_MAX,
    ).map(tuple),
)
answers = st.builds(
    Answer,
    words,
    st.integers(0, 1 << 47),
    st.integers(1, 1 << 44),
    st.lists(
        st.builds(AnswerRail, ends, words, st.integers(0, (1 << 32) - 1)),
        min_size=1,
        max_size=RAILS_MAX,
    ).map(tuple),
)


@given(offers)
def test_offers(offer: Offer) -> None:
    packed = pack_offer(offer)
    assert len(packed) <= OPAQUE_BYTES_MAX
    assert offer == parse_offer(packed)


@given(introductions)
def test_introductions(introduction: Introduction) -> None:
    packed = pack_introduction(introduction)
    assert len(packed) <= OPAQUE_BYTES_MAX
    assert introduction == parse_introduction(packed)


@given(answers)
def test_answers(answer: Answer) -> None:
    packed = pack_answer(answer)
    assert len(packed) <= OPAQUE_BYTES_MAX
    assert answer == parse_answer(packed)


def test_golden_bytes() -> None:
    """Hosts of two builds talk to each other: what changes here needs another version in the tag."""
    address = Address(bytes(range(16)), 0x0201, -1, 5, 16)
    end = End(0x030201, 0x060504)
    address_hex = "000102030405060708090a0b0c0d0e0f" + "0102" + "ffff" + "05" + "10" + "0000"
    end_hex = "01020300" + "04050600"
    identity = b"I" * 16
    assert pack_offer(Offer(identity, (address,))).hex() == (
        "50475601" + "49" * 16 + "01" + address_hex
    )
    assert pack_introduction(
        Introduction(identity, 7, (8,), (IntroductionRail(2, address, end),))
    ).hex() == (
        "50474a01"
        + "49" * 16
        + "0700000000000000"
        + "01"
        + "0800000000000000"
        + "01"
        + "02"
        + address_hex
        + end_hex
    )
    assert pack_answer(Answer(7, 1 << 40, 4096, (AnswerRail(end, 9, 10),))).hex() == (
        "50474101"
        "0700000000000000"
        "0000000000010000"
        "0010000000000000"
        "01" + end_hex + "0900000000000000" + "0a000000"
    )
    grant = pack_grant(3, [(7, [Row(8192, 4096, 1, 0xAABBCCDD)])], most=GRANT_BYTES_MAX)
    assert grant[:-4].hex() == (
        "50474701030000000000000001070000000000000001000200000000000100ddccbbaa"
    )
    assert grant[-4:] == struct.pack("<I", zlib.crc32(grant[:-4]))


ROWS = [Row(n * 3 * 4096, 2 * 4096, n % 3, n) for n in range(200)]


def test_grants() -> None:
    tables = [(1, ROWS), (2, ROWS[:3]), (3, [])]
    grant = pack_grant(9, tables, most=GRANT_BYTES_MAX)
    for connection, rows in [*tables, (4, [])]:
        assert rows == parse_grant(grant, 9, connection=connection, most=GRANT_BYTES_MAX)
    with pytest.raises(ValueError, match="another lease"):
        parse_grant(grant, 8, connection=1, most=GRANT_BYTES_MAX)


def test_a_grant_that_is_too_large_keeps_the_first_table_or_is_refused() -> None:
    room = len(pack_grant(9, [(1, ROWS)], most=GRANT_BYTES_MAX))
    grant = pack_grant(9, [(1, ROWS), (2, ROWS)], most=room + 20)
    assert ROWS == parse_grant(grant, 9, connection=1, most=GRANT_BYTES_MAX)
    assert [] == parse_grant(grant, 9, connection=2, most=GRANT_BYTES_MAX)
    with pytest.raises(ValueError, match="lease fewer blocks at once"):
        pack_grant(9, [(1, ROWS)], most=room - 1)


def test_as_many_spans_as_a_request_has_keys_fit() -> None:
    rows = [Row(n * 8192, 4096, 0, n) for n in range(4096)]
    assert len(pack_grant(9, [(1, rows)], most=GRANT_BYTES_MAX)) <= GRANT_BYTES_MAX


PARSERS: list[Callable[[bytes], Any]] = [
    parse_offer,
    parse_introduction,
    parse_answer,
    lambda data: parse_grant(data, 9, connection=1, most=GRANT_BYTES_MAX),
]


@pytest.mark.parametrize("parser", PARSERS)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PGV\1", b"PGJ\1", b"PGA\1", b"PGG\1"]))
def test_any_bytes_are_parsed_or_refused(
    parser: Callable[[bytes], Any], data: bytes, tag: bytes
) -> None:
    try:
        parser(tag + data)
    except ValueError as error:
        assert "verbs" in str(error)


def genuine(kind: int) -> bytes:
    """A message of each kind, in the order of PARSERS."""
    address = Address(bytes(16), 1, 0, 5, 16)
    return [
        pack_offer(Offer(b"I" * 16, (address, address))),
        pack_introduction(
            Introduction(b"I" * 16, 7, (8, 9), (IntroductionRail(0, address, End(5, 6)),))
        ),
        pack_answer(Answer(7, 1 << 40, 1 << 30, (AnswerRail(End(5, 6), 9, 10),))),
        pack_grant(9, [(1, ROWS[:20])], most=GRANT_BYTES_MAX),
    ][kind]


@pytest.mark.parametrize("kind", range(4))
def test_mangled_in_quantity(kind: int, chance: random.Random) -> None:
    """Checksums made right again or not: something in range, or a ValueError of ours."""
    frame, parser = genuine(kind), PARSERS[kind]
    refused = 0
    for _ in range(QUANTITY):
        data = bytearray(mangled(frame, chance))
        data[chance.randrange(len(data))] ^= chance.randrange(256)
        try:
            parser(bytes(data))
        except ValueError as error:
            assert "verbs" in str(error)
            refused += 1
    print(f"{QUANTITY} of kind {kind}, {refused} refused")
    assert refused > 0


@pytest.mark.parametrize("kind", range(4))
def test_damaged_messages(kind: int, chance: random.Random) -> None:
    """Each byte flipped, cut at each length, with bytes behind: parsed to something in range, or refused."""
    packed, parser = genuine(kind), PARSERS[kind]
    refused = 0
    for at in range(len(packed)):
        for change in (1, 0x80, chance.randrange(1, 256)):
            damaged = bytearray(packed)
            damaged[at] ^= change
            try:
                parser(bytes(damaged))
            except ValueError:
                refused += 1
        with pytest.raises(ValueError, match="verbs"):
            parser(packed[:at])
    with pytest.raises(ValueError, match="verbs"):
        parser(packed + b"\0")
    assert refused >= (3 * len(packed) if kind == 3 else 12)


def test_a_version_that_is_not_ours_is_named() -> None:
    packed = pack_offer(Offer(b"I" * 16, (Address(bytes(16), 1, 0, 5, 16),)))
    with pytest.raises(ValueError, match="version 02, this build reads 01"):
        parse_offer(b"PGV\2" + packed[4:])


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(-1, 3)), min_size=1, max_size=5),
    st.integers(1, 200),
    st.data(),
)
def test_pieces_cover_a_span_and_lie_in_one_chunk_each(
    parts: list[tuple[int, int]], chunk_pages: int, data: st.DataObject
) -> None:
    places, at = [], 0
    for pages, node in parts:
        places.append(Place(at, pages * 4 * KIB, node))
        at += pages * 4 * KIB
    chunks = Chunks(at, places, chunk_bytes=chunk_pages * 4 * KIB)
    offset = data.draw(st.integers(0, at - 1))
    nbytes = data.draw(st.integers(1, at - offset))
    reached = offset
    for index, start, length in chunks.pieces(offset, nbytes):
        chunk = chunks.all[index]
        assert start == reached
        assert chunk.offset <= start
        assert start + length <= chunk.offset + chunk.nbytes
        reached += length
    assert reached == offset + nbytes


def test_chunks_of_a_large_arena_and_places_that_do_not_fit() -> None:
    chunks = Chunks(3 * GIB, [Place(0, GIB, 0), Place(GIB, 2 * GIB, 1)])
    assert 24 == len(chunks.all)
    assert all(chunk.nbytes == CHUNK_BYTES for chunk in chunks.all)
    assert [0] * 8 + [1] * 16 == [chunk.node for chunk in chunks.all]
    for places in ([Place(0, MIB, 0)], [Place(4096, 2 * MIB, 0)]):
        with pytest.raises(ValueError, match="places must"):
            Chunks(2 * MIB, places)
