"""Which bytes do the two sides of this fabric tell each other, and what is accepted?

Four messages, carried by an authenticated channel that knows nothing of them; little-endian, a tag of four bytes with the version
in its last, every count, length and range checked. What is not such a message is a ValueError.

| message | fields after the tag |
|---|---|
| offer "PGV\\1" | fabric id 16, devices u8, each: address (below) |
| introduction "PGJ\\1" | fabric id 16, connection u64, living connections u8, each u64; rails u8, each: device there u8, address, end |
| answer "PGA\\1" | connection u64, payload address u64, payload bytes u64, rails u8, each: end, probe address u64, probe rkey u32 |
| grant "PGG\\1" | lease u64, tables u8, each: connection u64, rows u16, rows: first page u32, pages - 1 u16, rail u8, 0 u8, rkey u32; at the end CRC-32 of all before |

address: GID 16, LID u16, NUMA node i16, MTU u8 (1..5: 256..4096 bytes), READs in flight u8 (what the device serves / sends), 0 u16
end: queue pair number u32 (24 bits), first packet number u32 (24 bits)

The CRC keeps a damaged grant from costing the connection; who forges one gets no further than its rkeys do.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from pegashm.fabric.interface import OPAQUE_BYTES_MAX
from pegashm.fabric.verbs_memory import PAGE_BYTES

__all__ = [
    "CONNECTIONS_MAX",
    "RAILS_MAX",
    "Address",
    "Answer",
    "AnswerRail",
    "End",
    "Introduction",
    "IntroductionRail",
    "Offer",
    "Row",
    "pack_answer",
    "pack_grant",
    "pack_introduction",
    "pack_offer",
    "parse_answer",
    "parse_grant",
    "parse_introduction",
    "parse_offer",
]

RAILS_MAX: Final = 16
CONNECTIONS_MAX: Final = 8

_OFFER, _INTRODUCTION, _ANSWER, _GRANT = b"PGV\1", b"PGJ\1", b"PGA\1", b"PGG\1"
_NAMES: Final = {
    _OFFER: "an offer",
    _INTRODUCTION: "an introduction",
    _ANSWER: "an answer",
    _GRANT: "a grant",
}
_ADDRESS: Final = struct.Struct("<16sHhBBH")
_ADDRESS_REST: Final = struct.Struct("<HhBBH")  # after the GID
_END: Final = struct.Struct("<II")
_ROW: Final = struct.Struct("<IHBBI")
_PROBE: Final = struct.Struct("<QI")
_U8, _U16, _U32, _U64 = (struct.Struct(f"<{size}") for size in "BHIQ")


class Address(NamedTuple):
    """How a port is reached, and what it can."""

    gid: bytes
    lid: int
    node: int
    mtu: int
    reads: int


class End(NamedTuple):
    """One side's queue pair."""

    number: int
    packet: int


class Offer(NamedTuple):
    fabric_id: bytes
    devices: tuple[Address, ...]


class IntroductionRail(NamedTuple):
    device: int  # index in the offer
    address: Address
    end: End


class Introduction(NamedTuple):
    fabric_id: bytes
    connection: int
    living: tuple[int, ...]
    rails: tuple[IntroductionRail, ...]


class AnswerRail(NamedTuple):
    end: End
    probe_address: int
    probe_rkey: int


class Answer(NamedTuple):
    connection: int
    payload_address: int
    payload_bytes: int
    rails: tuple[AnswerRail, ...]


class Row(NamedTuple):
    """A span of the serving payload, in whole pages, and the key that opens it over one rail."""

    offset: int
    nbytes: int
    rail: int
    rkey: int


