"""Can this worker reach the blocks of a job? The worker's own mapping of the arena, made when first needed.

A worker holds no slot. Before it copies it joins the client that the job names, by a kernel lock that keeps
that client's claims and pins from being reaped while this process lives. When the arena was purged and created
anew, the mapping is renewed.
"""

import numpy as np
from numpy.typing import NDArray
from vllm.logger import init_logger

from pegashm.cache import Copyist
from pegashm.connector.jobs import ArenaBlocks
from pegashm.connector.parting import close_aside
from pegashm.errors import PegaShmError
from pegashm.logs import tell
from pegashm.notices import WORKER_WITHOUT_ARENA

__all__ = ["Reach"]

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


class Reach:
    """The arena as one worker process sees it. Used by one thread at a time."""

    def __init__(self, arena: str) -> None:
        self._arena = arena
        self._copyist: Copyist | None = None

    def join(self, blocks: ArenaBlocks, chunk_bytes: int) -> Copyist | None:
        """The mapping to copy through, or None: then nothing may be copied for this job."""
        copyist = self._copyist
        if copyist is None or copyist.region_id != blocks.region_id:
            copyist = self._open(blocks)
        if copyist is None or not copyist.serve(blocks.region_id, blocks.slot, blocks.incarnation):
            return None
        return copyist if _inside(copyist, blocks.offsets, chunk_bytes) else None

    def _open(self, blocks: ArenaBlocks) -> Copyist | None:
        try:
            copyist = Copyist.open(self._arena)
        except PegaShmError as error:
            tell(
                WORKER_WITHOUT_ARENA,
                "this worker cannot reach the arena: %s",
                error,
                subject=str(error),
                to=logger,
            )
            return None
        if copyist.region_id != blocks.region_id:
            copyist.close()
            return None
        leaving, self._copyist = self._copyist, copyist
        if leaving is not None:
            close_aside(leaving)  # it may be the last to hold that memory
        return copyist

    def close(self) -> None:
        if self._copyist is not None:
            self._copyist.close()
            self._copyist = None


def _inside(copyist: Copyist, offsets: NDArray[np.uint64], chunk_bytes: int) -> bool:
    total = copyist.region.payload_bytes
    return bool(np.all(offsets <= np.uint64(max(total - chunk_bytes, 0))))
