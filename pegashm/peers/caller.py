"""How does a thread of ours ask another host something, and get the answer or give up in time?

One ROUTER socket a thread, with a connection to each host that it has asked: libzmq connects (again) in the
background, and a host that is gone costs the deadline of the request that found out. Requests carry a number of
their own; an answer that comes after its deadline is thrown away, and a lease in it given back. Used by one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zmq

from pegashm.peers.keys import KeyPair
from pegashm.peers.messages import (
    MESSAGE_BYTES_MAX,
    Malformed,
    Message,
    Pinned,
    Release,
    pack,
    parse,
)

__all__ = ["ZAP_DOMAIN", "Caller", "Target", "harden"]

ZAP_DOMAIN: Final = "pegashm"

_QUEUE_MESSAGES: Final = 256
_CONNECTIONS_MAX: Final = 512
_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """Where to call, and with which key the host there must prove itself (empty: without keys)."""

    endpoint: str
    server_key: bytes


def harden(socket: zmq.Socket[bytes], pair: KeyPair | None, server_key: bytes = b"") -> None:
    """What every socket towards other hosts has: bounds, keys, and the kernel's own look whether the other side lives.

    Options count for later `connect` and `bind` calls. `server_key` empty with a pair: we are the listener.
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    socket.setsockopt(zmq.IPV6, 1)
    if pair is None:
        return
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    if server_key:
        socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
    else:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())


class Caller:
    """One thread's way to the other hosts."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], pair: KeyPair | None, host_id: bytes
    ) -> None:
        self._pair = pair
        self._host_id = host_id
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
        harden(self._socket, None)
        self._numbers = itertools.count(1)
        self._routes: dict[Target, bytes] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._incarnations: dict[bytes, bytes] = {}  # route -> whom the last request was meant for

    def number(self) -> int:
        """For the next request."""
        return next(self._numbers)

    def ask(
        self,
        target: Target,
        request: Message,
        deadline: float,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Message | Malformed | None:
        """The answer to this request; None when there is none in time (or no way to send it).

        `wanted` is asked now and then: False gives up at once.
        """
        route = self._route(target)
        if hasattr(request, "incarnation"):
            self._incarnations[route] = request.incarnation
        try:
            self._socket.send_multipart([route, pack(request)], zmq.DONTWAIT)
        except zmq.ZMQError:
            return None
        while (left := deadline - time.monotonic()) > 0 and wanted():
            if not self._poller.poll(max(1, int(min(left, _LOOK_SECONDS) * 1000))):
                continue
            frames = self._socket.recv_multipart()
            if len(frames) != 2:
                continue
            message = parse(frames[1])
            if frames[0] == route and message.request_id == request.request_id:
                return message
            self._stale(frames[0], message)
        return None

    def tell(self, target: Target, request: Message) -> None:
        """Send and want no answer."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([self._route(target), pack(request)], zmq.DONTWAIT)

    def drop(self, target: Target) -> None:
        """Forget a host: what still waits to be sent there is not sent."""
        if self._routes.pop(target, None) is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(target.endpoint)

    def close(self) -> None:
        self._socket.close(linger=0)

    def _stale(self, route: bytes, message: Message | Malformed) -> None:
        """An answer that nobody waits for any more."""
        incarnation = self._incarnations.get(route)
        if isinstance(message, Pinned) and message.lease_id and incarnation is not None:
            release = Release(
                request_id=self.number(),
                sender=self._host_id,
                incarnation=incarnation,
                lease_id=message.lease_id,
            )
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send_multipart([route, pack(release)], zmq.DONTWAIT)

    def _route(self, target: Target) -> bytes:
        route = self._routes.get(target)
        if route is None:
            while len(self._routes) >= _CONNECTIONS_MAX:
                self.drop(next(iter(self._routes)))
            route = b"\1" + next(self._numbers).to_bytes(8, "big")
            if self._pair is not None:
                harden(self._socket, self._pair, target.server_key)
            self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, route)
            self._socket.connect(target.endpoint)
            self._routes[target] = route
        return route
