"""Everything here needs a device, and skips without one: `make test-rdma` runs it in a virtual machine that has two."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pegashm.units import KIB, MIB

from tests.arenas import Shape
from tests.fabric.kinds import KINDS
from tests.peers.rig import Host, connect
from tests.rdma.rig import Hosts

DEVICES = ("rxe0", "rxe1")
SHAPE = Shape(
    segment_bytes=4 * MIB, segments_per_arena=(16,), block_bytes_min=64 * KIB, spill_records=500,
    remote_buckets=512,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _device() -> None:
    reason = KINDS["verbs"].why_not()
    if reason is not None:
        pytest.skip(f"verbs: {reason}")


@pytest.fixture
def make_hosts(chance: random.Random) -> Iterator[Callable[..., Hosts]]:
    made: list[Hosts] = []

    def make(**options: Any) -> Hosts:
        made.append(Hosts(chance, **options))
        return made[-1]

    yield make
    for hosts in made:
        hosts.close()


@pytest.fixture
def hosts(make_hosts: Callable[..., Hosts]) -> Hosts:
    """With memory windows; skips where the device has none."""
    hosts = make_hosts()
    if not hosts.serving.fabric.windows:
        pytest.skip("the device has no memory windows of type 2")
    return hosts


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., tuple[Host, Host]]]:
    """Two hosts that have met (or not, without `start`), each with one of the two devices of this machine."""
    if not all(Path("/sys/class/infiniband", device).exists() for device in DEVICES):
        pytest.skip(f"there are no devices {' and '.join(DEVICES)}")
    made: list[Host] = []

    def make(fabric: str = "verbs", *, start: bool = True, **options: object) -> tuple[Host, Host]:
        for device in DEVICES:
            folder = tmp_path / f"host{len(made)}"
            devices = {"rdma_devices": (device,)} if fabric == "verbs" else {}
            made.append(Host(folder, shape=SHAPE, fabric=fabric, **devices, **options))  # type: ignore[arg-type]
        connect(made[-2:], start=start)
        return made[-2], made[-1]

    yield make
    for host in made:
        print(host.said())
        host.close()
