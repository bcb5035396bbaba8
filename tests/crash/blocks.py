"""How do processes of this suite fill blocks, so that a wrong byte is seen by any other?

Every payload says whose it is (`tests/soak/stamp.py`): key, namespace and length. Blocks are named by
small numbers. Used on both sides: by the children that are killed and by those who live on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.keys import Namespace

from tests.arenas import Shape
from tests.soak.stamp import payload_for, verify

__all__ = [
    "BIG",
    "BLOCKS",
    "NUMBERS",
    "SHAPE",
    "SMALL",
    "Handles",
    "fill",
    "key_of",
    "namespace",
    "numbered",
    "store",
    "write",
    "wrong_payloads",
]

Handles = NDArray[np.uint64]

SMALL = 16 << 10
BIG = 32 << 10
SEGMENTS = 3
SHAPE = Shape(
    segment_bytes=64 << 10,
    block_bytes_min=SMALL,
    segments_per_arena=(SEGMENTS,),
    spill_records=8,
    remote_buckets=2,
    reuse_registers=16,
)
BLOCKS = SHAPE.payload_bytes // SMALL  # of the small size, when the arena is full of them
NUMBERS = range(400)  # every block that any operation may store


def key_of(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest() + bytes(4)


def namespace(label: str, *, reserved_bytes: int = 0, maximum_bytes: int = 0) -> Namespace:
    return Namespace(
        fingerprint=hashlib.sha256(label.encode()).digest(),
        label=label,
        reserved_bytes=reserved_bytes,
        maximum_bytes=maximum_bytes,
    )


def numbered(numbers: Iterable[int]) -> list[bytes]:
    return [key_of(number) for number in numbers]


def write(cache: Cache, numbers: Iterable[int], handles: Handles) -> None:
    """The right bytes into claimed blocks; a handle of 0 is passed over."""
    offsets, sizes = cache.locate(handles)
    for number, handle, offset, size in zip(
        numbers, handles.tolist(), offsets.tolist(), sizes.tolist(), strict=True
    ):
        if handle and size:
            payload = payload_for(key_of(number), cache.namespace_id, size, number)
            cache.region.payload(offset, size)[:] = payload.tobytes()


def store(
    cache: Cache, numbers: Iterable[int], nbytes: int = SMALL, *, sums: bool = False
) -> NDArray[np.uint8]:
    """Claim, write (with checksums, if asked) and publish; what the claims answered."""
    listed = list(numbers)
    handles, outcomes = cache.claim(numbered(listed), nbytes)
    write(cache, listed, handles)
    claimed = handles[outcomes == _native.OK]
    if sums:
        cache.store_sums(claimed)
    cache.publish(claimed)
    return outcomes


def fill(cache: Cache, first: int, *, sums: bool = False) -> None:
    """Fill the arena with small blocks, and one more: from then on this client knows that nothing is free."""
    outcomes = store(cache, range(first, first + BLOCKS), sums=sums)
    assert (outcomes == _native.OK).all(), f"an arena of {BLOCKS} blocks took {outcomes.tolist()}"
    outcomes = store(cache, [first + BLOCKS], sums=sums)
    assert (outcomes == _native.OK).all(), f"a full arena evicted nothing: {outcomes.tolist()}"


def wrong_payloads(cache: Cache) -> tuple[list[str], int]:
    """Look every number up, pinned, and read it: (what is wrong, how many were found)."""
    keys = numbered(NUMBERS)
    handles, _ = cache.find(keys, pin=True)
    offsets, sizes = cache.locate(handles)
    wrong = []
    for number, handle, offset, size in zip(
        NUMBERS, handles.tolist(), offsets.tolist(), sizes.tolist(), strict=True
    ):
        if not handle:
            continue
        if not size:
            wrong.append(f"block {number} is pinned and cannot be located")
            continue
        payload = np.frombuffer(cache.region.payload(offset, size), dtype=np.uint8)
        complaint = verify(payload, keys[number], cache.namespace_id)
        if complaint is not None:
            wrong.append(f"block {number} {complaint}")
    cache.unpin(handles)
    return wrong, int(np.count_nonzero(handles))
