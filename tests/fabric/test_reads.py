"""Do the bytes that lie there arrive here, all of them and no others? Conformance of every fabric: nobody dies yet."""

from __future__ import annotations

import pytest

from pegashm.fabric.interface import ReadOutcome
from pegashm.units import KIB, MIB

from tests.fabric.rig import Pair, RefusedError, in_time

OK, FAILED, LATE = map(int, ReadOutcome)


@pytest.mark.parametrize(
    ("count", "nbytes"),
    [(1, 4 * KIB), (300, 4 * KIB), (1, 64 * KIB), (64, 64 * KIB), (3, 1 * MIB), (4, 1300 * KIB)],
)
def test_every_byte_arrives(pair: Pair, count: int, nbytes: int) -> None:
    connection = pair.connect()
    lease = pair.lease(count, nbytes)
    assert count == lease.judge(pair.read(connection, lease))


def test_a_subset_of_a_lease_leaves_the_other_destinations_alone(pair: Pair) -> None:
    connection = pair.connect()
    lease = pair.lease(8, 64 * KIB)
    which = [1, 2, 6]
    assert 3 == lease.judge(pair.read(connection, lease, which), which)
    others = [n for n in range(8) if n not in which]
    left = pair.read(connection, lease, others)  # and a lease may be read from again
    assert 5 == lease.judge(left, others)
    assert 8 == lease.judge([OK] * 8)


def test_no_parts_are_no_outcomes(pair: Pair) -> None:
    connection = pair.connect()
    assert pair.read(connection, pair.lease(1, 4 * KIB), []) == []


def test_many_reads_at_once(pair: Pair) -> None:
    """Several threads of one process, over one connection, each under a lease of its own."""
    connection = pair.connect()
    leases = [pair.lease(12, 64 * KIB) for _ in range(8)]
    for _ in range(3):
        readings = [pair.begin_read(connection, lease) for lease in leases]
        for lease, reading in zip(leases, readings, strict=True):
            assert 12 == lease.judge(in_time(reading))
            lease.poison()


def test_two_readers_and_two_connections_of_one(pair: Pair) -> None:
    other = pair.add_reader()
    mine = [pair.connect(), pair.connect()]
    theirs = pair.connect(other)
    leases = [pair.lease(16, 64 * KIB) for _ in mine]
    lease = pair.lease(16, 64 * KIB, reader=other)
    readings = [pair.begin_read(c, one) for c, one in zip(mine, leases, strict=True)]
    their_outcomes = in_time(pair.begin_read(theirs, lease, reader=other))
    assert [OK] * 16 == their_outcomes
    for one, reading in zip(leases, readings, strict=True):
        assert 16 == one.judge(in_time(reading))


def test_a_deadline_that_has_passed_reads_nothing(pair: Pair) -> None:
    connection = pair.connect()
    lease = pair.lease(4, 64 * KIB)
    assert [LATE] * 4 == pair.read(connection, lease, seconds=-1.0)
    lease.assert_untouched()
    assert 4 == lease.judge(pair.read(connection, lease))


def test_a_refused_introduction_is_no_connection(pair: Pair) -> None:
    def refuse(_introduction: bytes) -> bytes:
        raise ConnectionRefusedError("not welcome")

    pair.reading.on_introduce = refuse
    with pytest.raises(RefusedError, match="Error: "):
        pair.connect()


@pytest.mark.parametrize("introduction", [b"", b"\0" * 8, b"\xff" * 4096])
def test_an_introduction_that_is_none_is_refused(pair: Pair, introduction: bytes) -> None:
    with pytest.raises(RefusedError, match="ValueError"):
        pair.serving.ask("admit", peer=pair.reading.peer.hex(), introduction=introduction.hex())


@pytest.mark.parametrize("offer", [b"", b"\0" * 8, b"\xff" * 4096])
def test_an_offer_that_is_none_is_no_connection(pair: Pair, offer: bytes) -> None:
    with pytest.raises(RefusedError, match="Error: "):
        pair.connect(offer=offer, seconds=2.0)


@pytest.mark.parametrize("answer", [b"", b"\0" * 8, b"\xff" * 4096])
def test_an_answer_that_is_none_is_no_connection(pair: Pair, answer: bytes) -> None:
    pair.reading.on_introduce = lambda _introduction: answer
    with pytest.raises(RefusedError, match="Error: "):
        pair.connect(seconds=2.0)


def test_a_closed_connection_reads_nothing(pair: Pair) -> None:
    connection = pair.connect()
    lease = pair.lease(4, 64 * KIB)
    pair.reading.ask("close_connection", connection=connection)
    assert [FAILED] * 4 == pair.read(connection, lease)
    assert pair.reading.ask("broken", connection=connection)
    lease.assert_untouched()


def test_nothing_leaks(pair: Pair) -> None:
    """Descriptors and threads of both sides after many connections, leases and reads."""

    def round_trip() -> None:
        connection = pair.connect()
        lease = pair.lease(2, 64 * KIB)
        assert [OK] * 2 == pair.read(connection, lease)
        pair.revoke(lease)
        pair.reading.ask("close_connection", connection=connection)

    for _ in range(3):
        round_trip()
    before = [host.ask("facts") for host in pair.hosts]
    for _ in range(20):
        round_trip()
    after = [host.ask("facts") for host in pair.hosts]
    for was, now in zip(before, after, strict=True):
        assert now["descriptors"] <= was["descriptors"] + 8
        assert now["threads"] <= was["threads"] + 4
