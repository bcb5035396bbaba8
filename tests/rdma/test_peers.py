"""Two brokers, each on a device of its own: does what one holds come to the other by RDMA, byte for byte, and at what cost?

The transport workers themselves, driven as engines drive them. (A vLLM engine needs instructions that the emulated
machine lacks.) By TCP for comparison, in the same run. Shares the rig of `tests/peers`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm import fsck
from pegashm.transport.messages import Answer
from pegashm.units import KIB, MIB

from tests.peers.rig import Host
from tests.transport.rig import eventually

PATIENCE = 120.0  # the machine is emulated

pytestmark = pytest.mark.timeout(900)


def cpu_seconds(host: Host) -> float:
    fields = Path(f"/proc/{host.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_share(host: Host, seconds: float = 4.0) -> float:
    before = cpu_seconds(host)
    time.sleep(seconds)
    return (cpu_seconds(host) - before) / seconds


@pytest.mark.parametrize("fabric", ["verbs", "tcp"], ids=["rdma", "sockets"])
def test_every_byte_and_its_price(pair: Callable[..., tuple[Host, Host]], fabric: str) -> None:
    a, b = pair(fabric)
    keys = a.store(range(1, 25), MIB, sums=True) + a.store(range(101, 201), 64 * KIB)
    eventually(lambda: b.sees(keys) == len(keys), PATIENCE)
    # The connection is made, memory is registered: that may take longer here than a fetch waits for a host.
    eventually(lambda: [Answer.OK] == b.fetch(keys[-1:], 60_000), PATIENCE)
    nbytes = 24 * MIB + 99 * 64 * KIB
    idle = idle_share(a), idle_share(b)
    before, began = (cpu_seconds(a), cpu_seconds(b)), time.monotonic()
    assert [Answer.OK] * (len(keys) - 1) == b.fetch(keys[:-1], 60_000)
    took = time.monotonic() - began
    # Emulated, a worker that does nothing takes a good part of a core: the fetch's is what comes on top.
    serving = cpu_seconds(a) - before[0] - idle[0] * took
    reading = cpu_seconds(b) - before[1] - idle[1] * took
    assert len(keys) == b.judge(keys)
    giga = nbytes / 1e9
    print(
        f"{fabric}: {nbytes / took / 1e6:.0f} MB/s, CPU s/GB serving {serving / giga:.1f}, reading "
        f"{reading / giga:.1f} (emulated machine; idle they take {idle[0]:.2f} and {idle[1]:.2f} of a core)"
    )
    for host in (a, b):
        eventually(lambda: not host.arena.region.blocks()["pins"].any(), PATIENCE)  # noqa: B023
        assert 0 == host.arena.region.tally()["claimed"]
        assert fsck.check(host.arena).clean


def test_from_the_peers_ssd(pair: Callable[..., tuple[Host, Host]]) -> None:
    a, b = pair(spill=True)
    keys = a.store(range(1, 31), 64 * KIB)
    eventually(lambda: a.counter("spill_stored") >= 30, PATIENCE)
    a.evict(keys)
    eventually(lambda: b.sees(keys) == 30, PATIENCE)
    eventually(lambda: {Answer.OK} == set(b.fetch(keys, 60_000)), PATIENCE)
    assert 30 == b.judge(keys)


def test_killed_and_stopped_in_the_middle(pair: Callable[..., tuple[Host, Host]]) -> None:
    """Either side, while megabytes are under way: right bytes or none, by the deadline; all well afterwards."""
    a, b = pair()
    keys = a.store(range(1, 41), MIB)
    eventually(lambda: b.sees(keys) == 40, PATIENCE)
    for victim, stopped in ((a, False), (b, False), (a, True), (b, True)):
        ticket = b.ask(keys, 4000)
        time.sleep(0.1)
        if stopped:
            victim.stop()
        else:
            victim.kill()
        began = time.monotonic()
        replies: list[object] = []
        while not replies and time.monotonic() < began + 12:
            replies = [one for one in b.client.replies() if one.request_id == ticket]
            time.sleep(0.01)
        assert replies or victim is b, "no answer by the deadline"
        print(f"{b.judge(keys)} blocks had come")
        if stopped:
            victim.go_on()
        else:
            b.cache.reap_dead()
            victim.start(files=0)
        eventually(lambda: b.judge(keys) + b.sees(keys) == 40, PATIENCE)
        eventually(lambda: not a.arena.region.blocks()["pins"].any(), PATIENCE)
        eventually(lambda: not b.arena.region.tally()["claimed"], PATIENCE)
        b.evict(keys)
        eventually(lambda: b.sees(keys) == 40, PATIENCE)
    eventually(lambda: set(b.fetch(keys, 30_000)) == {Answer.OK}, PATIENCE)
    assert 40 == b.judge(keys)
