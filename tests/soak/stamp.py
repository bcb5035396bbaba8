"""Which bytes belong in a block, so that any wrong one shows?

A payload says what it is: key, namespace, length and a nonce of its writer, and every byte after that
follows from them. A block that holds another key's bytes, half of two lives, or a stale tail does not
verify. Pure; used by the soak's workers.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEAD_BYTES", "payload_for", "verify"]

HEAD = struct.Struct("<Q36sxxxxQQ")
HEAD_BYTES = HEAD.size
WORD = 8


def payload_for(key: bytes, fence: int, nbytes: int, nonce: int) -> NDArray[np.uint8]:
    """The whole payload of `nbytes` bytes (a multiple of 8, at least HEAD_BYTES)."""
    payload = np.empty(nbytes, dtype=np.uint8)
    payload[:HEAD_BYTES] = np.frombuffer(HEAD.pack(nonce, key, fence, nbytes), dtype=np.uint8)
    payload[HEAD_BYTES:].view(np.uint64)[:] = body(nonce, key, nbytes)
    return payload


def body(nonce: int, key: bytes, nbytes: int) -> NDArray[np.uint64]:
    words = (nbytes - HEAD_BYTES) // WORD
    seed = np.uint64((nonce ^ int.from_bytes(key[:8], "little")) & (1 << 64) - 1)
    filling: NDArray[np.uint64] = np.arange(words, dtype=np.uint64) + seed
    filling *= np.uint64(0x9E3779B97F4A7C15)
    return filling


def verify(payload: NDArray[np.uint8], key: bytes, fence: int) -> str | None:
    """What is wrong with a payload found under `key`; None when every byte is right."""
    nonce, found_key, found_fence, nbytes = HEAD.unpack(payload[:HEAD_BYTES].tobytes())
    if found_key != key.ljust(36, b"\0"):
        return f"holds key {found_key.hex()}, expected {key.hex()}"
    if found_fence != fence:
        return f"holds namespace {found_fence}, expected {fence}"
    if nbytes != len(payload):
        return f"says {nbytes} bytes, has {len(payload)}"
    wrong = payload[HEAD_BYTES:].view(np.uint64) != body(nonce, key, nbytes)
    if wrong.any():
        first = int(np.argmax(wrong))
        return f"{int(wrong.sum())} wrong words, the first at byte {HEAD_BYTES + first * WORD}"
    return None
