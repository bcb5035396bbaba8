"""How do engines tell a recorder what their requests ask for, without ever waiting for it?

By a file in /dev/shm beside the arena, which `pegashm trace record` makes and locks. An engine looks for it once in two seconds; while it is there, and its maker lives, the
engine appends one record for each request: one write to memory, of at most 16 bytes a block. The recorder reads behind it and gives the memory back. When the recorder
is slower than the engines, the file reaches its bound, and engines leave requests out and count them. When it dies, its lock ends and engines stop.

Records of several engines come in whole, in the order of their writes (O_APPEND). One that was cut short (its writer was killed, or /dev/shm is full) does not check; the
reader goes on at the next that does. What is told of a key is the first half of its hash: enough to tell blocks apart, as private as the arena it lies beside.
A file that belongs to somebody else than the arena's owner, or root, is not written to. Layout, little-endian:

  0  4 magic "PGTR"     4  4 bytes, all of it     8  4 CRC-32 of what follows     12  4 requests left out before this one
 16  8 realtime, ns    24  4 tokens of its blocks    28  4 bytes of a block in the arena    32  4 blocks    36  4 KV group    40 32 fingerprint    72  16 each: keys, in order
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pegashm.errors import ArenaBusyError, PegaShmError
from pegashm.liveness import close_lock_file, holder_alive, open_guarded, try_lock
from pegashm.names import control_path, trace_path

__all__ = ["SPOOL_BYTES", "Asked", "Spool", "Tracer"]

SPOOL_BYTES: Final = 64 << 20
_MAGIC: Final = b"PGTR"
_HEAD: Final = struct.Struct("<4sIIIQIIII32s")
_CHECKED_FROM: Final = 12
_KEY_BYTES: Final = 16
_BLOCKS_MOST: Final = 1 << 20
_RECORDER_BYTE: Final = 1 << 40  # beyond the end of any file
_LOOK_EVERY_SECONDS: Final = 2.0
_READ_BYTES: Final = 1 << 20
_PUNCH_HOLE_KEEP_SIZE: Final = 3
_BLOCK: Final = 512  # what st_blocks counts in


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `keys`: 16 bytes of each block's hash, the prefix in order; `lost`: requests before it that its engine left out."""

    at_ns: int
    tokens: int
    block_bytes: int
    group: int
    fingerprint: bytes
    keys: tuple[bytes, ...]
    lost: int = 0

    def pack(self) -> bytes:
        body = b"".join(key[:_KEY_BYTES].ljust(_KEY_BYTES, b"\0") for key in self.keys)
        size = _HEAD.size + len(body)
        head = _HEAD.pack(
            _MAGIC, size, 0, self.lost, self.at_ns, self.tokens, self.block_bytes, len(self.keys), self.group, self.fingerprint
        )  # fmt: skip
        record = bytearray(head + body)
        struct.pack_into("<I", record, 8, zlib.crc32(memoryview(record)[_CHECKED_FROM:]))
        return bytes(record)


