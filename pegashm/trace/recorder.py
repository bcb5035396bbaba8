"""How does live traffic become a trace that can be shared? Requests of all engines, in the order in which they came, with names that say nothing.

A line a request: `timestamp` (ms since the first), `input_length` (tokens of its whole blocks), `hash_ids`, `block_tokens`, `block_bytes`. An id is a keyed BLAKE2b of
namespace and key, cut to 53 bits so that every JSON reader has it exactly: equal ids are equal blocks, and without the salt, which is thrown away, nobody can tell whether
a text that he knows is among them. With a salt of one's own (a file), traces of several hosts or days go together.

What is not in it: prompts shorter than a block, requests whose blocks the engine had all in its own cache (the connector is not asked about these), output.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, TextIO

from pegashm.arena import open_arena
from pegashm.errors import ConfigError
from pegashm.trace.spool import Asked, Spool

__all__ = ["Limits", "Recorded", "record", "salt_of"]

SALT_BYTES: Final = 32
_POLL_SECONDS: Final = 0.2
_ID_BITS: Final = 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to end by itself; None: not."""

    seconds: float | None = None
    requests: int | None = None
    file_bytes: int | None = None


@dataclass(slots=True)
class Recorded:
    """What came of it. `lost`: requests that engines left out; `gone`: the arena was purged meanwhile."""

    requests: int = 0
    blocks: int = 0
    lost: int = 0
    damaged_bytes: int = 0
    file_bytes: int = 0
    seconds: float = 0.0
    gone: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def salt_of(path: str | None) -> bytes:
    """Random, or what is in a file of at least 16 bytes."""
    if path is None:
        return os.urandom(SALT_BYTES)
    try:
        with open(path, "rb") as file:
            salt = file.read(4096)
    except OSError as error:
        raise ConfigError(f"cannot read the salt {path}: {error.strerror}") from error
    if len(salt) < 16:
        raise ConfigError(
            f"{path} has {len(salt)} bytes, a salt has at least 16: head -c 32 /dev/urandom > {path}"
        )
    return hashlib.blake2b(salt, digest_size=SALT_BYTES).digest()


def record(
    name: str,
    out: TextIO,
    *,
    salt: bytes,
    limits: Limits,
    wait: Callable[[float], bool],
    tick: Callable[[Recorded], None] = lambda so_far: None,
) -> Recorded:
    """Record until a limit, or until `wait` (which sleeps) says that it is enough. Raises ArenaMissingError, ArenaBusyError."""
    so_far, began = Recorded(), time.monotonic()
    with open_arena(name, writable=False, map_payload=False) as arena, Spool(name) as spool:
        lines = _Lines(out, salt)
        ended = False
        while not ended:
            ended = wait(_POLL_SECONDS)
            so_far.seconds = time.monotonic() - began
            ended = ended or (limits.seconds is not None and so_far.seconds >= limits.seconds)
            for asked in spool.take():
                so_far.lost += asked.lost
                so_far.file_bytes += lines.write(asked)
                so_far.requests += 1
                so_far.blocks += len(asked.keys)
                if _reached(limits, so_far):
                    ended = True
                    break
            so_far.damaged_bytes = spool.damaged_bytes
            out.flush()
            tick(so_far)
            if not arena.is_linked():
                so_far.gone = ended = True
    return so_far


def _reached(limits: Limits, so_far: Recorded) -> bool:
    return (limits.requests is not None and so_far.requests >= limits.requests) or (
        limits.file_bytes is not None and so_far.file_bytes >= limits.file_bytes
    )


class _Lines:
    """Requests as lines of a trace."""

    def __init__(self, out: TextIO, salt: bytes) -> None:
        self._out = out
        self._salt = salt
        self._first_ns: int | None = None
        self._namespaces: dict[tuple[bytes, int], bytes] = {}

    def write(self, asked: Asked) -> int:
        if self._first_ns is None:
            self._first_ns = asked.at_ns
        row = {
            "timestamp": max(0, asked.at_ns - self._first_ns) // 1_000_000,
            "input_length": asked.tokens,
            "hash_ids": self._ids(asked),
            "block_tokens": asked.tokens // len(asked.keys),
            "block_bytes": asked.block_bytes,
        }
        line = json.dumps(row, separators=(",", ":")) + "\n"
        self._out.write(line)
        return len(line)

    def _ids(self, asked: Asked) -> list[int]:
        whose = (asked.fingerprint, asked.group)
        salt = self._namespaces.get(whose)
        if salt is None:
            text = asked.fingerprint + asked.group.to_bytes(4, "big")
            salt = hashlib.blake2b(text, key=self._salt, digest_size=32).digest()
            self._namespaces[whose] = salt
        return [
            int.from_bytes(hashlib.blake2b(key, key=salt, digest_size=8).digest(), "big")
            >> (64 - _ID_BITS)
            for key in asked.keys
        ]
