"""What the tests of other hosts share: hosts that are taken down whatever happens, and their logs when one failed.

`pair` are two on this machine's loopback; `three` have networks of their own (`hosts.py`) and, as between real hosts, keys.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pegashm.peers.keys import make_keys

from tests.peers.hosts import Network
from tests.peers.rig import Host, connect


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts, not started yet."""
    numbers = itertools.count(1)
    with contextlib.ExitStack() as down:

        def make(**options: Any) -> Host:
            number = next(numbers)
            made = Host(tmp_path / f"host{number}", **options)
            down.callback(lambda: print(f"-- host {number}\n{made.said()}"))
            down.callback(made.close)
            return made

        yield make


@pytest.fixture
def pair(host: Callable[..., Host]) -> Callable[..., tuple[Host, Host]]:
    """Two hosts that have met."""

    def make(**options: Any) -> tuple[Host, Host]:
        one, other = host(**options), host(**options)
        connect([one, other])
        return one, other

    return make


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(3)
    yield made
    made.close()


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """Of three hosts, each on the lists of the others with its address."""
    folders = [tmp_path / f"keys{number}" for number in range(3)]
    for folder in folders:
        make_keys(str(folder))
    return [str(folder) for folder in folders]


@pytest.fixture
def three(host: Callable[..., Host], network: Network, keys: list[str]) -> Callable[[], list[Host]]:
    def make() -> list[Host]:
        lines = [
            f"{(Path(folder) / 'host.pub').read_text().strip()} {address}\n"
            for folder, address in zip(keys, network.addresses, strict=True)
        ]
        for folder in keys:
            (Path(folder) / "allowed").write_text("".join(lines))
        hosts = [
            host(ip=address, port=7420, prefix=network.prefix(number), keys=keys[number])
            for number, address in enumerate(network.addresses)
        ]
        connect(hosts)
        return hosts

    return make
