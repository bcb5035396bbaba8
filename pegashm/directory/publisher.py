"""What do the other hosts hear of us? The journal of this region as a stream, and snapshots of all it holds.

A thread of the transport worker reads the journal and the log of the spill table, and publishes what happened as
DELTA messages, each numbered one above the last; when nothing happens, a heartbeat a second. PUB waits for nobody: a
host that cannot keep up misses messages, sees it by the numbers, and asks for a snapshot. So does everybody when we
have missed something ourselves (the ring of the journal went round): a number is left out.

How often it speaks depends on how many listen to how many: each host hears all others, and must not have to wake up for
more than a few thousand messages a second. Called by the worker; `snapshot` by the thread that serves other hosts.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import zmq

from pegashm import _native
from pegashm.directory.messages import (
    CHUNK_HASHES_MAX,
    OPS_MAX,
    Chunk,
    Delta,
    Hashes,
    Ops,
    pack_chunk,
    pack_delta,
)

__all__ = ["Publisher", "interval_seconds"]

_INTERVAL_SECONDS: Final = 0.02
_INTERVAL_SECONDS_MAX: Final = 1.0
_HEARTBEAT_SECONDS: Final = 1.0
# Messages a second that one host may have to hear, from all others together.
_MESSAGES_A_SECOND: Final = 2500
# A journal entry that cannot be read for so long was left half written by a process that died.
_SETTLED_SECONDS: Final = 0.2
_SPILL_LOG_EVENTS: Final = 1 << 16
_EVENTS_AT_ONCE: Final = OPS_MAX
_QUEUE_MESSAGES: Final = 256

_NO_OPS: Final = np.zeros(0, dtype=np.uint8)
_NO_HASHES: Final = np.zeros(0, dtype=np.uint64)


def interval_seconds(hosts: int) -> float:
    """How long to gather before a message, when so many others speak as well."""
    return min(max(_INTERVAL_SECONDS, hosts / _MESSAGES_A_SECOND), _INTERVAL_SECONDS_MAX)


class Publisher:
    """`run` is the life of its thread; `stop` ends it. Bound when made: `port` says where."""

    def __init__(
        self,
        region: _native.Region,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        host_id: bytes,
        incarnation: bytes,
        bind: str,
        configure: Callable[[zmq.Socket[bytes]], None],
        hosts: Callable[[], int],
        spill: _native.SpillTable | None = None,
    ) -> None:
        """`bind`: an endpoint, `tcp://host:port`; port `*` takes a free one. `configure`: security of the socket.
        `hosts`: how many others there are. `spill`: the table of blocks on SSD, whose changes are told too."""
        self._region = region
        self._host_id = host_id
        self._incarnation = incarnation
        self._hosts = hosts
        self._spill = spill
        self._stopping = threading.Event()
        self._sequence = 0
        header = region.header
        self._records = int(header["record_count"]) + int(header["spill_record_count"])
        self._read_to = self._seen_head = self._settled = int(header["journal_head"])
        self._seen_at = 0.0
        self._said_at = 0.0
        self._lost = 0
        if spill is not None:
            spill.keep_log(_SPILL_LOG_EVENTS)
        self._socket: zmq.Socket[bytes] = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            configure(self._socket)
            self._socket.bind(bind)
        except zmq.ZMQError:
            self._socket.close(linger=0)
            raise
        self.port = int(self._socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    @property
    def sequence(self) -> int:
        """Of the last message that told something."""
        return self._sequence

    @property
    def lost(self) -> int:
        """How often it had missed events, so that everybody had to ask for a snapshot."""
        return self._lost

    def run(self) -> None:
        try:
            while not self._stopping.wait(interval_seconds(self._hosts())):
                self.tell(time.monotonic())
        finally:
            self._socket.close(linger=0)

    def stop(self) -> None:
        self._stopping.set()

    def tell(self, now: float) -> int:
        """Publish what has happened since the last time; how many operations. By the thread of `run`, or a test."""
        if now >= self._seen_at + _SETTLED_SECONDS:
            self._settled, self._seen_head = self._seen_head, self._region.header["journal_head"]
            self._seen_at = now
        told = self._tell_spilled()
        while True:
            read_to, overrun, _, ops, hashes = _native.remote_events(
                self._region, self._read_to, self._settled, _EVENTS_AT_ONCE
            )
            if overrun:
                self._skip()
            more = read_to - self._read_to >= _EVENTS_AT_ONCE
            self._read_to = read_to
            self._say(ops, hashes)
            told += len(ops)
            if not more or self._stopping.is_set():
                break
        if told:
            self._region.count("remote_events_sent", told)
        if now >= self._said_at + _HEARTBEAT_SECONDS:
            self._send(_NO_OPS, _NO_HASHES)
        return told

    def snapshot(self) -> Iterator[bytes]:
        """All that we hold, as bodies of CHUNK messages; each is read from the region when it is asked for."""
        self._region.count("remote_snapshots_sent")
        parts: list[tuple[Hashes, Ops]] = []
        as_of = self._sequence
        for first in range(0, self._records, CHUNK_HASHES_MAX):
            before = self._sequence
            part = _native.remote_holdings(self._region, first, first + CHUNK_HASHES_MAX)
            if sum(len(hashes) for hashes, _ in parts) + len(part[0]) > CHUNK_HASHES_MAX:
                yield _chunk(as_of, parts)
                parts, as_of = [], before
            parts.append(part)
        yield _chunk(as_of, parts)

    # -- the stream ----------------------------------------------------------------------------------

    def _tell_spilled(self) -> int:
        if self._spill is None:
            return 0
        ops, hashes, lost = self._spill.take_log()
        if lost:
            self._skip()
        self._say(ops, hashes)
        return len(ops)

    def _skip(self) -> None:
        """Something happened that we cannot tell: leave a number out, so that everybody asks for all of it."""
        self._sequence += 1
        self._lost += 1

    def _say(self, ops: Ops, hashes: Hashes) -> None:
        for first in range(0, len(ops), OPS_MAX):
            self._sequence += 1
            self._send(ops[first : first + OPS_MAX], hashes[first : first + OPS_MAX])

    def _send(self, ops: Ops, hashes: Hashes) -> None:
        delta = Delta(
            self._host_id,
            self._incarnation,
            self._sequence,
            ops,
            hashes,
        )
        self._said_at = time.monotonic()
        with contextlib.suppress(zmq.Again):
            self._socket.send(pack_delta(delta), zmq.DONTWAIT)


def _chunk(as_of: int, parts: list[tuple[Hashes, Ops]]) -> bytes:
    hashes = np.concatenate([part[0] for part in parts]) if parts else _NO_HASHES
    tiers = np.concatenate([part[1] for part in parts]) if parts else _NO_OPS
    on_ssd = tiers == _native.TIER_SSD
    return pack_chunk(Chunk(as_of, hashes[~on_ssd], hashes[on_ssd]))
