"""What of the transport worker has to do with other hosts, put together, started and ended.

Opens the fabrics, listens, greets the members, serves, publishes and follows the directory, fetches. Threads: the server
(ROUTER), the greeter, the directory's, a few fetchers, ZAP's, those of a membership that needs one. Every few
seconds what is known of each peer is written to `peers.json` beside the worker's socket, for `pegashm peers`.

Called by the worker's main thread alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from typing import Final

import zmq
import zmq.auth.thread

from pegashm import _native
from pegashm.cache import Cache
from pegashm.config import PeersConfig
from pegashm.directory.follower import Follower, Host
from pegashm.directory.publisher import Publisher
from pegashm.errors import ResourceError
from pegashm.logs import tell
from pegashm.notices import PEER_REFUSED, PEERS_LISTENING
from pegashm.peers.addresses import Address, parse_address
from pegashm.peers.caller import ZAP_DOMAIN, harden
from pegashm.peers.fabrics import open_fabrics
from pegashm.peers.fetcher import THREADS, Fetcher
from pegashm.peers.greeter import Greeter
from pegashm.peers.keys import AllowList, Keys
from pegashm.peers.known import Known
from pegashm.peers.leases import Leases, Limits
from pegashm.peers.membership import Members
from pegashm.peers.report import PEERS_FILE
from pegashm.peers.serving import Identity, Promote, Server
from pegashm.transport.namespaces import Namespaces

__all__ = ["PeerService"]

_WRITE_SECONDS: Final = 2.0
_QUEUE_MESSAGES: Final = 1024
_BACKLOG: Final = 1024

Start = Callable[[str, Callable[[], None]], None]


class PeerService:
    """One worker's side of the cluster. `fetcher` is a bringer of blocks for the worker's desk."""

    def __init__(
        self,
        cache: Cache,
        namespaces: Namespaces,
        config: PeersConfig,
        *,
        folder: str,
        answered: Callable[[], None],
        spill: _native.SpillTable | None,
    ) -> None:
        """`folder`: for the file that `pegashm peers` reads; `spill`: lists our blocks on SSD, which others are told of."""
        self._cache = cache
        self._config = config
        self._file = os.path.join(folder, PEERS_FILE)
        self._namespaces = namespaces
        self._listen = parse_address(config.listen, "--listen")
        advertise = (
            parse_address(config.advertise, "--advertise") if config.advertise else self._listen
        )
        self._keys = Keys.load(config.keys) if config.keys is not None else None
        self._write_at = 0.0
        _raise_file_limit()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap = self._start_zap()
        self._fabrics = open_fabrics(
            config,
            cache.region,
            self._listen,
            lock_fd=cache.arena.control_fd,
        )
        self._table = _native.RemoteTable(cache.region)
        self._table.clear()
        self._known = Known(_native.REMOTE_HOST_COUNT)
        started = time.time_ns().to_bytes(8, "little") + os.getpid().to_bytes(8, "little")
        host_id = cache.region_id
        incarnation = hashlib.blake2b(host_id + started, digest_size=16).digest()
        self._router = self._bind()
        self._publisher = self._publish(host_id, incarnation, spill)
        self._identity = Identity(
            host_id=host_id,
            incarnation=incarnation,
            hash_version=_native.REMOTE_HASH_VERSION,
            stream_port=self._publisher.port,
        )
        self._follower = Follower(cache.region, self._table, self._context, self._prove)
        self._members = Members(config.members, register=advertise, label=cache.name)
        pair = None if self._keys is None else self._keys.pair
        self._greeter = Greeter(
            self._context,
            self._members,
            self._known,
            self._identity,
            self._keys,
            self._follower,
            advertise=str(advertise),
        )
        self.fetcher = Fetcher(
            cache,
            namespaces,
            self._table,
            self._known,
            self._fabrics,
            context=self._context,
            pair=pair,
            host_id=self._identity.host_id,
            answered=answered,
            suspect=self._greeter.suspect,
        )
        self._server: Server | None = None

    def start(self, start: Start, promote: Promote | None) -> None:
        """`start`: starts a thread of that name; `promote`: brings blocks from SSD for other hosts."""
        allowed = None if self._keys is None else self._keys.allowed
        self._server = Server(
            self._cache,
            self._namespaces,
            self._router,
            self._fabrics,
            self._identity,
            leases=Leases(self._cache, Limits.of(self._cache.region.payload_bytes)),
            promote=promote,
            snapshots=self._publisher.snapshot,
            allows=None if allowed is None else allowed.allows,
        )
        start("server", self._server.run)
        start("publisher", self._publisher.run)
        start("follower", self._follower.run)
        start("greeter", self._greeter.run)
        for number in range(THREADS):
            start(f"fetcher {number}", self.fetcher.run)
        self._members.start(start)
        tell(
            PEERS_LISTENING,
            "listening for other hosts on %s (%s%s)",
            self._listen,
            ", ".join(self._fabrics),
            "" if self._keys else ", without keys",
        )

    def tick(self) -> None:
        """Now and then, by the main thread."""
        now = time.monotonic()
        if now >= self._write_at:
            self._write_at = now + _WRITE_SECONDS
            self._write()

    def stop(self) -> None:
        """Ask all threads to end."""
        self._table.set_none_usable()
        self.fetcher.stop()
        self._greeter.stop()
        self._follower.stop()
        self._publisher.stop()
        self._members.stop()
        if self._server is not None:
            self._server.stop()

    def close(self) -> None:
        """After the threads have ended."""
        for fabric in self._fabrics.values():
            fabric.close()
        if self._zap is not None:
            self._zap.stop()
        self._router.close(linger=0)
        self._context.destroy(linger=0)
        with contextlib.suppress(OSError):
            os.unlink(self._file)

    # -- parts ---------------------------------------------------------------------------------------

    def _start_zap(self) -> zmq.auth.thread.ThreadAuthenticator | None:
        if self._keys is None:
            return None
        zap = zmq.auth.thread.ThreadAuthenticator(self._context)
        zap.start()
        zap.configure_curve_callback(
            ZAP_DOMAIN, credentials_provider=_Doorkeeper(self._keys.allowed)
        )
        return zap

    def _bind(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        harden(router, None if self._keys is None else self._keys.pair)
        router.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
        router.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
        router.setsockopt(zmq.BACKLOG, _BACKLOG)
        try:
            router.bind(self._listen.endpoint())
        except zmq.ZMQError as error:
            raise ResourceError(
                f"cannot listen on {self._listen}: {error}. Is another arena's worker there?"
            ) from error
        return router

    def _publish(
        self, host_id: bytes, incarnation: bytes, spill: _native.SpillTable | None
    ) -> Publisher:
        pair = None if self._keys is None else self._keys.pair
        port = self._listen.port + 1
        try:
            return Publisher(
                self._cache.region,
                self._context,
                host_id=host_id,
                incarnation=incarnation,
                bind=self._listen.endpoint(port),
                configure=lambda socket: harden(socket, pair),
                hosts=lambda: len(self._known),
                spill=spill,
            )
        except zmq.ZMQError as error:
            raise ResourceError(
                f"cannot publish on {Address(self._listen.host, port)}: {error}"
            ) from error

    def _prove(self, socket: zmq.Socket[bytes], host: Host) -> None:
        """Security of a socket that follows a host's stream: it must have the key that the host greeted us with."""
        peer = self._known.of(host.number)
        if self._keys is not None and peer is None:
            raise OSError("it has left")
        key = b"" if peer is None else peer.target.server_key
        harden(socket, None if self._keys is None else self._keys.pair, key)

    # -- what `pegashm peers` shows --------------------------------------------------------------------

    def _write(self) -> None:
        now = time.monotonic()
        text = json.dumps(
            {
                "written_at_ns": time.time_ns(),
                "pid": os.getpid(),
                "listen": str(self._listen),
                "host_id": self._identity.host_id.hex(),
                "incarnation": self._identity.incarnation.hex(),
                "fabrics": list(self._fabrics),
                "peers": [
                    {
                        "number": peer.number,
                        "address": str(peer.address),
                        "host_id": peer.host_id.hex(),
                        "incarnation": peer.incarnation.hex(),
                        "fabrics": list(peer.offers),
                        "joined_seconds": round(now - peer.joined_at, 1),
                        "share": round(peer.share(now), 2),
                        "load": peer.load,
                        "breaker": peer.breaker.state,
                        "fetching": peer.fetching,
                        "fetched": peer.fetched,
                        "failed": peer.failed,
                    }
                    for peer in sorted(self._known.peers(), key=lambda peer: peer.number)
                ],
            }
        )
        # A reader sees the old file or the new one. What cannot be written is not worth ending for.
        with contextlib.suppress(OSError):
            temporary = f"{self._file}.{os.getpid()}"
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self._file)


class _Doorkeeper:
    """Answers ZAP: whom does a connection let in?"""

    def __init__(self, allowed: AllowList) -> None:
        self._allowed = allowed

    def callback(self, _domain: str, key: bytes) -> bool:
        self._allowed.refresh()
        if self._allowed.allows(key):
            return True
        text = key.decode("ascii", "replace")
        tell(
            PEER_REFUSED,
            "a host with the public key %s was refused: add it to %s if it may talk to us",
            text,
            self._allowed.path,
            subject=text,
            public_key=text,
        )
        return False


def _raise_file_limit() -> None:
    """Each host costs a few descriptors, and the soft limit is made for programs that select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
