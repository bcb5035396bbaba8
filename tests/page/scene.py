"""An arena with all that the page has a place for, and an exporter that shows it.

Small, of known numbers, without a supervisor: so its health is "degraded", and why is known. The label of one namespace is
hostile. Called by the tests of this folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from pegashm import _native
from pegashm.arena import Arena
from pegashm.cache import Cache
from pegashm.exporter.routes import Exporter
from pegashm.keys import Namespace, namespace_of
from pegashm.peers.addresses import Address
from pegashm.units import KIB

from tests.arenas import Shape, temporary_arena

__all__ = ["HOSTILE", "QUIET", "ROOMY", "SHAPE", "exporting", "filled", "keys", "publish"]

HOSTILE = '<script>owned=1</script><img src=x onerror="owned=1">&amp;\x1b[31m'
QUIET = namespace_of({"model": "page"}, label="Qwen3-8B bf16", maximum_bytes=128 * KIB)
ROOMY = namespace_of({"model": "roomy"}, label="roomy")
SHAPE = Shape(
    segments_per_arena=(12,),
    segments_ready=11,
    spill_records=64,
    remote_buckets=16,
    reuse_registers=1 << 10,
)


def keys(first: int, count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") + bytes(4) for number in range(first, first + count)]


def publish(cache: Cache, wanted: list[bytes], nbytes: int) -> np.ndarray:
    handles, outcomes = cache.claim(wanted, nbytes)
    assert not outcomes.any(), outcomes
    cache.publish(handles)
    return handles


@contextlib.contextmanager
def filled() -> Iterator[tuple[Arena, Cache]]:
    """20 blocks of 4 KiB (3 pinned, 2 more being written) of one namespace, 5 of 16 KiB of the hostile one."""
    hostile = Namespace(fingerprint=b"h" * 32, label=HOSTILE)
    with (
        temporary_arena(SHAPE) as arena,
        Cache.attach(arena.name, namespace=QUIET, label="engine 0") as cache,
        Cache.attach(arena.name, namespace=hostile, label=HOSTILE) as other,
    ):
        cache.count_asked(keys(1, 40))
        cache.find(keys(1, 40))
        handles = publish(cache, keys(1, 20), 4 * KIB)
        cache.pin(handles[:3])
        cache.claim(keys(21, 2), 4 * KIB)
        cache.count_asked(keys(1, 40))
        found, _ = cache.find(keys(1, 40))
        cache.count_served(int((found != 0).sum()))
        publish(other, keys(101, 5), 16 * KIB)
        _list_spilled(arena, cache.namespace_id)
        yield arena, cache


def _list_spilled(arena: Arena, namespace_id: int) -> None:
    rows = np.zeros(6, dtype=_native.SPILL_FIELDS)
    rows["key"][:, 31] = np.arange(6) + 1
    rows["key"][:, 0] = 1
    rows["key_bytes"], rows["namespace_id"], rows["payload_bytes"] = 32, namespace_id, 4 * KIB
    rows["file_offset"] = np.arange(6) * 4096
    table = _native.SpillTable(arena.region)
    table.clear()
    assert table.store(rows).all()
    table.set_usable(1)


@contextlib.contextmanager
def exporting(name: str, port: int = 0) -> Iterator[str]:
    """The address of an exporter in this process."""
    address = Address("127.0.0.1", port)
    exporter = Exporter(name, address, survey_seconds=0.1, sample_seconds=0.5)
    exporter.start()
    try:
        yield f"http://{exporter.address}/"
    finally:
        exporter.stop()
