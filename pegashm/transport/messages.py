"""What do engines and the transport worker say to each other, byte by byte?

One frame a message, little-endian: magic "PGSM", version u16, type u16, request id u64, then the body. PROMOTE asks
for blocks on SSD to be brought into memory; DONE answers, an outcome a key; PING and PONG tell whether somebody
listens; ERROR says why a message was not understood. Nothing is pickled. `parse` takes any bytes whatever and never
raises: what is not a message of ours is a `Malformed` that says so, naming both versions where that is the reason.

| type | body |
|---|---|
| 1 PROMOTE | region id 16, namespace id u32, deadline u32 (ms from now), count u32, then per key: bytes u8, key (hash and 4 bytes of group) |
| 2 DONE | count u32, then an `Answer` byte each |
| 3 PING | nothing |
| 4 PONG | pid u64, started at u64 (ns, realtime) |
| 5 ERROR | text, UTF-8, to the end of the frame |

Pure functions, called by `client.py` on the engine's side and by `worker.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

__all__ = [
    "KEYS_MAX",
    "MESSAGE_BYTES_MAX",
    "VERSION",
    "Answer",
    "Done",
    "Error",
    "Malformed",
    "Message",
    "Ping",
    "Pong",
    "Promote",
    "pack",
    "parse",
]

MAGIC: Final = b"PGSM"
VERSION: Final = 1
KEYS_MAX: Final = 16384
MESSAGE_BYTES_MAX: Final = 1 << 20
_TEXT_BYTES_MAX: Final = 1024
_KEY_BYTES_LEAST: Final = 1 + 4  # a hash of one byte, and the group
_KEY_BYTES_MOST: Final = 32 + 4

_HEAD: Final = struct.Struct("<4sHHQ")
_PROMOTE: Final = struct.Struct("<16sIII")
_DONE: Final = struct.Struct("<I")
_PONG: Final = struct.Struct("<QQ")


class Type(IntEnum):
    PROMOTE = 1
    DONE = 2
    PING = 3
    PONG = 4
    ERROR = 5


class Answer(IntEnum):
    """What became of one key of a PROMOTE."""

    OK = 0  # in memory now
    MISSING = 1  # not on SSD, or not any more
    NO_SPACE = 2  # memory is full of what may not be evicted
    OVERLOADED = 3  # more is asked for than can be read: ask nobody again for this request
    FAILED = 4  # the device or the host did not give it
    LATE = 5  # the deadline passed first
    PENDING = 6  # somebody else is writing this very block to memory: it will be there, or not
    LOST = 7  # said by the client itself: the worker ended or changed before it answered
    DAMAGED = 8  # it gave other bytes than were written


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    request_id: int
    region_id: bytes
    namespace_id: int
    deadline_ms: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """`outcomes`: an Answer a key, in the order of the keys asked for."""

    request_id: int
    outcomes: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    request_id: int


@dataclass(frozen=True, slots=True)
class Pong:
    request_id: int
    pid: int
    started_at_ns: int


@dataclass(frozen=True, slots=True)
class Error:
    request_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a message of ours. `request_id` 0 where even that cannot be told."""

    reason: str
    request_id: int = 0


Message: TypeAlias = "Promote | Done | Ping | Pong | Error"


def pack(message: Message) -> bytes:
    """The frame of a message. ValueError for one that `parse` would not take."""
    if isinstance(message, Promote):
        return _pack_promote(message)
    if isinstance(message, Done):
        if len(message.outcomes) > KEYS_MAX:
            raise ValueError(f"{len(message.outcomes)} outcomes, at most {KEYS_MAX}")
        body = _DONE.pack(len(message.outcomes)) + message.outcomes
        return _head(Type.DONE, message.request_id) + body
    if isinstance(message, Ping):
        return _head(Type.PING, message.request_id)
    if isinstance(message, Pong):
        return _head(Type.PONG, message.request_id) + _PONG.pack(message.pid, message.started_at_ns)
    text = message.text.encode()[:_TEXT_BYTES_MAX]
    return _head(Type.ERROR, message.request_id) + text


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
            f"this message has version {version}, this build reads version {VERSION}: run the same PegaShm in "
            "engines and supervisor",
            request_id,
        )
    if len(frame) > MESSAGE_BYTES_MAX:
        return Malformed(
            f"a message has at most {MESSAGE_BYTES_MAX} bytes, this one has {len(frame)}",
            request_id,
        )
    body = frame[_HEAD.size :]
    if kind == Type.PROMOTE:
        return _parse_promote(request_id, body)
    if kind == Type.DONE:
        return _parse_done(request_id, body)
    if kind == Type.PING and not body:
        return Ping(request_id)
    if kind == Type.PONG and len(body) == _PONG.size:
        return Pong(request_id, *_PONG.unpack(body))
    if kind == Type.ERROR and len(body) <= _TEXT_BYTES_MAX:
        return Error(request_id, body.decode(errors="replace"))
    return Malformed(
        f"there is no message of type {kind} with {len(body)} bytes in version {VERSION}",
        request_id,
    )


