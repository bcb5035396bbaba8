"""Child of `test_flips.py`: change each byte of a header in turn, open the arena, and use it if it opens.

Its last line is JSON: for each byte offset, what became of every change made there ("refused" with the
error's class, or "used"). What was being tried stands on the lines before, for whoever reads a crash.
Usage: python -m tests.format.flips ARENA FIRST_OFFSET COUNT
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict

from pegashm._native import Client, Region, generations_hold
from pegashm.arena import open_arena
from pegashm.errors import PegaShmError
from pegashm.names import control_path

MASKS = (0xFF, 0x01, 0x80)
KEYS = [bytes([index + 1]) * 32 + bytes(4) for index in range(8)]


def use(region: Region) -> None:
    """Everything an engine and a tool would do; outcomes do not matter, staying alive does."""
    region.header  # noqa: B018
    namespace = region.register_namespace(b"n" * 32, label="flip", now_ns=1)
    incarnation = region.attach_client(
        5, pid=1, started_at=1, now_ns=1, namespace_id=namespace, mode=0, engine_id=b"", label=""
    )
    client = Client(region, 5, incarnation)
    handles, _ = client.claim(KEYS, namespace, 5000)
    offsets, sizes = client.locate(handles)
    for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
        region.payload(offset, size)[:] = bytes(size)
    client.publish(handles)
    found, _ = client.find(KEYS, namespace, pin=True)
    generations_hold(region, found)
    client.touch(found)
    client.unpin(found)
    client.evict(found[:4])
    client.evict_lru(5000, 2)
    client.claim(KEYS[:2], namespace, 9000)
    region.reap_client(5)
    region.repair()
    for read in (region.blocks, region.tally, region.segments, region.clients):
        read()
    region.namespaces()
    region.counters()
    region.journal(0)


def main(name: str, first: int, count: int) -> None:
    path = control_path(name)
    descriptor = os.open(path, os.O_RDWR)
    whole = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    outcomes: dict[int, list[str]] = defaultdict(list)
    for offset in range(first, first + count):
        for mask in MASKS:
            print(f"offset {offset} mask {mask:#x}", flush=True)
            os.pwrite(descriptor, bytes([whole[offset] ^ mask]), offset)
            try:
                with open_arena(name) as arena:
                    use(arena.region)
                outcomes[offset].append("used")
            except PegaShmError as error:
                outcomes[offset].append(type(error).__name__)
            os.pwrite(descriptor, whole, 0)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
