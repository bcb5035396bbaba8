"""What do hosts say to each other, byte by byte?

One frame a message, little-endian: magic "PGSP", version u16, type u16, request id u64, then the body. Nothing is
pickled. `parse` takes any bytes whatever and never raises: what is not a message of ours is a `Malformed` that says
so, naming both versions where that is the reason. Text and opaque bytes carry their length in front of them.

| type | body |
|---|---|
| 1 HELLO | host id 16, incarnation 16, remote hash version u16, address (u8, UTF-8) |
| 2 WELCOME | host id 16, incarnation 16, remote hash version u16, stream port u16, load u16, fabrics u8, then each: name (u8), offer (u16) |
| 3 INTRODUCE | sender 16, incarnation 16, fabric name (u8), introduction (u16) |
| 4 INTRODUCED | answer (u16) |
| 5 PIN | sender 16, incarnation 16, namespace fingerprint 32, lease u32 (ms), wait u32 (ms), bytes u64, fabric name (u8), count u32, keys (u8 each) |
| 6 PINNED | lease id u64, lease u32 (ms), load u16, grant (u16), count u32, rows (`ROW_FIELDS`), checksums u64 each |
| 7 RELEASE | sender 16, incarnation 16, lease id u64 |
| 8 RELEASED | lease id u64, intact u8, count u32, a byte a block: 1 when it was the same all the time |
| 9 SNAPSHOT | sender 16, incarnation 16 |
| 10 CHUNK | number u32, last u8, bytes of the directory to the end of the frame |
| 11 REFUSED | reason u16, text to the end of the frame |

`sender` is the host id of who asks; `incarnation` that of the host it is meant for: its successor refuses. Rows of a PINNED are in the order
of the keys; checksums of all rows follow each other, `sum_count` of each.

Pure functions, called on both sides by `serving.py`, `greeter.py` and `caller.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pegashm.fabric.interface import GRANT_BYTES_MAX, OPAQUE_BYTES_MAX
from pegashm.payload_sums import PARTS_MAX

__all__ = [
    "CHUNK_BYTES_MAX",
    "FABRICS_MAX",
    "KEYS_MAX",
    "LEASE_MS_MAX",
    "MESSAGE_BYTES_MAX",
    "ROW_FIELDS",
    "VERSION",
    "Chunk",
    "Hello",
    "Introduce",
    "Introduced",
    "Malformed",
    "Message",
    "Offer",
    "Outcome",
    "Pin",
    "Pinned",
    "Reason",
    "Refused",
    "Release",
    "Released",
    "Snapshot",
    "Welcome",
    "pack",
    "parse",
    "sums_of",
]

MAGIC: Final = b"PGSP"
VERSION: Final = 1
KEYS_MAX: Final = 4096
FABRICS_MAX: Final = 4
LEASE_MS_MAX: Final = 60_000
CHUNK_BYTES_MAX: Final = 512 * 1024
MESSAGE_BYTES_MAX: Final = 1 << 20
_TEXT_BYTES_MAX: Final = 1024
_KEY_BYTES_LEAST: Final = 1 + 4  # a hash of one byte, and the group
_KEY_BYTES_MOST: Final = 32 + 4
_NAME_BYTES_MAX: Final = 16
_ADDRESS_BYTES_MAX: Final = 255

_HEAD: Final = struct.Struct("<4sHHQ")

ROW_FIELDS: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("nbytes", "<u8"),
        ("sum_bytes", "<u8"),  # of each checksummed part
        ("outcome", "u1"),
        ("sum_count", "u1"),  # parts, 0: the block has no checksums
        ("reserved", "u1", (6,)),
    ]
)

Rows = NDArray[Any]


class Type(IntEnum):
    HELLO = 1
    WELCOME = 2
    INTRODUCE = 3
    INTRODUCED = 4
    PIN = 5
    PINNED = 6
    RELEASE = 7
    RELEASED = 8
    SNAPSHOT = 9
    CHUNK = 10
    REFUSED = 11


class Outcome(IntEnum):
    """What became of one key of a PIN."""

    OK = 0  # pinned for the lease; the row says where
    MISSING = 1  # neither in memory nor on SSD: a hint that was stale
    PENDING = 2  # being written, or being promoted still
    NOT_NOW = 3  # beyond what one lease may hold: ask again for it
    OVERLOADED = 4  # its host has too much to do: ask another, or nobody


class Reason(IntEnum):
    """Why a request was refused as a whole."""

    VERSION = 1  # another version of these messages, or of the remote hash
    INCARNATION = 2  # meant for a predecessor: greet again
    OVERLOADED = 3
    NAMESPACE = 4  # nothing of that namespace is here
    FABRIC = 5  # that fabric is not offered, or did not take the introduction
    MALFORMED = 6
    DIRECTORY = 7  # no snapshot can be had


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to read payloads: the name of a fabric, and what it needs to be told."""

    fabric: str
    opaque: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    request_id: int
    host_id: bytes
    incarnation: bytes
    hash_version: int
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """`load`: leases under way, in thousandths of what is allowed. `stream_port`: where the directory is published, 0:
    nowhere."""

    request_id: int
    host_id: bytes
    incarnation: bytes
    hash_version: int
    stream_port: int
    load: int
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduce:
    request_id: int
    sender: bytes
    incarnation: bytes
    fabric: str
    introduction: bytes


