"""What if something is left in a client slot that nobody has? Whose is it, who finds it, and can it come about?

A pin or a claim of a free slot would pass to the slot's next client unseen: held until that one goes. Only damage
leaves one (a slot is freed after all it held): fsck finds it, as an adopting supervisor does, and a client that
detaches takes nothing with it even while its other threads are in the middle of a call.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pegashm import fsck
from pegashm.arena import Arena
from pegashm.cache import Cache

from tests.arenas import Shape, temporary_arena
from tests.fsck.scene import FENCE, PAYLOAD_BYTES, Hand, filled, key_of

ROUNDS = 60
KEYS = [key_of(number) for number in range(1, 1025)]
SHAPE = Shape(segment_bytes=1 << 20, segments_per_arena=(4,))  # 1024 blocks


def first_slot_is_left(arena: Arena) -> Hand:
    """A pin and a claim of slot 0, which is free, and which the next client gets."""
    hand = Hand(arena)
    hand.put(hand.block(hand.ready[0], 64), 1)
    hand.put(hand.block(hand.free[0]), hand.get(hand.block(hand.free[0])) | 1)
    return hand


def test_fsck_finds_what_a_free_slot_holds() -> None:
    with filled() as arena:
        first_slot_is_left(arena)
        assert {15: 1, 16: 1} == fsck.check(arena).without_drift().counts
        assert {15, 16} <= fsck.repair(arena).repaired_counts.keys()
        assert fsck.check(arena).clean


def test_what_the_next_client_inherits_goes_with_it() -> None:
    with filled() as arena:
        hand = first_slot_is_left(arena)
        with Cache.attach(arena.name, namespace=FENCE) as cache:
            assert 0 == cache.slot
            handles, _ = cache.find([key_of(1)], pin=True)
            cache.unpin(handles)
            assert fsck.check(arena).clean, "now it passes for its own"
        assert 0 == hand.get(hand.block(hand.ready[0], 64))
        assert fsck.check(arena).clean


@pytest.mark.parametrize("what", ["pin", "claim"])
def test_who_detaches_in_the_middle_of_a_call_leaves_nothing(what: str) -> None:
    with temporary_arena(SHAPE) as arena:
        with Cache.attach(arena.name, namespace=FENCE) as filler:
            handles, _ = filler.claim(KEYS[:512], PAYLOAD_BYTES)
            filler.publish(handles)
        for number in range(ROUNDS):
            detach_while_busy(arena.name, what, number)
            report = fsck.check(arena).without_drift()
            assert report.clean, f"round {number}: {report.lines()}"


def detach_while_busy(name: str, what: str, number: int) -> None:
    """Close a client whose other thread works without a pause."""
    cache = Cache.attach(name, namespace=FENCE)
    working = threading.Event()

    def work() -> None:
        try:
            while True:
                if what == "pin":
                    handles, _ = cache.find(KEYS[:512], pin=True)
                    working.set()
                    cache.unpin(handles)
                else:
                    handles, _ = cache.claim(KEYS[512:], PAYLOAD_BYTES)
                    working.set()
                    cache.abandon(handles[handles != np.uint64(0)])
        except ValueError as error:
            assert "closed" in str(error)

    thread = threading.Thread(target=work)
    thread.start()
    working.wait()
    time.sleep(number * 0.00002)
    cache.close()
    thread.join()
