"""Are these the bytes that were stored under this key? XXH3-64 of a payload, bound to its key and namespace.

The seed is a hash of namespace, key and group: bytes of one block never pass for another's, whatever a
directory of records says. Not the checksums of `payload_sums` (parts of a block in memory, seed 0): those are kept
for the block's next life in memory, this one is checked on the way in. Hashing runs without the GIL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["checksum_at", "checksums_at", "seed_of", "seeds_of"]

Rows = NDArray[Any]


def seed_of(fingerprint: bytes, key: bytes, group: int) -> int:
    """The seed of one block's checksum; `key` without padding or group."""
    return xxhash.xxh3_64_intdigest(fingerprint + key + group.to_bytes(4, "big"))


def seeds_of(fingerprints: bytes | Sequence[bytes], rows: Rows) -> list[int]:
    """Seeds of rows with key, key_bytes and group; one fingerprint for all, or one a row."""
    if isinstance(fingerprints, bytes):
        fingerprints = [fingerprints] * len(rows)
    keys = np.ascontiguousarray(rows["key"]).tobytes()
    groups = rows["group"].astype(">u4").tobytes()
    digest = xxhash.xxh3_64_intdigest
    return [
        digest(fingerprint + keys[row * 32 : row * 32 + nbytes] + groups[row * 4 : row * 4 + 4])
        for row, (fingerprint, nbytes) in enumerate(
            zip(fingerprints, rows["key_bytes"].tolist(), strict=True)
        )
    ]


def checksums_at(addresses: Sequence[int], sizes: Sequence[int], seeds: Sequence[int]) -> list[int]:
    """XXH3-64 of runs of this process's memory. The caller vouches for the addresses."""
    digest = xxhash.xxh3_64_intdigest
    return [
        digest(_bytes_type(nbytes).from_address(address), seed)
        for address, nbytes, seed in zip(addresses, sizes, seeds, strict=True)
    ]


def checksum_at(address: int, nbytes: int, seed: int) -> int:
    """Of one run."""
    return checksums_at([address], [nbytes], [seed])[0]


@lru_cache(maxsize=256)
def _bytes_type(nbytes: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * nbytes
