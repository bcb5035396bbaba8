"""What does a host tell the others about its blocks, byte by byte?

Two things, both little-endian and made of remote hashes; their tables are in FORMAT.md, "Messages of the directory". A
DELTA, one frame of the PUB stream: what happened since the one before it, or nothing (a heartbeat). A CHUNK, the body of a
snapshot's message: a part of all that the host holds.

`parse_*` takes any bytes whatever and never raises: what is none of ours is a `Malformed` that says so. Pure.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pegashm._native import REMOTE_HASH_VERSION

__all__ = [
    "CHUNK_HASHES_MAX",
    "DELTA_BYTES_MAX",
    "OPS_MAX",
    "VERSION",
    "Chunk",
    "Delta",
    "Hashes",
    "Malformed",
    "Ops",
    "pack_chunk",
    "pack_delta",
    "parse_chunk",
    "parse_delta",
]

VERSION: Final = 1
OPS_MAX: Final = 16384
CHUNK_HASHES_MAX: Final = 65536 - 64  # with its header no more than half a MiB
_MAGIC: Final = b"PGSD"
_DELTA: Final = struct.Struct("<4sHH16s16sQII")
_CHUNK: Final = struct.Struct("<HHIQII")
DELTA_BYTES_MAX: Final = _DELTA.size + 9 * OPS_MAX

Hashes: TypeAlias = NDArray[np.uint64]
Ops: TypeAlias = NDArray[np.uint8]


class Delta(NamedTuple):
    host_id: bytes
    incarnation: bytes
    sequence: int
    ops: Ops
    hashes: Hashes


class Chunk(NamedTuple):
    as_of: int
    memory: Hashes
    ssd: Hashes


class Malformed(NamedTuple):
    """What is not a message of ours, and why."""

    reason: str


def pack_delta(delta: Delta) -> bytes:
    head = _DELTA.pack(
        _MAGIC,
        VERSION,
        REMOTE_HASH_VERSION,
        delta.host_id,
        delta.incarnation,
        delta.sequence,
        len(delta.ops),
        0,
    )
    return b"".join((head, delta.hashes.tobytes(), delta.ops.tobytes()))


def parse_delta(frame: bytes) -> Delta | Malformed:
    if len(frame) < _DELTA.size:
        return Malformed(f"{len(frame)} bytes, a delta has at least {_DELTA.size}")
    magic, version, hash_version, host_id, incarnation, sequence, count, reserved = (
        _DELTA.unpack_from(frame)
    )
    if magic != _MAGIC:
        return Malformed(f"it begins with {magic!r}, a delta with {_MAGIC!r}")
    if (version, hash_version) != (VERSION, REMOTE_HASH_VERSION):
        return Malformed(_versions(version, hash_version))
    if count > OPS_MAX or len(frame) != _DELTA.size + 9 * count:
        return Malformed(
            f"{len(frame)} bytes for {count} operations, of which there are at most {OPS_MAX}"
        )
    if reserved:
        return Malformed(f"reserved bytes hold {reserved}, they are 0")
    if count and not sequence:
        return Malformed("operations under sequence 0, the first is 1")
    return Delta(
        host_id,
        incarnation,
        sequence,
        np.frombuffer(frame, dtype=np.uint8, offset=_DELTA.size + 8 * count),
        np.frombuffer(frame, dtype="<u8", count=count, offset=_DELTA.size),
    )


def pack_chunk(chunk: Chunk) -> bytes:
    head = _CHUNK.pack(
        VERSION, REMOTE_HASH_VERSION, len(chunk.memory), chunk.as_of, len(chunk.ssd), 0
    )
    return b"".join((head, chunk.memory.tobytes(), chunk.ssd.tobytes()))


def parse_chunk(body: bytes) -> Chunk | Malformed:
    if len(body) < _CHUNK.size:
        return Malformed(f"{len(body)} bytes, a chunk has at least {_CHUNK.size}")
    version, hash_version, memory, as_of, ssd, reserved = _CHUNK.unpack_from(body)
    if (version, hash_version) != (VERSION, REMOTE_HASH_VERSION):
        return Malformed(_versions(version, hash_version))
    if memory + ssd > CHUNK_HASHES_MAX or len(body) != _CHUNK.size + 8 * (memory + ssd):
        return Malformed(
            f"{len(body)} bytes for {memory} and {ssd} hashes, of which there are at most {CHUNK_HASHES_MAX}"
        )
    if reserved:
        return Malformed(f"reserved bytes hold {reserved}, they are 0")
    hashes = np.frombuffer(body, dtype="<u8", offset=_CHUNK.size)
    return Chunk(as_of, hashes[:memory], hashes[memory:])


def _versions(version: int, hash_version: int) -> str:
    return (
        f"version {version} with hash version {hash_version}, this build speaks {VERSION} with "
        f"{REMOTE_HASH_VERSION}: run the same PegaShm on all hosts"
    )
