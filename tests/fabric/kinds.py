"""Which fabrics does the conformance suite run over, and which of them can run here?

A kind knows how to open its fabric in a process of the suite, for the serving or for the reading host, over an arena
that is mapped there. What a fabric cannot be asked for is said by its flags, and the tests that need it leave it out.
One that lacks a device skips with the reason. Called by `conftest.py` and, in a process of its own, by `host.py`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from pegashm.arena import Arena
from pegashm.fabric.interface import Fabric
from pegashm.units import KIB

from tests import certificates
from tests.certificates import make_certificate

__all__ = ["KINDS", "READING", "SERVING", "Kind"]

SERVING, READING = "serving", "reading"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One fabric, or one way to set it up."""

    open: Callable[[Arena, str], Fabric]  # (mapped arena, SERVING or READING)
    why_not: Callable[[], str | None] = lambda: None  # what is missing here; None: nothing
    # Its payload is a stream of bytes between sockets: a proxy can stand in between.
    streams: bool = False
    # Nothing of a lease is read after revoke() has returned. (A NIC may: the reader discards it by the clock.)
    revoke_stops: bool = False
    # Its serving process has to run for a read to go on: stopped, it makes the read late.
    serving_needed: bool = False
    # A lease may be read over any connection of its peer, one made after the grant as well.
    leases_outlive_connections: bool = False
    # Only whole blocks of a lease are read, not parts of one.
    whole_blocks: bool = False


def _tcp(arena: Arena, role: str) -> Fabric:
    from pegashm.fabric.tcp import TcpFabric

    region = arena.region
    return TcpFabric(region.payload_address, region.payload_bytes, host="127.0.0.1")


def _tcp_tls(arena: Arena, role: str) -> Fabric:
    from pegashm.fabric.tcp import TcpFabric, TlsFiles

    region = arena.region
    with tempfile.TemporaryDirectory(prefix="pegashm-") as folder:
        files = TlsFiles(certificate=f"{folder}/certificate.pem", key=f"{folder}/key.pem")
        make_certificate(files.certificate, files.key)
        return TcpFabric(region.payload_address, region.payload_bytes, tls=files)


def _verbs(arena: Arena, role: str, *, windows: bool) -> Fabric:
    from pegashm.fabric.verbs import VerbsFabric, VerbsOptions
    from pegashm.fabric.verbs_device import find_ports
    from pegashm.fabric.verbs_memory import places_of

    ports = find_ports(())
    # Two devices are two hosts; with one, both are on it.
    port = ports[0] if role == SERVING else ports[-1]
    return VerbsFabric(
        arena.region.payload_address,
        arena.region.payload_bytes,
        places=places_of(arena.region.header),
        lock_fd=arena.control_fd,
        # Small chunks, that blocks lie across them; no multiple of the blocks' sizes.
        options=VerbsOptions(devices=(port.name,), windows=windows, chunk_bytes=3076 * KIB),
    )


def _verbs_why_not() -> str | None:
    from pegashm.errors import ResourceError

    try:
        from pegashm.fabric.verbs_device import find_ports

        find_ports(())
    except ResourceError:
        return "needs pyverbs and an RDMA device that is up (`make test-rdma` brings a virtual machine that has both)"
    return None


KINDS: dict[str, Kind] = {
    "tcp": Kind(
        open=_tcp,
        streams=True,
        revoke_stops=True,
        serving_needed=True,
        leases_outlive_connections=True,
        whole_blocks=True,
    ),
    "tcp-tls": Kind(
        open=_tcp_tls,
        why_not=certificates.why_not,
        streams=True,
        revoke_stops=True,
        serving_needed=True,
        leases_outlive_connections=True,
        whole_blocks=True,
    ),
    # Memory windows: the key of a lease dies with it, and with the connection that it was bound to.
    "verbs": Kind(
        open=functools.partial(_verbs, windows=True),
        why_not=_verbs_why_not,
        revoke_stops=True,
    ),
    # As on devices without them: keys of chunks, and the reader discards what ended too late.
    "verbs-no-windows": Kind(open=functools.partial(_verbs, windows=False), why_not=_verbs_why_not),
}
