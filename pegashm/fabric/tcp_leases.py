"""Who may read which blocks right now? The serving side's sessions and leases.

A session is one introduction of one peer: it authenticates streams. A lease is what one peer may read until it is
over. Whoever is about to touch the blocks of a lease enters it and leaves it soon after, without waiting in
between; `revoke` returns when nobody is inside and nobody can enter again. Called by the peers' server
(admit, dismiss, grant, revoke) and by the loops that send.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from typing import Final

from pegashm.fabric.interface import Served
from pegashm.fabric.tcp_wire import SECRET_BYTES, SESSION_BYTES

__all__ = ["Lease", "Leases", "Session"]

# Of one peer: connections that are being replaced may overlap.
_SESSIONS_A_PEER: Final = 4


class Session:
    """One introduction. `over`: no stream may use it (any more)."""

    __slots__ = ("over", "peer", "secret", "session_id", "streams")

    def __init__(self, peer: bytes) -> None:
        self.peer = peer
        self.session_id = secrets.token_bytes(SESSION_BYTES)
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self.streams = 0
        self.over = False


class Lease:
    """Blocks that one peer may read. `over` is for looking; only `enter` is to be believed."""

    __slots__ = ("_condition", "_inside", "blocks", "expires", "over", "peer", "ticket")

    def __init__(self, peer: bytes, blocks: Sequence[Served], expires: float) -> None:
        self.peer = peer
        self.ticket = secrets.token_bytes(SECRET_BYTES)
        self.blocks = {block.offset: block.nbytes for block in blocks}
        self.expires = expires
        self.over = False
        self._inside = 0
        self._condition = threading.Condition(threading.Lock())

    def enter(self) -> bool:
        """Whether the blocks may be touched; then `leave` must follow, soon."""
        if time.monotonic() >= self.expires:
            self.over = True
        with self._condition:
            if self.over:
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        with self._condition:
            self._inside -= 1
            if self.over and not self._inside:
                self._condition.notify_all()

    def end(self) -> None:
        """Nobody is inside when this returns, or ever after."""
        with self._condition:
            self.over = True
            while self._inside:
                self._condition.wait()


class Leases:
    """All of them."""

    def __init__(self, payload_bytes: int, streams_a_peer: int) -> None:
        self._payload_bytes = payload_bytes
        self._streams_a_peer = streams_a_peer
        self._mutex = threading.Lock()
        self._sessions: dict[bytes, Session] = {}
        self._by_peer: dict[bytes, list[Session]] = {}
        self._leases: dict[int, Lease] = {}

    def admit(self, peer: bytes) -> Session:
        session = Session(peer)
        with self._mutex:
            mine = self._by_peer.setdefault(peer, [])
            mine.append(session)
            self._sessions[session.session_id] = session
            while len(mine) > _SESSIONS_A_PEER:
                self._forget(mine.pop(0))
        return session

    def dismiss(self, peer: bytes) -> None:
        with self._mutex:
            for session in self._by_peer.pop(peer, []):
                self._forget(session)
            ended = [number for number, lease in self._leases.items() if lease.peer == peer]
        for number in ended:
            self.revoke(number)

    def dismiss_all(self) -> None:
        with self._mutex:
            peers = {*self._by_peer, *(lease.peer for lease in self._leases.values())}
        for peer in peers:
            self.dismiss(peer)

    def grant(self, peer: bytes, lease_id: int, blocks: Sequence[Served], expires: float) -> Lease:
        for offset, nbytes in blocks:
            if not 0 <= offset < offset + nbytes <= self._payload_bytes:
                raise ValueError(
                    f"a block of {nbytes} bytes at {offset} is not in an arena of {self._payload_bytes} bytes"
                )
        lease = Lease(peer, blocks, expires)
        with self._mutex:
            if lease_id in self._leases:
                raise ValueError(f"lease {lease_id} is granted already")
            self._leases[lease_id] = lease
        return lease

    def revoke(self, lease_id: int) -> bool:
        """Whether there was one; an unknown one is over already."""
        with self._mutex:
            lease = self._leases.pop(lease_id, None)
        if lease is None:
            return False
        lease.end()
        return True

    # -- the loops' side -------------------------------------------------------------------------

    def session(self, session_id: bytes) -> Session | None:
        return self._sessions.get(session_id)

    def open_stream(self, session: Session) -> bool:
        """Whether this peer may have one more."""
        with self._mutex:
            count = sum(mine.streams for mine in self._by_peer.get(session.peer, []))
            if session.over or count >= self._streams_a_peer:
                return False
            session.streams += 1
            return True

    def close_stream(self, session: Session) -> None:
        with self._mutex:
            session.streams -= 1

    def lease(self, lease_id: int) -> Lease | None:
        return self._leases.get(lease_id)

    def _forget(self, session: Session) -> None:
        session.over = True
        self._sessions.pop(session.session_id, None)