def _head(kind: Type, request_id: int) -> bytes:
    return _HEAD.pack(MAGIC, VERSION, kind, request_id)


def _pack_promote(message: Promote) -> bytes:
    if not 1 <= len(message.keys) <= KEYS_MAX:
        raise ValueError(f"a request names 1 to {KEYS_MAX} keys, this one {len(message.keys)}")
    parts = [
        _head(Type.PROMOTE, message.request_id),
        _PROMOTE.pack(
            message.region_id, message.namespace_id, message.deadline_ms, len(message.keys)
        ),
    ]
    for key in message.keys:
        if _key_problem(key):
            raise ValueError(_key_problem(key))
        parts += (bytes((len(key),)), key)
    return b"".join(parts)


def _parse_promote(request_id: int, body: bytes) -> Promote | Malformed:
    if len(body) < _PROMOTE.size:
        return Malformed("a PROMOTE that ends inside its head", request_id)
    region_id, namespace_id, deadline_ms, count = _PROMOTE.unpack_from(body)
    if not 1 <= count <= KEYS_MAX:
        return Malformed(f"a PROMOTE of {count} keys, expected 1 to {KEYS_MAX}", request_id)
    keys = _parse_keys(body, _PROMOTE.size, count)
    if isinstance(keys, str):
        return Malformed(keys, request_id)
    return Promote(
        request_id=request_id,
        region_id=region_id,
        namespace_id=namespace_id,
        deadline_ms=deadline_ms,
        keys=keys,
    )


def _parse_keys(body: bytes, at: int, count: int) -> tuple[bytes, ...] | str:
    """The keys, or what is wrong with them. Exactly to the end of the body."""
    keys: list[bytes] = []
    for _ in range(count):
        if at >= len(body):
            return f"a PROMOTE that ends after {len(keys)} of {count} keys"
        nbytes = body[at]
        key = body[at + 1 : at + 1 + nbytes]
        if len(key) != nbytes:
            return f"a PROMOTE that ends inside key {len(keys)}"
        if problem := _key_problem(key):
            return problem
        keys.append(key)
        at += 1 + nbytes
    if at != len(body):
        return f"a PROMOTE with {len(body) - at} bytes behind its last key"
    return tuple(keys)


def _key_problem(key: bytes) -> str:
    if not _KEY_BYTES_LEAST <= len(key) <= _KEY_BYTES_MOST:
        return f"a key has {_KEY_BYTES_LEAST} to {_KEY_BYTES_MOST} bytes, this one {len(key)}"
    if key[-4] or key[-3]:
        return f"a key's group is below 65536, this one's is {int.from_bytes(key[-4:], 'big')}"
    return ""


def _parse_done(request_id: int, body: bytes) -> Done | Malformed:
    if len(body) < _DONE.size:
        return Malformed("a DONE that ends inside its head", request_id)
    (count,) = _DONE.unpack_from(body)
    outcomes = body[_DONE.size :]
    if count != len(outcomes) or count > KEYS_MAX:
        return Malformed(f"a DONE of {count} outcomes with {len(outcomes)} bytes", request_id)
    if outcomes and max(outcomes) > max(Answer):
        return Malformed(f"a DONE with outcome {max(outcomes)}, which does not exist", request_id)
    return Done(request_id, outcomes)


def keys_of(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    """Keys as a PROMOTE carries them: engines use subclasses of bytes."""
    return tuple(map(bytes, keys))
