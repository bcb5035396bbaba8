"""Which bytes are in block number N of the suite, and are these they? Every byte says whose it is (`soak.stamp`)."""

from __future__ import annotations

import hashlib

import numpy as np

from pegashm._native import Region
from pegashm.keys import namespace_of

from tests.soak.stamp import verify

__all__ = ["FENCE", "NAMESPACE", "POISON", "holds", "key_of", "poison", "poisoned"]

NAMESPACE = namespace_of({"model": "fabric"}, label="fabric test")
FENCE = 11
POISON = 0xA5


def key_of(number: int) -> bytes:
    return hashlib.sha256(b"fabric" + number.to_bytes(8, "big")).digest() + bytes(4)


def holds(region: Region, number: int, offset: int, nbytes: int) -> str | None:
    """What is wrong with the payload there as that of block `number`; None: every byte is right."""
    view = region.payload(offset, nbytes)
    return verify(np.frombuffer(view, np.uint8), key_of(number), FENCE)


def poison(region: Region, offset: int, nbytes: int) -> None:
    """Bytes that no block has."""
    np.frombuffer(region.payload(offset, nbytes), np.uint8)[:] = POISON


def poisoned(region: Region, offset: int, nbytes: int) -> bool:
    """Whether nobody has written there since."""
    return bool((np.frombuffer(region.payload(offset, nbytes), np.uint8) == POISON).all())
