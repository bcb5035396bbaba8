"""Do hosts find each other by a list, by a name with many addresses, and by a real etcd? And part with each other?"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pegashm.errors import ConfigError
from pegashm.peers import membership
from pegashm.peers.addresses import Address
from pegashm.peers.membership import Members, check_members
from pegashm.transport.messages import Answer

from tests.peers import etcd
from tests.peers.etcd import Etcd
from tests.peers.rig import BYTES, Host
from tests.transport.rig import eventually

HERE = Address("127.0.0.1", 7420)


# -- what may be written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.1", "must be HOST:PORT"),
        ("dns://name", "must be HOST:PORT"),
        ("etcd://10.0.0.1:2379", "needs a prefix"),
        ("etcd://10.0.0.1:2379/", "needs a prefix"),
        ("zookeeper://10.0.0.1:2181/kv", "takes HOST:PORT"),
    ],
)
def test_members_that_cannot_be(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_members([text])


def test_a_list() -> None:
    members = Members(["10.0.0.1:7420", "kv1:7420", "10.0.0.1:7420"], register=HERE, label="")
    assert {Address("10.0.0.1", 7420), Address("kv1", 7420)} == members.addresses()


# -- names ----------------------------------------------------------------------------------------


@pytest.fixture
def running() -> Iterator[Callable[[Members], None]]:
    """Starts what watches a membership; ended with the test."""
    made: list[Members] = []
    threads: list[threading.Thread] = []

    def start(name: str, life: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=life, name=name, daemon=True))
        threads[-1].start()

    def run(members: Members) -> None:
        made.append(members)
        members.start(start)

    yield run
    for members in made:
        members.stop()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), f"{thread.name} does not end"


def test_a_name_is_resolved_again(
    monkeypatch: pytest.MonkeyPatch, running: Callable[[Members], None]
) -> None:
    """The resolver's answers are ours, since tests have no name server: first two hosts, then others, then failures."""
    monkeypatch.setattr(membership, "_RESOLVE_SECONDS", 0.02)
    answers: list[Any] = [["10.0.0.1", "10.0.0.2"]]

    def resolve(name: str, port: int, **_: object) -> list[Any]:
        assert ("kv.example", 7420) == (name, port)
        if isinstance(answers[-1], OSError):
            raise answers[-1]
        return [(socket.AF_INET, 1, 6, "", (found, port)) for found in answers[-1]]

    monkeypatch.setattr(membership.socket, "getaddrinfo", resolve)
    members = Members(["dns://kv.example:7420", "10.0.0.9:1"], register=HERE, label="")
    running(members)
    first = {Address("10.0.0.1", 7420), Address("10.0.0.2", 7420), Address("10.0.0.9", 1)}
    eventually(lambda: members.addresses() == first)
    answers.append(["10.0.0.2", "10.0.0.3"])
    second = {Address("10.0.0.2", 7420), Address("10.0.0.3", 7420), Address("10.0.0.9", 1)}
    eventually(lambda: members.addresses() == second)
    answers.append(socket.gaierror(-3, "temporary failure"))
    eventually(lambda: members.sources[1]._failing)  # type: ignore[attr-defined]
    assert second == members.addresses(), "a resolver that fails takes nobody away"


def test_hosts_by_a_real_name(host: Callable[..., Host]) -> None:
    """`localhost` is one: both ask it, each finds itself, and the other by its port."""
    a, b = host(), host()
    for one in (a, b):
        one.members = tuple(
            f"dns://localhost:{other.address.rpartition(':')[2]}" for other in (a, b)
        )
    for one in (a, b):
        one.start(files=0)
    eventually(lambda: a.knows(b) and b.knows(a))
    assert 1 == len(a.peers()), "we are no peer of ours"


# -- etcd -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Etcd]:
    if reason := etcd.why_not():
        pytest.skip(reason)
    made = Etcd(tmp_path)
    yield made
    made.stop()


def test_hosts_in_etcd(host: Callable[..., Host], server: Etcd) -> None:
    """They register, meet, fetch; one that ends leaves the list at once, one that is killed with its lease."""
    hosts = [host(members=[f"etcd://{server.address}/pegashm/test"]) for _ in range(3)]
    for one in hosts:
        one.start(files=0)
    a, b, c = hosts
    eventually(lambda: a.knows(b, c) and b.knows(a, c) and c.knows(a, b))
    keys = a.store(range(1, 21), BYTES)
    eventually(lambda: b.sees(keys) == 20)
    assert [Answer.OK] * 20 == b.fetch(keys)

    watcher = Members([f"etcd://{server.address}/pegashm/test"], register=HERE, label="watcher")
    source = watcher.sources[0]
    source._read()  # type: ignore[attr-defined]
    assert {one.address for one in hosts} == {str(address) for address in watcher.addresses()}
    assert 0 == c.end()
    source._read()  # type: ignore[attr-defined]
    assert {a.address, b.address} == {str(address) for address in watcher.addresses()}
    b.kill()

    def gone() -> bool:
        source._read()  # type: ignore[attr-defined]
        return {a.address} == {str(address) for address in watcher.addresses()}

    eventually(gone, 60.0)


def test_another_prefix_is_another_cluster(host: Callable[..., Host], server: Etcd) -> None:
    a, b, c = (
        host(members=[f"etcd://{server.address}/{prefix}"]) for prefix in ("one", "one", "on")
    )
    for one in (a, b, c):
        one.start(files=0)
    eventually(lambda: a.knows(b) and b.knows(a))
    assert [] == c.peers()


def test_an_etcd_that_is_away_takes_nobody_away(host: Callable[..., Host], server: Etcd) -> None:
    """Hosts that know each other go on; when it is back they register again, and newcomers are met."""
    a, b = (host(members=[f"etcd://{server.address}/pegashm"]) for _ in range(2))
    for one in (a, b):
        one.start(files=0)
    eventually(lambda: a.knows(b) and b.knows(a))
    server.stop()
    eventually(lambda: "The hosts known stay" in a.said())
    keys = a.store(range(1, 21), BYTES)
    eventually(lambda: b.sees(keys) == 20)
    assert [Answer.OK] * 20 == b.fetch(keys)
    server.start()
    late = host(members=[f"etcd://{server.address}/pegashm"]).start(files=0)
    eventually(lambda: late.knows(a, b) and a.knows(late), 60.0)
