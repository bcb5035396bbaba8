"""Who holds what: which client claims, evicts and pins which blocks?

Works on the structured array that `Region.blocks()` returns, with numpy, so that a million records cost
milliseconds. It says what each slot holds; whether it may is for `pegashm.fsck` to judge.
Called by `collect`; reads nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLAIMED",
    "EVICTING",
    "READY",
    "STATE_NAMES",
    "Held",
    "held_by_slot",
    "pinned_mask",
    "slots_in",
]

CLAIMED, READY, EVICTING = 1, 2, 3
STATE_NAMES = {CLAIMED: "claimed", READY: "ready", EVICTING: "evicting"}
PIN_WORD_BITS = 64


@dataclass(frozen=True, slots=True)
class Held:
    """What one client slot holds, in blocks and in payload bytes."""

    claims: int = 0
    claimed_bytes: int = 0
    evictions: int = 0
    pins: int = 0
    pinned_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.claims or self.evictions or self.pins)


def slots_in(pins: Iterable[int]) -> list[int]:
    """The client slots whose bit is set in a record's pin words."""
    return [
        word * PIN_WORD_BITS + bit
        for word, bits in enumerate(pins)
        for bit in range(PIN_WORD_BITS)
        if int(bits) >> bit & 1
    ]


def pinned_mask(blocks: NDArray[Any], slot: int) -> NDArray[np.bool_]:
    """For each block, whether `slot` has its pin bit set; all False for a slot that cannot be."""
    word, bit = divmod(slot, PIN_WORD_BITS)
    if word >= blocks["pins"].shape[1]:
        return np.zeros(len(blocks), dtype=np.bool_)
    mask: NDArray[np.bool_] = (blocks["pins"][:, word] >> np.uint64(bit) & np.uint64(1)) != 0
    return mask


def owned_mask(blocks: NDArray[Any]) -> NDArray[np.bool_]:
    """For each block, whether its state names an owner: it is being written or evicted."""
    mask: NDArray[np.bool_] = (blocks["state"] == CLAIMED) | (blocks["state"] == EVICTING)
    return mask


def held_by_slot(blocks: NDArray[Any]) -> dict[int, Held]:
    """What every slot that holds anything holds, attached or not."""
    owned = blocks[owned_mask(blocks)]
    pinned = blocks[(blocks["pins"] != 0).any(axis=1)]
    pin_words = np.bitwise_or.reduce(pinned["pins"], axis=0) if len(pinned) else ()
    slots = {int(slot) for slot in np.unique(owned["owner"])} | set(slots_in(pin_words))
    held: dict[int, Held] = {}
    for slot in sorted(slots):
        mine = owned[owned["owner"] == slot]
        claimed = mine[mine["state"] == CLAIMED]
        kept = pinned[pinned_mask(pinned, slot)]
        held[slot] = Held(
            claims=len(claimed),
            claimed_bytes=int(claimed["payload_bytes"].sum()),
            evictions=len(mine) - len(claimed),
            pins=len(kept),
            pinned_bytes=int(kept["payload_bytes"].sum()),
        )
    return held
