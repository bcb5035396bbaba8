"""Everything here needs a device, and skips without one: `make test-rdma` runs it in a virtual machine that has two."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fabric.kinds import KINDS
from tests.rdma.rig import Hosts


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
