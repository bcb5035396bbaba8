"""What does vLLM's CPU-offload worker see of the arena? One host tensor a KV tensor, a row for each block.

vLLM addresses host memory as rows of one stride, numbered from 0. Blocks of one payload size begin at multiples of
their stride, counted from the start of the mapping, so row number = offset / stride over the whole mapping,
whatever else lies between. A row holds the cells of all workers; in this worker's cell the tensors follow one
another, as in `chunks.py`.

`ArenaHostRegion` stands in for vLLM's SharedOffloadRegion and has what CPUOffloadingWorker uses of it, no more:
`rank`, `_base`, `_row_stride`, `total_size_bytes`, `pinned_addresses`, `is_pinned`, the two view methods, `cleanup`.
Needs torch, not vLLM. Copies nothing and registers nothing.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pegashm._native import Region
from pegashm.connector.chunks import PAGE_BYTES, ChunkLayout
from pegashm.errors import ConfigError

__all__ = ["ArenaHostRegion", "row_stride", "rows_of"]

_ROWS_MAX: Final = 2**31 - 1  # vLLM numbers rows with int32


def row_stride(layout: ChunkLayout, block_bytes_min: int) -> int:
    """What a chunk of this layout occupies: the native core's `stride_of`."""
    return max(-(-layout.chunk_bytes // PAGE_BYTES) * PAGE_BYTES, block_bytes_min)


def rows_of(offsets: NDArray[np.uint64], stride: int, payload_bytes: int) -> NDArray[np.int32]:
    """Row numbers of blocks. ValueError for an offset that is no start of a row inside the arenas."""
    rows, rest = np.divmod(offsets, np.uint64(stride))
    if rest.any() or (rows >= np.uint64(payload_bytes // stride)).any():
        raise ValueError(f"offsets {offsets[:8]} are not multiples of {stride} in {payload_bytes}")
    if (rows > np.uint64(_ROWS_MAX)).any():
        raise ValueError(f"row {rows.max()} is beyond what vLLM can number, {_ROWS_MAX}")
    return rows.astype(np.int32)


class ArenaHostRegion:
    """The arena in place of a SharedOffloadRegion. `registered`: whether all of it is known to the driver.

    Its tensors hold the mapping: it stays until the last of them is gone, even if the region is closed.
    """

    # What vLLM is asked to register by itself when it takes this over: nothing, that goes on in the background.
    total_size_bytes: Final = 0

    def __init__(
        self,
        region: Region,
        layout: ChunkLayout,
        cell: int,
        *,
        registered: bool,
    ) -> None:
        self.rank = cell
        self.pinned_addresses: list[int] = []
        self._row_stride = row_stride(layout, region.header["block_bytes_min"])
        self.num_chunks = region.payload_bytes // self._row_stride
        if self.num_chunks > _ROWS_MAX:
            raise ConfigError(
                f"an arena of {region.payload_bytes} bytes in chunks of {self._row_stride} has "
                f"{self.num_chunks} rows, vLLM's GPU worker can number {_ROWS_MAX}: use a larger "
                f"block_size or blocks_per_chunk, or a smaller arena"
            )
        if not 0 <= cell < layout.cells:
            raise ConfigError(f"cell {cell} of a chunk of {layout.cells} cells")
        self._base: torch.Tensor | None = torch.frombuffer(
            region.payload(0, region.payload_bytes), dtype=torch.int8
        )
        self._views: list[torch.Tensor] = []
        self._next = cell * layout.cell_bytes
        self._cell_end = self._next + layout.cell_bytes
        self._next_canonical = 0
        self._registered = registered

    @property
    def is_pinned(self) -> bool:
        """Read by vLLM once, when it decides whether device code may read this memory by its address."""
        return self._registered

    @is_pinned.setter
    def is_pinned(self, _told: bool) -> None:
        """vLLM says so after it has registered everything it was asked to, which is nothing."""

    def create_next_worker_view(self, tensor_page_size: int) -> torch.Tensor:
        """Rows of the next KV tensor of this worker's cell, of so many bytes each."""
        start, self._next = self._next, self._next + tensor_page_size
        if self._next > self._cell_end:
            raise ValueError(
                f"the KV tensors take {self._next - self._cell_end} bytes more than a cell"
            )
        return self._view(start, tensor_page_size)

    def create_next_canonical_view(self, tensor_page_size: int) -> torch.Tensor:
        """As above for vLLM's canonical layout, where all workers share the row from its start."""
        start, self._next_canonical = self._next_canonical, self._next_canonical + tensor_page_size
        if self._next_canonical > self._row_stride:
            raise ValueError(
                f"canonical tensors take {self._next_canonical} bytes of {self._row_stride}"
            )
        return self._view(start, tensor_page_size)

    def cleanup(self) -> None:
        """Let go of the mapping. vLLM calls this once its copies are done."""
        self._views.clear()
        self._base = None

    def _view(self, start: int, nbytes: int) -> torch.Tensor:
        if self._base is None:
            raise ValueError("this host region was cleaned up")
        view = torch.as_strided(
            self._base, (self.num_chunks, nbytes), (self._row_stride, 1), storage_offset=start
        )
        self._views.append(view)
        return view
