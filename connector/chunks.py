"""Where in a block does each worker's KV lie, and which byte runs does a transfer copy?

A block of the arena holds one vLLM chunk of `blocks_per_chunk` blocks, laid out as vLLM's own host memory is:
a cell for each worker (one for all when every worker holds the same bytes), in it each tensor's pages.

    | worker 0: tensor 0 pages | tensor 1 pages ... | worker 1: ... | padding to 4 KiB |

Pure arithmetic on numbers of one engine; no torch, no vLLM, no shared memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ChunkLayout",
    "PageRef",
    "Runs",
    "TensorPlace",
    "cell_offsets",
    "fills_whole_chunks",
    "transfer_runs",
]

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLayout:
    """Sizes of one chunk in the arena; all in bytes but `blocks_per_chunk` and `cells`."""

    worker_bytes_per_block: int
    blocks_per_chunk: int
    cells: int

    @property
    def cell_bytes(self) -> int:
        return self.worker_bytes_per_block * self.blocks_per_chunk

    @property
    def chunk_bytes(self) -> int:
        """What a chunk claims: its cells, rounded up to whole pages."""
        return -(-self.cell_bytes * self.cells // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One KV tensor of this worker: where row `block_id` starts, and its page in the cell."""

    address: int
    row_stride_bytes: int
    page_bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class PageRef:
    """A layer's page: which tensor, and how many of its bytes are data."""

    tensor: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Runs:
    """Byte runs of one transfer: addresses in the engine's tensors, addresses in the arena, sizes."""

    engine: NDArray[np.uint64]
    arena: NDArray[np.uint64]
    sizes: NDArray[np.uint64]

    @property
    def total_bytes(self) -> int:
        return int(self.sizes.sum())


def cell_offsets(tensors: Sequence[TensorPlace], blocks_per_chunk: int) -> list[int]:
    """Start of each tensor's pages within a worker's cell."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + tensor.page_bytes * blocks_per_chunk)
    return starts


def fills_whole_chunks(layout: ChunkLayout, group_sizes: Sequence[int], chunk_count: int) -> bool:
    """Whether a store of these engine blocks writes every byte of its chunks.

    vLLM leaves out blocks that a sliding window has passed, also inside of a chunk of several blocks. What was
    not written is what the memory held before: such a chunk must not be published.
    """
    return sum(group_sizes) == chunk_count * layout.blocks_per_chunk


def transfer_runs(
    *,
    layout: ChunkLayout,
    cell: int,
    tensors: Sequence[TensorPlace],
    groups: Sequence[Sequence[PageRef]],
    block_ids: NDArray[np.integer],
    group_sizes: Sequence[int],
    block_indices: Sequence[int],
    chunk_addresses: NDArray[np.uint64],
) -> Runs:
    """The runs between `block_ids` of the engine and the chunks at `chunk_addresses`.

    Both are ordered by KV group. `group_sizes[g]` engine blocks belong to group g, the first of them is
    block `block_indices[g]` of its request, so it may lie inside its chunk. ValueError when the two sides
    do not describe the same blocks.
    """
    starts = cell_offsets(tensors, layout.blocks_per_chunk)
    per_chunk = layout.blocks_per_chunk
    engine: list[NDArray[np.uint64]] = []
    arena: list[NDArray[np.uint64]] = []
    sizes: list[NDArray[np.uint64]] = []
    block_from = chunk_from = 0
    for refs, size, first in zip(groups, group_sizes, block_indices, strict=True):
        if size == 0:
            continue
        ids = np.asarray(block_ids[block_from : block_from + size], dtype=np.uint64)
        place = np.arange(size, dtype=np.uint64) + np.uint64(first % per_chunk)
        chunk = place // np.uint64(per_chunk)
        within = place % np.uint64(per_chunk)
        chunk_count = int(chunk[-1]) + 1
        addresses = chunk_addresses[chunk_from : chunk_from + chunk_count]
        if len(ids) != size or len(addresses) != chunk_count:
            raise ValueError(
                f"{len(block_ids)} engine blocks and {len(chunk_addresses)} chunks do not match groups of "
                f"{list(group_sizes)} blocks"
            )
        base = addresses[chunk] + np.uint64(cell * layout.cell_bytes)
        for ref in refs:
            tensor = tensors[ref.tensor]
            if int(ids.max()) >= tensor.rows:
                raise ValueError(f"block {int(ids.max())} of a tensor of {tensor.rows} blocks")
            engine.append(np.uint64(tensor.address) + ids * np.uint64(tensor.row_stride_bytes))
            arena.append(
                base + np.uint64(starts[ref.tensor]) + within * np.uint64(tensor.page_bytes)
            )
            sizes.append(np.full(size, ref.data_bytes, dtype=np.uint64))
        block_from += size
        chunk_from += chunk_count
    if block_from != len(block_ids) or chunk_from != len(chunk_addresses):
        raise ValueError(
            f"{len(block_ids)} engine blocks and {len(chunk_addresses)} chunks, but the groups' sizes "
            f"{list(group_sizes)} account for {block_from} and {chunk_from}"
        )
    if not sizes:
        empty = np.empty(0, dtype=np.uint64)
        return Runs(empty, empty, empty)
    return Runs(np.concatenate(engine), np.concatenate(arena), np.concatenate(sizes))
