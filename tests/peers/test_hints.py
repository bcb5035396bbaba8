"""Does each host learn what the others hold, by itself, and forget it when it is gone?"""

from __future__ import annotations

from collections.abc import Callable

from pegashm._native import MISSING, REMOTE, SPILLED
from pegashm.transport.messages import Answer

from tests.peers.rig import BYTES, Host, connect
from tests.transport.rig import eventually

Pair = Callable[..., tuple[Host, Host]]


def test_what_one_stores_the_other_finds_and_fetches(pair: Pair) -> None:
    a, b = pair()
    keys = a.store(range(1, 101), BYTES, sums=True)
    eventually(lambda: b.sees(keys) == 100)
    assert [Answer.OK] * 100 == b.fetch(keys)
    assert 100 == b.judge(keys)
    # And back: what B stores, A finds; what A evicts, B does not find any more.
    more = b.store(range(101, 121), BYTES)
    eventually(lambda: a.sees(more) == 20)
    b.evict(keys)
    a.evict(keys)
    eventually(lambda: b.outcomes(keys) == [MISSING] * 100)


def test_what_was_there_before_they_met(host: Callable[..., Host]) -> None:
    a, b = host(), host()
    keys = a.store(range(1, 51), BYTES)
    connect([a, b])
    eventually(lambda: b.sees(keys) == 50)
    assert [Answer.OK] * 50 == b.fetch(keys)
    assert 50 == b.judge(keys)


def test_on_ssd_there(pair: Pair) -> None:
    """Found over there though memory has forgotten it, promoted there, fetched here; here it is on SSD then as well."""
    a, b = pair(spill=True)
    keys = a.store(range(1, 41), BYTES)
    a.wait_stored(40)
    a.evict(keys)
    assert [SPILLED] * 40 == a.outcomes(keys)
    eventually(lambda: b.sees(keys) == 40)
    assert [Answer.OK] * 40 == b.fetch(keys)
    assert 40 == b.judge(keys)


def test_three_hosts(host: Callable[..., Host]) -> None:
    hosts = [host() for _ in range(3)]
    connect(hosts)
    stored = [one.store(range(at * 100, at * 100 + 30), BYTES) for at, one in enumerate(hosts)]
    for at, one in enumerate(hosts):
        others = [key for number, keys in enumerate(stored) if number != at for key in keys]
        eventually(lambda: one.sees(others) == 60)  # noqa: B023
        assert [Answer.OK] * 60 == one.fetch(others)
        assert 90 == one.judge(others + stored[at])


def test_a_restarted_worker(pair: Pair) -> None:
    """The same host in another life: gone, and back with all that its arena still holds."""
    a, b = pair()
    keys = a.store(range(1, 41), BYTES)
    eventually(lambda: b.sees(keys) == 40)
    a.kill()
    eventually(lambda: b.sees(keys) == 0)
    assert [Answer.MISSING] * 40 == b.fetch(keys)
    a.start(files=0)
    eventually(lambda: b.sees(keys) == 40)
    assert [Answer.OK] * 40 == b.fetch(keys)
    assert 40 == b.judge(keys)


def test_another_region_at_the_same_address(pair: Pair) -> None:
    """What the former one held is forgotten; nothing of it is taken for the new one's."""
    a, b = pair()
    keys = a.store(range(1, 41), BYTES)
    eventually(lambda: b.sees(keys) == 40)
    a.again()
    other = a.store(range(21, 31), BYTES)
    a.start(files=0)
    eventually(lambda: b.knows(a))
    eventually(lambda: b.sees(other) == 10)
    eventually(lambda: b.outcomes(keys).count(REMOTE) == 10)
    answers = b.fetch(keys)
    assert 10 == answers.count(Answer.OK)
    assert 10 == b.judge(keys)
    assert [REMOTE] * 0 == [outcome for outcome in b.outcomes(keys) if outcome == REMOTE]


def test_an_engine_follows_by_its_own_lookups(pair: Pair) -> None:
    """find_prefix goes on over what others hold."""
    a, b = pair()
    keys = a.store(range(1, 31), BYTES)
    mine = b.store(range(31, 36), BYTES)
    eventually(lambda: b.sees(keys) == 30)
    chain = keys[:10] + mine + keys[10:]
    _, outcomes = b.cache.find_prefix(chain)
    assert 35 == len(outcomes)
