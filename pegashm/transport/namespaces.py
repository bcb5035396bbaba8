"""Which namespace has this id in the region, and which id has this namespace of a spill file?

Spill files name namespaces by their digest, the region by ids that are given out anew after a reboot. Ids are never
reused within a region, so what was learnt stays true. A namespace found in a file is registered when the file is opened:
its blocks can then be found by the engine that will come back. Should the region's table of namespaces be full one
day, a slot is given to another namespace and the blocks of the old id are reachable no more, until a restart finds them.

Thread-safe. Called by the threads that open, write and read files.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from pegashm.arena import Arena
from pegashm.cache import lock_registry, register
from pegashm.errors import PegaShmError
from pegashm.keys import Namespace
from pegashm.liveness import REGISTRY_BYTE, unlock
from pegashm.logs import tell
from pegashm.notices import NAMESPACE_NOT_LISTED
from pegashm.spill.format import SpillNamespace

__all__ = ["Namespaces"]

_LOOK_AGAIN_SECONDS: Final = 0.05
_REGISTRY_WAIT_SECONDS: Final = 10.0


class Namespaces:
    """Ids and digests of one region, as far as anybody asked."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._mutex = threading.Lock()
        self._by_id: dict[int, SpillNamespace] = {}
        self._ids: dict[bytes, int] = {}  # fingerprint -> live id
        self._looked_at = 0.0

    def of(self, namespace_id: int) -> SpillNamespace | None:
        """None: no namespace has this id now, and none had it when we looked."""
        with self._mutex:
            known = self._by_id.get(namespace_id)
            if known is None and time.monotonic() > self._looked_at + _LOOK_AGAIN_SECONDS:
                self._look()
                known = self._by_id.get(namespace_id)
            return known

    def known(self, fingerprint: bytes) -> int:
        """The id of a namespace that is in the region, 0 when none with this digest is. Registers nothing."""
        with self._mutex:
            found = self._ids.get(fingerprint)
            if found is None and time.monotonic() > self._looked_at + _LOOK_AGAIN_SECONDS:
                self._look()
                found = self._ids.get(fingerprint)
            return found or 0

    def id_of(self, namespace: SpillNamespace) -> int:
        """Its id, registered if need be; 0 when the region has no room for it."""
        with self._mutex:
            found = self._ids.get(namespace.fingerprint)
            if found is not None:
                return found
            try:
                lock_registry(self._arena, _REGISTRY_WAIT_SECONDS)
                try:
                    # One that is known keeps the limits that its engine gave it.
                    self._look()
                    found = self._ids.get(namespace.fingerprint) or register(
                        self._arena,
                        Namespace(fingerprint=namespace.fingerprint, label=namespace.label),
                    )
                finally:
                    unlock(self._arena.control_fd, REGISTRY_BYTE)
            except PegaShmError as error:
                tell(
                    NAMESPACE_NOT_LISTED,
                    'spill: blocks of namespace "%s" cannot be found: %s',
                    namespace.label,
                    error,
                    namespace=namespace.fingerprint.hex(),
                )
                found = 0
            self._ids[namespace.fingerprint] = found
            if found:
                self._by_id[found] = namespace
            return found

    def _look(self) -> None:
        for entry in self._arena.region.namespaces(counted=False):
            fingerprint, label = bytes(entry["fingerprint"]), entry["label"]
            text = label if isinstance(label, str) else bytes(label).decode(errors="replace")
            self._by_id[int(entry["id"])] = SpillNamespace(fingerprint, text)
            self._ids[fingerprint] = int(entry["id"])
        self._looked_at = time.monotonic()
