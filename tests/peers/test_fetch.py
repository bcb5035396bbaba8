"""Do blocks come from another host, byte for byte: from its memory, from its SSD, many at once, from whom it is best?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pegashm import _native, fsck
from pegashm._native import MISSING, OK, REMOTE
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.payload_sums import has_sums
from pegashm.transport.messages import Answer
from pegashm.units import KIB

from tests.arenas import Shape
from tests.peers.hints import tell
from tests.peers.rig import BYTES, Host, connect
from tests.transport.rig import eventually, key_of

Pair = Callable[..., tuple[Host, Host]]


def test_from_memory(pair: Pair) -> None:
    """With checksums and without: both arrive, and those that had checksums have them again."""
    a, b = pair()
    bare, summed = a.store(range(1, 31), BYTES), a.store(range(31, 61), BYTES, sums=True)
    tell(b, a, bare + summed)
    assert [REMOTE] * 60 == b.outcomes(bare + summed)
    lookups = a.counter("lookups")
    assert [Answer.OK] * 60 == b.fetch(bare + summed)
    assert 60 == b.judge(bare + summed)
    handles, _ = b.cache.find(summed, pin=True)
    assert has_sums(b.arena.region, handles).all()
    assert b.cache.verify(handles).all_ok
    b.cache.unpin(handles)
    assert 60 == b.counter("remote_fetched") == a.counter("remote_served")
    assert lookups == a.counter("lookups"), "those of other hosts are not its engines'"
    assert 60 * BYTES == b.counter("remote_bytes_fetched") == a.counter("remote_bytes_served")
    nothing_left(a, b)


def nothing_left(*hosts: Host) -> None:
    """No pin, no claim, no lease of anybody's; all arenas as fsck wants them."""
    for host in hosts:
        eventually(lambda: not host.arena.region.blocks()["pins"].any())  # noqa: B023
        tally = host.arena.region.tally()
        assert (0, 0) == (tally["claimed"], tally["evicting"])
        assert fsck.check(host.arena).clean


def test_of_two_sizes_and_two_groups(pair: Pair) -> None:
    a, b = pair()
    keys = a.store(range(1, 9), 4 * KIB) + a.store(range(11, 19), 64 * KIB)
    keys += [key[:-1] + b"\1" for key in keys[:2]]
    handles, outcomes = a.cache.claim(keys[-2:], BYTES)
    assert not outcomes.any()
    a.cache.publish(handles)
    tell(b, a, keys)
    assert [Answer.OK] * 18 == b.fetch(keys)
    assert 16 == b.judge(keys[:-2])
    assert [OK] * 2 == b.outcomes(keys[-2:])


def test_from_the_peers_ssd(pair: Pair) -> None:
    """What it has only on SSD it promotes first; what is nowhere is a miss."""
    a, b = pair(spill=True)
    keys = a.store(range(1, 41), BYTES, sums=True)
    a.wait_stored(40)
    a.evict(keys)
    gone = [key_of(number) for number in range(100, 110)]
    tell(b, a, keys + gone, _native.TIER_SSD)
    assert [Answer.OK] * 40 + [Answer.MISSING] * 10 == b.fetch(keys + gone)
    assert 40 == b.judge(keys)
    assert 40 == a.counter("spill_promoted")
    assert 10 == b.counter("remote_missing")
    nothing_left(a, b)


def test_more_on_the_peers_ssd_than_a_lease_holds(pair: Pair) -> None:
    """Promoted there lease by lease, never more at once than one may hold: its memory is not swept for us."""
    a, b = pair(spill=True)
    keys = a.store(range(1, 121), BYTES)
    a.wait_stored(120)
    a.evict(keys)
    hot = a.store(range(1001, 1101), BYTES)
    eventually(lambda: b.sees(keys) == 120)
    assert [Answer.OK] * 120 == b.fetch(keys)
    assert 120 == b.judge(keys)
    assert a.judge(hot) > 50
    nothing_left(a, b)


def test_both_tiers_in_one_request(pair: Pair) -> None:
    """What is on our own SSD is read from there, the rest comes from the other host; one answer, in order."""
    a, b = pair(spill=True)
    near = b.store(range(1, 21), BYTES)
    b.wait_stored(20)
    b.evict(near)
    far = a.store(range(21, 41), BYTES)
    tell(b, a, far)
    mixed = [key for pair_of in zip(near, far, strict=True) for key in pair_of]
    assert [Answer.OK] * 40 == b.fetch(mixed)
    assert 40 == b.judge(mixed)
    assert (20, 20) == (b.counter("spill_promoted"), b.counter("remote_fetched"))


def test_more_than_a_lease_holds(pair: Pair) -> None:
    """The whole remaining prefix in one request: lease after lease, and never more claimed than a batch."""
    a, b = pair()
    keys = a.store(range(1, 201), BYTES, sums=True)
    tell(b, a, keys)
    assert [Answer.OK] * 200 == b.fetch(keys)
    assert 200 == b.judge(keys)
    nothing_left(a, b)


