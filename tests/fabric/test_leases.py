"""Is nothing readable but what a lease covers, while it lasts, by whom it was given to? Conformance of every fabric."""

from __future__ import annotations

import random
import threading
import time

import pytest

from pegashm.fabric.interface import ReadOutcome
from pegashm.units import KIB

from tests.fabric.kinds import Kind
from tests.fabric.payloads import poison
from tests.fabric.rig import Pair, RefusedError, in_time

OK, FAILED, LATE = map(int, ReadOutcome)
NBYTES = 256 * KIB


def test_a_revoked_lease_is_not_read(pair: Pair, kind: Kind) -> None:
    connection = pair.connect()
    lease, other = pair.lease(4, NBYTES), pair.lease(4, NBYTES)
    pair.revoke(lease)
    if kind.revoke_stops:
        assert OK not in pair.read(connection, lease, seconds=2.0)
        lease.assert_untouched(0.1)
    connection, other = pair.mended(connection, other)
    assert 4 == other.judge(pair.read(connection, other))


def test_an_expired_lease_is_not_read(pair: Pair, kind: Kind) -> None:
    connection = pair.connect()
    lease = pair.lease(4, NBYTES, seconds=0.2)
    time.sleep(0.4)
    if kind.revoke_stops:
        assert OK not in pair.read(connection, lease, seconds=2.0)
        lease.assert_untouched(0.1)
    connection, _ = pair.mended(connection, lease)
    lease = pair.lease(4, NBYTES)
    assert 4 == lease.judge(pair.read(connection, lease))


def test_revoked_during_a_read(pair: Pair, kind: Kind, chance: random.Random) -> None:
    """The bytes change once revoke() has returned, as in an evicted block's next life: what is OK is never the new ones."""
    connection = pair.connect()
    for _ in range(8):
        lease = pair.lease(32, NBYTES)
        began = time.monotonic()
        reading = pair.begin_read(connection, lease, seconds=5.0)
        time.sleep(chance.uniform(0, 0.02))
        pair.revoke(lease)
        assert time.monotonic() - began < 10.0
        if kind.revoke_stops:
            for offset in lease.sources:
                poison(pair.serving.region, offset, NBYTES)
            lease.judge(in_time(reading))
        else:
            in_time(reading)  # what came after the end of the lease is discarded by the clock
        lease.assert_untouched(0.1)
        for host in pair.hosts:
            host.ask("free")
        if pair.reading.ask("broken", connection=connection):
            connection = pair.connect()
    lease = pair.lease(4, NBYTES)
    assert 4 == lease.judge(pair.read(connection, lease))


def test_revoking_twice_and_what_never_was(pair: Pair) -> None:
    pair.connect()
    lease = pair.lease(1, NBYTES)
    pair.revoke(lease)
    pair.revoke(lease)
    pair.serving.ask("revoke", lease=999_999)
    pair.serving.ask("dismiss", peer="00" * 16)


def test_revokes_at_once_with_reads_by_several(pair: Pair) -> None:
    """Grants, reads and revokes of many leases side by side: nothing waits for ever, nothing is wrong."""
    shared, mending = [pair.connect()], threading.Lock()

    def mend() -> None:
        with mending:
            if pair.reading.ask("broken", connection=shared[0]):
                shared[0] = pair.connect()

    def churn() -> None:
        try:
            for _ in range(6):
                mend()
                try:
                    lease = pair.lease(4, 64 * KIB)
                except RefusedError:  # broken just now, by another one's revoke
                    continue
                reading = pair.begin_read(shared[0], lease, seconds=10.0)
                if lease.number % 2:
                    came.append(lease.judge(in_time(reading)))
                    pair.revoke(lease)
                else:
                    pair.revoke(lease)
                    lease.judge(in_time(reading))
        except BaseException as error:  # noqa: BLE001 - raised in the test below
            failures.append(error)

    came: list[int] = []
    failures: list[BaseException] = []
    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert 4 in came, came


