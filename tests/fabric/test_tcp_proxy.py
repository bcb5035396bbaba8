"""Bytes of a TCP stream are changed, lost, held or cut on the way, at every step of a read: never a wrong byte, never late.

A real proxy stands between the two hosts (`proxy.py`). Steps are exact bytes of what the server sends: the layout is that
of `tcp_wire`. With and without TLS, where a changed byte ends the stream instead of failing one checksum.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from pegashm.fabric.interface import ReadOutcome
from pegashm.fabric.tcp_wire import (
    GREETING_BYTES,
    HELLO_BYTES,
    REPLY_BYTES,
    REQUEST_BYTES,
    WELCOME_BYTES,
    Offer,
    pack_offer,
    parse_offer,
)
from pegashm.units import KIB, MIB

from tests.fabric.kinds import KINDS
from tests.fabric.proxy import DOWN, UP, Proxy
from tests.fabric.rig import Pair, RefusedError, in_time

OK, FAILED, LATE = map(int, ReadOutcome)
BLOCKS, NBYTES = 8, 256 * KIB
OPENED = GREETING_BYTES + WELCOME_BYTES
ASKED = OPENED + REPLY_BYTES
STREAMS = [name for name, kind in KINDS.items() if kind.streams]
# Of what the server has sent: where it stops.
OPENING = {"nothing": 0, "in greeting": 7, "greeting": GREETING_BYTES, "in welcome": OPENED - 3}
READING = {
    "before the reply": OPENED,
    "reply": ASKED,
    "in the first block": ASKED + 1000,
    "first lot": ASKED + MIB,
    "in its checksums": ASKED + MIB + 12,
    "all but a byte": ASKED + BLOCKS * (NBYTES + 8) - 1,
}


class Between:
    """A pair whose streams go through a proxy."""

    def __init__(self, kind: str) -> None:
        self.pair = Pair(kind)
        offer = parse_offer(bytes.fromhex(self.pair.serving.ask("offer")))
        self.proxy = Proxy(offer.port)
        self.offer = pack_offer(Offer("127.0.0.1", self.proxy.port, offer.fingerprint))

    def connect(self, seconds: float = 20.0) -> int:
        return self.pair.connect(offer=self.offer, seconds=seconds)

    def close(self) -> None:
        self.proxy.close()
        self.pair.close()


@pytest.fixture(params=STREAMS)
def between(request: pytest.FixtureRequest) -> Iterator[Between]:
    kind = KINDS[request.param]
    reason = kind.why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Between(request.param)
    yield made
    made.close()


@pytest.fixture
def plain() -> Iterator[Between]:
    made = Between("tcp")
    yield made
    made.close()


# -- changed on the way ------------------------------------------------------------------------


def test_one_flipped_bit_anywhere_in_the_payload(between: Between, chance: random.Random) -> None:
    """Costs the block that it was in, and no more than the read; never passes."""
    pair, proxy = between.pair, between.proxy
    failed = 0
    for _ in range(25):
        lease = pair.lease(BLOCKS, NBYTES)
        connection = between.connect()
        at = len(proxy.seen[DOWN][-1]) + REPLY_BYTES + chance.randrange(BLOCKS * NBYTES)
        proxy.changes[DOWN] = flip_at(at, 1 << chance.randrange(8))
        outcomes = pair.read(connection, lease)
        failed += BLOCKS - lease.judge(outcomes)
        proxy.changes.clear()
        lease.poison()
        again = connection
        if pair.reading.ask("broken", connection=connection):
            again = between.connect()
        assert BLOCKS == lease.judge(pair.read(again, lease))  # the stream it was on is not used
        pair.reading.ask("close_connection", connection=connection)
        pair.revoke(lease)
        for host in pair.hosts:
            host.ask("free")
    assert failed >= 25


@pytest.mark.parametrize("where", ["opening", "reply"])
def test_one_flipped_bit_in_what_is_no_payload(
    plain: Between, chance: random.Random, where: str
) -> None:
    pair, proxy = plain.pair, plain.proxy
    lease = pair.lease(BLOCKS, NBYTES)
    places = {"opening": range(OPENED), "reply": range(OPENED, ASKED)}[where]
    for at in chance.sample(places, min(len(places), 16)):
        proxy.changes[DOWN] = flip_at(at, 1 << chance.randrange(8))
        try:
            connection = plain.connect(seconds=1.0 if where == "opening" else 20.0)
        except RefusedError:
            # Reserved words may be anything; all else is noticed.
            assert where == "opening"
            continue
        lease.poison()
        lease.judge(pair.read(connection, lease, seconds=1.0))
        pair.reading.ask("close_connection", connection=connection)


@pytest.mark.parametrize("change", ["lost", "doubled", "swapped", "garbage"])
def test_bytes_lost_doubled_swapped_or_replaced(
    between: Between, chance: random.Random, change: str
) -> None:
    pair, proxy = between.pair, between.proxy
    for _ in range(6):
        lease = pair.lease(BLOCKS, NBYTES)
        connection = between.connect()
        proxy.changes[DOWN] = spoil(change, chance, after=len(proxy.seen[DOWN][-1]))
        outcomes = pair.read(connection, lease, seconds=1.0)
        assert lease.judge(outcomes) < BLOCKS
        lease.assert_untouched(0.05)
        proxy.changes.clear()
        pair.reading.ask("close_connection", connection=connection)
        pair.revoke(lease)
        for host in pair.hosts:
            host.ask("free")


def test_changed_requests_are_not_answered(plain: Between, chance: random.Random) -> None:
    """What the reader asks for is signed: no bit of it can be changed on the way."""
    pair, proxy = plain.pair, plain.proxy
    lease = pair.lease(BLOCKS, NBYTES)
    for _ in range(12):
        at = HELLO_BYTES + chance.randrange(REQUEST_BYTES + 16 * BLOCKS)
        proxy.changes[UP] = flip_at(at, 1 << chance.randrange(8))
        connection = plain.connect()
        lease.poison()
        assert OK not in pair.read(connection, lease, seconds=1.0)
        lease.assert_untouched(0.02)
        proxy.changes.clear()
        pair.reading.ask("close_connection", connection=connection)


# -- held and cut at exact bytes ---------------------------------------------------------------


@pytest.mark.parametrize("step", OPENING)
@pytest.mark.parametrize("what", ["held", "cut", "killed", "stopped"])
def test_opening_a_stream_ends_in_time(plain: Between, step: str, what: str) -> None:
    limit = plain.proxy.cut_at if what == "cut" else plain.proxy.hold_at
    limit[DOWN] = OPENING[step]
    plain.pair.reading.on_introduce = plain.pair.admitting(plain.pair.reading)
    connecting = plain.pair.reading.begin("connect", offer=plain.offer.hex(), seconds=3.0)
    assert plain.proxy.held.wait(20)
    if what in ("killed", "stopped"):
        plain.pair.serving.signal(signal.SIGKILL if what == "killed" else signal.SIGSTOP)
        plain.proxy.let_go()
    try:
        connection = connecting.result(20)
    except RefusedError:
        return
    assert what in ("killed", "stopped")  # all was sent before
    plain.pair.reading.ask("close_connection", connection=connection)


@pytest.mark.parametrize("what", ["cut", "stopped", "revoked", "expired"])
def test_a_read_ends_in_time_whatever_happens_at_any_byte(plain: Between, what: str) -> None:
    pair, proxy = plain.pair, plain.proxy
    for step, at in READING.items():
        print(step)
        connection = plain.connect()
        lease = pair.lease(BLOCKS, NBYTES, seconds=0.4 if what == "expired" else 60)
        (proxy.cut_at if what == "cut" else proxy.hold_at)[DOWN] = at
        reading = pair.begin_read(connection, lease, seconds=20.0 if what == "cut" else 2.0)
        # On a busy machine the lease may be over before it is used.
        assert proxy.held.wait(2 if what == "expired" else 20) or what == "expired"
        if what == "stopped":
            pair.serving.signal(signal.SIGSTOP)
        elif what == "revoked":
            pair.revoke(lease)
        assert lease.judge(in_time(reading)) < BLOCKS
        lease.poison()
        proxy.let_go()  # what was on its way comes now
        pair.serving.signal(signal.SIGCONT)
        lease.assert_untouched(0.15)
        if what in ("revoked", "expired"):
            assert OK not in pair.read(connection, lease, seconds=1.0)
            lease = pair.lease(BLOCKS, NBYTES)
        if pair.reading.ask("broken", connection=connection):
            connection = plain.connect()
        assert BLOCKS == lease.judge(pair.read(connection, lease))
        pair.reading.ask("close_connection", connection=connection)
        proxy.again()
        pair.revoke(lease)
        for host in pair.hosts:
            host.ask("free")


@pytest.mark.parametrize("step", READING)
def test_the_server_is_killed_at_any_byte(plain: Between, step: str) -> None:
    pair, proxy = plain.pair, plain.proxy
    connection = plain.connect()
    lease = pair.lease(BLOCKS, NBYTES)
    proxy.hold_at[DOWN] = READING[step]
    reading = pair.begin_read(connection, lease, seconds=2.0)
    assert proxy.held.wait(20)
    pair.serving.kill()
    assert lease.judge(in_time(reading)) < BLOCKS
    lease.poison()
    proxy.let_go()
    lease.assert_untouched(0.15)
    assert OK not in pair.read(connection, lease, seconds=1.0)


@pytest.mark.parametrize("step", READING)
def test_the_reader_is_killed_at_any_byte(plain: Between, step: str) -> None:
    """Once its locks are free its claims may be another's: what comes then is written nowhere."""
    pair, proxy = plain.pair, plain.proxy
    connection = plain.connect()
    lease = pair.lease(BLOCKS, NBYTES)
    proxy.hold_at[DOWN] = READING[step]
    pair.begin_read(connection, lease, seconds=20.0)
    assert proxy.held.wait(20)
    pair.reading.kill()
    lease.poison()
    proxy.let_go()
    lease.assert_untouched(0.15)
    pair.revoke(lease)


