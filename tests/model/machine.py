"""What should the cache have done? A dict beside it, and every promise checked after every step.

Two clients on a tiny arena, three namespaces of which one has a quota and one a reserve, blocks of three
sizes. The model knows which keys were published, with which bytes, by whom they are pinned and in which
order they were used. It does not predict which block an eviction takes; it checks afterwards that what
went was allowed to go:
  - a pinned block never goes, a block's bytes are always its key's, a READY block of ours is always found
  - of blocks of one size, what goes was used before all that could have gone and stayed
  - nothing goes while there is a free block of that size
  - states add up, a namespace's bytes are what it holds and never above its maximum
Run by Hypothesis in `test_model.py`.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

import numpy as np
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pegashm import _native
from pegashm.cache import Cache
from pegashm.keys import Namespace, namespace_of
from pegashm.units import KIB

from tests.arenas import Shape, make_arena, remove_arena

__all__ = ["AdaptiveCacheMachine", "CacheMachine"]

KEY_COUNT = 60
KEYS = [
    bytes([index]) * (1 + index % 32) + (index % 3).to_bytes(4, "big") for index in range(KEY_COUNT)
]
SIZES = (4 * KIB, 16 * KIB - 100, 40 * KIB)
MAXIMUM_BYTES = 48 * KIB
RESERVED_BYTES = 32 * KIB
FENCES: tuple[Namespace, ...] = (
    namespace_of({"model": 0}, label="plain"),
    namespace_of({"model": 1}, label="with a maximum", maximum_bytes=MAXIMUM_BYTES),
    namespace_of({"model": 2}, label="with a reserve", reserved_bytes=RESERVED_BYTES),
)
SHAPE = Shape(segments_per_arena=(2, 1))
RETRY_SECONDS = 0.03  # a full arena is remembered for a few milliseconds
CLAIM_REFUSALS = {_native.NO_SPACE, _native.QUOTA}

indices = st.lists(st.integers(0, KEY_COUNT - 1), min_size=1, max_size=16, unique=True)
clients = st.integers(0, 1)
fences = st.integers(0, 2)
Place = tuple[int, int]  # (namespace, key), both by index


@dataclass(slots=True)
class Entry:
    """A block as the model knows it."""

    handle: int
    stamp: bytes
    owner: int  # client that claimed it
    payload_bytes: int
    stride: int
    used: int = 0  # order of use, 0 while claimed
    done: int = 0
    failed: int = 0
    pins: dict[int, int] = field(default_factory=dict)

    @property
    def pinned(self) -> bool:
        return any(self.pins.values())

    def verdict(self, parts: int) -> int:
        """What publish() answers for it when `parts` are expected."""
        if parts == 0 or (self.done, self.failed) == (parts, 0):
            return _native.OK
        return _native.PENDING if self.done + self.failed < parts else _native.INCOMPLETE


def stride_of(payload_bytes: int) -> int:
    return -(-payload_bytes // (4 * KIB)) * 4 * KIB


def capacity(segment: int, payload_bytes: int) -> int:
    """Blocks of a size that a segment holds, each at a multiple of its size."""
    stride = stride_of(payload_bytes)
    start = -(-(segment * SHAPE.segment_bytes) // stride) * stride
    return max(0, ((segment + 1) * SHAPE.segment_bytes - start) // stride)


def handles_of(entries: list[Entry]) -> np.ndarray:
    return np.array([entry.handle for entry in entries], dtype=np.uint64)


class CacheMachine(RuleBasedStateMachine):
    """The rules: what a client may call, in any order."""

    eviction = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.caches: list[Cache] = []
        self.fence = [0, 0]
        self.reserve = (
            False  # whether the reserve of the third namespace counts: it has not been left
        )
        self.ready: dict[Place, Entry] = {}
        self.claimed: dict[Place, Entry] = {}
        self.clock = 0
        self.lives: set[int] = set()

    @initialize(
        stored=st.lists(
            st.tuples(clients, st.integers(0, KEY_COUNT - 1), st.sampled_from(SIZES)), max_size=5
        ),
        fences=st.tuples(fences, fences),
    )
    def begin(self, stored: list[tuple[int, int, int]], fences: tuple[int, int]) -> None:
        """An arena in use: what is interesting begins when it is full."""
        self.name = make_arena(SHAPE)
        self.fence = list(fences)
        self.reserve = 2 in fences
        self.caches = [Cache.attach(self.name, namespace=FENCES[fence]) for fence in fences]
        self.caches[0].region.set_eviction(self.eviction)
        for client, first, size in stored:
            self.store_many(client, first, size)

    def teardown(self) -> None:
        for cache in self.caches:
            cache.close()
        if self.name:
            remove_arena(self.name)

    # -- rules ------------------------------------------------------------------------------------

    @rule(client=clients, picked=indices, size=st.sampled_from(SIZES))
    def claim(self, client: int, picked: list[int], size: int) -> None:
        cache, fence = self.caches[client], self.fence[client]
        before = self.free_blocks(size)
        kept = self.kept_bytes()
        handles, outcomes = cache.claim([KEYS[index] for index in picked], size)
        taken = 0
        for index, handle, outcome in zip(picked, handles.tolist(), outcomes.tolist(), strict=True):
            place = (fence, index)
            if outcome == _native.OK:
                assert handle not in self.lives, "a handle became valid again"
                assert place not in self.claimed
                self.lives.add(handle)
                stamp = self.stamp(cache, place, handle, size)
                self.claimed[place] = Entry(handle, stamp, client, size, stride_of(size))
                taken += 1
            elif outcome == _native.EXISTS:
                assert place in self.ready
            elif outcome == _native.PENDING:
                assert place in self.claimed
            else:
                assert outcome in CLAIM_REFUSALS, _native.STATUS_NAMES[outcome]
        for outcome in set(outcomes.tolist()):
            event(f"a claim answered {_native.STATUS_NAMES[outcome]}")
        gone = self.forget_evicted()
        if gone:
            event("a claim evicted")
        for place, entry in self.claimed.items():
            assert place not in self.ready, f"{place} claimed while READY ({entry})"
        if fence != 1:
            self.check_order(gone, size)
        if fence != 2:
            assert self.held_by(2) >= kept, "evicted below a namespace's reserve"
        if fence != 1 and gone:
            assert before <= taken, (
                f"{len(gone)} blocks evicted, with {before} free for {taken} claims"
            )
        if _native.NO_SPACE in outcomes.tolist():
            self.check_that_there_is_no_space(client, size)

    @rule(
        client=clients, count=st.integers(1, 8), parts=st.integers(0, 3), reported=st.integers(0, 2),
        ok=st.booleans(),
    )  # fmt: skip
    def publish(self, client: int, count: int, parts: int, reported: int, ok: bool) -> None:
        """Each claim gets some more parts reported, and is then published expecting some number."""
        places = self.claims_of(client)[:count]
        entries = [self.claimed[place] for place in places]
        for _ in range(reported):
            _native.part_done(self.caches[client].region, handles_of(entries), ok)
        for entry in entries:
            entry.done += reported if ok else 0
            entry.failed += 0 if ok else reported
        outcomes = self.caches[client].publish(handles_of(entries), parts)
        assert [entry.verdict(parts) for entry in entries] == outcomes.tolist()
        for place, entry in zip(reversed(places), reversed(entries), strict=True):
            if entry.verdict(parts) == _native.PENDING:
                continue
            del self.claimed[place]
            if entry.verdict(parts) == _native.OK:
                self.use(entry)
                self.ready[place] = entry

    @rule(client=clients, picked=indices, size=st.sampled_from(SIZES))
    def store(self, client: int, picked: list[int], size: int) -> None:
        """What engines do most: claim, write, publish."""
        self.claim(client, picked, size)
        self.publish(client, KEY_COUNT, 0, 0, True)

    @rule(client=clients, first=st.integers(0, KEY_COUNT - 1), size=st.sampled_from(SIZES))
    def store_many(self, client: int, first: int, size: int) -> None:
        """A third of all keys at once."""
        self.store(client, [(first + step) % KEY_COUNT for step in range(KEY_COUNT // 3)], size)

    @rule(client=clients, count=st.integers(1, 8))
    def abandon(self, client: int, count: int) -> None:
        places = self.claims_of(client)[:count]
        self.caches[client].abandon(handles_of([self.claimed.pop(place) for place in places]))

    @rule(client=clients, picked=indices)
    def publish_and_abandon_what_is_not_ours(self, client: int, picked: list[int]) -> None:
        """Handles of another client's claims, of published and of past blocks change nothing."""
        foreign = [entry for entry in self.claimed.values() if entry.owner != client]
        handles = np.concatenate(
            [handles_of(foreign), handles_of(self.known(client, picked)), self.past_handles()]
        )
        for parts in (0, 1):
            outcomes = self.caches[client].publish(handles, parts)
            assert {_native.MISSING} >= set(outcomes.tolist())
        self.caches[client].abandon(handles)

    @rule(client=clients, picked=indices, pin=st.booleans())
    def find(self, client: int, picked: list[int], pin: bool) -> None:
        handles, outcomes = self.caches[client].find([KEYS[index] for index in picked], pin=pin)
        self.check_found(client, picked, handles, outcomes, pin=pin)

    @rule(client=clients, picked=indices, pin=st.booleans())
    def find_prefix(self, client: int, picked: list[int], pin: bool) -> None:
        keys = [KEYS[index] for index in picked]
        handles, outcomes = self.caches[client].find_prefix(keys, pin=pin)
        hits = [(self.fence[client], index) in self.ready for index in picked]
        length = len(picked) if all(hits) else hits.index(False) + 1
        assert length == len(outcomes)
        self.check_found(client, picked[:length], handles, outcomes, pin=pin)

    @rule(client=clients, picked=indices)
    def pin(self, client: int, picked: list[int]) -> None:
        entries = self.known(client, picked)
        assert {_native.OK} >= set(self.caches[client].pin(handles_of(entries)).tolist())
        for entry in entries:
            entry.pins[client] = entry.pins.get(client, 0) + 1

    @rule(client=clients)
    def pin_what_is_past(self, client: int) -> None:
        """A handle of a past life pins nothing, whatever lives in its record now."""
        outcomes = self.caches[client].pin(self.past_handles())
        assert {_native.MISSING} >= set(outcomes.tolist())

    @rule(client=clients, count=st.integers(1, 20))
    def unpin(self, client: int, count: int) -> None:
        entries = [entry for entry in self.ready.values() if entry.pins.get(client)][:count]
        self.caches[client].unpin(np.append(handles_of(entries), np.uint64(0)))
        for entry in entries:
            entry.pins[client] -= 1

    @rule(client=clients, picked=indices)
    def touch(self, client: int, picked: list[int]) -> None:
        entries = self.known(client, picked)
        self.caches[client].touch(np.concatenate([handles_of(entries), self.past_handles()]))
        for entry in entries:
            self.use(entry)

    @rule(client=clients, picked=indices)
    def evict(self, client: int, picked: list[int]) -> None:
        fence = self.fence[client]
        places = [(fence, index) for index in picked if (fence, index) in self.ready]
        outcomes = self.caches[client].evict(handles_of([self.ready[place] for place in places]))
        for place, outcome in zip(places, outcomes.tolist(), strict=True):
            expected = _native.PINNED if self.ready[place].pinned else _native.OK
            assert expected == outcome
            if outcome == _native.OK:
                del self.ready[place]
        assert {_native.MISSING} >= set(self.caches[client].evict(self.past_handles()).tolist())

    @rule(client=clients, size=st.sampled_from(SIZES), count=st.integers(1, 5))
    def evict_lru(self, client: int, size: int, count: int) -> None:
        candidates = [
            entry
            for (fence, _), entry in self.ready.items()
            if entry.stride == stride_of(size) and not entry.pinned and fence != 2
        ]
        kept = self.kept_bytes()
        evicted = self.caches[client].evict_lru(size, count)
        gone = self.forget_evicted()
        assert self.held_by(2) >= kept, "evicted below a namespace's reserve"
        assert evicted == len(gone)
        assert all(entry.stride == stride_of(size) for entry in gone.values())
        assert evicted >= min(count, len(candidates))
        self.check_order(gone, size)

    @rule(client=clients, fence=fences)
    def enter(self, client: int, fence: int) -> None:
        """Who was the last in a namespace takes its reserve along."""
        self.caches[client].enter(FENCES[fence])
        if self.fence[client] == 2 and self.fence[1 - client] != 2:
            self.reserve = False
        self.reserve = self.reserve or fence == 2
        self.fence[client] = fence

    @rule(client=clients)
    def leave_and_come_back(self, client: int) -> None:
        """What was claimed and pinned is given back; what was published stays."""
        self.caches[client].close()
        for place in self.claims_of(client):
            del self.claimed[place]
        for entry in self.ready.values():
            entry.pins.pop(client, None)
        self.caches[client] = Cache.attach(self.name, namespace=FENCES[self.fence[client]])

    @rule(client=clients)
    def die_and_be_reaped(self, client: int) -> None:
        """The locks go as if the process had died; the other client reaps."""
        dead = self.caches[client]
        held = len(self.claims_of(client)) + sum(
            1 for entry in self.ready.values() if entry.pins.get(client)
        )
        dead.arena.close()
        assert 1 == self.caches[1 - client].reap_dead()
        assert 0 == self.caches[1 - client].reap_dead(), held
        for place in self.claims_of(client):
            del self.claimed[place]
        for entry in self.ready.values():
            entry.pins.pop(client, None)
        self.caches[client] = Cache.attach(self.name, namespace=FENCES[self.fence[client]])

    @rule()
    def repair(self) -> None:
        """Nobody died in the middle of anything: there is nothing to repair."""
        assert {"free_bits": 0, "touches": 0} == self.caches[0].region.repair()

    # -- promises that hold at any time --------------------------------------------------------------

    @invariant()
    @precondition(lambda self: bool(self.caches))
    def every_record_is_accounted_for(self) -> None:
        region = self.caches[0].region
        blocks = region.blocks()
        tally = region.tally()
        seen = {(int(b["generation"]) << 24 | int(b["record"])): int(b["state"]) for b in blocks}
        expected = {entry.handle: 2 for entry in self.ready.values()}
        expected |= {entry.handle: 1 for entry in self.claimed.values()}
        assert expected == seen
        assert (len(self.claimed), len(self.ready), 0, 0) == tuple(
            tally[state] for state in ("claimed", "ready", "evicting", "damaged")
        )
        assert tally["record_count"] == tally["free"] + len(expected)
        self.payloads_do_not_overlap(blocks)

    def payloads_do_not_overlap(self, blocks: np.ndarray) -> None:
        spans = sorted((int(b["payload_offset"]), int(b["payload_bytes"])) for b in blocks)
        end = 0
        for offset, size in spans:
            assert end <= offset
            assert 0 == offset % stride_of(size), "blocks start at multiples of their stride"
            end = offset + stride_of(size)
        assert end <= self.caches[0].region.payload_bytes

    @invariant()
    @precondition(lambda self: bool(self.caches))
    def no_block_is_wrong(self) -> None:
        """Every READY block holds the bytes that were published under its key."""
        region = self.caches[0].region
        for block in region.blocks():
            handle = int(block["generation"]) << 24 | int(block["record"])
            for entry in self.ready.values():
                if entry.handle == handle:
                    offset, size = int(block["payload_offset"]), entry.payload_bytes
                    assert entry.stamp == bytes(region.payload(offset, len(entry.stamp)))
                    assert entry.stamp[-8:] == bytes(region.payload(offset + size - 8, 8))

    @invariant()
    @precondition(lambda self: bool(self.caches))
    def namespaces_hold_what_they_hold(self) -> None:
        resident = {
            bytes(row["fingerprint"]): row["resident_bytes"]
            for row in self.caches[0].region.namespaces()
        }
        for index, fence in enumerate(FENCES):
            held = self.held_by(index)
            assert held == resident.get(fence.fingerprint, 0)
            assert not fence.maximum_bytes or held <= fence.maximum_bytes

    # -- how the model follows -------------------------------------------------------------------------

    def stamp(self, cache: Cache, place: Place, handle: int, size: int) -> bytes:
        """Write a block's payload: its head names key and life, its tail repeats the end of that."""
        stamp = hashlib.blake2b(repr((place, handle, size)).encode()).digest()
        (offset,), (located,) = (
            array.tolist() for array in cache.locate(np.array([handle], np.uint64))
        )
        assert size == located
        payload = cache.region.payload(offset, size)
        payload[: len(stamp)] = stamp
        payload[-8:] = stamp[-8:]
        return stamp

    def held_by(self, fence: int) -> int:
        """Bytes that a namespace occupies."""
        entries = (self.ready | self.claimed).items()
        return sum(entry.stride for (owner, _), entry in entries if owner == fence)

    def kept_bytes(self) -> int:
        """What others may not evict below."""
        return min(self.held_by(2), RESERVED_BYTES) if self.reserve else 0

    def use(self, entry: Entry) -> None:
        self.clock += 1
        entry.used = self.clock

    def known(self, client: int, picked: list[int]) -> list[Entry]:
        """READY blocks of the client's namespace among `picked`."""
        places = ((self.fence[client], index) for index in picked)
        return [self.ready[place] for place in places if place in self.ready]

    def claims_of(self, client: int) -> list[Place]:
        return [place for place, entry in self.claimed.items() if entry.owner == client]

    def past_handles(self) -> np.ndarray:
        now = {entry.handle for entry in (self.ready | self.claimed).values()}
        return np.array(sorted(self.lives - now)[-20:], dtype=np.uint64)

    def free_blocks(self, size: int) -> int:
        """Blocks of this size that can be had without evicting anything."""
        count = 0
        for segment in self.caches[0].region.segments():
            if segment["state"] == "assigned" and segment["stride_bytes"] == stride_of(size):
                count += segment["free"]
            elif segment["state"] == "unassigned":
                count += capacity(segment["index"], size)
        return count

    def forget_evicted(self) -> dict[Place, Entry]:
        """Drop from the model what is not READY any more; what went."""
        blocks = self.caches[0].region.blocks()
        blocks = blocks[blocks["state"] == 2]
        alive = {int(b["generation"]) << 24 | int(b["record"]) for b in blocks}
        gone = {place: e for place, e in self.ready.items() if e.handle not in alive}
        for place, entry in gone.items():
            assert not entry.pinned, f"pinned block {place} was evicted"
            del self.ready[place]
        return gone

    def check_order(self, gone: dict[Place, Entry], size: int) -> None:
        """What went was used before all of the same size that could have gone as well.

        Not so where a segment changed its size (all of it goes at once), where a quota made a namespace
        evict its own, nor for blocks that a pin or a reserve may have protected when candidates were
        gathered.
        """
        if any(entry.stride != stride_of(size) for entry in gone.values()):
            event("a segment changed its size")
            return
        if self.eviction != "lru":
            return  # what is due first is tested in test_adaptive.py
        stayed = [
            entry.used
            for (fence, _), entry in self.ready.items()
            if entry.stride == stride_of(size) and not entry.pins and fence != 2
        ]
        if gone and stayed:
            event("order of eviction checked")
            newest_gone = max(entry.used for entry in gone.values())
            assert newest_gone < min(stayed), "a more recently used block went first"

    def check_that_there_is_no_space(self, client: int, size: int) -> None:
        """Refused: then, asked again a little later, nothing unpinned of that size is there to take."""
        time.sleep(RETRY_SECONDS)
        spare = [index for index in range(KEY_COUNT)
                 if (self.fence[client], index) not in self.ready | self.claimed]  # fmt: skip
        evictable = [
            entry for (fence, _), entry in self.ready.items()
            if entry.stride == stride_of(size) and not entry.pinned and fence != 2
        ]  # fmt: skip
        if not spare or self.fence[client] == 1:
            return
        handles, outcomes = self.caches[client].claim([KEYS[spare[0]]], size)
        self.forget_evicted()
        if outcomes[0] == _native.OK:
            self.lives.add(int(handles[0]))
            self.caches[client].abandon(handles)
        else:
            assert not evictable, f"{len(evictable)} evictable blocks, yet no space"
            assert 0 == self.free_blocks(size)

    def check_found(
        self,
        client: int,
        picked: list[int],
        handles: np.ndarray,
        outcomes: np.ndarray,
        *,
        pin: bool,
    ) -> None:
        for index, handle, outcome in zip(picked, handles.tolist(), outcomes.tolist(), strict=True):
            place = (self.fence[client], index)
            if place in self.ready:
                assert (_native.OK, self.ready[place].handle) == (outcome, handle)
                if pin:
                    pins = self.ready[place].pins
                    pins[client] = pins.get(client, 0) + 1
            else:
                expected = _native.PENDING if place in self.claimed else _native.MISSING
                assert (expected, 0) == (outcome, handle)


class AdaptiveCacheMachine(CacheMachine):
    """The same, in an arena that evicts by what is due first."""

    eviction = "adaptive"
