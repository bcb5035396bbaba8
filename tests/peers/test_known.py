"""Whom to ask of several, who is left alone for a while, and how does one come back? First by the clock, then by real hosts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from pegashm.peers.addresses import Address
from pegashm.peers.breaker import Breaker
from pegashm.peers.caller import Target
from pegashm.peers.known import Known, Peer
from pegashm.transport.messages import Answer

from tests.peers.rig import BYTES, Host
from tests.transport.rig import eventually

NOW = 1000.0
LONG_AGO = NOW - 100.0


def make_peer(known: Known, number: int, *, joined_at: float = LONG_AGO, load: int = 0) -> Peer:
    peer = Peer(
        number=number,
        address=Address("127.0.0.1", 7000 + number),
        target=Target("tcp://127.0.0.1:1", b""),
        host_id=bytes([number]) * 16,
        incarnation=bytes([number]) * 16,
        stream="",
        offers={},
        load=load,
        joined_at=joined_at,
    )
    known.add(peer)
    return peer


def chosen(known: Known, numbers: range, now: float, times: int = 400) -> Counter[int]:
    """How often each is chosen, when nobody fetches meanwhile."""
    counts: Counter[int] = Counter()
    for _ in range(times):
        peer, _ = known.choose(numbers, now)
        assert peer is not None
        counts[peer.number] += 1
    return counts


def test_the_least_loaded_is_asked() -> None:
    known = Known(8)
    for number, load in enumerate((900, 300, 600)):
        make_peer(known, number, load=load)
    assert {1} == set(chosen(known, range(3), NOW))
    assert {2} == set(chosen(known, range(2, 3), NOW)), "who alone has it is asked, loaded or not"


def test_of_equals_each_has_its_turn() -> None:
    known = Known(8)
    for number in range(4):
        make_peer(known, number)
    counts = chosen(known, range(4), NOW)
    assert 4 == len(counts)
    assert min(counts.values()) > 40


def test_own_fetches_count_and_are_bounded() -> None:
    """One that we fetch from already is second choice; two at once are all one gets."""
    known = Known(8)
    busy, idle = make_peer(known, 0), make_peer(known, 1)
    known.started(busy, NOW, 1.0)
    assert {1} == set(chosen(known, range(2), NOW))
    for peer in (busy, idle, idle):
        known.started(peer, NOW, 1.0)
    assert (None, True) == known.choose(range(2), NOW), "wait: they are only busy"
    known.ended(busy, good=True)
    assert (busy, False) == (known.choose(range(2), NOW)[0], False)
    known.remove(idle, "")
    assert known.choose(range(1, 2), NOW) == (None, False), "nobody is left to ask"


def test_one_that_joins_gets_its_share_gradually() -> None:
    """Over half a minute; before that only what others are too busy for, one fetch at a time."""
    known = Known(8)
    old, new = make_peer(known, 0), make_peer(known, 1, joined_at=NOW)
    counts = [chosen(known, range(2), NOW + seconds)[1] for seconds in (0, 10, 20, 25, 30)]
    assert counts[:2] == [0, 0]
    assert counts == sorted(counts)
    assert 100 < counts[-1] < 300
    known.started(old, NOW, 1.0)
    known.started(old, NOW, 1.0)
    assert new is known.choose(range(2), NOW)[0]
    known.started(new, NOW, 1.0)
    assert (None, True) == known.choose(range(2), NOW)
    assert new is known.choose(range(2), NOW + 20)[0]


def test_three_failures_in_a_row_open_the_breaker() -> None:
    breaker = Breaker()
    for _ in range(5):  # never three in a row
        assert not breaker.failed(NOW)
        assert not breaker.failed(NOW)
        breaker.succeeded()
    assert [False, False, True] == [breaker.failed(NOW) for _ in range(3)]
    assert "open" == breaker.state
    assert not breaker.allows(NOW + 0.99)
    assert breaker.allows(NOW + 1.0)


def test_one_request_tries_and_each_failure_doubles_the_pause() -> None:
    breaker = Breaker()
    now = NOW
    for _ in range(3):
        breaker.failed(now)
    pauses = []
    for _ in range(8):
        began = now
        while not breaker.allows(now):
            now += 0.5
        pauses.append(now - began)
        breaker.started(now, 5.0)
        assert not breaker.allows(now), "not two at once"
        assert breaker.failed(now)
    assert [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0] == pauses
    breaker.started(now + 30, 5.0)
    assert breaker.allows(now + 36), "one that never ended does not keep it shut"
    breaker.succeeded()
    assert ("closed", True) == (breaker.state, breaker.allows(now))
    for _ in range(3):
        breaker.failed(now)
    assert breaker.allows(now + 1.0), "the pause begins anew"


def test_what_says_nothing_of_the_peer_does_not_count() -> None:
    known = Known(8)
    peer = make_peer(known, 0)
    for _ in range(5):
        known.started(peer, NOW, 1.0)
        known.ended(peer, good=None)
    assert not peer.breaker.is_open
    assert 0 == peer.failed


@pytest.mark.timeout(300)
def test_a_host_that_stands_still_is_left_alone_and_comes_back(
    pair: Callable[..., tuple[Host, Host]],
) -> None:
    """Its blocks are misses at once instead of after a deadline each; others notice nothing; then all is as before."""
    a, b = pair()
    keys = a.store(range(1, 61), BYTES)
    eventually(lambda: b.sees(keys) == 60)
    assert [Answer.OK] * 10 == b.fetch(keys[:10])
    a.stop()
    for at in (10, 20, 30):
        assert Answer.OK not in b.fetch(keys[at : at + 10], deadline_ms=400)
    eventually(lambda: "left alone for a while" in b.said() or b.sees(keys) == 0)
    began = time.monotonic()
    assert Answer.OK not in b.fetch(keys[40:50], deadline_ms=20_000)
    print(f"a miss after {time.monotonic() - began:.3f} s")
    a.go_on()
    eventually(lambda: b.sees(keys[10:]) == 50, 60.0)

    def all_here() -> bool:
        left = [key for key, outcome in zip(keys, b.outcomes(keys), strict=True) if outcome]
        if left:
            b.fetch(left, deadline_ms=2000)
        return b.judge(keys) == 60

    eventually(all_here, 60.0)
