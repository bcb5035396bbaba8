"""How does a test tell one host what another has, right or wrong, without waiting for the directory?

Writes the shared table of hints as the worker does, from the test's process. For hints that are stale or lies, and for
tests that are not about how hints travel.
"""

from __future__ import annotations

from collections.abc import Sequence

from pegashm import _native

from tests.peers.rig import Host
from tests.transport.rig import eventually

__all__ = ["number_of", "tell"]


def number_of(reader: Host, other: Host) -> int:
    """By which number `reader` knows `other` in this life of it."""

    def found() -> int | None:
        wanted = other.cache.region_id.hex()
        return next(
            (int(peer["number"]) for peer in reader.peers() if peer["host_id"] == wanted), None
        )

    number: int | None = None
    eventually(lambda: found() is not None)
    number = found()
    assert number is not None
    return number


def tell(reader: Host, other: Host, keys: Sequence[bytes], tier: int = _native.TIER_MEMORY) -> None:
    """Let `reader` believe that `other` has these."""
    number = number_of(reader, other)
    table = _native.RemoteTable(reader.arena.region)
    table.add(number, _native.remote_hashes_of(other.namespace.fingerprint, keys), tier)
    table.set_usable(number, True)
