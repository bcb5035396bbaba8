"""Which ways to move payloads does this host have, best first?

`auto` takes RDMA where the machine has a device for it and TCP besides; `tcp` and `verbs` only that. A reader uses the first of
its own that the other host offers too. With
`tls.crt` and `tls.key` (PEM; self-signed will do) in the folder of keys the TCP streams are encrypted. Called by
`service.py` and, for offers, by the greeter.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from typing import Final

from pegashm._native import Region
from pegashm.config import PeersConfig
from pegashm.errors import PegaShmError, ResourceError
from pegashm.fabric.interface import Fabric
from pegashm.logs import tell
from pegashm.notices import RDMA_NOT_USED
from pegashm.peers.addresses import Address
from pegashm.peers.messages import Offer

__all__ = ["open_fabrics", "reachable_offers"]

_CERTIFICATE_FILE: Final = "tls.crt"
_TLS_KEY_FILE: Final = "tls.key"
_DEVICES: Final = "/sys/class/infiniband"


def open_fabrics(
    config: PeersConfig, region: Region, listen: Address, *, lock_fd: int
) -> dict[str, Fabric]:
    """By name, in order of preference. ResourceError when there is none."""
    fabrics: dict[str, Fabric] = {}
    try:
        if config.fabric in ("auto", "verbs"):
            _try_verbs(fabrics, region, lock_fd, config)
        if config.fabric in ("auto", "tcp"):
            fabrics["tcp"] = _tcp(region, listen, config.keys)
    except BaseException:
        for fabric in fabrics.values():
            with contextlib.suppress(OSError):
                fabric.close()
        raise
    return fabrics


def _try_verbs(
    fabrics: dict[str, Fabric], region: Region, lock_fd: int, config: PeersConfig
) -> None:
    try:
        fabrics["verbs"] = _verbs(region, lock_fd, config.rdma_devices)
    except (OSError, PegaShmError) as error:
        if config.fabric == "verbs":
            raise ResourceError(f"--fabric verbs: {error}") from error
        tell(RDMA_NOT_USED, "payloads of other hosts come by TCP: %s", error)


def _verbs(region: Region, lock_fd: int, devices: tuple[str, ...]) -> Fabric:
    if not os.path.isdir(_DEVICES) or not os.listdir(_DEVICES):
        raise ResourceError(
            "this machine has no RDMA device (there is nothing in /sys/class/infiniband)"
        )
    from pegashm.fabric.verbs import VerbsFabric, VerbsOptions
    from pegashm.fabric.verbs_memory import Place
    from pegashm.fabric.verbs_names import PyverbsError

    places, offset = [], 0
    for arena in region.header["arenas"]:
        places.append(Place(offset, int(arena["bytes"]), int(arena["numa_node"])))
        offset += int(arena["bytes"])
    try:
        return VerbsFabric(
            region.payload_address,
            region.payload_bytes,
            places=places,
            lock_fd=lock_fd,
            options=VerbsOptions(devices=devices),
        )
    except PyverbsError as error:
        raise ResourceError(f"RDMA cannot be used: {error}") from error


def _tcp(region: Region, listen: Address, keys: str | None) -> Fabric:
    from pegashm.fabric.tcp import TcpFabric, TlsFiles

    tls = None
    if keys is not None and os.path.exists(os.path.join(keys, _CERTIFICATE_FILE)):
        tls = TlsFiles(
            certificate=os.path.join(keys, _CERTIFICATE_FILE), key=os.path.join(keys, _TLS_KEY_FILE)
        )
    port = listen.port + 2
    try:
        found = socket.getaddrinfo(listen.host, port, type=socket.SOCK_STREAM)
        return TcpFabric(
            region.payload_address,
            region.payload_bytes,
            host=str(found[0][4][0]),
            port=port,
            tls=tls,
        )
    except OSError as error:
        raise ResourceError(
            f"cannot listen for payloads on {Address(listen.host, port)}: {error}"
        ) from error


def reachable_offers(offers: Iterable[Offer], host: str) -> dict[str, bytes]:
    """What a peer that was reached at `host` offers, by fabric; what cannot be understood is left out."""
    found: dict[str, bytes] = {}
    for offer in offers:
        with contextlib.suppress(ValueError):
            found[offer.fabric] = _reachable(offer, host)
    return found


def _reachable(offer: Offer, host: str) -> bytes:
    if offer.fabric != "tcp":
        return offer.opaque
    from pegashm.fabric.tcp import reached_at

    return reached_at(offer.opaque, host)
