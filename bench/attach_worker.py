"""What does one fresh process pay for its cache memory? Attach to an arena, or make as much memory of its own.

Started anew by attach.py for every sample, as `python -m bench.attach_worker attach NAME` or `... own BYTES HUGE`, so
that no mapping, page table or import of an earlier sample helps. Prints one JSON line of seconds by
step. Imports are done before the clock runs: an engine has them anyway.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import sys
import time
from collections.abc import Sequence

import numpy as np

from pegashm._native import OK
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.errors import ArenaMissingError
from pegashm.keys import namespace_of

from bench import memory
from bench.harness import SEED
from bench.lookup_keys import KeySet

__all__ = ["main"]

FIND_KEYS = 500


def attach(name: str) -> dict[str, float]:
    """Open, map, validate; then attach as a client; then, beyond attaching, map every page and lock it."""
    with contextlib.suppress(ArenaMissingError):
        open_arena("bench-no-such-arena")  # first calls of everything
    namespace = namespace_of({"bench": "attach"}, label="bench")

    start = time.perf_counter()
    arena = open_arena(name)
    opened = time.perf_counter()
    keys = KeySet(int(arena.region.header["record_count"]), SEED).keys(range(FIND_KEYS))
    arena.close()

    begin = time.perf_counter()
    cache = Cache.attach(name, namespace=namespace, label="bench")
    attached = time.perf_counter()
    _, outcomes = cache.find(keys)
    found = time.perf_counter()
    there = int((outcomes == OK).sum())
    if there < 0.99 * len(keys):
        raise AssertionError(f"only {there} of {len(keys)} keys of a full arena are there")

    region = cache.region
    size = region.payload_bytes
    memory.populate(region.payload_address, size, memory.MADV_POPULATE_READ)
    faulted = time.perf_counter()
    is_locked = memory.lock(region.payload_address, size)
    locked = time.perf_counter()
    cache.close()
    return {
        "open": opened - start,
        "attach": attached - begin,
        "first_find": found - attached,
        "fault_in": faulted - found,
        "lock": locked - faulted,
        "is_locked": is_locked,
        "found": there,
    }


def own(size: int, *, huge: bool) -> dict[str, float]:
    """Allocate, fault in and lock anonymous memory, as an engine with a pool of its own does."""
    start = time.perf_counter()
    pool = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pool.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    address = int(np.frombuffer(pool, np.uint8).ctypes.data)
    memory.populate(address, size)
    populated = time.perf_counter()
    is_locked = memory.lock(address, size)
    locked = time.perf_counter()
    return {
        "populate": populated - start,
        "lock": locked - populated,
        "all": locked - start,
        "is_locked": is_locked,
    }


def main(arguments: Sequence[str]) -> None:
    what, *rest = arguments
    print(
        json.dumps(
            attach(rest[0]) if what == "attach" else own(int(rest[0]), huge=rest[1] == "huge")
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
