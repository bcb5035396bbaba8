"""What do the two sides of the TCP fabric say to each other, byte by byte?

Little-endian throughout. Offer, introduction and answer travel over the authenticated connection of the peers; the rest goes
over plain sockets, one request at a time on each.

| bytes | from | content |
|---|---|---|
| offer | server | "PGTF", version u16, flags u16 (1: TLS), port u16, host bytes u8, host, then SHA-256 of the certificate (TLS) |
| introduction | reader | "PGTI", version u16, 0 u16 |
| answer | server | "PGTA", version u16, 0 u16, session 16, secret 32 |
| grant | server | "PGTG", version u16, 0 u16, ticket 32 |
| greeting, when a stream opens | server | "PGTS", version u16, 0 u16, nonce 16 |
| hello | reader | "PGTH", version u16, 0 u16, session 16, nonce 16, proof 32 |
| welcome | server | "PGTW", version u16, status u16, proof 32 |
| request | reader | "PGTR", count u32, lease u64, sequence u64, proof 32; then per block: offset u64, bytes u64 |
| reply | server | "PGTY", status u32, sequence u64; then, when status is 0, lots |

A proof is a keyed BLAKE2b of 32 bytes: of both nonces with the session's secret in hello and welcome, which also gives the stream its key;
of stream key and request with the lease's ticket in a request. So neither secret nor ticket is ever sent over a plain socket,
and what was heard there is worth nothing on another stream, or a second time on the same one.

Payload goes in pieces of at most PIECE_BYTES of one block, packed into lots of at most LOT_BYTES; both sides work out the
same lots from the request. A lot is its pieces, then the XXH3-64 of each; the seed is a secret of this very request plus the
number of the piece, so that bytes of another place, another request or another lease never pass for these.

Pure functions. What comes from outside is checked here: `parse_...` raise ValueError, naming both sides.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

__all__ = [
    "BLOCK_BYTES",
    "GREETING_BYTES",
    "HELLO_BYTES",
    "LOT_BYTES",
    "NONCE_BYTES",
    "PARTS_MAX",
    "PIECE_BYTES",
    "REPLY_BYTES",
    "REQUEST_BYTES",
    "SECRET_BYTES",
    "SESSION_BYTES",
    "VERSION",
    "WELCOME_BYTES",
    "Hello",
    "Offer",
    "Piece",
    "Request",
    "Status",
    "hello_holds",
    "lots_of",
    "pack_answer",
    "pack_grant",
    "pack_greeting",
    "pack_hello",
    "pack_introduction",
    "pack_offer",
    "pack_reply",
    "pack_request",
    "pack_welcome",
    "parse_answer",
    "parse_body",
    "parse_grant",
    "parse_greeting",
    "parse_hello",
    "parse_introduction",
    "parse_offer",
    "parse_reply",
    "parse_request",
    "parse_welcome",
    "payload_seed",
    "request_proof",
    "same",
    "stream_key",
]

VERSION: Final = 1
NONCE_BYTES: Final = 16
SESSION_BYTES: Final = 16
SECRET_BYTES: Final = 32
PARTS_MAX: Final = 4096
# Hashed right before it is sent and right after it has come, while it is in the processor's cache.
PIECE_BYTES: Final = 256 << 10
LOT_BYTES: Final = 1 << 20  # measured: half of it costs 10 % more CPU a byte, twice gains nothing
_PIECES_IN_LOT: Final = 256
_TLS: Final = 1
_SEED_MASK: Final = (1 << 64) - 1

_HEAD: Final = struct.Struct("<4sHH")
_OFFER: Final = struct.Struct("<4sHHHB")
_ANSWER: Final = struct.Struct("<4sHH16s32s")
_GRANT: Final = struct.Struct("<4sHH32s")
_GREETING: Final = struct.Struct("<4sHH16s")
_HELLO: Final = struct.Struct("<4sHH16s16s32s")
_WELCOME: Final = struct.Struct("<4sHH32s")
_REQUEST: Final = struct.Struct("<4sIQQ32s")
_REPLY: Final = struct.Struct("<4sIQ")
_SIGNED: Final = struct.Struct("<4sIQQ")
GREETING_BYTES: Final = _GREETING.size
HELLO_BYTES: Final = _HELLO.size
WELCOME_BYTES: Final = _WELCOME.size
REQUEST_BYTES: Final = _REQUEST.size
REPLY_BYTES: Final = _REPLY.size
BLOCK_BYTES: Final = 16


class Status(IntEnum):
    """What the server says to a hello or a request."""

    OK = 0
    UNKNOWN = 1  # no such session or lease, or not any more, or the proof is wrong: not told apart
    NOT_COVERED = 2  # a block that the lease does not cover
    TOO_MANY = 3  # this peer has as many streams as it may


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a server listens. `host` "": where its peers reach it, see `tcp.reached_at`."""

    host: str
    port: int
    fingerprint: bytes = b""  # SHA-256 of its certificate when it speaks TLS


