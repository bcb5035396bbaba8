"""Hosts with networks of their own: what becomes of fetches when a cable is pulled, and when it is back?"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pegashm.transport.messages import Answer

from tests.peers.hosts import Network, why_not
from tests.peers.rig import BYTES, Host
from tests.transport.rig import eventually

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(900),
]


def test_partition_and_heal(three: Callable[[], list[Host]], network: Network) -> None:
    """Who is cut off is lost alone, and by itself; fetches meanwhile end by their deadline; healed, all is found again."""
    a, b, c = three()
    keys_a, keys_c = a.store(range(1, 61), BYTES), c.store(range(101, 131), BYTES)
    eventually(lambda: b.sees(keys_a + keys_c) == 90)
    assert [Answer.OK] * 20 == b.fetch(keys_a[:20])

    network.cut(0)
    began = time.monotonic()
    answers = b.fetch(keys_a[20:40], deadline_ms=2000)
    assert time.monotonic() - began < 2.0 + 2.0
    assert Answer.OK not in answers
    assert 0 == b.judge(keys_a[20:40])
    eventually(lambda: b.sees(keys_a) == 0)
    print(
        f"hints of the host that was cut off count no more after {time.monotonic() - began:.1f} s"
    )
    assert [Answer.OK] * 30 == b.fetch(keys_c), "others are untouched"
    assert set(b.fetch(keys_a[20:40])) <= {Answer.MISSING, Answer.FAILED}
    eventually(lambda: not a.arena.region.blocks()["pins"].any())

    network.heal(0)
    eventually(lambda: b.sees(keys_a[20:]) == 40, 60.0)
    eventually(lambda: set(b.fetch(keys_a[20:])) == {Answer.OK}, 60.0)
    assert 60 == b.judge(keys_a)


def test_cut_in_the_middle_of_a_fetch(three: Callable[[], list[Host]], network: Network) -> None:
    a, b, _ = three()
    keys = a.store(range(1, 201), BYTES)
    eventually(lambda: b.sees(keys) == 200)
    for attempt in range(3):
        ticket = b.ask(keys, 3000)
        time.sleep(0.004 * attempt)
        network.cut(0)
        began = time.monotonic()
        eventually(lambda: [one for one in b.client.replies() if one.request_id == ticket])  # noqa: B023
        assert time.monotonic() - began < 3.0 + 2.0
        fetched = b.judge(keys)
        network.heal(0)
        eventually(lambda: b.sees(keys) + b.judge(keys) == 200, 60.0)
        print(f"{fetched} of 200 had come")
        b.evict(keys)
        eventually(lambda: b.sees(keys) == 200, 60.0)
    for host in (a, b):
        eventually(lambda: not host.arena.region.blocks()["pins"].any())  # noqa: B023
        assert 0 == host.arena.region.tally()["claimed"]
