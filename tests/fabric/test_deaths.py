"""Either side is killed, stopped, or goes on after a stop, at every step of a read: it ends as a miss and in time.

What is judged after each: the read returned within its deadline; what is OK has every byte right; from then on nobody
writes into the destinations, whoever wakes up again; and the survivor serves others, or reads from others, as before.
Where in a read the signal comes is left to chance (the seed is printed); a fabric whose bytes go
through sockets is also stopped at exact bytes, see `test_tcp_proxy.py`.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from pegashm.fabric.interface import ReadOutcome
from pegashm.units import KIB

from tests.fabric.kinds import Kind
from tests.fabric.rig import GRACE_SECONDS, Pair, RefusedError, in_time

OK, FAILED, LATE = map(int, ReadOutcome)
BLOCKS, NBYTES = 64, 256 * KIB
TIMES = int(os.environ.get("PEGASHM_FABRIC_TIMES", "6"))  # an emulated machine is slow


def seconds_of_a_read(pair: Pair, connection: int) -> float:
    lease = pair.lease(BLOCKS // 4, NBYTES)
    began = time.monotonic()
    assert BLOCKS // 4 == lease.judge(pair.read(connection, lease))
    return 4 * (time.monotonic() - began)


# -- killed ------------------------------------------------------------------------------------


def test_serving_side_killed_during_a_read(kind_name: str, chance: random.Random) -> None:
    for _ in range(TIMES):
        pair = Pair(kind_name)
        try:
            connection = pair.connect()
            whole = seconds_of_a_read(pair, connection)
            lease = pair.lease(BLOCKS // 2, NBYTES)
            reading = pair.begin_read(connection, lease, seconds=3.0)
            time.sleep(chance.uniform(0, whole / 2))
            pair.serving.kill()
            outcomes = in_time(reading)
            lease.judge(outcomes)
            lease.assert_untouched()
            again = pair.read(connection, lease, seconds=2.0)
            assert OK not in again
            lease.assert_untouched(0.1)
        finally:
            pair.close()


@pytest.mark.parametrize("step", ["before connect", "before admit", "before read"])
def test_serving_side_killed_between_steps(pair: Pair, step: str) -> None:
    if step == "before connect":
        offer = pair.serving.ask("offer")
        pair.serving.kill()
        with pytest.raises(RefusedError):
            pair.connect(offer=bytes.fromhex(offer), seconds=2.0)
        return
    if step == "before admit":

        def die(_introduction: bytes) -> bytes:
            pair.serving.kill()
            raise ConnectionResetError("the server is gone")

        pair.reading.on_introduce = die
        with pytest.raises(RefusedError):
            pair.connect(seconds=2.0)
        return
    connection = pair.connect()
    lease = pair.lease(4, NBYTES)
    pair.serving.kill()
    assert OK not in pair.read(connection, lease, seconds=2.0)
    lease.assert_untouched()


def test_reading_side_killed_during_a_read(pair: Pair, chance: random.Random) -> None:
    """Once the kernel has freed its locks its claims may go to others: nothing is written any more."""
    survivor = pair.add_reader()
    whole = seconds_of_a_read(pair, pair.connect())
    for _ in range(TIMES):
        reader = pair.add_reader()
        connection = pair.connect(reader)
        lease = pair.lease(BLOCKS // 4, NBYTES, reader=reader)
        pair.begin_read(connection, lease, reader=reader)
        time.sleep(chance.uniform(0, whole / 4))
        reader.kill()
        was, pair.reading = pair.reading, reader  # whose arena the destinations are in
        lease.assert_untouched(0.2)
        pair.reading = was
        pair.revoke(lease)
        pair.serving.ask("dismiss", peer=reader.peer.hex())
        free(pair)
    connection = pair.connect(survivor)
    lease = pair.lease(4, NBYTES, reader=survivor)
    assert [OK] * 4 == in_time(pair.begin_read(connection, lease, reader=survivor))


# -- stopped -----------------------------------------------------------------------------------


def test_serving_side_stopped_and_going_on(pair: Pair, kind: Kind, chance: random.Random) -> None:
    """What it still sends after the deadline must not arrive."""
    connection = pair.connect()
    whole = seconds_of_a_read(pair, connection)
    for _ in range(TIMES):
        lease = pair.lease(BLOCKS // 4, NBYTES)
        reading = pair.begin_read(connection, lease, seconds=0.5)
        time.sleep(chance.uniform(0, whole / 4))
        pair.serving.signal(signal.SIGSTOP)
        outcomes = in_time(reading)
        lease.judge(outcomes)
        lease.poison()
        pair.serving.signal(signal.SIGCONT)
        lease.assert_untouched()
        pair.revoke(lease)
        free(pair)
        if pair.reading.ask("broken", connection=connection):
            connection = pair.connect()
    lease = pair.lease(4, NBYTES)
    assert [OK] * 4 == pair.read(connection, lease)


def test_serving_side_stopped_before_a_read(pair: Pair, kind: Kind) -> None:
    connection = pair.connect()
    lease = pair.lease(4, NBYTES)
    pair.serving.signal(signal.SIGSTOP)
    outcomes = pair.read(connection, lease, seconds=0.5)
    assert set(outcomes) <= ({LATE, FAILED} if kind.serving_needed else {OK})
    lease.judge(outcomes)
    lease.poison()
    pair.serving.signal(signal.SIGCONT)
    lease.assert_untouched()


def test_reading_side_stopped_costs_nobody_else(pair: Pair, chance: random.Random) -> None:
    """The lease can be revoked, others are served meanwhile; going on, the stopped one gets no wrong byte."""
    other = pair.add_reader()
    theirs = pair.connect(other)
    connection = pair.connect()
    whole = seconds_of_a_read(pair, connection)
    for _ in range(TIMES // 2):
        lease = pair.lease(BLOCKS // 4, NBYTES)
        reading = pair.begin_read(connection, lease, seconds=30.0)
        time.sleep(chance.uniform(0, whole / 4))
        pair.reading.signal(signal.SIGSTOP)
        served = pair.lease(4, NBYTES, reader=other)
        assert [OK] * 4 == in_time(pair.begin_read(theirs, served, reader=other))
        pair.revoke(lease)
        pair.revoke(served)
        pair.reading.signal(signal.SIGCONT)
        lease.judge(in_time(reading))
        lease.assert_untouched(0.1)
        free(pair)
        if pair.reading.ask("broken", connection=connection):
            connection = pair.connect()


def test_reading_side_interrupted_again_and_again(pair: Pair, kind: Kind) -> None:
    """As by a profiler or a debugger, ten times a second: it gives up at its deadline all the same."""
    connection = pair.connect()
    lease = pair.lease(4, NBYTES)
    pair.serving.signal(signal.SIGSTOP)
    reading = pair.begin_read(connection, lease, seconds=1.0)
    end = time.monotonic() + 1.0 + 2 * GRACE_SECONDS
    while not reading.done() and time.monotonic() < end:
        time.sleep(0.1)
        pair.reading.signal(signal.SIGSTOP)
        time.sleep(0.01)
        pair.reading.signal(signal.SIGCONT)
    outcomes = in_time(reading)
    assert set(outcomes) <= ({LATE, FAILED} if kind.serving_needed else {OK})
    lease.judge(outcomes)
    lease.poison()
    pair.serving.signal(signal.SIGCONT)
    lease.assert_untouched()


def free(pair: Pair) -> None:
    """Give the blocks of former leases back, on both sides: the arenas are small."""
    for host in pair.hosts:
        if host.process.poll() is None:
            host.ask("free")
