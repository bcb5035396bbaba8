"""Which keys do the lookup bench and its worker processes use? The same ones in each, made from a seed.

A key is what an engine sends: a 32-byte block hash and 4 bytes of KV-cache group. Hashes are random, as real
ones look. `KeySet.keys` makes new bytes objects on every call, so that no contender meets its own object again
and wins by identity.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["KEY_BYTES", "KeySet"]

HASH_BYTES = 32
GROUP = bytes(4)
KEY_BYTES = HASH_BYTES + len(GROUP)


class KeySet:
    """`count` keys that follow from `seed`."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.blob = np.random.default_rng(seed).bytes(count * HASH_BYTES)

    def keys(self, indices: Iterable[int]) -> list[bytes]:
        blob = self.blob
        return [blob[i * HASH_BYTES : (i + 1) * HASH_BYTES] + GROUP for i in indices]

    def all(self) -> list[bytes]:
        return self.keys(range(self.count))
