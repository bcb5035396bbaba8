"""Can a reader that lies read what it was not leased, or when it is not any more? The device itself has to refuse."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pegashm.fabric.interface import ReadOutcome
from pegashm.units import KIB, MIB

from tests.rdma.liar import SUCCESS, read_raw, rows_of
from tests.rdma.rig import BLOCK, PAYLOAD_BYTES, PEER, Host, Hosts, blocks_of

pytestmark = pytest.mark.timeout(120)

OK, FAILED = ReadOutcome.OK, ReadOutcome.FAILED
REFUSED = "IBV_WC_REM_ACCESS_ERR"


def unless_soft(hosts: Hosts, outcome: str) -> None:
    """The kernel's software device is no witness here."""
    if outcome == SUCCESS and hosts.serving.fabric._devices[0].port.device.startswith("rxe"):
        pytest.xfail(
            "soft-RoCE (Linux 6.1) checks a window's key and queue pair, but bounds only by the region beneath it"
        )


def test_what_is_leased_can_be_read(hosts: Hosts) -> None:
    connection = hosts.connect()
    grant, parts = hosts.lease(blocks_of(BLOCK, 4))
    row = rows_of(connection, grant)[1]
    assert SUCCESS == read_raw(hosts, connection, row.offset, row.nbytes, row.rkey)
    assert 4 == hosts.arrived(parts, connection.read(grant, parts, time.monotonic() + 20))


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [(0, BLOCK + 1), (BLOCK - 4096, 8192), (-4096, 4096), (-1, 2), (BLOCK, 4096), (8 * MIB, 4096)],
)
def test_nothing_beyond_a_span(hosts: Hosts, offset: int, nbytes: int) -> None:
    """One byte too many, across either end, a neighbour, another chunk: with the key of the span beside it."""
    connection = hosts.connect()
    grant, _ = hosts.lease([(1 * MIB, BLOCK)])
    (row,) = rows_of(connection, grant)
    before = hosts.reading.bytes_at(0, nbytes)
    outcome = read_raw(hosts, connection, row.offset + offset, nbytes, row.rkey)
    unless_soft(hosts, outcome)
    assert REFUSED == outcome
    assert before == hosts.reading.bytes_at(0, nbytes)


def test_neighbouring_blocks_share_a_key_and_nothing_else_does(hosts: Hosts) -> None:
    connection = hosts.connect()
    grant, parts = hosts.lease([(0, BLOCK), (BLOCK, BLOCK), (3 * BLOCK, BLOCK)])
    rows = rows_of(connection, grant)
    assert [(0, 2 * BLOCK), (3 * BLOCK, BLOCK)] == [(row.offset, row.nbytes) for row in rows]
    assert 3 == hosts.arrived(parts, connection.read(grant, parts, time.monotonic() + 20))
    outcome = read_raw(hosts, connection, 0, 4096, rows[1].rkey)
    unless_soft(hosts, outcome)
    assert REFUSED == outcome


def test_the_key_of_the_memory_itself_opens_nothing(hosts: Hosts) -> None:
    connection = hosts.connect()
    region = hosts.serving.fabric._devices[0].region(0)
    assert REFUSED == read_raw(hosts, connection, 0, 4096, region.rkey)


@pytest.mark.parametrize("change", [1, 0x100, 0x01000000, -1])
def test_a_guessed_key_opens_nothing(hosts: Hosts, change: int) -> None:
    connection = hosts.connect()
    grant, _ = hosts.lease([(0, BLOCK)])
    (row,) = rows_of(connection, grant)
    assert REFUSED == read_raw(hosts, connection, 0, 4096, (row.rkey + change) & 0xFFFFFFFF)


@pytest.mark.parametrize("how", ["revoked", "expired", "dismissed"])
def test_a_key_dies_with_its_lease(hosts: Hosts, how: str) -> None:
    connection = hosts.connect()
    grant, _ = hosts.lease([(0, BLOCK)], seconds=0.2 if how == "expired" else 60)
    (row,) = rows_of(connection, grant)
    if how == "revoked":
        hosts.serving.fabric.revoke(grant.lease_id)
    elif how == "expired":
        time.sleep(0.6)
    else:
        hosts.serving.fabric.dismiss(PEER)
    assert SUCCESS != read_raw(hosts, connection, 0, 4096, row.rkey)


def test_a_key_is_for_one_peer(hosts: Hosts) -> None:
    """Told to another, it opens nothing over that one's queue pair, which is connected to the same device."""
    owner, thief = hosts.connect(), hosts.connect(b"thief, 16 bytes.")
    grant, parts = hosts.lease([(0, BLOCK)])
    (row,) = rows_of(owner, grant)
    assert REFUSED == read_raw(hosts, thief, 0, 4096, row.rkey)
    assert [OK] == owner.read(grant, parts, time.monotonic() + 20), "the owner is not disturbed"


def test_a_liar_costs_nobody_else(hosts: Hosts) -> None:
    liar, other = hosts.connect(b"liar, 16 bytes.."), hosts.connect()
    for _ in range(3):
        assert REFUSED == read_raw(hosts, liar, 0, 4096, 0x12345678)
        with pytest.raises(ValueError, match="must connect first"):
            hosts.lease([(0, BLOCK)], peer=b"liar, 16 bytes..")
        grant, parts = hosts.lease(blocks_of(BLOCK, 8))
        assert 8 == hosts.arrived(parts, other.read(grant, parts, time.monotonic() + 20))
        liar = hosts.connect(b"liar, 16 bytes..")


def test_without_windows_only_admitted_peers_read(
    make_hosts: Callable[..., Hosts],
) -> None:
    hosts = make_hosts(windows=False)
    connection = hosts.connect()
    grant, parts = hosts.lease([(0, BLOCK)])
    (row,) = rows_of(connection, grant)
    assert [OK] == connection.read(grant, parts, time.monotonic() + 20)
    hosts.serving.fabric.dismiss(PEER)
    assert SUCCESS != read_raw(hosts, connection, 0, 4096, row.rkey)


@pytest.mark.parametrize("windows", [True, False])
def test_no_read_reaches_past_the_payload(make_hosts: Callable[..., Hosts], windows: bool) -> None:
    hosts = make_hosts(windows=windows)
    connection = hosts.connect()
    last = PAYLOAD_BYTES - BLOCK
    grant, _ = hosts.lease([(last, BLOCK)])
    (row,) = rows_of(connection, grant)
    assert REFUSED == read_raw(hosts, connection, last, BLOCK + 4096, row.rkey)


def test_a_peer_keeps_a_bounded_number_of_connections(hosts: Hosts) -> None:
    """Another life of the same host replaces what the former one left; within one life the oldest go."""
    from pegashm.fabric.verbs_wire import CONNECTIONS_MAX

    connections = [hosts.connect() for _ in range(CONNECTIONS_MAX + 3)]
    served = hosts.serving.fabric._serving._connections
    assert CONNECTIONS_MAX >= len(served[PEER])
    again = Host(last=True)
    try:
        connection = hosts.connect(reading=again)
        assert 1 == len(served[PEER])
        grant, _ = hosts.lease([(0, 4 * KIB)])
        assert [FAILED] == connections[-1].read(
            grant, [hosts.lease([(0, 4 * KIB)])[1][0]], time.monotonic() + 5
        )
        connection.close()
    finally:
        again.fabric.close()
