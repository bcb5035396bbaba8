"""The serving side: who may read what, until when, and how does a key die?

Each connection of an admitted peer has a queue pair on each of its rails. A lease opens its blocks to the peer: where the device has
memory windows, each span of neighbouring blocks gets one, bound to that very queue pair (type 2B) and to nothing but those bytes, and
taken away when the lease ends, so that its rkey is worth nothing to anybody else nor afterwards. Without windows the rkeys
are those of the chunks, which work over the queue pair of any admitted peer; the reader alone discards what ended too late.

A window is used once: pyverbs 44 cannot bind one again, since it never learns its new key. A peer that provokes errors loses its own
queue pair and nothing else. Called by the thread that serves peers, and by one that ends leases whose time is over. Touches no payload.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pegashm.errors import ResourceError
from pegashm.fabric.interface import Grant, Served
from pegashm.fabric.verbs_device import Device
from pegashm.fabric.verbs_memory import PAGE_BYTES, Chunks
from pegashm.fabric.verbs_names import MW, MWBindInfo, PyverbsError, SendWR, e
from pegashm.fabric.verbs_queue import Queue, status_text
from pegashm.fabric.verbs_wire import (
    CONNECTIONS_MAX,
    Answer,
    AnswerRail,
    Row,
    pack_answer,
    pack_grant,
    parse_introduction,
)
from pegashm.logs import tell
from pegashm.notices import RDMA_CONNECTION_ENDED
from pegashm.units import MIB, round_up

__all__ = ["Serving"]


_BIND_SECONDS: Final = 0.1
_BINDS_AT_ONCE: Final = 64
# With several rails to choose from, spans are cut so that they can share the work.
_SPAN_BYTES: Final = 16 * MIB


@dataclass(slots=True, eq=False)
class _Connection:
    """A peer's connection: its number is the peer's choice."""

    peer: bytes
    fabric_id: bytes
    number: int
    rails: list[Queue] = field(default_factory=list)
    windows: dict[int, list[Any]] = field(default_factory=dict)  # by lease

    def close(self) -> None:
        """Windows first: a queue pair stays until the last that is bound to it is gone."""
        while self.windows:
            _close_windows(self.windows.popitem()[1])
        for queue in self.rails:
            queue.fail()
            queue.close()
        self.rails = []


class Serving:
    """All peers of one fabric."""

    def __init__(
        self,
        devices: Sequence[Device],
        chunks: Chunks,
        *,
        fabric_id: bytes,
        payload_address: int,
        grant_bytes_max: int,
    ) -> None:
        self._devices = list(devices)
        self._chunks = chunks
        self._fabric_id = fabric_id
        self._payload_address = payload_address
        self._grant_bytes_max = grant_bytes_max
        self._lock = threading.Lock()
        self._connections: dict[bytes, list[_Connection]] = {}  # by peer, newest last
        self._leases: dict[int, list[_Connection]] = {}
        self._ends: list[tuple[float, int]] = []
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._keeper: threading.Thread | None = None
        if any(device.windows for device in self._devices):
            self._keeper = threading.Thread(
                target=self._end_leases, name="pegashm-verbs-leases", daemon=True
            )
            self._keeper.start()

    def admit(self, peer: bytes, introduction: bytes) -> bytes:
        asked = parse_introduction(introduction)
        for rail in asked.rails:
            if rail.device >= len(self._devices):
                raise ValueError(
                    f"an introduction names device {rail.device}, there are {len(self._devices)} here"
                )
        connection = _Connection(peer, asked.fabric_id, asked.connection)
        answers = []
        with self._lock:
            if self._closed:
                raise ValueError("this host does not serve by verbs any more")
            self._forget(peer, asked.fabric_id, set(asked.living) - {asked.connection})
            try:
                for rail in asked.rails:
                    device = self._devices[rail.device]
                    queue = Queue(device)
                    connection.rails.append(queue)
                    queue.connect(rail.address, rail.end, served=True)
                    probe = device.probe_region
                    answers.append(AnswerRail(queue.end, probe.buf, probe.rkey))
            except (PyverbsError, OverflowError) as error:
                connection.close()
                raise ValueError(f"no queue pair towards this peer: {error}") from error
            self._connections.setdefault(peer, []).append(connection)
        return pack_answer(
            Answer(asked.connection, self._payload_address, self._chunks.nbytes, tuple(answers))
        )

    def dismiss(self, peer: bytes) -> None:
        with self._lock:
            for connection in self._connections.pop(peer, []):
                connection.close()

    def grant(self, peer: bytes, lease_id: int, blocks: Sequence[Served], expires: float) -> Grant:
        """ValueError when the peer has no connection that works, or too many separate spans are asked for."""
        with self._lock:
            if lease_id in self._leases:
                raise ValueError(f"lease {lease_id} exists already")
            tables = []
            used = []
            broken = []
            for connection in reversed(self._connections.get(peer, [])):
                rows = self._rows(connection, blocks)
                used.append(connection)
                try:
                    tables.append((connection.number, self._open(connection, lease_id, rows)))
                except (PyverbsError, ResourceError, TimeoutError, ValueError) as error:
                    tell(
                        RDMA_CONNECTION_ENDED,
                        "verbs: a peer's connection %x ends: %s",
                        connection.number,
                        error,
                    )
                    broken.append(connection)
            for connection in broken:
                self._drop(connection)
            try:
                if not tables:
                    raise ValueError("this peer has no connection by verbs: it must connect first")
                opaque = pack_grant(lease_id, tables, most=self._grant_bytes_max)
            except ValueError:
                for connection in used:
                    _close_windows(connection.windows.pop(lease_id, []))
                raise
            self._leases[lease_id] = used
            if self._keeper is not None:
                heapq.heappush(self._ends, (expires, lease_id))
                self._changed.notify()
        return Grant(lease_id, opaque)

    def revoke(self, lease_id: int) -> None:
        with self._lock:
            for connection in self._leases.pop(lease_id, []):
                _close_windows(connection.windows.pop(lease_id, []))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._leases.clear()
            for peer in list(self._connections):
                for connection in self._connections.pop(peer):
                    connection.close()
            self._changed.notify()
        if self._keeper is not None:
            self._keeper.join()

    # -- under the lock --------------------------------------------------------------------------

    def _forget(self, peer: bytes, fabric_id: bytes, living: set[int]) -> None:
        """Close what the peer has left behind: it says which of its connections live; a new life has none of the old."""
        for connection in list(self._connections.get(peer, [])):
            if connection.fabric_id != fabric_id or connection.number not in living:
                self._drop(connection)
        for connection in self._connections.get(peer, [])[: -CONNECTIONS_MAX + 1]:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        of_peer = self._connections[connection.peer]
        of_peer.remove(connection)
        if not of_peer:
            del self._connections[connection.peer]
        connection.close()

    def _rows(
        self, connection: _Connection, blocks: Sequence[Served]
    ) -> list[tuple[int, int, int, int]]:
        """(rail, chunk, offset, bytes) of the spans that hold the blocks, by offset."""
        pieces: list[tuple[int, int, int]] = []
        for offset, nbytes in blocks:
            # Whole pages: what follows a block's bytes in its last page is that block's own.
            whole = round_up(nbytes, PAGE_BYTES)
            if offset % PAGE_BYTES or not self._chunks.covers(offset, whole):
                raise ValueError(
                    f"a lease of {nbytes} bytes at {offset}, expected pages of the payload's {self._chunks.nbytes} bytes"
                )
            pieces += self._chunks.pieces(offset, whole)
        pieces.sort()
        nodes = [queue.device.port.node for queue in connection.rails]
        load = [0] * len(nodes)
        rows: list[tuple[int, int, int, int]] = []
        for chunk, offset, nbytes in pieces:
            node = self._chunks.all[chunk].node
            near = [n for n, there in enumerate(nodes) if there == node] or list(range(len(nodes)))
            if rows:
                rail, of, start, length = rows[-1]
                room = len(near) == 1 or length + nbytes <= _SPAN_BYTES
                if of == chunk and start + length >= offset and room:
                    grown = max(start + length, offset + nbytes) - start
                    rows[-1] = (rail, chunk, start, grown)
                    load[rail] += grown - length
                    continue
            rail = min(near, key=load.__getitem__)
            load[rail] += nbytes
            rows.append((rail, chunk, offset, nbytes))
        return rows

    def _open(
        self, connection: _Connection, lease_id: int, rows: Sequence[tuple[int, int, int, int]]
    ) -> list[Row]:
        opened = [
            Row(offset, nbytes, rail, connection.rails[rail].device.region(chunk).rkey)
            for rail, chunk, offset, nbytes in rows
        ]
        for rail, queue in enumerate(connection.rails):
            mine = [n for n, row in enumerate(rows) if row[0] == rail]
            if queue.device.windows:
                windows = connection.windows.setdefault(lease_id, [])
                for at in range(0, len(mine), _BINDS_AT_ONCE):
                    some = mine[at : at + _BINDS_AT_ONCE]
                    keys = self._bind(queue, windows, [rows[n] for n in some])
                    for n, key in zip(some, keys, strict=True):
                        opened[n] = opened[n]._replace(rkey=key)
        return opened

    def _bind(
        self, queue: Queue, windows: list[Any], rows: Sequence[tuple[int, int, int, int]]
    ) -> list[int]:
        """A window for each row, added to `windows`; their keys."""
        device = queue.device
        requests: list[Any] = []
        with _freed(requests):
            for _rail, chunk, offset, nbytes in rows:
                window = MW(device.pd, e.IBV_MW_TYPE_2)
                windows.append(window)
                last = len(requests) == len(rows) - 1
                request = SendWR(
                    opcode=e.IBV_WR_BIND_MW,
                    num_sge=0,
                    send_flags=e.IBV_SEND_SIGNALED if last else 0,
                )
                request.set_bind_wr(
                    window,
                    MWBindInfo(
                        device.region(chunk),
                        self._payload_address + offset,
                        nbytes,
                        e.IBV_ACCESS_REMOTE_READ,
                    ),
                )
                if requests:
                    requests[-1].next_wr = request
                requests.append(request)
            queue.post(requests[0])
            until = time.monotonic() + _BIND_SECONDS
            while not (completions := queue.poll()):
                if time.monotonic() > until:
                    raise TimeoutError(f"memory windows were not bound within {_BIND_SECONDS} s")
                time.sleep(0)
            if completions[0].status:
                raise ValueError(f"memory windows: {status_text(completions[0].status)}")
            return [request.rkey for request in requests]

    # -- the keeper's thread ------------------------------------------------------------------------

    def _end_leases(self) -> None:
        """A lease that nobody revoked in time ends by itself."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                while self._ends and self._ends[0][0] <= now:
                    _, lease_id = heapq.heappop(self._ends)
                    for connection in self._leases.pop(lease_id, []):
                        _close_windows(connection.windows.pop(lease_id, []))
                while self._ends and self._ends[0][1] not in self._leases:
                    heapq.heappop(self._ends)
                self._changed.wait(self._ends[0][0] - now if self._ends else None)


@contextlib.contextmanager
def _freed(requests: list[Any]) -> Iterator[None]:
    """pyverbs frees what a request holds only when told to."""
    try:
        yield
    finally:
        for request in requests:
            request.close()


def _close_windows(windows: Sequence[Any]) -> None:
    """After this none of their keys opens anything."""
    for window in windows:
        window.close()