class Tracer:
    """An engine's side. Used by one thread; `saw` neither waits nor raises."""

    def __init__(self, name: str, block_bytes: int) -> None:
        self._name = name
        self._block_bytes = block_bytes
        self._descriptor: int | None = None
        self._look_at = 0.0
        self._lost = 0

    @property
    def on(self) -> bool:
        """Whether somebody records: asked at most once in two seconds."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_SECONDS
            self._look()
        return self._descriptor is not None

    def saw(self, keys: Sequence[bytes], *, fingerprint: bytes, tokens: int, group: int) -> None:
        """A request asks for these blocks, its whole prefix in order."""
        if not self.on or not keys:
            return
        asked = Asked(
            time.time_ns(), tokens, self._block_bytes, group, fingerprint, tuple(keys[:_BLOCKS_MOST]), min(self._lost, 0xFFFFFFFF)
        )  # fmt: skip
        self._lost = 0 if self._append(asked.pack()) else self._lost + 1

    def close(self) -> None:
        if self._descriptor is not None:
            close_lock_file(self._descriptor)
            self._descriptor = None

    def _append(self, record: bytes) -> bool:
        assert self._descriptor is not None
        try:
            if os.fstat(self._descriptor).st_blocks * _BLOCK + len(record) > SPOOL_BYTES:
                return False
            return os.write(self._descriptor, record) == len(record)
        except OSError:
            return False

    def _look(self) -> None:
        path = trace_path(self._name)
        try:
            if self._descriptor is not None:
                named, opened = os.stat(path), os.fstat(self._descriptor)
                if os.path.samestat(named, opened) and holder_alive(
                    self._descriptor, _RECORDER_BYTE
                ):
                    return
                self.close()
            descriptor = open_guarded(
                path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError:  # nobody records
            self.close()
            return
        if not _is_trusted(self._name, descriptor) or not holder_alive(descriptor, _RECORDER_BYTE):
            close_lock_file(descriptor)
            return
        self._descriptor = descriptor


class Spool:
    """The recorder's side: the file, its lock, and what has come into it."""

    def __init__(self, name: str) -> None:
        """Make it; what a dead recorder left is replaced. ArenaBusyError when a living one records this arena."""
        path = trace_path(name)
        facts = os.stat(control_path(name))
        for _ in range(2):
            self._descriptor = open_guarded(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            if not try_lock(self._descriptor, _RECORDER_BYTE):
                close_lock_file(self._descriptor)
                raise ArenaBusyError(
                    f'somebody records arena "{name}" already: stop that `pegashm trace record` first'
                )
            if not os.fstat(self._descriptor).st_size:
                break
            os.unlink(path)
            close_lock_file(self._descriptor)
        else:
            raise PegaShmError(f"{path} is written to by somebody else")
        self._path, self._read_to, self._rest = path, 0, b""
        self.damaged_bytes = 0
        with contextlib.suppress(OSError):  # as the arena: who may use that may leave requests here
            os.fchown(self._descriptor, facts.st_uid, facts.st_gid)
            os.fchmod(self._descriptor, facts.st_mode & 0o660)

    def take(self) -> Iterator[Asked]:
        """What has come since the last call, and the memory of it is given back."""
        while data := os.pread(self._descriptor, _READ_BYTES, self._read_to):
            self._read_to += len(data)
            self._rest += data
            yield from self._parsed()
            self._give_back()

    def close(self) -> None:
        """Remove it; engines notice within two seconds."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        close_lock_file(self._descriptor)

    def __enter__(self) -> Spool:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _parsed(self) -> Iterator[Asked]:
        data, at = self._rest, 0
        while True:
            start = data.find(_MAGIC, at)
            if start < 0:
                keep = max(at, len(data) - len(_MAGIC) + 1)  # its beginning may be there
                self.damaged_bytes += keep - at
                break
            self.damaged_bytes += start - at
            keep = start
            size = _size(data, start)
            if size is None or size > len(data) - start:
                break  # the rest of it has not been read yet
            asked = _checked(data, start, size)
            if asked is None:
                self.damaged_bytes += 1
                at = start + 1
                continue
            yield asked
            keep = at = start + size
        self._rest = data[keep:]

    def _give_back(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        libc.fallocate(self._descriptor, _PUNCH_HOLE_KEEP_SIZE, 0, self._read_to)


def _size(data: bytes, start: int) -> int | None:
    """How long the record at `start` says it is; 0 for what none can be, None while its head is not all there."""
    if len(data) - start < _HEAD.size:
        return None
    size, count = (
        struct.unpack_from("<I", data, start + 4)[0],
        struct.unpack_from("<I", data, start + 32)[0],
    )
    possible = 1 <= count <= _BLOCKS_MOST and size == _HEAD.size + count * _KEY_BYTES
    return int(size) if possible else 0


def _checked(data: bytes, start: int, size: int) -> Asked | None:
    if not size:
        return None
    record = memoryview(data)[start : start + size]
    _, _, crc, lost, at_ns, tokens, block_bytes, count, group, fingerprint = _HEAD.unpack_from(
        record
    )
    if zlib.crc32(record[_CHECKED_FROM:]) != crc:
        return None
    body = bytes(record[_HEAD.size :])
    keys = tuple(body[place * _KEY_BYTES : (place + 1) * _KEY_BYTES] for place in range(count))
    return Asked(at_ns, tokens, block_bytes, group, fingerprint, keys, lost)


def _is_trusted(name: str, descriptor: int) -> bool:
    """Keys are told to the arena's owner or root only: /dev/shm is everybody's to make files in."""
    try:
        owner = os.stat(control_path(name)).st_uid
    except OSError:
        return False
    return os.fstat(descriptor).st_uid in (owner, 0)
