"""How is each invariant broken? For each its ways, as functions that write into a filled arena at rest.

Numbers are those of FORMAT.md, "Invariants". I1 and I2 are not of the mapped region: see `test_command.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from pegashm.cache import Cache

from tests.fsck.scene import FENCE, PAYLOAD_BYTES, Hand, key_of

__all__ = ["PLANTINGS"]

Planting = Callable[[Hand], None]
GENERATION = 1 << 24  # of a state word


def word(offset_of: Callable[[Hand], int], value: int) -> Planting:
    return lambda hand: hand.put(offset_of(hand), value)


def changed(offset_of: Callable[[Hand], int], change: Callable[[int], int]) -> Planting:
    return lambda hand: hand.put(offset_of(hand), change(hand.get(offset_of(hand))))


def ready(field: int = 0) -> Callable[[Hand], int]:
    return lambda hand: hand.block(hand.ready[3], field)


def free(hand: Hand) -> int:
    return hand.block(hand.free[0])


def table(name: str, offset: int) -> Callable[[Hand], int]:
    return lambda hand: int(hand.header[f"{name}_offset"]) + offset


def reuse(offset: int) -> Callable[[Hand], int]:
    return lambda hand: hand.reuse(offset)


def at(offset: int) -> Callable[[Hand], int]:
    return lambda _: offset


def dead_client(hand: Hand) -> None:
    hand.arena.region.attach_client(
        9, pid=1, started_at=1, now_ns=1, namespace_id=0, mode=0, engine_id=b"", label="dead"
    )


def unlisted(hand: Hand) -> None:
    hand.put(hand.entry(hand.entry_of(hand.ready[0])), 0)


def moved(hand: Hand) -> None:
    """An entry in a bucket where nobody looks for its key."""
    number = hand.entry_of(hand.ready[0])
    entry = hand.get(hand.entry(number))
    hand.put(hand.entry(number), 0)
    buckets = hand.header["bucket_count"]
    for away in range(3, buckets):
        place = (number // 8 + away) % buckets * 8
        if hand.get(hand.entry(place)) == 0:
            hand.put(hand.entry(place), entry)
            return
    raise LookupError("no empty bucket")


def twice(hand: Hand) -> None:
    """The index forgets a key while it is stored again."""
    number = hand.entry_of(hand.ready[0])
    entry = hand.get(hand.entry(number))
    key = bytes(hand.bytes[hand.block(hand.ready[0], 8) :][:32]) + bytes(4)
    assert key in {key_of(each) for each in range(100)}
    hand.put(hand.entry(number), 0)
    with Cache.attach(hand.arena.name, namespace=FENCE) as cache:
        handles, _ = cache.claim([key], PAYLOAD_BYTES)
        assert [0] == cache.publish(handles).tolist()
    for place in range(number // 8 * 8, number // 8 * 8 + 8):
        if hand.get(hand.entry(place)) == 0:
            hand.put(hand.entry(place), entry)
            return
    raise LookupError("the bucket is full")


def clogged(hand: Hand) -> None:
    for bucket in range(hand.header["bucket_count"]):
        places = range(8 * bucket, 8 * bucket + 8)
        if not any(hand.get(hand.entry(place)) for place in places):
            for place in places:
                hand.put(hand.entry(place), hand.free[0] | 99 << 24 | place + 1 << 40)
            return
    raise LookupError("no empty bucket")


def bit(record_of: Callable[[Hand], int], on: bool) -> Planting:
    def plant(hand: Hand) -> None:
        record = record_of(hand)
        mask = 1 << record % 64
        before = hand.get(hand.free_word(record))
        hand.put(hand.free_word(record), before | mask if on else before & ~mask)

    return plant


RESERVED = (
    at(328), at(392), at(456), at(3712), at(3720),
    table("clients", 40), table("counter_values", 8), table("segments", 8), table("blocks", 112),
    table("journal", 24), table("spill", 96),
    table("remote_hosts", 512 + 68),
)  # fmt: skip

PLANTINGS: dict[int, list[Planting]] = {
    3: [word(place, 7) for place in RESERVED],
    4: [word(at(256), 999), word(at(256), 0)],
    5: [
        word(at(320), 1 << 63),
        word(at(320), 0),
        word(lambda hand: hand.touch(hand.ready[0]), 1 << 63),
        word(lambda hand: hand.touch(hand.ready[0]), 1 << 40),
    ],
    6: [
        word(at(384), 0),
        word(at(384), 1 << 63),
        word(table("journal", 64), 77),
        word(table("journal", 64 + 8), 0xFF),
        word(table("journal", 64 * 900), 3),
    ],
    7: [word(table("counter_labels", 8), 1), word(table("counter_labels", 64 * 63), 9)],
    8: [word(table("namespaces", 0), 0x77), word(table("namespaces", 0), 1 << 40 | 1)],
    9: [word(table("namespaces", 56), 12345), word(table("namespaces", 256 + 56), 4096)],
    10: [word(lambda hand: hand.client(9), 0x107), word(lambda hand: hand.client(0), 0xFF)],
    11: [dead_client],
    12: [
        word(lambda hand: hand.segment(0), 9),
        word(lambda hand: hand.segment(1), 1),
        word(lambda hand: hand.segment(2), 1 | 5 << 8 | 1 << 40),
        word(lambda hand: hand.segment(3), 1 | 1 << 60),
        word(lambda hand: hand.segment(0), 2 | 200 << 8 | 1 << 40),
    ],
    13: [
        word(lambda hand: hand.segment(0), 2 | 9 << 8 | 1 << 16 | 1 << 40),
        word(lambda hand: hand.segment(3), 2 | 9 << 8 | 1 << 16),
    ],
    14: [
        changed(ready(), lambda state: state | 0x0C),
        changed(ready(), lambda state: state | 3 << 8),
        changed(ready(), lambda state: state & 0xFFFFFF),
        changed(free, lambda state: state | 4 << 8),
        word(free, 0),
        word(free, 1 | 200 << 8 | GENERATION),
    ],
    15: [
        changed(ready(), lambda state: state - 2 + 1 | 9 << 8),
        changed(ready(), lambda state: state | 3 | 9 << 8),
        changed(free, lambda state: state | 1 | 9 << 8),
    ],
    16: [word(ready(64), 1 << 9), word(ready(72), 1 << 63), word(lambda h: free(h) + 64, 1)],
    17: [word(lambda hand: hand.segment(0), 0), word(lambda h: h.block(20), 2 | GENERATION)],
    18: [
        changed(ready(48), lambda offset: offset + 4096),
        word(ready(48), (1 << 64) - 1),
        word(ready(56), 0),
        word(ready(56), 1 << 40),
    ],
    19: [
        changed(ready(40), lambda identity: identity & ~(0xFF << 48)),
        changed(ready(40), lambda identity: identity | 0xFF << 56),
        changed(ready(40), lambda identity: identity + (5 << 16)),
        changed(ready(40), lambda identity: identity | 0xFFFF),
        changed(ready(40), lambda identity: identity & ~(0xFF << 48) | 4 << 48),
    ],
    20: [unlisted, changed(ready(8), lambda key: key ^ 1)],
    21: [twice],
    22: [word(lambda hand: hand.touch(hand.ready[0]), 0)],
    23: [bit(lambda hand: hand.free[0], on=False)],
    24: [bit(lambda hand: hand.ready[0], on=True)],
    25: [moved, word(lambda hand: hand.entry(5), 0xFFFFFF | 1 << 24 | 1 << 40)],
    26: [clogged],
    27: [
        word(table("namespaces", 40), 1 << 40),
        word(table("namespaces", 48), 4 * 64 * 1024 + 1),
    ],
    28: [
        changed(lambda hand: hand.spill(0), lambda state: state | 0x30),
        changed(lambda hand: hand.spill(0), lambda state: state | 200 << 8),
        word(lambda hand: hand.spill(1, 48), 77),
        word(lambda hand: hand.spill(2, 40), 0),
        changed(lambda hand: hand.spill(3, 8), lambda key: key ^ 1),
    ],
    30: [word(table("remote", 0), 77 << 14 | 5), word(table("remote", 64 * 3 + 8), 1)],
    32: [
        word(reuse(0), 1 << 32 | 5),
        word(reuse(16 * 3 + 8), 0xFFFFFFFF << 32 | 5),
        word(reuse(16 * 5760 + 128 * 3), 0xFFFFFFF0),
        word(reuse(16 * 5760 + 128 * 4 + 8), 0xFFFFFFF0 << 32 | 7),
    ],
    31: [word(at(288), 2), word(table("remote_hosts", 0), 0)],
    29: [
        word(ready(88), 1 << 48 | PAYLOAD_BYTES + 1),
        word(ready(88), 9 << 48 | 8),
        word(ready(88), 1 << 48),
        word(ready(88), 1 << 57),
        word(ready(88), 1 << 48 | PAYLOAD_BYTES),
        word(lambda hand: int(hand.header["sums_offset"]) + 64 * hand.ready[3] + 8, 7),
    ],
}  # fmt: skip
