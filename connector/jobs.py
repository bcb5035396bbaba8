"""What does the scheduler tell a worker about blocks in the arena? Plain numbers, checked on arrival.

Travels inside vLLM's own metadata from the scheduler process to the workers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from vllm.v1.kv_offload.base import LoadStoreSpec

__all__ = ["ArenaBlocks"]


@dataclass(frozen=True, slots=True)
class ArenaBlocks(LoadStoreSpec):
    """Blocks to copy to or from, in the order of vLLM's chunks.

    `region_id`, `slot`, `incarnation` name the client that holds their claims or pins: a worker that
    cannot join exactly that one copies nothing. `handles`, `offsets`: one each a block; offsets in bytes
    from the first arena's start.
    """

    region_id: bytes
    slot: int
    incarnation: int
    handles: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
