"""May these bytes reach the engine? Checksums of what this worker stores and loads, as the operator asked.

After a store has ended a worker calls `stored`, before it reports its part; before a load's bytes are used it
calls `may_load`. What does not hold is marked, so that no engine is given it again, and told once a job; vLLM
computes it anew. A worker whose jobs come from vLLM's model thread uses `later`: hashing has a thread of its own.
With checksums off nothing here costs anything. Who evicts a marked block is the scheduler's side (`manager.py`).
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from vllm.logger import init_logger

from pegashm.cache import Copyist
from pegashm.connector.chunks import ChunkLayout
from pegashm.connector.jobs import ArenaBlocks
from pegashm.logs import tell
from pegashm.notices import BLOCK_DAMAGED
from pegashm.payload_sums import Checksums, Hasher, Part, Verdict

__all__ = ["Integrity"]

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


class Integrity:
    """One worker's checksums. ConfigError when its chunks have more cells than can have one."""

    def __init__(
        self, checksums: Checksums, layout: ChunkLayout, cell: int, *, threads: int = 1
    ) -> None:
        self.on: Final = checksums is not Checksums.OFF
        self._required = checksums is Checksums.REQUIRED
        if self.on:
            self._part = Part(index=cell, count=layout.cells, nbytes=layout.cell_bytes)
            self._hasher = Hasher(threads)
            self._aside = ThreadPoolExecutor(1, "pegashm-sums")

    def stored(self, copyist: Copyist, blocks: ArenaBlocks) -> None:
        """Keep the checksum of our cell of each claimed block; its bytes are all there."""
        if self.on:
            copyist.store_sums(blocks.handles, blocks.offsets, self._part, self._hasher)

    def may_load(self, copyist: Copyist, blocks: ArenaBlocks) -> bool:
        """Whether our cell of each pinned block holds what was stored there."""
        if not self.on:
            return True
        checked = copyist.verify(blocks.handles, blocks.offsets, self._part, self._hasher)
        if checked.damages:
            more = len(checked.damages) - 1
            tell(
                BLOCK_DAMAGED,
                "%s%s. It is computed, and no engine will be given these bytes. Memory errors are in "
                "`dmesg` and `ras-mc-ctl --errors`",
                checked.damages[0],
                f" (and {more} more of this job)" if more else "",
                to=logger,
            )
            return False
        return not (self._required and (checked.verdicts == Verdict.NO_SUM).any())

    def later(self, work: Callable[[], bool]) -> "Future[bool]":
        """Do it in the hashing thread, in the order of the calls. Only when `on`."""
        return self._aside.submit(work)

    def drain(self) -> None:
        """Wait for what `later` was given: the blocks of a few jobs, a second for 20 GB or more."""
        if self.on:
            self._aside.submit(bool).result()

    def close(self) -> None:
        """What was begun ends first."""
        if self.on:
            self._aside.shutdown()
            self._hasher.close()
