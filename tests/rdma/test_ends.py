"""Does a read that ends early leave nothing under way? By its deadline, a revoked lease, a peer that goes or comes again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from pegashm.fabric.interface import Part, ReadOutcome
from pegashm.units import MIB

from tests.rdma.rig import BLOCK, PAYLOAD_BYTES, PEER, Host, Hosts, blocks_of

pytestmark = pytest.mark.timeout(120)

OK, FAILED, LATE = ReadOutcome
BIG = [(n * MIB, MIB) for n in range(PAYLOAD_BYTES // MIB)]
POISON = b"\xa5"


def poison(hosts: Hosts) -> None:
    hosts.reading.memory[:] = POISON * PAYLOAD_BYTES


def assert_untouched(hosts: Hosts, seconds: float = 0.2) -> None:
    poison(hosts)
    time.sleep(seconds)
    assert hosts.reading.memory[:] == POISON * PAYLOAD_BYTES, "written after the read was over"


@pytest.mark.parametrize("windows", [True, False])
def test_a_deadline_in_the_middle(
    make_hosts: Callable[..., Hosts], chance: random.Random, windows: bool
) -> None:
    hosts = make_hosts(windows=windows)
    for _ in range(4):
        connection = hosts.connect()
        grant, parts = hosts.lease(BIG)
        deadline = time.monotonic() + chance.uniform(0.005, 0.08)
        outcomes = connection.read(grant, parts, deadline)
        over = time.monotonic() - deadline
        before = hosts.arrived(parts, outcomes)
        assert set(outcomes) <= {OK, LATE}
        assert_untouched(hosts)
        assert over < 2.0, f"returned {over:.2f} s after the deadline"
        assert connection.broken == (before < len(parts))
        connection.close()


def test_revoked_in_the_middle_of_a_read(hosts: Hosts, chance: random.Random) -> None:
    """Once revoke has returned the bytes may change: what is OK are the old ones, the rest has failed."""
    for _ in range(4):
        connection = hosts.connect()
        grant, parts = hosts.lease(BIG)
        old = hosts.serving.memory[:]
        poison(hosts)

        def revoke(lease: int = grant.lease_id, after: float = chance.uniform(0, 0.1)) -> None:
            time.sleep(after)
            hosts.serving.fabric.revoke(lease)
            hosts.serving.memory[:] = b"\x11" * PAYLOAD_BYTES

        thread = threading.Thread(target=revoke)
        thread.start()
        outcomes = connection.read(grant, parts, time.monotonic() + 20)
        thread.join()
        for part, outcome in zip(parts, outcomes, strict=True):
            assert outcome in {OK, FAILED}
            if outcome is OK:
                there = old[part.offset : part.offset + part.nbytes]
                assert hosts.reading.bytes_at(part.offset, part.nbytes) == there
        assert_untouched(hosts, 0.1)
        hosts.serving.memory[:] = old


def test_a_peer_that_went_and_came_again(hosts: Hosts) -> None:
    """The old connection fails, the old offer leads nowhere, the new one works."""
    connection = hosts.connect()
    grant, parts = hosts.lease(blocks_of(BLOCK, 4))
    offer = hosts.serving.fabric.offer()
    hosts.serving.fabric.close()
    bytes_there = hosts.serving.memory[:]
    hosts.serving = Host(last=False)
    hosts.serving.memory[:] = bytes_there
    poison(hosts)
    assert [FAILED] * 4 == connection.read(grant, parts, time.monotonic() + 5)
    assert connection.broken
    assert_untouched(hosts, 0.1)
    with pytest.raises((OSError, ValueError), match="another peer"):
        hosts.reading.fabric.connect(
            offer,
            lambda introduction: hosts.serving.fabric.admit(PEER, introduction),
            time.monotonic() + 5,
        )
    connection = hosts.connect()
    grant, parts = hosts.lease(blocks_of(BLOCK, 4))
    assert 4 == hosts.arrived(parts, connection.read(grant, parts, time.monotonic() + 20))


def test_closed_by_another_thread(hosts: Hosts) -> None:
    connection = hosts.connect()
    grant, parts = hosts.lease(BIG)
    closer = threading.Timer(0.02, connection.close)
    closer.start()
    outcomes = connection.read(grant, parts, time.monotonic() + 20)
    closer.join()
    hosts.arrived(parts, outcomes)
    assert set(outcomes) <= {OK, FAILED}
    assert_untouched(hosts, 0.1)
    assert [FAILED] == connection.read(grant, parts[:1], time.monotonic() + 5)


def test_a_small_read_beside_a_large_one(hosts: Hosts) -> None:
    """Both go on side by side: the small one need not wait until the large one is over."""
    connection = hosts.connect()
    grant, parts = hosts.lease(BIG)

    def large() -> None:
        assert [OK] * len(parts) == connection.read(grant, parts, time.monotonic() + 60)

    thread = threading.Thread(target=large)
    thread.start()
    time.sleep(0.01)
    small = [Part(0, 4096, hosts.reading.address)]
    assert [OK] == connection.read(grant, small, time.monotonic() + 60)
    thread.join()
    assert 16 == hosts.arrived(parts, [OK] * len(parts))


def test_blocks_across_chunks_and_odd_sizes(hosts: Hosts, chance: random.Random) -> None:
    """Chunks have 4 MiB here; the blocks begin anywhere in them, there and here at different places."""
    connection = hosts.connect()
    for _ in range(4):
        nbytes = chance.choice([1, 4095, 12345, 700_001, 5 * MIB - 17])
        count = min(8, PAYLOAD_BYTES // (nbytes + 8192))
        step = PAYLOAD_BYTES // count // 4096 * 4096
        grant, parts = hosts.lease([(n * step, nbytes) for n in range(count)])
        to = [(n * step + 4096 * chance.randrange(0, 2)) for n in range(count)]
        parts = [
            Part(part.offset, part.nbytes, hosts.reading.address + min(at, PAYLOAD_BYTES - nbytes))
            for part, at in zip(parts, to, strict=True)
        ]
        outcomes = connection.read(grant, parts, time.monotonic() + 20)
        assert count == hosts.arrived(parts, outcomes), (nbytes, outcomes)
        hosts.serving.fabric.revoke(grant.lease_id)


def test_scattered_leases_up_to_the_limit(hosts: Hosts) -> None:
    connection = hosts.connect()
    grant, parts = hosts.lease(blocks_of(4096, PAYLOAD_BYTES // 8192))  # 2048 spans
    assert len(parts) == hosts.arrived(parts, connection.read(grant, parts, time.monotonic() + 60))
    hosts.serving.fabric.revoke(grant.lease_id)
