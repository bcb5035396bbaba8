"""How is the address of a host written, and which kind is it?

`HOST:PORT`, an IPv6 address in brackets. Pure; used by the configuration, the keys and the memberships.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pegashm.errors import ConfigError

__all__ = ["Address", "parse_address"]

# The directory's stream and the payload stream have the next two ports.
PORTS_OF_A_HOST = 3


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a host listens. `host` without brackets: a name or an IP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_any(self) -> bool:
        """Whether it means all of a machine's addresses, so that nobody can connect to it as written."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return self.host == "*"

    def endpoint(self, port: int | None = None) -> str:
        """As ZeroMQ wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port if port is None else port}"


def parse_address(text: str, what: str) -> Address:
    """ConfigError that names `what` for anything else."""
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    good = colon and host and not set(host) & set("/[]@ ,") and (bracketed or ":" not in host)
    if not good or not port.isdecimal() or not 1 <= int(port) <= 65535 - PORTS_OF_A_HOST + 1:
        raise ConfigError(
            f"{what} must be HOST:PORT with a port from 1 to {65535 - PORTS_OF_A_HOST + 1} (the next two are used "
            f"as well; an IPv6 address in brackets), for example 10.0.0.7:7420: got {text!r}"
        )
    return Address(host, int(port))
