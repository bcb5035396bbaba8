"""Does a supervisor that finds an arena repair it as fsck does, and serve whatever it finds?"""

from __future__ import annotations

from collections.abc import Callable

from pegashm import fsck
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.liveness import REGISTRY_BYTE, close_lock_file, open_lock_file, try_lock

from tests.fsck.scene import Hand
from tests.served import NAMESPACE, Served, assert_stored, store

Serve = Callable[..., Served]
IMPOSSIBLE = 0x99  # a state word that cannot be: I14


def damaged(name: str, serve: Serve) -> int:
    """An arena that its supervisor left, with eight blocks and one record that cannot be; which."""
    serve().wait_ready().end()
    store(name)
    with open_arena(name) as arena:
        hand = Hand(arena)
        record = max(hand.ready) + 1
        hand.put(hand.block(record), IMPOSSIBLE)
    return record


def test_damage_ends_with_the_supervisor_that_finds_it(name: str, serve: Serve) -> None:
    record = damaged(name, serve)
    assert 14 in fsck.check_name(name).counts
    served = serve().wait_ready()
    served.wait_log("re-adopted")
    assert "I14 state word (damage), 1: freed" in served.log
    assert f"record {record} " in served.log
    assert fsck.check_name(name).clean
    assert_stored(name)


def test_what_may_be_a_write_in_flight_waits_for_the_living(name: str, serve: Serve) -> None:
    record = damaged(name, serve)
    with Cache.attach(name, namespace=NAMESPACE):
        served = serve().wait_ready()
        served.wait_log("re-adopted")
        assert f"record {record} " in served.log
        assert "waits until nobody is attached" in served.log
        assert {14} == set(fsck.check_name(name).counts)
    assert_stored(name)
    assert 0 == served.end()
    serve().wait_ready().wait_log("re-adopted")
    assert fsck.check_name(name).clean


def test_somebody_stopped_in_the_middle_of_attaching_keeps_nobody_from_serving(
    name: str, serve: Serve
) -> None:
    damaged(name, serve)
    stopped = open_lock_file(name)
    assert try_lock(stopped, REGISTRY_BYTE)
    try:
        served = serve()
        served.wait_log("re-adopted")
        assert "could not be checked" in served.log
        assert f"pegashm fsck --name {name} --repair" in served.log
    finally:
        close_lock_file(stopped)
    served.wait_ready()
    assert_stored(name)