@dataclass(frozen=True, slots=True)
class Hello:
    session: bytes
    nonce: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """The fixed part; `count` blocks follow."""

    count: int
    lease_id: int
    sequence: int
    proof: bytes

    @property
    def body_bytes(self) -> int:
        return self.count * BLOCK_BYTES


class Piece(NamedTuple):
    """So many bytes from `start` of part number `part` of a request; `last`: its end is the part's."""

    part: int
    start: int
    nbytes: int
    last: bool


# -- over the authenticated connection ---------------------------------------------------------


def pack_offer(offer: Offer) -> bytes:
    host = offer.host.encode("ascii")
    if len(host) > 255:
        raise ValueError(f"a host name has at most 255 bytes, this one {len(host)}")
    flags = _TLS if offer.fingerprint else 0
    return _OFFER.pack(b"PGTF", VERSION, flags, offer.port, len(host)) + host + offer.fingerprint


def parse_offer(data: bytes) -> Offer:
    if len(data) < _OFFER.size:
        raise ValueError(f"an offer of TCP has {_OFFER.size} bytes or more, this one {len(data)}")
    magic, version, flags, port, host_bytes = _OFFER.unpack_from(data)
    _expect("an offer of TCP", b"PGTF", magic, version)
    tail = data[_OFFER.size :]
    if flags & ~_TLS or len(tail) != host_bytes + 32 * (flags & _TLS) or not port:
        raise ValueError(f"an offer of TCP whose flags, port and length do not fit: {data[:64]!r}")
    return Offer(tail[:host_bytes].decode("ascii"), port, tail[host_bytes:])


def pack_introduction() -> bytes:
    return _HEAD.pack(b"PGTI", VERSION, 0)


def parse_introduction(data: bytes) -> None:
    if len(data) != _HEAD.size:
        raise ValueError(f"an introduction to TCP has {_HEAD.size} bytes, this one {len(data)}")
    magic, version, _ = _HEAD.unpack(data)
    _expect("an introduction to TCP", b"PGTI", magic, version)


def pack_answer(session: bytes, secret: bytes) -> bytes:
    return _ANSWER.pack(b"PGTA", VERSION, 0, session, secret)


def parse_answer(data: bytes) -> tuple[bytes, bytes]:
    """(session, secret)."""
    if len(data) != _ANSWER.size:
        raise ValueError(f"an answer of TCP has {_ANSWER.size} bytes, this one {len(data)}")
    magic, version, _, session, secret = _ANSWER.unpack(data)
    _expect("an answer of TCP", b"PGTA", magic, version)
    return session, secret


def pack_grant(ticket: bytes) -> bytes:
    return _GRANT.pack(b"PGTG", VERSION, 0, ticket)


def parse_grant(data: bytes) -> bytes:
    """The ticket."""
    if len(data) != _GRANT.size:
        raise ValueError(f"a grant of TCP has {_GRANT.size} bytes, this one {len(data)}")
    magic, version, _, ticket = _GRANT.unpack(data)
    _expect("a grant of TCP", b"PGTG", magic, version)
    return bytes(ticket)


# -- opening a stream --------------------------------------------------------------------------


def pack_greeting(nonce: bytes) -> bytes:
    return _GREETING.pack(b"PGTS", VERSION, 0, nonce)


def parse_greeting(data: bytes | bytearray) -> bytes:
    """The server's nonce."""
    magic, version, _, nonce = _GREETING.unpack(data)
    _expect("a greeting of TCP", b"PGTS", magic, version)
    return bytes(nonce)


def pack_hello(session: bytes, secret: bytes, server_nonce: bytes, nonce: bytes) -> bytes:
    proof = _mac(secret, b"reader", server_nonce, nonce)
    return _HELLO.pack(b"PGTH", VERSION, 0, session, nonce, proof)


def parse_hello(data: bytes | bytearray) -> Hello:
    magic, version, _, session, nonce, proof = _HELLO.unpack(data)
    _expect("a hello of TCP", b"PGTH", magic, version)
    return Hello(session, nonce, proof)


