"""How fast does the kernel itself give shared memory that is reserved, mapped, populated and locked?

`python -m bench.start_limit FOLDER BYTES` prints one JSON object with seconds. The least that `pegashm serve` could do on the same
mount, without a region, locks, progress or a supervisor: one file, `fallocate`, one mapping, as many threads as
processors that populate it (MADV_POPULATE_WRITE), `mlock`. Shares no code with the package.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench import memory

__all__ = ["main"]

STEP_BYTES = 64 << 20


def main(arguments: Sequence[str]) -> None:
    folder, size = arguments[0], int(arguments[1])
    start = time.perf_counter()
    descriptor, path = tempfile.mkstemp(prefix="pegashm-bench-", dir=folder)
    os.unlink(path)
    os.posix_fallocate(descriptor, 0, size)
    reserved = time.perf_counter()
    mapped = mmap.mmap(descriptor, size)
    address = int(np.frombuffer(mapped, np.uint8).ctypes.data)
    steps = range(0, size, STEP_BYTES)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(
            threads.map(lambda at: memory.populate(address + at, min(STEP_BYTES, size - at)), steps)
        )
    populated = time.perf_counter()
    is_locked = memory.lock(address, size)
    done = time.perf_counter()
    taken = {
        "reserve": reserved - start,
        "populate": populated - reserved,
        "lock": done - populated,
        "all": done - start,
        "is_locked": is_locked,
    }
    print(json.dumps(taken))


if __name__ == "__main__":
    main(sys.argv[1:])
