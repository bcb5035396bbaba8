"""Does vLLM see the arena's bytes, as rows that are the arena's blocks?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from vllm.v1.kv_offload.cpu.gpu_worker import compute_sub_block_ptrs, pin_mmap_region

from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.connector.chunks import ChunkLayout
from pegashm.connector.hostregion import ArenaHostRegion, row_stride, rows_of
from pegashm.errors import ConfigError

from tests.arenas import Shape, temporary_arena
from tests.connector.engines import claim

KIB = 1024


def layout(worker_bytes: int = 5000, blocks_per_chunk: int = 2, cells: int = 2) -> ChunkLayout:
    return ChunkLayout(
        worker_bytes_per_block=worker_bytes, blocks_per_chunk=blocks_per_chunk, cells=cells
    )


def test_views_are_the_arena_itself() -> None:
    """Written through a view, read through the arena: no copy in between."""
    with temporary_arena(Shape(segments_per_arena=(2, 2))) as arena:
        host = ArenaHostRegion(arena.region, layout(), 1, registered=False)
        first = host.create_next_worker_view(6000)
        second = host.create_next_worker_view(4000)
        first[3] = 7
        second[3] = 9

        assert (256 * KIB // (20 * KIB), 6000) == tuple(first.shape)
        assert (20 * KIB, 1) == first.stride()
        start = 3 * 20 * KIB + 10000  # the second of two cells of 10,000 bytes
        assert bytes([7]) * 6000 + bytes([9]) * 4000 == bytes(arena.region.payload(start, 10000))
        assert 10000 == bytes(arena.region.payload(0, 256 * KIB)).count(7) + 4000
        assert arena.region.payload_address == host._base.data_ptr()


def test_rows_are_where_blocks_are(
    arena_name: Callable[..., str], attach: Callable[[str], Cache]
) -> None:
    """Every block the arena can hold has a row of its own, at its address: vLLM's pointers say so."""
    cache = attach(arena_name(Shape(segments_per_arena=(3, 2))))
    shape = layout()
    # Segments of 64 KiB hold three blocks of 20 KiB, or two where the grid of 20 KiB falls badly.
    handles = claim(cache, shape, 3 + 2 + 2 + 2 + 3)
    offsets, _ = cache.locate(handles)
    stride = row_stride(shape, cache.region.header["block_bytes_min"])
    rows = rows_of(offsets, stride, cache.region.payload_bytes)
    assert np.int32 == rows.dtype
    assert len(handles) == len(set(rows.tolist()))

    host = ArenaHostRegion(cache.region, shape, 0, registered=False)
    view = host.create_next_worker_view(4000 * shape.blocks_per_chunk)
    pointers = np.zeros(2 * len(rows), dtype=np.uint64)
    compute_sub_block_ptrs(rows, shape.blocks_per_chunk, pointers, view)
    assert (pointers[::2] == offsets + np.uint64(cache.region.payload_address)).all()
    assert (pointers[1::2] - pointers[::2] == 4000).all()


def test_a_row_is_at_least_the_smallest_block() -> None:
    with temporary_arena(Shape(block_bytes_min=32 * KIB)) as arena:
        host = ArenaHostRegion(arena.region, layout(), 0, registered=False)
        assert (8, 32 * KIB) == (host.num_chunks, host._row_stride)


@pytest.mark.parametrize("offset", [1, 4096, 20 * KIB * 12, 1 << 63])
def test_offsets_that_are_no_rows(offset: int) -> None:
    with pytest.raises(ValueError, match="not multiples of 20480"):
        rows_of(np.array([0, offset], dtype=np.uint64), 20 * KIB, 256 * KIB)


def test_rows_beyond_what_vllm_can_number() -> None:
    stride, last = 4 * KIB, 2**31 - 1
    size = stride * (last + 2)
    assert [last] == rows_of(np.array([last * stride], dtype=np.uint64), stride, size).tolist()
    with pytest.raises(ValueError, match="beyond what vLLM can number"):
        rows_of(np.array([(last + 1) * stride], dtype=np.uint64), stride, size)


def test_vllm_registers_nothing_by_itself() -> None:
    """Its own registration, as the constructor of its worker calls it, leaves ours unpinned."""
    with temporary_arena() as arena:
        host = ArenaHostRegion(arena.region, layout(), 0, registered=False)
        pin_mmap_region(host)
        assert not host.is_pinned
        assert [] == host.pinned_addresses
        assert ArenaHostRegion(arena.region, layout(), 0, registered=True).is_pinned


def test_tensors_that_do_not_fit_are_refused() -> None:
    with temporary_arena() as arena:
        host = ArenaHostRegion(arena.region, layout(), 0, registered=False)
        host.create_next_worker_view(9999)
        with pytest.raises(ValueError, match="1 bytes more than a cell"):
            host.create_next_worker_view(2)
        host.create_next_canonical_view(20 * KIB)
        with pytest.raises(ValueError, match="20481 bytes of 20480"):
            host.create_next_canonical_view(1)
        with pytest.raises(ConfigError, match="cell 2 of a chunk of 2"):
            ArenaHostRegion(arena.region, layout(), 2, registered=False)


def test_a_view_outlives_the_region(arena_name: Callable[..., str]) -> None:
    """A copy under way never meets an unmapped page; without views the mapping goes."""
    arena = open_arena(arena_name())
    host = ArenaHostRegion(arena.region, layout(), 0, registered=False)
    view = host.create_next_worker_view(10000)
    address = view.data_ptr()
    arena.close()
    view[0] = 5
    assert 50000 == int(view[0].sum(dtype=torch.int64))

    host.cleanup()
    assert mapped(address)
    del view
    assert not mapped(address)
    with pytest.raises(ValueError, match="cleaned up"):
        host.create_next_worker_view(0)


def mapped(address: int) -> bool:
    with open("/proc/self/maps", encoding="ascii") as maps:
        ranges = [line.split(" ", 1)[0].split("-") for line in maps if "pegashm" in line]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)
