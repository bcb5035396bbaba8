"""What may a process be doing when it dies? One scripted operation each, every path of the core among them.

An operation has up to five parts. `before` runs in the survivor, a client that lives on. `debris` are
operations of other children that were killed first, at a given point. `prepare` runs in the child that
will die, `act` too, with its crash point armed. Where two must meet at one instant, the child stops itself at
`stop_at` and `meanwhile` runs in the survivor before it goes on. Nothing here judges: see `judge.py`.
Imported by the test and by the fork server alike; both must see the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.arena import Arena, open_arena
from pegashm.cache import Cache
from pegashm.reaper import reap_dead_clients

from tests.crash.blocks import (
    BIG,
    BLOCKS,
    SMALL,
    Handles,
    fill,
    key_of,
    namespace,
    numbered,
    store,
    write,
)

__all__ = ["MAIN", "OPERATIONS", "Actor", "Debris", "Operation"]

MAIN = "main"
EVICTING = 3  # of Region.blocks()
RESERVED_BYTES = BLOCKS * SMALL // 2


@dataclass(slots=True)
class Actor:
    """A child: the arena it works on, its client unless attaching is what it does, what it remembers."""

    arena_name: str
    client: Cache | None = None
    opened: Arena | None = None  # by those who are no client
    handles: Handles = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    @property
    def cache(self) -> Cache:
        assert self.client is not None, "this operation has not attached"
        return self.client

    @property
    def arena(self) -> Arena:
        assert self.opened is not None, "this operation has opened nothing"
        return self.opened


def nothing(_: object) -> None:
    """For a part that an operation does not have."""


@dataclass(frozen=True, slots=True)
class Debris:
    """A child killed earlier: what it did, at which point (and pass) it died."""

    operation: str
    crash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    name: str
    act: Callable[[Actor], object]
    before: Callable[[Cache], object] = nothing
    debris: tuple[Debris, ...] = ()
    reaped: bool = False  # whether the survivor reaps the debris before the child starts
    attach: str | None = MAIN  # the namespace in which the child attaches; None: not at all
    maximum_bytes: int = 0
    slot: int | None = None  # None: as Cache.attach finds one, cleaning the slot of who died
    prepare: Callable[[Actor], object] = nothing
    stop_at: int | None = None
    meanwhile: Callable[[Cache], object] = nothing


# -- steps ---------------------------------------------------------------------------------------------


def full(cache: Cache) -> None:
    fill(cache, 100)


def three(cache: Cache) -> None:
    store(cache, [1, 2, 3])


def all_segments_pinned(cache: Cache) -> None:
    """Full, with one block of each segment pinned: 100 to 111 stand in order of their place."""
    store(cache, range(100, 100 + BLOCKS))
    cache.find(numbered(range(100, 100 + BLOCKS, 4)), pin=True)


def claim_two(actor: Actor) -> None:
    actor.handles, _ = actor.cache.claim(numbered([1, 2]), SMALL)
    write(actor.cache, [1, 2], actor.handles)


def find_two(actor: Actor) -> None:
    actor.handles, _ = actor.cache.find(numbered([1, 2]))


def find_first(actor: Actor) -> None:
    actor.handles, _ = actor.cache.find(numbered([1]))


def evict_found(actor: Actor) -> None:
    actor.cache.evict(actor.handles)


def store_with_sums(*numbers: int) -> Callable[[Actor], None]:
    def act(actor: Actor) -> None:
        store(actor.cache, numbers, sums=True)

    return act


def full_with_sums(cache: Cache) -> None:
    """As full(), every block with checksums, so that the next life of each record has some to clear."""
    fill(cache, 100, sums=True)


def mark(actor: Actor) -> None:
    _native.mark_damaged(actor.cache.region, actor.handles)


def mark_and_store(actor: Actor) -> None:
    """What is marked as damaged gives way to its successor."""
    mark(actor)
    store(actor.cache, [1])


def pin_and_unpin(actor: Actor) -> None:
    handles, _ = actor.cache.find(numbered([1, 2]), pin=True)
    actor.cache.pin(handles[:1])
    actor.cache.unpin(handles)
    actor.cache.unpin(handles[:1])


def find_and_lose(actor: Actor) -> None:
    find_first(actor)
    actor.cache.evict(actor.handles)


def hold_things(actor: Actor) -> None:
    """What a client has in hand when it detaches: claims and pins."""
    claim_two(actor)
    actor.cache.find(numbered([100]), pin=True)


def write_and_publish_parts(actor: Actor) -> None:
    for _ in range(2):
        _native.part_done(actor.cache.region, actor.handles, True)
    actor.cache.publish(actor.handles, parts_expected=2)


def fail_one_part(actor: Actor) -> None:
    _native.part_done(actor.cache.region, actor.handles, False)
    actor.cache.publish(actor.handles, parts_expected=1)


def touch_all(actor: Actor) -> None:
    actor.cache.touch(actor.handles)
    actor.cache.touch_keys(numbered([1, 2, 77]))


def full_and_adaptive(cache: Cache) -> None:
    cache.region.set_eviction("adaptive")
    full(cache)


def three_and_adaptive(cache: Cache) -> None:
    cache.region.set_eviction("adaptive")
    three(cache)


def evict_by_storing(actor: Actor) -> None:
    """The oldest of a full arena goes and leaves its ghost."""
    store(actor.cache, [11, 12])


def store_again(actor: Actor) -> None:
    """What went comes back, whichever it was; others go for it."""
    gone, _ = actor.cache.find(numbered(range(100, 100 + BLOCKS)))
    store(actor.cache, [100 + int(number) for number in np.flatnonzero(gone == 0)[:2]])


def attach(label: str, maximum_bytes: int = 0, reserved_bytes: int = 0) -> Callable[[Actor], None]:
    def act(actor: Actor) -> None:
        there = namespace(label, maximum_bytes=maximum_bytes, reserved_bytes=reserved_bytes)
        actor.client = Cache.attach(
            actor.arena_name, namespace=there, engine_id=b"e", label="child"
        )

    return act


def register_all(cache: Cache) -> None:
    """Every namespace slot taken, so that the next namespace recycles one."""
    for number in range(_native.NAMESPACE_COUNT - 1):
        label = f"old {number}"
        there = namespace(label)
        cache.region.register_namespace(there.fingerprint, label=label, now_ns=number + 1)


def reserve_for_nobody(cache: Cache) -> None:
    """Half of it is reserved for a namespace that nobody is in."""
    there = namespace("idle")
    cache.region.register_namespace(
        there.fingerprint, label="idle", reserved_bytes=RESERVED_BYTES, now_ns=1
    )


def reserve_everything(cache: Cache) -> None:
    """What an evictor has just found evictable no longer is."""
    cache.enter(namespace(MAIN, reserved_bytes=2 * RESERVED_BYTES))


def ask_for_blocks(actor: Actor) -> None:
    actor.cache.count_asked(numbered(range(1, 20)))
    actor.cache.count_served(3)


def enter(*labels: str) -> Callable[[Actor], None]:
    def act(actor: Actor) -> None:
        for label in labels:
            actor.cache.enter(namespace(label))

    return act


def stores(*numbers: int, nbytes: int = SMALL) -> Callable[[Actor], None]:
    def act(actor: Actor) -> None:
        store(actor.cache, numbers, nbytes)

    return act


def three_and_big_ones(cache: Cache) -> None:
    """Three small blocks in the first segment, the oldest; the other segments full of big ones."""
    three(cache)
    store(cache, range(301, 305), BIG)


def find_evicting(actor: Actor) -> None:
    """The handle of the block that a dead evictor holds, as a reader may still remember it."""
    blocks = actor.cache.region.blocks()
    evicting = blocks[blocks["state"] == EVICTING]
    actor.handles = evicting["generation"] << np.uint64(24) | evicting["record"].astype(np.uint64)


def pin_handles(actor: Actor) -> None:
    actor.cache.pin(actor.handles)


def take_a_big_one(cache: Cache) -> None:
    store(cache, [300], BIG)


def pin_first(cache: Cache) -> None:
    """Rightly: the evictor has looked at the pins and not stored EVICTING yet."""
    _, outcomes = cache.find(numbered([1]), pin=True)
    assert outcomes.tolist() == [_native.OK]


def supervise(actor: Actor) -> None:
    actor.opened = open_arena(actor.arena_name)


def spill_rows(numbers: Iterable[int], namespace_id: int, sequence: int) -> NDArray[np.void]:
    rows = np.zeros(len(list(numbers)), dtype=_native.SPILL_FIELDS)
    for row, number in zip(rows, numbers, strict=True):
        row["key"][:] = np.frombuffer(key_of(number)[:32], dtype=np.uint8)
    rows["key_bytes"], rows["namespace_id"], rows["payload_bytes"] = 32, namespace_id, SMALL
    rows["sequence"] = sequence
    rows["file_offset"] = SMALL * np.arange(len(rows), dtype=np.uint64)
    return rows


def list_on_ssd(actor: Actor) -> None:
    """What a transport worker does to the table of blocks on SSD, from its start to its end."""
    table = _native.SpillTable(actor.cache.region)
    table.clear()
    table.set_usable(1)
    older = spill_rows([350, 351, 1], actor.cache.namespace_id, sequence=1)
    newer = spill_rows([350], actor.cache.namespace_id, sequence=2)
    table.store(older)
    table.store(newer)
    table.forget(newer)
    table.drop(0, SMALL, 2 * SMALL)
    table.clear()


def list_remote(actor: Actor) -> None:
    """What a transport worker does to the hints of other hosts, from its start to its end."""
    table = _native.RemoteTable(actor.cache.region)
    table.clear()
    hashes = _native.remote_hashes(
        actor.cache.region, numbered([360, 361, 1]), actor.cache.namespace_id
    )
    table.add(1, hashes)
    table.set_usable(1, usable=True)
    table.add(1, hashes[:1], _native.TIER_SSD)
    table.describe(
        1, host_id=b"h" * 16, incarnation=b"i" * 16, address="", sequence=1, events=1, heard_at_ns=1
    )
    table.remove(1, hashes[:2])
    table.set_none_usable()
    table.drop_host(1)
    table.clear()


def reap(actor: Actor) -> None:
    reap_dead_clients(actor.arena)


def detach(actor: Actor) -> None:
    actor.cache.close()


OPERATIONS: tuple[Operation, ...] = (
    Operation(name="list blocks on SSD", before=three, act=list_on_ssd),
    Operation(name="list blocks of other hosts", before=three, act=list_remote),
    Operation(name="store in an empty arena", act=stores(1, 2)),
    Operation(name="store", before=three, act=stores(11)),
    Operation(name="claim what is there", before=three, act=stores(1, 2)),
    Operation(
        name="claim what is pending",
        debris=(Debris("store in an empty arena", "31:1"),),
        slot=5,
        act=stores(1),
    ),
    Operation(name="store in a full arena", before=full, act=stores(11, 12)),
    Operation(name="store another size", before=full, act=stores(300, nbytes=BIG)),
    Operation(
        name="store another size, all pinned",
        before=all_segments_pinned,
        act=stores(300, nbytes=BIG),
    ),
    Operation(name="publish parts", prepare=claim_two, act=write_and_publish_parts),
    Operation(name="publish with a failed part", prepare=claim_two, act=fail_one_part),
    Operation(
        name="abandon", prepare=claim_two, act=lambda actor: actor.cache.abandon(actor.handles)
    ),
    Operation(name="store with checksums", before=full_with_sums, act=store_with_sums(11, 12)),
    Operation(name="mark as damaged", before=three, prepare=find_two, act=mark),
    Operation(
        name="store what is marked as damaged", before=three, prepare=find_first, act=mark_and_store
    ),
    Operation(name="pin and unpin", before=three, act=pin_and_unpin),
    Operation(
        name="pin what is gone",
        before=three,
        prepare=find_and_lose,
        act=pin_handles,
    ),
    Operation(
        name="pin a dead evictor's block",
        before=three,
        debris=(Debris("evict", "120:1"),),
        slot=5,
        prepare=find_evicting,
        act=pin_handles,
    ),
    Operation(name="evict", before=three, prepare=find_two, act=evict_found),
    Operation(
        name="evict the oldest",
        before=full,
        act=lambda actor: actor.cache.evict_lru(SMALL, 1),
    ),
    Operation(
        name="evict what somebody pins just then",
        before=three,
        prepare=find_first,
        act=evict_found,
        stop_at=90,
        meanwhile=pin_first,
    ),
    Operation(
        name="store in another's arena, which becomes reserved just then",
        before=full,
        attach="other",
        act=stores(11),
        stop_at=90,
        meanwhile=reserve_everything,
    ),
    Operation(name="touch", before=three, prepare=find_two, act=touch_all),
    Operation(
        name="store again what was evicted, adaptively",
        before=full_and_adaptive,
        prepare=evict_by_storing,
        act=store_again,
    ),
    Operation(
        name="evict as before",
        before=three_and_adaptive,
        act=lambda actor: actor.cache.region.set_eviction("lru"),
    ),
    Operation(name="touch, adaptively", before=three_and_adaptive, prepare=find_two, act=touch_all),
    Operation(name="ask for blocks", before=three, act=ask_for_blocks),
    Operation(
        name="attach with a reserve",
        before=reserve_for_nobody,
        attach=None,
        act=attach("new", reserved_bytes=2 * RESERVED_BYTES),
    ),
    Operation(name="attach in a new namespace", attach=None, act=attach("new")),
    Operation(name="attach in a known namespace", attach=None, act=attach(MAIN, 1 << 30)),
    Operation(
        name="attach in a dead client's slot",
        before=full,
        debris=(Debris("store in a full arena", "31:1"),),
        attach=None,
        act=attach(MAIN),
    ),
    Operation(name="enter namespaces", act=enter("new", MAIN)),
    Operation(name="enter, recycling a namespace", before=register_all, act=enter("new")),
    Operation(
        name="detach",
        before=lambda cache: store(cache, [100]),
        prepare=hold_things,
        act=detach,
    ),
    Operation(
        name="store at the namespace's maximum",
        attach="small",
        maximum_bytes=2 * SMALL,
        prepare=stores(1, 2),
        act=stores(3),
    ),
    Operation(
        name="reap a claim",
        debris=(Debris("store in an empty arena", "31:2"),),
        attach=None,
        prepare=supervise,
        act=reap,
    ),
    Operation(
        name="reap pins",
        before=three,
        debris=(Debris("pin and unpin", "80:3"),),
        attach=None,
        prepare=supervise,
        act=reap,
    ),
    Operation(
        name="reap an eviction",
        before=three,
        debris=(Debris("evict", "111:1"),),
        attach=None,
        prepare=supervise,
        act=reap,
    ),
    Operation(
        name="reap an eviction of what somebody pins",
        before=three,
        debris=(Debris("evict what somebody pins just then", "91:1"),),
        attach=None,
        prepare=supervise,
        act=reap,
    ),
    Operation(
        name="reap a segment change",
        before=full,
        debris=(Debris("store another size", "140:2"),),
        attach=None,
        prepare=supervise,
        act=reap,
    ),
    Operation(
        name="reap a lost free bit",
        before=three,
        debris=(Debris("evict", "121:1"),),
        attach=None,
        prepare=supervise,
        act=reap,
    ),
    Operation(
        name="reap a lost touch",
        before=three,
        debris=(Debris("evict", "120:1"), Debris("pin a dead evictor's block", "70:1")),
        attach=None,
        prepare=supervise,
        act=reap,
    ),
    Operation(
        name="rebuild the hints",
        before=three,
        debris=(Debris("evict", "121:2"),),
        attach=None,
        prepare=supervise,
        act=lambda actor: actor.arena.region.repair(),
    ),
    Operation(
        name="store where free bits are stale",
        before=full,
        debris=(Debris("store another size", "130:1"),),
        reaped=True,
        act=stores(11),
    ),
    Operation(
        name="store while the segment changes hands",
        before=three_and_big_ones,
        debris=(Debris("store another size", "130:1"),),
        reaped=True,
        act=stores(11),
        stop_at=220,
        meanwhile=take_a_big_one,
    ),
)