def pack_welcome(status: Status, secret: bytes, server_nonce: bytes, nonce: bytes) -> bytes:
    proof = _mac(secret, b"server", server_nonce, nonce) if status is Status.OK else bytes(32)
    return _WELCOME.pack(b"PGTW", VERSION, status, proof)


def parse_welcome(
    data: bytes | bytearray, secret: bytes, server_nonce: bytes, nonce: bytes
) -> Status:
    """ValueError for one who does not know the secret and says that we are welcome."""
    magic, version, status, proof = _WELCOME.unpack(data)
    _expect("a welcome of TCP", b"PGTW", magic, version)
    if status == Status.OK and not same(proof, _mac(secret, b"server", server_nonce, nonce)):
        raise ValueError(
            "who answers at the peer's address does not know the secret of this session"
        )
    return Status(status)


def hello_holds(hello: Hello, secret: bytes, server_nonce: bytes) -> bool:
    return same(hello.proof, _mac(secret, b"reader", server_nonce, hello.nonce))


def stream_key(secret: bytes, server_nonce: bytes, nonce: bytes) -> bytes:
    """What binds requests to one stream."""
    return _mac(secret, b"stream", server_nonce, nonce)


# -- requests and replies ----------------------------------------------------------------------


def pack_request(
    key: bytes, ticket: bytes, lease_id: int, sequence: int, blocks: Sequence[tuple[int, int]]
) -> bytes:
    """`blocks`: (offset, bytes) of each."""
    words = [word for block in blocks for word in block]
    body = struct.pack(f"<{len(words)}Q", *words)
    signed = _SIGNED.pack(b"PGTR", len(blocks), lease_id, sequence)
    return signed + _mac(ticket, key, signed, body) + body


def parse_request(data: bytes | bytearray) -> Request:
    magic, count, lease_id, sequence, proof = _REQUEST.unpack(data)
    if magic != b"PGTR":
        raise ValueError(f"a request of TCP begins with {b'PGTR'!r}, this one with {magic!r}")
    if not 1 <= count <= PARTS_MAX:
        raise ValueError(f"a request of TCP names 1 to {PARTS_MAX} blocks, this one {count}")
    return Request(count, lease_id, sequence, proof)


def parse_body(body: bytes | bytearray) -> list[tuple[int, int]]:
    """(offset, bytes) of each block."""
    words = struct.unpack(f"<{len(body) // 8}Q", body)
    return list(zip(words[::2], words[1::2], strict=True))


def request_proof(key: bytes, ticket: bytes, data: bytes | bytearray, body: bytes) -> bytes:
    """What the proof in the fixed part `data` of a request must be."""
    return _mac(ticket, key, bytes(data[: _SIGNED.size]), body)


def pack_reply(status: Status, sequence: int) -> bytes:
    return _REPLY.pack(b"PGTY", status, sequence)


def parse_reply(data: bytes | bytearray, sequence: int) -> Status:
    magic, status, said = _REPLY.unpack(data)
    if magic != b"PGTY" or said != sequence:
        raise ValueError(f"not the reply to request {sequence}: {bytes(data)!r}")
    return Status(status)


def payload_seed(key: bytes, ticket: bytes, sequence: int) -> int:
    """Of the first piece's checksum; the next piece's is one more."""
    digest = _mac(ticket, b"payload", key, sequence.to_bytes(8, "little"))
    return int.from_bytes(digest[:8], "little")


def lots_of(sizes: Sequence[int]) -> Iterator[list[Piece]]:
    """How payloads of these sizes travel: lots of pieces, in order."""
    lot: list[Piece] = []
    room = LOT_BYTES
    for part, size in enumerate(sizes):
        for start in range(0, size, PIECE_BYTES):
            nbytes = min(PIECE_BYTES, size - start)
            if lot and (nbytes > room or len(lot) == _PIECES_IN_LOT):
                yield lot
                lot, room = [], LOT_BYTES
            lot.append(Piece(part, start, nbytes, start + nbytes == size))
            room -= nbytes
    if lot:
        yield lot


def same(one: bytes, other: bytes) -> bool:
    """In a time that does not tell how much of it was right."""
    return hmac.compare_digest(one, other)


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), key=key, digest_size=SECRET_BYTES).digest()


def _expect(what: str, ours: bytes, magic: bytes, version: int) -> None:
    if magic != ours:
        raise ValueError(f"{what} begins with {ours!r}, this one with {magic!r}")
    if version != VERSION:
        raise ValueError(f"{what} has version {version}, this build speaks {VERSION}")
