"""Would the sanitizers say anything? What is wrong here on purpose, in a process of its own that must die of it.

`python -m tests.sanitized.misuse WHAT ARENA`, run by `test_sanitized.py` in the asan flavour. `poisoned` has the
native module read a buffer that this process has declared off limits, so it shows that the module's own reads
are watched. The others make ordinary calls, of a module built over a core with a mistake planted.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import numpy as np

from pegashm.cache import Cache
from pegashm.keys import namespace_of

__all__ = ["MISUSES"]

COUNT = 400  # handles: too many for numpy's cache of small buffers, so that malloc knows their end


def poisoned(cache: Cache) -> None:
    handles = np.zeros(COUNT, dtype=np.uint64)
    poison = ctypes.CDLL(None).__asan_poison_memory_region
    poison(ctypes.c_void_p(handles.ctypes.data + 8 * (COUNT // 2)), ctypes.c_size_t(64))
    cache.touch(handles)


def touch(cache: Cache) -> None:
    cache.touch(np.zeros(COUNT, dtype=np.uint64))


def repair(cache: Cache) -> None:
    cache.publish(cache.claim([bytes(36)], 4096)[0])  # a segment in use
    cache.region.repair()


MISUSES: dict[str, Callable[[Cache], None]] = {
    "poisoned": poisoned,
    "touch": touch,
    "repair": repair,
}


def main(what: str, name: str) -> None:
    with Cache.attach(name, namespace=namespace_of({"test": "misuse"}, label="misuse")) as cache:
        MISUSES[what](cache)
    print("nobody noticed")


if __name__ == "__main__":
    main(*sys.argv[1:])
