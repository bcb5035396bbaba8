"""Are the directory's messages what their tables say, and does anything else do no harm?"""

from __future__ import annotations

import random

import numpy as np

from pegashm.directory.messages import (
    CHUNK_HASHES_MAX,
    DELTA_BYTES_MAX,
    OPS_MAX,
    Chunk,
    Delta,
    Malformed,
    pack_chunk,
    pack_delta,
    parse_chunk,
    parse_delta,
)

from tests import figures

FRAMES = 1_000_000 if figures.LONG else 20_000
HOST, LIFE = bytes(range(16)), bytes(range(16, 32))
DELTA = Delta(HOST, LIFE, 0x0102, np.array([1, 4], np.uint8), np.array([3, 2**64 - 1], np.uint64))
GOLDEN_DELTA = bytes.fromhex(
    "50475344 0100 0100 000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f"
    "0201000000000000 02000000 00000000 0300000000000000 ffffffffffffffff 0104"
)
CHUNK = Chunk(7, np.array([1], np.uint64), np.array([2, 3], np.uint64))
GOLDEN_CHUNK = bytes.fromhex(
    "0100 0100 01000000 0700000000000000 02000000 00000000"
    "0100000000000000 0200000000000000 0300000000000000"
)


def same(one: object, other: object) -> bool:
    assert isinstance(one, tuple)
    assert isinstance(other, tuple)
    return type(one) is type(other) and all(
        np.array_equal(a, b) for a, b in zip(one, other, strict=True)
    )


def test_golden_bytes() -> None:
    assert GOLDEN_DELTA == pack_delta(DELTA)
    assert GOLDEN_CHUNK == pack_chunk(CHUNK)
    assert same(DELTA, parse_delta(GOLDEN_DELTA))
    assert same(CHUNK, parse_chunk(GOLDEN_CHUNK))


def test_the_largest_and_the_empty() -> None:
    full = Delta(HOST, LIFE, 1, np.ones(OPS_MAX, np.uint8), np.arange(OPS_MAX, dtype=np.uint64))
    assert DELTA_BYTES_MAX == len(pack_delta(full))
    assert same(full, parse_delta(pack_delta(full)))
    silent = Delta(HOST, LIFE, 0, np.zeros(0, np.uint8), np.zeros(0, np.uint64))
    assert same(silent, parse_delta(pack_delta(silent)))
    whole = Chunk(0, np.arange(CHUNK_HASHES_MAX, dtype=np.uint64), np.zeros(0, np.uint64))
    assert len(pack_chunk(whole)) <= 512 * 1024, "what a CHUNK message takes"
    assert same(whole, parse_chunk(pack_chunk(whole)))


def test_both_versions_are_named() -> None:
    other = bytearray(GOLDEN_DELTA)
    other[4] = 9
    said = parse_delta(bytes(other))
    assert isinstance(said, Malformed)
    assert "version 9 with hash version 1, this build speaks 1 with 1" in said.reason
    other = bytearray(GOLDEN_CHUNK)
    other[2] = 2
    said = parse_chunk(bytes(other))
    assert isinstance(said, Malformed)
    assert "version 1 with hash version 2" in said.reason


def test_what_cannot_be_is_refused() -> None:
    for frame in (
        b"", GOLDEN_DELTA[:-1], GOLDEN_DELTA + b"\0", b"X" + GOLDEN_DELTA[1:],
        GOLDEN_DELTA[:52] + b"\1" + GOLDEN_DELTA[53:],
        GOLDEN_DELTA[:40] + bytes(8) + GOLDEN_DELTA[48:],
        GOLDEN_DELTA[:48] + b"\xff\xff\xff\xff" + GOLDEN_DELTA[52:],
    ):  # fmt: skip
        assert isinstance(parse_delta(frame), Malformed), frame
    for body in (
        b"", GOLDEN_CHUNK[:-1], GOLDEN_CHUNK + b"\0" * 8, GOLDEN_CHUNK[:20] + b"\1" + GOLDEN_CHUNK[21:],
        GOLDEN_CHUNK[:4] + b"\xff\xff\xff\xff" + GOLDEN_CHUNK[8:],
        GOLDEN_CHUNK[:4] + bytes(4) + GOLDEN_CHUNK[8:],
    ):  # fmt: skip
        assert isinstance(parse_chunk(body), Malformed), body


def test_anything_may_come(seed: int) -> None:
    """Random frames, and right ones with a few bytes changed, cut or added: an answer each, in bounds."""
    chance = random.Random(seed)
    understood = 0
    for _ in range(FRAMES):
        frame = bytearray(chance.choice((GOLDEN_DELTA, GOLDEN_CHUNK)))
        kind = chance.random()
        if kind < 0.3:
            frame = bytearray(chance.randbytes(chance.randrange(100)))
        elif kind < 0.5:
            del frame[chance.randrange(len(frame)) :]
        elif kind < 0.6:
            frame += chance.randbytes(chance.randrange(20))
        for _ in range(chance.randrange(4) if frame else 0):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        delta, chunk = parse_delta(bytes(frame)), parse_chunk(bytes(frame))
        if isinstance(delta, Delta):
            understood += 1
            assert len(delta.ops) == len(delta.hashes) <= OPS_MAX
        if isinstance(chunk, Chunk):
            understood += 1
            assert len(chunk.memory) + len(chunk.ssd) <= CHUNK_HASHES_MAX
    assert understood, "some are right all the same"
