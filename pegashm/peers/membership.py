"""At which addresses are other hosts to be found? A list, a name with many addresses, or keys in etcd.

    10.0.0.7:7420        this host
    dns://NAME:PORT      all addresses of a name, asked for again every few seconds (a Kubernetes headless service)
    etcd://HOST:PORT/P   what others (and we) registered under the prefix P; see `membership_etcd.py`

Several may be given. An address says where to knock, not who is there: that comes from the greeting, and our own
address among them is recognised by it. A source that fails leaves what it said last. Threads of their own; `addresses` is
for the greeter's.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

from pegashm.errors import ConfigError
from pegashm.logs import tell
from pegashm.notices import PEERS_LIST_KEPT
from pegashm.peers.addresses import Address, parse_address

__all__ = ["Members", "Source", "check_members"]

_RESOLVE_SECONDS: Final = 5.0


class Source(ABC):
    """One way to learn addresses. `run` is the life of a thread; `addresses` never waits."""

    @abstractmethod
    def addresses(self) -> frozenset[Address]: ...

    @abstractmethod
    def run(self, stopping: threading.Event) -> None: ...

    def stop(self) -> None:  # noqa: B027 - most need nothing but the event
        """End a wait that the event does not end."""


class _Static(Source):
    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = frozenset(addresses)

    def addresses(self) -> frozenset[Address]:
        return self._addresses

    def run(self, stopping: threading.Event) -> None:
        pass


class _Dns(Source):
    def __init__(self, name: Address) -> None:
        self._name = name
        self._addresses: frozenset[Address] = frozenset()
        self._failing = False

    def addresses(self) -> frozenset[Address]:
        return self._addresses

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self._resolve()
            stopping.wait(_RESOLVE_SECONDS)

    def _resolve(self) -> None:
        try:
            found = socket.getaddrinfo(self._name.host, self._name.port, type=socket.SOCK_STREAM)
        except OSError as error:
            if not self._failing:
                tell(
                    PEERS_LIST_KEPT,
                    "cannot resolve %s: %s. The hosts known stay",
                    self._name.host,
                    error.strerror,
                )
            self._failing = True
            return
        self._failing = False
        self._addresses = frozenset(Address(str(entry[4][0]), self._name.port) for entry in found)


class Members:
    """All sources together. `register`: the address that etcd shall list for us."""

    def __init__(self, members: Sequence[str], *, register: Address, label: str) -> None:
        self.sources = _sources(members, register, label)
        self._stopping = threading.Event()

    def addresses(self) -> frozenset[Address]:
        return frozenset().union(*(source.addresses() for source in self.sources))

    def start(self, start: Callable[[str, Callable[[], None]], None]) -> None:
        """`start`: starts a thread of that name with that life."""
        for number, source in enumerate(self.sources):
            if not isinstance(source, _Static):
                start(f"members {number}", functools.partial(source.run, self._stopping))

    def stop(self) -> None:
        self._stopping.set()
        for source in self.sources:
            with contextlib.suppress(OSError):
                source.stop()


def check_members(members: Sequence[str]) -> None:
    """ConfigError for anything that is no member of a list of peers."""
    _sources(members, Address("localhost", 1), "")


def _sources(members: Sequence[str], register: Address, label: str) -> list[Source]:
    addresses: list[Address] = []
    sources: list[Source] = []
    for text in members:
        scheme, found, rest = text.partition("://")
        if not found:
            addresses.append(parse_address(text, "--peers"))
        elif scheme == "dns":
            sources.append(_Dns(parse_address(rest, "--peers dns://NAME:PORT")))
        elif scheme == "etcd":
            from pegashm.peers.membership_etcd import Etcd

            host, slash, prefix = rest.partition("/")
            if not slash or not prefix.strip("/"):
                raise ConfigError(
                    f"--peers etcd://HOST:PORT/PREFIX needs a prefix of its own for each cluster: got {text!r}"
                )
            endpoints = [
                parse_address(one, "--peers etcd://HOST:PORT/PREFIX") for one in host.split("+")
            ]
            sources.append(Etcd(endpoints, prefix.strip("/"), register, label))
        else:
            raise ConfigError(
                f"--peers takes HOST:PORT, dns://NAME:PORT and etcd://HOST:PORT/PREFIX: got {text!r}"
            )
    if addresses:
        sources.insert(0, _Static(addresses))
    return sources
