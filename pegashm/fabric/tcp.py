"""The fabric for hosts without RDMA: payload through plain TCP sockets, several streams a peer.

Straight from the serving arena into the claimed block, each byte copied by nobody but the two kernels and looked at
once on each side for a checksum. What is said on the wire is in `tcp_wire`, the serving side in `tcp_serving`
and `tcp_leases`, the reading side in `tcp_reading`. Streams are authenticated by secrets that came over the authenticated
connection of the peers; with a certificate (`tls`) they are encrypted as well.
"""

from __future__ import annotations

import ctypes
import hashlib
import ipaddress
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pegashm.errors import ConfigError
from pegashm.fabric.interface import Fabric, Grant, Served
from pegashm.fabric.tcp_leases import Leases
from pegashm.fabric.tcp_reading import TcpConnection
from pegashm.fabric.tcp_serving import Server
from pegashm.fabric.tcp_wire import (
    Offer,
    pack_answer,
    pack_grant,
    pack_introduction,
    pack_offer,
    parse_answer,
    parse_introduction,
    parse_offer,
)

__all__ = ["TcpFabric", "TlsFiles", "reached_at"]

STREAMS: Final = 4
LOOPS: Final = 2
STREAMS_A_PEER: Final = 32
STREAMS_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """A certificate and its private key, PEM. Self-signed will do: peers are told its fingerprint by each other."""

    certificate: str
    key: str


def reached_at(offer: bytes, host: str) -> bytes:
    """An offer of one who listens on all its addresses, with the one that its peer was reached at."""
    offered = parse_offer(offer)
    if offered.host:
        return offer
    return pack_offer(Offer(host, offered.port, offered.fingerprint))


class TcpFabric(Fabric):
    """Serves from and reads into the payload at `payload_address`, which outlives this."""

    name = "tcp"

    def __init__(
        self,
        payload_address: int,
        payload_bytes: int,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        streams: int = STREAMS,
        loops: int = LOOPS,
        tls: TlsFiles | None = None,
    ) -> None:
        """Listen at once. `host`: a numeric address; a wildcard is offered as no address, see `reached_at`.

        `streams`: how many a read may use. OSError when the port is taken, ConfigError when the certificate cannot be used.
        """
        if streams < 1 or loops < 1:
            raise ConfigError(
                f"the TCP fabric needs a stream and a loop at least, got {streams}, {loops}"
            )
        self._address = payload_address
        array = (ctypes.c_char * payload_bytes).from_address(payload_address)
        self._payload = memoryview(array).cast("B")
        self._streams = streams
        context, fingerprint = (None, b"") if tls is None else _server_context(tls)
        self._leases = Leases(payload_bytes, STREAMS_A_PEER)
        self._server = Server(
            self._payload,
            self._leases,
            host=host,
            port=port,
            loops=loops,
            streams_max=min(STREAMS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2),
            tls=context,
        )
        told = "" if ipaddress.ip_address(host).is_unspecified else host
        self._offer = pack_offer(Offer(told, self._server.port, fingerprint))
        self._mutex = threading.Lock()
        self._connections: set[TcpConnection] = set()
        self._closed = False

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def counters(self) -> Mapping[str, int]:
        """Of the serving side: bytes, requests, refused, malformed, streams."""
        return dict(self._server.counters)

    # -- serving side ----------------------------------------------------------------------------

    def offer(self) -> bytes:
        return self._offer

    def admit(self, peer: bytes, introduction: bytes) -> bytes:
        parse_introduction(introduction)
        session = self._leases.admit(peer)
        self._server.wake()  # an older one may be over
        return pack_answer(session.session_id, session.secret)

    def dismiss(self, peer: bytes) -> None:
        self._leases.dismiss(peer)
        self._server.wake()

    def grant(self, peer: bytes, lease_id: int, blocks: Sequence[Served], expires: float) -> Grant:
        lease = self._leases.grant(peer, lease_id, blocks, expires)
        return Grant(lease_id, pack_grant(lease.ticket))

    def revoke(self, lease_id: int) -> None:
        if self._leases.revoke(lease_id):
            self._server.wake()

    # -- reading side ----------------------------------------------------------------------------

    def connect(
        self, offer: bytes, introduce: Callable[[bytes], bytes], deadline: float
    ) -> TcpConnection:
        offered = parse_offer(offer)
        if not offered.host:
            raise ValueError("the offer names no host: say where its peer was reached (reached_at)")
        # Once, here: a stream that is opened during a read must not wait for a name server.
        address = socket.getaddrinfo(offered.host, offered.port, type=socket.SOCK_STREAM)[0][4][0]
        offered = Offer(str(address), offered.port, offered.fingerprint)
        session, secret = parse_answer(introduce(pack_introduction()))
        if time.monotonic() >= deadline:
            raise TimeoutError("the peer took too long to admit us")
        connection = TcpConnection(
            self._payload,
            self._address,
            offered,
            session,
            secret,
            streams=self._streams,
            deadline=deadline,
            on_close=self._forget,
        )
        with self._mutex:
            if not self._closed:
                self._connections.add(connection)
                return connection
        connection.close()
        raise OSError("the fabric was closed")

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            connections = list(self._connections)
        for connection in connections:
            connection.close()
            connection.join()
        self._leases.dismiss_all()
        self._server.close()

    def _forget(self, connection: TcpConnection) -> None:
        with self._mutex:
            self._connections.discard(connection)


def _server_context(files: TlsFiles) -> tuple[ssl.SSLContext, bytes]:
    """What to speak with, and the fingerprint of the certificate in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(files.certificate, files.key)
        shown = ssl.PEM_cert_to_DER_cert(_first_certificate(Path(files.certificate).read_text()))
    except (OSError, ValueError, ssl.SSLError) as error:
        raise ConfigError(
            f"certificate {files.certificate} with key {files.key} cannot be used: {error}"
        ) from None
    return context, hashlib.sha256(shown).digest()


def _first_certificate(pem: str) -> str:
    """A file may hold a chain; the first is what is shown."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return pem[pem.index(begin) : pem.index(end) + len(end)] + "\n"