class _Reader:
    """Takes fields from the front; a ValueError where they end too early or too late."""

    def __init__(self, data: bytes, tag: bytes, *, most: int) -> None:
        self._data, self._at, self._what = data, 4, _NAMES[tag]
        if len(data) > most:
            raise ValueError(f"{self._what} of verbs has at most {most} bytes, got {len(data)}")
        if data[:3] != tag[:3]:
            raise ValueError(f"not {self._what} of verbs: it begins with {data[:4]!r}")
        if data[:4] != tag:
            raise ValueError(
                f"{self._what} of verbs in version {data[3:4].hex()}, this build reads {tag[3:].hex()}"
            )

    def take(self, shape: struct.Struct) -> tuple[int, ...]:
        try:
            fields = shape.unpack_from(self._data, self._at)
        except struct.error:
            raise ValueError(
                f"{self._what} of verbs is cut short: {len(self._data)} bytes"
            ) from None
        self._at += shape.size
        return fields

    def take_bytes(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError(f"{self._what} of verbs is cut short: {len(self._data)} bytes")
        self._at += count
        return taken

    def count(self, shape: struct.Struct, least: int, most: int) -> int:
        return self.within(self.take(shape)[0], least, most, "items")

    def within(self, value: int, least: int, most: int, what: str) -> int:
        if not least <= value <= most:
            raise ValueError(
                f"{self._what} of verbs says {value} {what}, expected {least} to {most}"
            )
        return value

    def address(self) -> Address:
        gid = self.take_bytes(16)
        lid, node, mtu, reads, _ = self.take(_ADDRESS_REST)
        self.within(mtu, 1, 5, "as MTU")
        self.within(reads, 1, 255, "READs in flight")
        return Address(gid, lid, node, mtu, reads)

    def end(self) -> End:
        number, packet = self.take(_END)
        self.within(number, 1, (1 << 24) - 1, "as queue pair")
        self.within(packet, 0, (1 << 24) - 1, "as packet number")
        return End(number, packet)

    def over(self, left: int = 0) -> None:
        if self._at + left != len(self._data):
            raise ValueError(
                f"{self._what} of verbs has {len(self._data) - self._at - left} bytes too many"
            )


def _pack_address(address: Address) -> bytes:
    return _ADDRESS.pack(*address, 0)


def pack_offer(offer: Offer) -> bytes:
    parts = [_OFFER, offer.fabric_id, bytes([len(offer.devices)])]
    return b"".join(parts + [_pack_address(device) for device in offer.devices])


def parse_offer(data: bytes) -> Offer:
    reader = _Reader(data, _OFFER, most=OPAQUE_BYTES_MAX)
    fabric_id = reader.take_bytes(16)
    devices = tuple(reader.address() for _ in range(reader.count(_U8, 1, RAILS_MAX)))
    reader.over()
    return Offer(fabric_id, devices)


def pack_introduction(introduction: Introduction) -> bytes:
    parts = [_INTRODUCTION, introduction.fabric_id, _U64.pack(introduction.connection)]
    parts.append(bytes([len(introduction.living)]))
    parts += [_U64.pack(number) for number in introduction.living]
    parts.append(bytes([len(introduction.rails)]))
    for rail in introduction.rails:
        parts += [bytes([rail.device]), _pack_address(rail.address), _END.pack(*rail.end)]
    return b"".join(parts)


def parse_introduction(data: bytes) -> Introduction:
    reader = _Reader(data, _INTRODUCTION, most=OPAQUE_BYTES_MAX)
    fabric_id = reader.take_bytes(16)
    (connection,) = reader.take(_U64)
    living = tuple(reader.take(_U64)[0] for _ in range(reader.count(_U8, 0, CONNECTIONS_MAX - 1)))
    rails = []
    for _ in range(reader.count(_U8, 1, RAILS_MAX)):
        (device,) = reader.take(_U8)
        rails.append(IntroductionRail(device, reader.address(), reader.end()))
    reader.over()
    return Introduction(fabric_id, connection, living, tuple(rails))


def pack_answer(answer: Answer) -> bytes:
    parts = [_ANSWER, _U64.pack(answer.connection), _U64.pack(answer.payload_address)]
    parts += [_U64.pack(answer.payload_bytes), bytes([len(answer.rails)])]
    for rail in answer.rails:
        parts += [_END.pack(*rail.end), _PROBE.pack(rail.probe_address, rail.probe_rkey)]
    return b"".join(parts)


def parse_answer(data: bytes) -> Answer:
    reader = _Reader(data, _ANSWER, most=OPAQUE_BYTES_MAX)
    connection, payload_address, payload_bytes = (reader.take(_U64)[0] for _ in range(3))
    if not 0 < payload_bytes <= (1 << 64) - payload_address:
        raise ValueError(f"an answer of verbs has a payload of {payload_bytes} bytes")
    count = reader.count(_U8, 1, RAILS_MAX)
    rails = tuple(AnswerRail(reader.end(), *reader.take(_PROBE)) for _ in range(count))
    reader.over()
    return Answer(connection, payload_address, payload_bytes, rails)


def pack_grant(lease_id: int, tables: Sequence[tuple[int, Sequence[Row]]], *, most: int) -> bytes:
    """A grant of at most `most` bytes: what does not fit is left out, table by table. ValueError when the first does not."""
    head = _GRANT + _U64.pack(lease_id)
    body: list[bytes] = []
    room = most - len(head) - 1 - 4
    for connection, rows in tables:
        size = _U64.size + _U16.size + len(rows) * _ROW.size
        if size > room or len(rows) >= 1 << 16:
            if not body:
                raise ValueError(
                    f"the lease's blocks lie in {len(rows)} separate spans, a grant of {most} bytes has room for "
                    f"{max(0, (room - 10) // _ROW.size)}: lease fewer blocks at once"
                )
            break
        room -= size
        packed = b"".join(
            _ROW.pack(offset // PAGE_BYTES, nbytes // PAGE_BYTES - 1, rail, 0, rkey)
            for offset, nbytes, rail, rkey in rows
        )
        body.append(_U64.pack(connection) + _U16.pack(len(rows)) + packed)
    whole = head + bytes([len(body)]) + b"".join(body)
    return whole + _U32.pack(zlib.crc32(whole))


def parse_grant(data: bytes, lease_id: int, *, connection: int, most: int) -> list[Row]:
    """The rows for one connection, by offset; none when the grant has none for it."""
    reader = _Reader(data, _GRANT, most=most)
    if len(data) < 17 or _U32.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
        raise ValueError("a grant of verbs is damaged: its checksum is not that of its bytes")
    if reader.take(_U64)[0] != lease_id:
        raise ValueError("a grant of verbs belongs to another lease")
    found: list[Row] = []
    for _ in range(reader.count(_U8, 0, CONNECTIONS_MAX)):
        (number,) = reader.take(_U64)
        rows = reader.take_bytes(reader.take(_U16)[0] * _ROW.size)
        if number == connection:
            found = [
                Row(page * PAGE_BYTES, (pages + 1) * PAGE_BYTES, rail, rkey)
                for page, pages, rail, _, rkey in _ROW.iter_unpack(rows)
            ]
    reader.over(4)
    end = 0
    for row in found:
        if row.offset < end or row.rail >= RAILS_MAX:
            raise ValueError("a grant of verbs has rows out of order")
        end = row.offset + row.nbytes
    return found