def test_a_trickle_is_late(plain: Between) -> None:
    """A peer that sends a byte now and then does not make a read go on for ever."""

    def trickle(data: bytes, passed: int) -> bytes:
        if passed >= OPENED:
            time.sleep(0.1)
        return data

    plain.proxy.changes[DOWN] = trickle
    pair = plain.pair
    connection = plain.connect()
    lease = pair.lease(BLOCKS * 4, NBYTES)
    outcomes = pair.read(connection, lease, seconds=0.7)
    assert LATE in outcomes
    lease.judge(outcomes)
    lease.assert_untouched()


def flip_at(at: int, mask: int) -> Callable[[bytes, int], bytes]:
    def change(data: bytes, passed: int) -> bytes:
        if not passed <= at < passed + len(data):
            return data
        spoilt = bytearray(data)
        spoilt[at - passed] ^= mask
        return bytes(spoilt)

    return change


def spoil(what: str, chance: random.Random, after: int) -> Callable[[bytes, int], bytes]:
    """Once, somewhere after so many bytes."""
    at = after + REPLY_BYTES + chance.randrange(BLOCKS * NBYTES // 2)
    done: list[bool] = []

    def change(data: bytes, passed: int) -> bytes:
        if done or len(data) < 64 or not passed <= at < passed + len(data):
            return data
        done.append(True)
        n = min(at - passed, len(data) - 32)
        begin, piece, end = data[:n], data[n : n + 16], data[n + 16 :]
        return (
            begin
            + {
                "lost": b"",
                "doubled": piece + piece,
                "swapped": end[:16] + piece + end[16:] if end[:16] != piece else b"",
                "garbage": chance.randbytes(16),
            }[what]
            + (b"" if what == "swapped" else end)
        )

    return change