def test_a_reader_with_less_room(host: Callable[..., Host]) -> None:
    """Its own blocks that are in use stay; the rest is fetched or said to have no space."""
    a = host()
    b = host(shape=Shape(segment_bytes=256 * KIB, segments_per_arena=(2,), remote_buckets=512))
    connect([a, b])
    keys = a.store(range(1, 101), BYTES)
    mine = b.store(range(1001, 1033), BYTES)  # all it has room for
    handles, _ = b.cache.find(mine[:24], pin=True)
    tell(b, a, keys)
    answers = b.fetch(keys)
    assert {Answer.OK, Answer.NO_SPACE} >= set(answers)
    assert 24 == b.judge(mine[:24])
    b.cache.unpin(handles)
    assert b.judge(keys) >= 1
    nothing_left(a, b)


def test_stale_hints_cost_a_miss_and_are_forgotten(pair: Pair) -> None:
    a, b = pair()
    keys = a.store(range(1, 21), BYTES)
    tell(b, a, keys)
    a.evict(keys[:10])
    assert [Answer.MISSING] * 10 + [Answer.OK] * 10 == b.fetch(keys)
    eventually(lambda: [MISSING] * 10 == b.outcomes(keys[:10]))
    assert [Answer.MISSING] * 10 == b.fetch(keys[:10])
    nothing_left(a, b)


def test_another_namespace_is_a_miss(pair: Pair) -> None:
    """The same keys, other bytes: whoever asks in a namespace gets nothing of another."""
    a, b = pair()
    keys = a.store(range(1, 11), BYTES)
    other = namespace_of({"model": "another"}, label="another")
    with Cache.attach(b.name, namespace=other) as cache:
        table = _native.RemoteTable(b.arena.region)
        tell(b, a, [])
        table.add(0, _native.remote_hashes_of(other.fingerprint, keys))
        assert [REMOTE] * 10 == cache.find(keys)[1].tolist()
        ticket = eventually(lambda: b.client.promote(keys, cache.namespace_id, 20_000))
        done = eventually(lambda: [one for one in b.client.replies() if one.request_id == ticket])
        assert bytes([Answer.MISSING] * 10) == done[0].outcomes
        assert [MISSING] * 10 == cache.find(keys)[1].tolist()


def test_of_several_who_have_it(host: Callable[..., Host]) -> None:
    """A stale hint of one costs a question: the other is asked then. Both get their share of much."""
    a, b, c = hosts = [host() for _ in range(3)]
    connect(hosts)
    keys = a.store(range(1, 101), BYTES)
    b.store(range(1, 51), BYTES)
    tell(c, a, keys)
    tell(c, b, keys)
    for first in range(0, 100, 5):
        assert [Answer.OK] * 5 == c.fetch(keys[first : first + 5])
    assert 100 == c.judge(keys)
    shares = a.counter("remote_served"), b.counter("remote_served")
    print(f"shares {shares}")
    assert 100 == sum(shares)
    assert shares[0] >= 50
    nothing_left(*hosts)


def test_asked_for_twice_is_fetched_once(pair: Pair) -> None:
    a, b = pair()
    keys = a.store(range(1, 61), BYTES)
    tell(b, a, keys)
    tickets = {b.ask(keys) for _ in range(4)}
    answered: dict[int, bytes] = {}

    def all_answered() -> bool:
        answered.update({reply.request_id: reply.outcomes for reply in b.client.replies()})
        return answered.keys() >= tickets

    eventually(all_answered)
    assert {bytes(60)} == {answered[ticket] for ticket in tickets}
    assert 60 == b.counter("remote_fetched")


def test_evicted_under_a_remote_pin(pair: Pair) -> None:
    """Blocks that a lease holds cannot be evicted; what is evicted and stored anew meanwhile comes whole, or not at all."""
    a, b = pair()
    keys = a.store(range(1, 101), BYTES)
    tell(b, a, keys)
    judged = 0
    for _ in range(10):
        ticket = b.ask(keys)
        while not (replies := [one for one in b.client.replies() if one.request_id == ticket]):
            handles, _ = a.cache.find(keys)
            a.cache.evict(handles[handles != 0])
            a.store(range(1, 101), BYTES)
        assert set(replies[0].outcomes) <= {Answer.OK, Answer.MISSING}
        judged += b.judge(keys)
        handles, _ = b.cache.find(keys)
        b.cache.evict(handles[handles != 0])
        tell(b, a, keys)
    print(f"{judged} blocks judged")
    assert judged > 0
    nothing_left(a, b)


def test_damaged_in_the_peers_memory(pair: Pair) -> None:
    """Other bytes than the checksums that came along say: not published, counted, the hint forgotten."""
    a, b = pair()
    keys = a.store(range(1, 11), BYTES, sums=True)
    tell(b, a, keys)
    handles, _ = a.cache.find(keys[:3])
    blocks = a.arena.region.describe(handles)
    for offset in blocks["payload_offset"].tolist():
        view = np.frombuffer(a.arena.region.payload(offset + 100, 1), np.uint8)
        view[0] ^= 1
        del view
    # Told twice: what comes after the fetch would bring the hints back.
    eventually(lambda: b.counter("remote_events_received") >= 10)
    assert [Answer.DAMAGED] * 3 + [Answer.OK] * 7 == b.fetch(keys)
    assert 7 == b.judge(keys)
    assert 3 == b.counter("remote_damaged")
    assert [MISSING] * 3 == b.outcomes(keys[:3])
    nothing_left(a, b)