def test_a_dismissed_peer_reads_nothing_and_may_come_again(pair: Pair) -> None:
    connection = pair.connect()
    lease = pair.lease(4, NBYTES)
    assert 4 == lease.judge(pair.read(connection, lease))
    lease.poison()
    pair.serving.ask("dismiss", peer=pair.reading.peer.hex())
    assert OK not in pair.read(connection, lease, seconds=2.0)
    lease.assert_untouched(0.1)
    connection = pair.connect()
    lease = pair.lease(4, NBYTES)
    assert 4 == lease.judge(pair.read(connection, lease))


def test_what_the_lease_does_not_cover_is_not_read(pair: Pair, kind: Kind) -> None:
    """Another lease's block, half a block, past the arena: the reader lies about what it was given."""
    connection = pair.connect()
    lease, other = pair.lease(2, NBYTES), pair.lease(2, NBYTES)
    pair.revoke(other)
    inside = lease.sources[0]
    for offset, nbytes in [
        (other.sources[0], NBYTES),
        (inside + 4 * KIB, NBYTES - 4 * KIB),
        (inside, NBYTES // 2),
        (pair.serving.region.payload_bytes, NBYTES),
        ((1 << 64) - NBYTES, NBYTES),
        (1 << 62, NBYTES),
    ]:
        outcomes = pair.read(connection, lease, seconds=2.0, parts=[(offset, nbytes, lease.to[0])])
        within = inside <= offset and offset + nbytes <= inside + NBYTES
        if not within or kind.whole_blocks:
            assert [OK] != outcomes, (offset, nbytes)
        connection, lease = pair.mended(connection, lease)
    assert 2 == lease.judge(pair.read(connection, lease))


def test_destinations_outside_the_arena_are_not_written(pair: Pair) -> None:
    """A caller's mistake is a failed part, not another process's memory, nor a signal."""
    connection = pair.connect()
    lease = pair.lease(2, NBYTES)
    end = pair.reading.region.payload_bytes
    for to in (end, end - NBYTES // 2, -NBYTES):
        assert [FAILED] == pair.read(
            connection, lease, parts=[(lease.sources[0], NBYTES, to)], seconds=2.0
        )
    assert 2 == lease.judge(pair.read(connection, lease))


@pytest.mark.parametrize("change", ["no bytes", "cut", "flipped", "other lease"])
def test_a_forged_grant_reads_nothing(pair: Pair, kind: Kind, change: str) -> None:
    if not kind.revoke_stops:
        pytest.skip("its grants are no secrets: what may be read is set with the device")
    connection = pair.connect()
    lease, other = pair.lease(2, NBYTES), pair.lease(2, NBYTES)
    number, opaque = lease.grant
    genuine = bytes.fromhex(opaque)
    forged = {
        "no bytes": b"",
        "cut": genuine[:-1],
        "flipped": genuine[:-1] + bytes([genuine[-1] ^ 1]),
        "other lease": bytes.fromhex(other.grant[1]),
    }[change]
    lease.grant = (number, forged.hex())
    assert OK not in pair.read(connection, lease, seconds=2.0)
    lease.assert_untouched(0.1)
    lease.grant = (number, opaque)
    connection, lease = pair.mended(connection, lease)
    assert 2 == lease.judge(pair.read(connection, lease))


def test_a_grant_is_for_one_peer(pair: Pair, kind: Kind) -> None:
    """Who got hold of another peer's grant has nothing: it is bound to whom it was given to."""
    if not kind.revoke_stops:
        pytest.skip("rkeys are not bound to a peer; they go to authenticated peers only")
    thief = pair.add_reader()
    theirs, mine = pair.connect(thief), pair.connect()
    lease = pair.lease(2, NBYTES)
    outcomes = in_time(pair.begin_read(theirs, lease, seconds=2.0, reader=thief))
    assert OK not in outcomes
    assert 2 == lease.judge(pair.read(mine, lease))


def test_a_server_closes_and_is_gone(pair: Pair) -> None:
    connection = pair.connect()
    lease = pair.lease(2, NBYTES)
    pair.serving.ask("close")
    assert OK not in pair.read(connection, lease, seconds=2.0)
    lease.assert_untouched(0.1)
    with pytest.raises(RefusedError):
        pair.connect(seconds=2.0)
