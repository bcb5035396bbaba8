"""Two hosts in one process: a fabric on the first RDMA device and one on the last, each over memory of its own.

What needs other processes is in `tests/fabric`, which runs over verbs as well. Here the test itself can reach under a
fabric and lie with its queue pairs. Imports pyverbs only when a host is made, so that all can be collected without it.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import time
from typing import Any

from pegashm.fabric.interface import Grant, Part, ReadOutcome, Served
from pegashm.units import KIB, MIB

__all__ = ["BLOCK", "PAYLOAD_BYTES", "PEER", "Host", "Hosts", "blocks_of"]

PAYLOAD_BYTES = 16 * MIB
BLOCK = 64 * KIB
PEER = b"reader, 16 bytes"


class Host:
    """A payload and a fabric over it."""

    def __init__(self, *, last: bool, **options: Any) -> None:
        from pegashm.fabric.verbs import VerbsFabric, VerbsOptions
        from pegashm.fabric.verbs_device import find_ports

        self.memory = mmap.mmap(-1, PAYLOAD_BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        port = find_ports(())[-1 if last else 0]
        self.fabric = VerbsFabric(
            self.address,
            PAYLOAD_BYTES,
            options=VerbsOptions(devices=(port.name,), chunk_bytes=4 * MIB, **options),
        )

    def bytes_at(self, offset: int, nbytes: int) -> bytes:
        return self.memory[offset : offset + nbytes]


class Hosts:
    """A serving and a reading host. `lease` and `read` are the usual steps."""

    def __init__(self, chance: random.Random, **options: Any) -> None:
        self.serving = Host(last=False, **options)
        self.reading = Host(last=True, **options)
        self.serving.memory[:] = chance.randbytes(PAYLOAD_BYTES)
        self._leases = 0

    def connect(self, peer: bytes = PEER, reading: Host | None = None) -> Any:
        fabric = (reading or self.reading).fabric
        return fabric.connect(
            self.serving.fabric.offer(),
            lambda introduction: self.serving.fabric.admit(peer, introduction),
            time.monotonic() + 20,
        )

    def lease(
        self, blocks: list[tuple[int, int]], *, peer: bytes = PEER, seconds: float = 60
    ) -> tuple[Grant, list[Part]]:
        """A grant, and parts that read each block to the same offset here."""
        self._leases += 1
        served = [Served(*block) for block in blocks]
        grant = self.serving.fabric.grant(peer, self._leases, served, time.monotonic() + seconds)
        return grant, [Part(*block, self.reading.address + block[0]) for block in blocks]

    def arrived(self, parts: list[Part], outcomes: list[ReadOutcome]) -> int:
        """How many are OK; AssertionError when one of them is not what lies there."""
        for part, outcome in zip(parts, outcomes, strict=True):
            if outcome is ReadOutcome.OK:
                there = self.serving.bytes_at(part.offset, part.nbytes)
                to = part.address - self.reading.address
                assert self.reading.bytes_at(to, part.nbytes) == there, f"wrong bytes: {part}"
        return outcomes.count(ReadOutcome.OK)

    def close(self) -> None:
        self.reading.fabric.close()
        self.serving.fabric.close()


def blocks_of(nbytes: int, count: int, *, apart: int = 2) -> list[tuple[int, int]]:
    """Blocks with gaps between them, so that each is a span of its own."""
    return [(n * nbytes * apart, nbytes) for n in range(count)]
