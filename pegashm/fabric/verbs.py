"""How do payloads travel by RDMA? The verbs fabric: both sides on one host, over all RDMA ports that are up.

A reader's connection to a peer is one reliable queue pair for each pair of devices (a rail); the peer's CPU touches no payload and, once a
lease is granted, nothing of it runs. The device for a block is chosen by the NUMA node whose memory it lies in, at
the serving side. See `verbs_serving.py` and `verbs_reading.py` for the two sides, `verbs_wire.py` for the bytes they tell
each other. Needs pyverbs and a device: importing this file, or opening the fabric, says what is missing.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pegashm.errors import ConfigError, ResourceError
from pegashm.fabric.interface import GRANT_BYTES_MAX, Connection, Fabric, Grant, Served
from pegashm.fabric.outlive import Outliving
from pegashm.fabric.verbs_device import Device, find_ports
from pegashm.fabric.verbs_memory import CHUNK_BYTES, PAGE_BYTES, Chunks, Place
from pegashm.fabric.verbs_names import PyverbsError
from pegashm.fabric.verbs_queue import Queue
from pegashm.fabric.verbs_reading import Rail, VerbsConnection
from pegashm.fabric.verbs_serving import Serving
from pegashm.fabric.verbs_wire import (
    CONNECTIONS_MAX,
    RAILS_MAX,
    Introduction,
    IntroductionRail,
    Offer,
    pack_introduction,
    pack_offer,
    parse_answer,
    parse_offer,
)
from pegashm.logs import tell
from pegashm.notices import RDMA_TROUBLE
from pegashm.units import format_bytes

__all__ = ["VerbsFabric", "VerbsOptions"]


_PAYLOAD_BYTES_MAX: Final = PAGE_BYTES << 32  # a grant numbers pages in 32 bits
_PROBE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbsOptions:
    """Which devices, and how. `devices`: names as in /sys/class/infiniband, with `:port` or for all of its ports; none means all."""

    devices: tuple[str, ...] = ()
    windows: bool = True  # memory windows, where the device has them
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if self.chunk_bytes <= 0 or self.chunk_bytes % PAGE_BYTES or self.chunk_bytes > CHUNK_BYTES:
            raise ConfigError(
                f"chunk_bytes must be whole pages and at most {CHUNK_BYTES}, got {self.chunk_bytes}"
            )


class VerbsFabric(Fabric):
    """See `interface.Fabric`. `lock_fd`: a descriptor of the lock that says we live; it then outlives the devices."""

    name = "verbs"

    def __init__(
        self,
        payload_address: int,
        payload_bytes: int,
        *,
        places: Sequence[Place] = (),
        lock_fd: int | None = None,
        options: VerbsOptions | None = None,
    ) -> None:
        options = options or VerbsOptions()
        if payload_bytes > _PAYLOAD_BYTES_MAX:
            raise ResourceError(
                f"the verbs fabric serves arenas of at most {format_bytes(_PAYLOAD_BYTES_MAX)}, this is {format_bytes(payload_bytes)}"
            )
        ports = find_ports(options.devices)[:RAILS_MAX]
        self._payload_address = payload_address
        self._chunks = Chunks(payload_bytes, places, chunk_bytes=options.chunk_bytes)
        self._fabric_id = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._connections: set[VerbsConnection] = set()
        self._numbers: dict[bytes, set[int]] = {}  # of connections made and being made, by peer
        self._closed = threading.Event()
        self._devices: list[Device] = []
        with contextlib.ExitStack() as undo:
            if lock_fd is not None:
                undo.callback(Outliving(lock_fd).close)
            for port in ports:
                device = Device(
                    port,
                    payload_address,
                    self._chunks,
                    windows=options.windows,
                    probe=self._fabric_id,
                )
                undo.callback(device.close)
                self._devices.append(device)
            self._serving = Serving(
                self._devices,
                self._chunks,
                fabric_id=self._fabric_id,
                payload_address=payload_address,
                grant_bytes_max=GRANT_BYTES_MAX,
            )
            self._undo = undo.pop_all()
        self._registrar = threading.Thread(
            target=self._register_all, name="pegashm-verbs-register", daemon=True
        )
        self._registrar.start()

    @property
    def windows(self) -> bool:
        """Whether an rkey dies with its lease: every device has memory windows."""
        return all(device.windows for device in self._devices)

    def offer(self) -> bytes:
        addresses = tuple(device.address for device in self._devices)
        return pack_offer(Offer(self._fabric_id, addresses))

    def admit(self, peer: bytes, introduction: bytes) -> bytes:
        return self._serving.admit(peer, introduction)

    def dismiss(self, peer: bytes) -> None:
        self._serving.dismiss(peer)

    def grant(self, peer: bytes, lease_id: int, blocks: Sequence[Served], expires: float) -> Grant:
        """ValueError when this peer has not connected (connect first, then lease), or the blocks are too scattered."""
        return self._serving.grant(peer, lease_id, blocks, expires)

    def revoke(self, lease_id: int) -> None:
        self._serving.revoke(lease_id)

    def connect(
        self, offer: bytes, introduce: Callable[[bytes], bytes], deadline: float
    ) -> Connection:
        offered = parse_offer(offer)
        count = max(len(self._devices), len(offered.devices))
        pairs = [(n % len(self._devices), n % len(offered.devices)) for n in range(count)]
        while True:
            connection, good = self._attempt(offered, pairs, introduce, deadline)
            if connection is not None:
                return connection
            pairs = good

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()
        self._serving.close()
        self._registrar.join()
        self._undo.close()

    # -- connecting --------------------------------------------------------------------------------

    def _attempt(
        self,
        offered: Offer,
        pairs: Sequence[tuple[int, int]],
        introduce: Callable[[bytes], bytes],
        deadline: float,
    ) -> tuple[VerbsConnection | None, list[tuple[int, int]]]:
        """A connection over all of these pairs of devices, or None and those over which the peer could be read.

        OSError when there is none.
        """
        with contextlib.ExitStack() as undo:
            number, living = self._begin(offered.fabric_id)
            undo.callback(self._forget, offered.fabric_id, number)
            rails = []
            try:
                for here, _there in pairs:
                    rails.append(Rail(Queue(self._devices[here])))
                    undo.callback(rails[-1].close)
            except PyverbsError as error:
                raise OSError(f"no queue pair: {error}") from error
            answer = parse_answer(
                introduce(
                    pack_introduction(
                        Introduction(
                            self._fabric_id,
                            number,
                            living,
                            tuple(
                                IntroductionRail(there, self._devices[here].address, rail.queue.end)
                                for (here, there), rail in zip(pairs, rails, strict=True)
                            ),
                        )
                    )
                )
            )
            if answer.connection != number or len(answer.rails) != len(rails):
                raise ValueError("the peer's answer is for another connection")
            good, faults = [], []
            until = min(deadline, time.monotonic() + _PROBE_SECONDS)
            for pair, rail, theirs in zip(pairs, rails, answer.rails, strict=True):
                fault: str | None
                try:
                    rail.queue.connect(offered.devices[pair[1]], theirs.end, served=False)
                except (PyverbsError, OverflowError) as error:
                    fault = str(error)
                else:
                    fault = rail.probe(
                        theirs.probe_address, theirs.probe_rkey, offered.fabric_id, until
                    )
                if fault is None:
                    good.append(pair)
                else:
                    faults.append(f"{self._devices[pair[0]].port.name}: {fault}")
            if faults:
                tell(
                    RDMA_TROUBLE,
                    "verbs: no way to a peer by %s",
                    "; ".join(faults),
                    subject=tuple(faults),
                )
            if not good:
                raise ConnectionError("no READ from the peer succeeds: " + "; ".join(faults))
            if len(good) < len(pairs):
                return None, good
            connection = VerbsConnection(
                number=number,
                rails=rails,
                chunks=self._chunks,
                payload_address=self._payload_address,
                remote_address=answer.payload_address,
                remote_bytes=answer.payload_bytes,
                grant_bytes_max=GRANT_BYTES_MAX,
                on_end=lambda ended: self._forget(offered.fabric_id, number, ended),
            )
            with self._lock:
                if self._closed.is_set():
                    raise OSError("this fabric is closed")
                self._connections.add(connection)
            undo.pop_all()
        return connection, good

    def _begin(self, fabric_id: bytes) -> tuple[int, tuple[int, ...]]:
        """A number for a new connection to this peer, and those of the others, which the peer shall keep."""
        with self._lock:
            numbers = self._numbers.setdefault(fabric_id, set())
            living = tuple(numbers)[: CONNECTIONS_MAX - 1]
            number = secrets.randbits(64)
            numbers.add(number)
        return number, living

    def _forget(
        self, fabric_id: bytes, number: int, connection: VerbsConnection | None = None
    ) -> None:
        with self._lock:
            if connection is not None:
                self._connections.discard(connection)
            numbers = self._numbers.get(fabric_id, set())
            numbers.discard(number)
            if not numbers:
                self._numbers.pop(fabric_id, None)

    # -- in the background -------------------------------------------------------------------------

    def _register_all(self) -> None:
        """Register chunk after chunk with every device. What is needed sooner is made at once by who needs it."""
        for index in range(len(self._chunks.all)):
            for device in self._devices:
                if self._closed.is_set():
                    return
                try:
                    device.region(index)
                except ResourceError as error:
                    tell(RDMA_TROUBLE, "verbs: %s", error, subject=str(error))
                    return
            # Others want the GIL, which pyverbs holds while it registers.
            self._closed.wait(0.001)