@dataclass(frozen=True, slots=True)
class Introduced:
    request_id: int
    answer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """`bytes_max`: pin no more payload than that. `wait_ms`: how long blocks on SSD may take to be promoted."""

    request_id: int
    sender: bytes
    incarnation: bytes
    fingerprint: bytes
    lease_ms: int
    wait_ms: int
    bytes_max: int
    fabric: str
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pinned:
    """`rows`: ROW_FIELDS, one a key; `sums`: all their checksums. `lease_id` 0 when nothing is pinned."""

    request_id: int
    lease_id: int
    lease_ms: int
    load: int
    grant: bytes
    rows: Rows
    sums: NDArray[np.uint64]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pinned) and pack(self) == pack(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    request_id: int
    sender: bytes
    incarnation: bytes
    lease_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """`intact`: the lease had not ended before. `held`: a byte a pinned block, 1 when its generation is the same."""

    request_id: int
    lease_id: int
    intact: bool
    held: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    request_id: int
    sender: bytes
    incarnation: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    request_id: int
    number: int
    last: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    request_id: int
    reason: int
    text: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a message of ours. `request_id` 0 where even that cannot be told."""

    reason: str
    request_id: int = 0
    other_version: int = 0  # when that is why


Message: TypeAlias = "Hello | Welcome | Introduce | Introduced | Pin | Pinned | Release | Released | Snapshot | Chunk | Refused"


class _BodyError(Exception):
    """Inside `parse` only: what is wrong with a body."""


class _Reader:
    """Takes a body apart from its front; _BodyError when it is too short."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, nbytes: int) -> bytes:
        piece = self._body[self._at : self._at + nbytes]
        if len(piece) != nbytes:
            raise _BodyError(f"ends at byte {len(self._body)} of its body, inside a field")
        self._at += nbytes
        return piece

    def number(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def bounded(self, nbytes: int, most: int, what: str, least: int = 0) -> int:
        value = self.number(nbytes)
        if not least <= value <= most:
            raise _BodyError(f"says {value} {what}, expected {least} to {most}")
        return value

    def text(self, most: int) -> str:
        try:
            return self.take(self.bounded(1, most, "bytes of text")).decode()
        except UnicodeDecodeError:
            raise _BodyError("has text that is not UTF-8") from None

    def opaque(self, most: int = OPAQUE_BYTES_MAX) -> bytes:
        return self.take(self.bounded(2, most, "opaque bytes"))

    def keys(self, count: int) -> tuple[bytes, ...]:
        keys = []
        for _ in range(count):
            key = self.take(self.bounded(1, _KEY_BYTES_MOST, "bytes of a key", _KEY_BYTES_LEAST))
            if key[-4] or key[-3]:
                raise _BodyError(
                    f"has a key of group {int.from_bytes(key[-4:], 'big')}, expected below 65536"
                )
            keys.append(key)
        return tuple(keys)

    def rest(self, most: int) -> bytes:
        rest = self._body[self._at :]
        if len(rest) > most:
            raise _BodyError(f"has {len(rest)} bytes at its end, expected at most {most}")
        self._at = len(self._body)
        return rest

    def end(self) -> None:
        if self._at != len(self._body):
            raise _BodyError(f"has {len(self._body) - self._at} bytes behind its last field")


def pack(message: Message) -> bytes:
    """The frame of a message. ValueError for one that `parse` would not take."""
    kind, body = _PACKERS[type(message)](message)
    frame = _HEAD.pack(MAGIC, VERSION, kind, message.request_id) + body
    if len(frame) > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {len(frame)} bytes, at most {MESSAGE_BYTES_MAX}")
    return frame


def parse(frame: bytes) -> Message | Malformed:
    """What a frame says. Takes any bytes and never raises."""
    if len(frame) < _HEAD.size:
        return Malformed(
            f"a message has at least {_HEAD.size} bytes, this one has {len(frame)}: not sent by PegaShm"
        )
    magic, version, kind, request_id = _HEAD.unpack_from(frame)
    if magic != MAGIC:
        return Malformed(f"a message begins with {MAGIC!r}, this one with {magic!r}")
    if version != VERSION:
        return Malformed(
            f"this message has version {version}, this build reads version {VERSION}: run the same PegaShm on all "
            "hosts",
            request_id,
            version,
        )
    if len(frame) > MESSAGE_BYTES_MAX:
        return Malformed(
            f"a message has at most {MESSAGE_BYTES_MAX} bytes, this one has {len(frame)}",
            request_id,
        )
    parser = _PARSERS.get(kind)
    if parser is None:
        return Malformed(f"there is no message of type {kind} in version {VERSION}", request_id)
    reader = _Reader(frame[_HEAD.size :])
    try:
        message = parser(request_id, reader)
        reader.end()
    except _BodyError as bad:
        return Malformed(f"a {Type(kind).name} that {bad}", request_id)
    return message


# -- greeting ------------------------------------------------------------------------------------


def _pack_hello(message: Hello) -> tuple[Type, bytes]:
    return Type.HELLO, b"".join(
        (
            _fixed(message.host_id, 16),
            _fixed(message.incarnation, 16),
            _number(message.hash_version, 2),
            _text(message.address, _ADDRESS_BYTES_MAX),
        )
    )


def _parse_hello(request_id: int, reader: _Reader) -> Hello:
    return Hello(
        request_id=request_id,
        host_id=reader.take(16),
        incarnation=reader.take(16),
        hash_version=reader.number(2),
        address=reader.text(_ADDRESS_BYTES_MAX),
    )


def _pack_welcome(message: Welcome) -> tuple[Type, bytes]:
    if len(message.offers) > FABRICS_MAX:
        raise ValueError(f"{len(message.offers)} fabrics, at most {FABRICS_MAX}")
    parts = [
        _fixed(message.host_id, 16),
        _fixed(message.incarnation, 16),
        _number(message.hash_version, 2),
        _number(message.stream_port, 2),
        _number(message.load, 2),
        _number(len(message.offers), 1),
    ]
    for offer in message.offers:
        parts += (_text(offer.fabric, _NAME_BYTES_MAX), _opaque(offer.opaque))
    return Type.WELCOME, b"".join(parts)


def _parse_welcome(request_id: int, reader: _Reader) -> Welcome:
    return Welcome(
        request_id=request_id,
        host_id=reader.take(16),
        incarnation=reader.take(16),
        hash_version=reader.number(2),
        stream_port=reader.number(2),
        load=reader.number(2),
        offers=tuple(
            Offer(reader.text(_NAME_BYTES_MAX), reader.opaque())
            for _ in range(reader.bounded(1, FABRICS_MAX, "fabrics"))
        ),
    )


def _pack_introduce(message: Introduce) -> tuple[Type, bytes]:
    return Type.INTRODUCE, b"".join(
        (
            _fixed(message.sender, 16),
            _fixed(message.incarnation, 16),
            _text(message.fabric, _NAME_BYTES_MAX),
            _opaque(message.introduction),
        )
    )


def _parse_introduce(request_id: int, reader: _Reader) -> Introduce:
    return Introduce(
        request_id=request_id,
        sender=reader.take(16),
        incarnation=reader.take(16),
        fabric=reader.text(_NAME_BYTES_MAX),
        introduction=reader.opaque(),
    )


def _pack_introduced(message: Introduced) -> tuple[Type, bytes]:
    return Type.INTRODUCED, _opaque(message.answer)


def _parse_introduced(request_id: int, reader: _Reader) -> Introduced:
    return Introduced(request_id, reader.opaque())


# -- leases --------------------------------------------------------------------------------------


def _pack_pin(message: Pin) -> tuple[Type, bytes]:
    if not 1 <= len(message.keys) <= KEYS_MAX:
        raise ValueError(f"a PIN names 1 to {KEYS_MAX} keys, this one {len(message.keys)}")
    if not 1 <= message.lease_ms <= LEASE_MS_MAX or not 0 <= message.wait_ms <= LEASE_MS_MAX:
        raise ValueError(f"a lease of {message.lease_ms} ms after {message.wait_ms} ms")
    parts = [
        _fixed(message.sender, 16),
        _fixed(message.incarnation, 16),
        _fixed(message.fingerprint, 32),
        _number(message.lease_ms, 4),
        _number(message.wait_ms, 4),
        _number(message.bytes_max, 8),
        _text(message.fabric, _NAME_BYTES_MAX),
        _number(len(message.keys), 4),
    ]
    for key in message.keys:
        if not _KEY_BYTES_LEAST <= len(key) <= _KEY_BYTES_MOST or key[-4] or key[-3]:
            raise ValueError(f"{key!r} is no key: a hash of 1 to 32 bytes and a group below 65536")
        parts += (bytes((len(key),)), key)
    return Type.PIN, b"".join(parts)


def _parse_pin(request_id: int, reader: _Reader) -> Pin:
    return Pin(
        request_id=request_id,
        sender=reader.take(16),
        incarnation=reader.take(16),
        fingerprint=reader.take(32),
        lease_ms=reader.bounded(4, LEASE_MS_MAX, "ms of lease", 1),
        wait_ms=reader.bounded(4, LEASE_MS_MAX, "ms of waiting"),
        bytes_max=reader.number(8),
        fabric=reader.text(_NAME_BYTES_MAX),
        keys=reader.keys(reader.bounded(4, KEYS_MAX, "keys", 1)),
    )


def _pack_pinned(message: Pinned) -> tuple[Type, bytes]:
    if not 1 <= len(message.rows) <= KEYS_MAX:
        raise ValueError(f"a PINNED has 1 to {KEYS_MAX} rows, this one {len(message.rows)}")
    if problem := _rows_problem(message.rows, len(message.sums)):
        raise ValueError(f"a PINNED that {problem}")
    return Type.PINNED, b"".join(
        (
            _number(message.lease_id, 8),
            _number(message.lease_ms, 4),
            _number(message.load, 2),
            _opaque(message.grant, GRANT_BYTES_MAX),
            _number(len(message.rows), 4),
            message.rows.tobytes(),
            message.sums.astype("<u8").tobytes(),
        )
    )


def _parse_pinned(request_id: int, reader: _Reader) -> Pinned:
    lease_id, lease_ms, load = (
        reader.number(8),
        reader.bounded(4, LEASE_MS_MAX, "ms"),
        reader.number(2),
    )
    grant = reader.opaque(GRANT_BYTES_MAX)
    count = reader.bounded(4, KEYS_MAX, "rows", 1)
    rows = np.frombuffer(reader.take(count * ROW_FIELDS.itemsize), ROW_FIELDS)
    tail = reader.rest(count * PARTS_MAX * 8)
    if len(tail) % 8:
        raise _BodyError(f"has {len(tail)} bytes of checksums, expected a multiple of 8")
    if problem := _rows_problem(rows, len(tail) // 8):
        raise _BodyError(problem)
    return Pinned(
        request_id=request_id,
        lease_id=lease_id,
        lease_ms=lease_ms,
        load=load,
        grant=grant,
        rows=rows,
        sums=np.frombuffer(tail, "<u8").astype(np.uint64),
    )


def _rows_problem(rows: Rows, sum_count: int) -> str:
    """What is wrong with rows, in words that follow "a PINNED that"."""
    pinned = rows["outcome"] == Outcome.OK
    counts, nbytes = rows["sum_count"], rows["nbytes"]
    if int(rows["outcome"].max()) > max(Outcome):
        return f"has outcome {int(rows['outcome'].max())}, which does not exist"
    if (nbytes[pinned] == 0).any() or nbytes[~pinned].any() or counts[~pinned].any():
        return "has sizes or checksums of blocks that are not pinned, or no size of one that is"
    if int(counts.max()) > PARTS_MAX or int(counts.sum(dtype=np.int64)) != sum_count:
        return (
            f"has {sum_count} checksums where its rows speak of {int(counts.sum(dtype=np.int64))}"
        )
    summed = rows[counts != 0]
    most = summed["nbytes"] // np.maximum(summed["sum_count"], 1)
    if ((summed["sum_bytes"] == 0) | (summed["sum_bytes"] > most)).any():
        return "has checksums of parts that are larger than their block, or empty"
    if rows["reserved"].any():
        return "has reserved bytes that are not 0"
    return ""


def _pack_release(message: Release) -> tuple[Type, bytes]:
    return Type.RELEASE, b"".join(
        (
            _fixed(message.sender, 16),
            _fixed(message.incarnation, 16),
            _number(message.lease_id, 8),
        )
    )


def _parse_release(request_id: int, reader: _Reader) -> Release:
    return Release(
        request_id=request_id,
        sender=reader.take(16),
        incarnation=reader.take(16),
        lease_id=reader.number(8),
    )


def _pack_released(message: Released) -> tuple[Type, bytes]:
    if len(message.held) > KEYS_MAX or (message.held and max(message.held) > 1):
        raise ValueError(f"a RELEASED of {len(message.held)} blocks, a byte of 0 or 1 each")
    return Type.RELEASED, b"".join(
        (
            _number(message.lease_id, 8),
            _number(int(message.intact), 1),
            _number(len(message.held), 4),
            message.held,
        )
    )


def _parse_released(request_id: int, reader: _Reader) -> Released:
    lease_id = reader.number(8)
    intact = bool(reader.bounded(1, 1, "as a flag"))
    held = reader.take(reader.bounded(4, KEYS_MAX, "blocks"))
    if held and max(held) > 1:
        raise _BodyError(f"has {max(held)} as a flag, expected 0 or 1")
    return Released(request_id=request_id, lease_id=lease_id, intact=intact, held=held)


# -- directory and refusals ----------------------------------------------------------------------


def _pack_snapshot(message: Snapshot) -> tuple[Type, bytes]:
    return Type.SNAPSHOT, _fixed(message.sender, 16) + _fixed(message.incarnation, 16)


def _parse_snapshot(request_id: int, reader: _Reader) -> Snapshot:
    return Snapshot(request_id, reader.take(16), reader.take(16))


def _pack_chunk(message: Chunk) -> tuple[Type, bytes]:
    if len(message.body) > CHUNK_BYTES_MAX:
        raise ValueError(f"a CHUNK of {len(message.body)} bytes, at most {CHUNK_BYTES_MAX}")
    head = _number(message.number, 4) + _number(int(message.last), 1)
    return Type.CHUNK, head + message.body


def _parse_chunk(request_id: int, reader: _Reader) -> Chunk:
    number = reader.number(4)
    last = bool(reader.bounded(1, 1, "as a flag"))
    return Chunk(request_id=request_id, number=number, last=last, body=reader.rest(CHUNK_BYTES_MAX))


def _pack_refused(message: Refused) -> tuple[Type, bytes]:
    return Type.REFUSED, _number(message.reason, 2) + message.text.encode()[:_TEXT_BYTES_MAX]


def _parse_refused(request_id: int, reader: _Reader) -> Refused:
    reason = reader.number(2)
    return Refused(request_id, reason, reader.rest(_TEXT_BYTES_MAX).decode(errors="replace"))


# -- fields --------------------------------------------------------------------------------------


def _fixed(value: bytes, nbytes: int) -> bytes:
    if len(value) != nbytes:
        raise ValueError(f"a field of {nbytes} bytes, got {len(value)}")
    return bytes(value)


def _number(value: int, nbytes: int) -> bytes:
    try:
        return int(value).to_bytes(nbytes, "little")
    except OverflowError:
        raise ValueError(f"{value} does not fit in {nbytes} bytes") from None


def _text(value: str, most: int) -> bytes:
    text = value.encode()
    if len(text) > most:
        raise ValueError(f"{value!r} has {len(text)} bytes, at most {most}")
    return bytes((len(text),)) + text


def _opaque(value: bytes, most: int = OPAQUE_BYTES_MAX) -> bytes:
    if len(value) > most:
        raise ValueError(f"{len(value)} opaque bytes, at most {most}")
    return _number(len(value), 2) + value


_PACKERS: Final[dict[type, Callable[[Any], tuple[Type, bytes]]]] = {
    Hello: _pack_hello,
    Welcome: _pack_welcome,
    Introduce: _pack_introduce,
    Introduced: _pack_introduced,
    Pin: _pack_pin,
    Pinned: _pack_pinned,
    Release: _pack_release,
    Released: _pack_released,
    Snapshot: _pack_snapshot,
    Chunk: _pack_chunk,
    Refused: _pack_refused,
}
_PARSERS: Final[dict[int, Callable[[int, _Reader], Message]]] = {
    Type.HELLO: _parse_hello,
    Type.WELCOME: _parse_welcome,
    Type.INTRODUCE: _parse_introduce,
    Type.INTRODUCED: _parse_introduced,
    Type.PIN: _parse_pin,
    Type.PINNED: _parse_pinned,
    Type.RELEASE: _parse_release,
    Type.RELEASED: _parse_released,
    Type.SNAPSHOT: _parse_snapshot,
    Type.CHUNK: _parse_chunk,
    Type.REFUSED: _parse_refused,
}


def sums_of(pinned: Pinned) -> list[Sequence[int]]:
    """The checksums of each row, in order."""
    ends = np.cumsum(pinned.rows["sum_count"], dtype=np.int64).tolist()
    sums = pinned.sums.tolist()
    return [sums[start:end] for start, end in zip([0, *ends], ends, strict=False)]
