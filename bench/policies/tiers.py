"""What does an SSD below the cache bring, and what does it cost in writes? By which blocks are admitted to it.

Memory is a simulated adaptive cache, the SSD a ring that overwrites its oldest block, as the spill file is. A prompt hits as far
as its blocks are in either; those found on SSD only are read back into memory. Admissions as `pegashm/transport/admission.py`
has them: `all` when a block is stored, `evicted` when it leaves memory, `second-touch` when it is used again by
another request or computed again after it was evicted (of the last blocks evicted only, as many as there it has room for).
What is on SSD is not written again; with `readmits`, what was read from there since it was written is, when the ring comes to it.
Time is left out: nothing is too late to be written, nor waits to be read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from bench.policies.adaptive import Adaptive

__all__ = ["ADMISSIONS", "Tiers"]

ADMISSIONS = ("all", "evicted", "second-touch")
SEEN_BLOCKS = 1 << 20
READMITTED_AT_ONCE = 64


class _Memory(Adaptive):
    def __init__(self, capacity: int, tiers: Tiers) -> None:
        super().__init__(capacity)
        self._tiers = tiers

    def gone(self, block: int) -> None:
        self._tiers.left_memory(block)


class Tiers:
    """One host's two tiers. Counts are of blocks."""

    def __init__(
        self, memory_blocks: int, ssd_blocks: int, admission: str, *, readmits: bool = False
    ) -> None:
        if admission not in ADMISSIONS:
            raise ValueError(f"admission must be one of {ADMISSIONS}, got {admission!r}")
        self.admission = admission
        self.hits_memory = 0
        self.hits_ssd = 0
        self.written = 0
        self.readmitted = 0  # of those written
        self._readmits = readmits
        self._read: set[int] = set()  # from SSD, since they were written there
        self._ssd_blocks = ssd_blocks
        self._memory = _Memory(memory_blocks, self)
        self._ssd: OrderedDict[int, None] = OrderedDict()
        self._seen: OrderedDict[int, None] = OrderedDict()

    def request(self, chain: Sequence[int]) -> None:
        where = []
        for block in chain:
            if block in self._memory:
                where.append(True)
            elif block in self._ssd:
                where.append(False)
            else:
                break
        if self._readmits:
            self._read.update(
                block for block, memory in zip(chain, where, strict=False) if not memory
            )
        self.hits_memory += sum(where)
        self.hits_ssd += len(where) - sum(where)
        used_again = [block for block, there in zip(chain, where, strict=False) if there]
        self._memory.request(chain)
        if self.admission == "second-touch":
            self._write(used_again)
            self._write(block for block in chain[len(where) :] if block in self._seen)
        elif self.admission == "all":
            self._write(chain)

    def left_memory(self, block: int) -> None:
        if self.admission == "evicted":
            self._write([block])
        elif self.admission == "second-touch" and block not in self._ssd:
            self._seen[block] = None
            if len(self._seen) > SEEN_BLOCKS:
                self._seen.popitem(last=False)

    def _write(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if block in self._ssd:
                continue
            self._ssd[block] = None
            self.written += 1
            self._make_room(block)

    def _make_room(self, newest: int) -> None:
        left = READMITTED_AT_ONCE
        while len(self._ssd) > self._ssd_blocks:
            oldest, _ = self._ssd.popitem(last=False)
            if oldest in self._read:
                self._read.discard(oldest)
                if left and oldest != newest:
                    left -= 1
                    self._ssd[oldest] = None
                    self.written += 1
                    self.readmitted += 1
