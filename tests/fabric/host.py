"""One host of the suite, in a process of its own that can be stopped and killed: `host.py KIND ROLE ARENA`.

Attached to a real arena, whose claims and pins are therefore its own, with one fabric open over it. Orders come as lines of
JSON on standard input and each runs in a thread of its own; answers go out as lines of JSON in the order in which they
are done. When a connection is made, what has to be carried to the other host's `admit` goes out as
an event and its answer comes back as an order. The test is the authenticated channel between the two.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import Any

import numpy as np

from pegashm._native import OK
from pegashm.cache import Cache
from pegashm.fabric.interface import Connection, Fabric, Grant, Part, Served

from tests.fabric.kinds import KINDS
from tests.fabric.payloads import FENCE, NAMESPACE, key_of
from tests.soak.stamp import payload_for

__all__ = ["main"]


class Host:
    """The orders, one method each. Bytes travel as hex."""

    def __init__(self, kind: str, role: str, arena: str) -> None:
        self.cache = Cache.attach(arena, namespace=NAMESPACE, label=f"fabric test, {role}")
        self.region = self.cache.region
        self.fabric: Fabric = KINDS[kind].open(self.cache.arena, role)
        self.connections: dict[int, Connection] = {}
        self.answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self.say = threading.Lock()
        self.claimed: dict[int, Any] = {}  # first number -> handles
        self.pinned: list[Any] = []

    def out(self, **what: Any) -> None:
        with self.say:
            sys.stdout.write(json.dumps(what) + "\n")
            sys.stdout.flush()

    # -- blocks ----------------------------------------------------------------------------------

    def store(self, first: int, count: int, nbytes: int) -> list[int]:
        """Publish blocks number `first` and following, and keep them pinned; their payload offsets."""
        offsets = self.claim(first, count, nbytes)
        keys = [key_of(first + n) for n in range(count)]
        for key, offset in zip(keys, offsets, strict=True):
            view = self.region.payload(offset, nbytes)
            np.frombuffer(view, np.uint8)[:] = payload_for(key, FENCE, nbytes, nonce=1)
            del view
        handles = self.claimed.pop(first)
        assert not self.cache.publish(handles).any()
        handles, outcomes = self.cache.find(keys, pin=True)
        assert not outcomes.any(), outcomes
        self.pinned.append(handles)
        return offsets

    def claim(self, first: int, count: int, nbytes: int) -> list[int]:
        """Claim blocks to read into; their payload offsets."""
        handles, outcomes = self.cache.claim([key_of(first + n) for n in range(count)], nbytes)
        assert (outcomes == OK).all(), outcomes
        self.claimed[first] = handles
        offsets, _ = self.cache.locate(handles)
        return [int(offset) for offset in offsets]

    def free(self) -> None:
        """Give back all that was stored and claimed. When no lease covers it and no read is under way."""
        while self.claimed:
            self.cache.abandon(self.claimed.popitem()[1])
        while self.pinned:
            handles = self.pinned.pop()
            self.cache.unpin(handles)
            self.cache.evict(handles)

    # -- serving side ----------------------------------------------------------------------------

    def offer(self) -> str:
        return self.fabric.offer().hex()

    def admit(self, peer: str, introduction: str) -> str:
        return self.fabric.admit(bytes.fromhex(peer), bytes.fromhex(introduction)).hex()

    def dismiss(self, peer: str) -> None:
        self.fabric.dismiss(bytes.fromhex(peer))

    def grant(
        self, peer: str, lease: int, blocks: list[tuple[int, int]], seconds: float
    ) -> tuple[int, str]:
        served = [Served(offset, nbytes) for offset, nbytes in blocks]
        expires = time.monotonic() + seconds
        grant = self.fabric.grant(bytes.fromhex(peer), lease, served, expires)
        return grant.lease_id, grant.opaque.hex()

    def revoke(self, lease: int) -> None:
        self.fabric.revoke(lease)

    # -- reading side ----------------------------------------------------------------------------

    def connect(self, id: int, offer: str, seconds: float) -> int:  # noqa: A002 - the order's
        def introduce(introduction: bytes) -> bytes:
            answers = self.answers[id] = queue.Queue()
            self.out(introduce=id, bytes=introduction.hex())
            answer = answers.get()
            if "refused" in answer:
                raise ConnectionError(answer["refused"])
            return bytes.fromhex(answer["bytes"])

        deadline = time.monotonic() + seconds
        self.connections[id] = self.fabric.connect(bytes.fromhex(offer), introduce, deadline)
        return id

    def read(
        self,
        connection: int,
        grant: tuple[int, str],
        parts: list[tuple[int, int, int]],
        seconds: float,
    ) -> dict[str, Any]:
        """Outcomes, and how many seconds after the deadline it was over (negative: before)."""
        base = self.region.payload_address
        deadline = time.monotonic() + seconds
        outcomes = self.connections[connection].read(
            Grant(grant[0], bytes.fromhex(grant[1])),
            [Part(offset, nbytes, base + to) for offset, nbytes, to in parts],
            deadline,
        )
        return {"outcomes": list(map(int, outcomes)), "over": time.monotonic() - deadline}

    def broken(self, connection: int) -> bool:
        return self.connections[connection].broken

    def close_connection(self, connection: int) -> None:
        self.connections[connection].close()

    # -- both ------------------------------------------------------------------------------------

    def facts(self) -> dict[str, int]:
        """What this process holds: nothing may leak."""
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
        }

    def close(self) -> None:
        self.fabric.close()

    def run(self, order: dict[str, Any]) -> None:
        number, name = order.pop("id"), order.pop("do")
        if name == "connect":
            order["id"] = number
        try:
            self.out(id=number, value=getattr(self, name)(**order))
        except Exception as error:  # noqa: BLE001 - the test judges
            self.out(id=number, error=type(error).__name__, text=str(error))


def main(kind: str, role: str, arena: str) -> None:
    host = Host(kind, role, arena)
    host.out(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "answer":
            host.answers[order["introduce"]].put(order)
        elif order["do"] == "leave":
            host.fabric.close()
            host.cache.close()
            host.out(id=order["id"], value=None)
            return
        else:
            threading.Thread(target=host.run, args=(order,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
