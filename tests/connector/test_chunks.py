"""Which byte runs does a transfer copy? Against a slow, obvious account of the same layout."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegashm.connector.chunks import ChunkLayout, PageRef, Runs, TensorPlace, transfer_runs


def u64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.uint64)


def runs(**changes: Any) -> Runs:
    """Two groups on two tensors; two blocks a chunk; the second group starts inside its chunk."""
    arguments: dict[str, Any] = {
        "layout": ChunkLayout(worker_bytes_per_block=300, blocks_per_chunk=2, cells=2),
        "cell": 1,
        "tensors": [
            TensorPlace(address=10_000, row_stride_bytes=100, page_bytes=100, rows=8),
            TensorPlace(address=50_000, row_stride_bytes=256, page_bytes=200, rows=8),
        ],
        "groups": [[PageRef(0, 100), PageRef(1, 200)], [PageRef(0, 60)]],
        "block_ids": np.array([3, 0, 5], dtype=np.int32),
        "group_sizes": [2, 1],
        "block_indices": [0, 3],
        "chunk_addresses": u64(1 << 20, 1 << 21),
    }
    return transfer_runs(**(arguments | changes))


def triples(found: Runs) -> list[tuple[int, int, int]]:
    return list(zip(found.engine.tolist(), found.arena.tolist(), found.sizes.tolist(), strict=True))


def test_the_runs_of_a_small_transfer() -> None:
    cell = 600  # the second cell
    assert [
        (10_300, (1 << 20) + cell, 100),
        (10_000, (1 << 20) + cell + 100, 100),
        (50_768, (1 << 20) + cell + 200, 200),
        (50_000, (1 << 20) + cell + 400, 200),
        (10_500, (1 << 21) + cell + 100, 60),
    ] == triples(runs())
    assert 660 == runs().total_bytes


def test_a_chunk_is_its_cells_in_whole_pages() -> None:
    layout = ChunkLayout(worker_bytes_per_block=3000, blocks_per_chunk=3, cells=2)
    assert (9000, 20480) == (layout.cell_bytes, layout.chunk_bytes)
    exact = ChunkLayout(worker_bytes_per_block=4096, blocks_per_chunk=1, cells=2)
    assert 8192 == exact.chunk_bytes


@given(
    pages=st.lists(st.integers(1, 5000), min_size=1, max_size=4),
    blocks_per_chunk=st.integers(1, 5),
    cells=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    first=st.integers(0, 20),
    data=st.data(),
)
def test_no_two_pages_share_a_byte(
    pages: list[int],
    blocks_per_chunk: int,
    cells: int,
    sizes: list[int],
    first: int,
    data: st.DataObject,
) -> None:
    """Every page of every worker has bytes of its own, inside its chunk, whatever the sizes."""
    layout = ChunkLayout(
        worker_bytes_per_block=sum(pages), blocks_per_chunk=blocks_per_chunk, cells=cells
    )
    chunks = [-(-(size + first % blocks_per_chunk) // blocks_per_chunk) for size in sizes if size]
    bases = [number * layout.chunk_bytes for number in range(sum(chunks))]
    addresses = u64(*data.draw(st.permutations(bases)))
    taken: list[tuple[int, int]] = []
    for cell in range(cells):
        found = transfer_runs(
            layout=layout,
            cell=cell,
            tensors=[TensorPlace(1 << 40, nbytes, nbytes, 64) for nbytes in pages],
            groups=[[PageRef(index, nbytes) for index, nbytes in enumerate(pages)] for _ in sizes],
            block_ids=np.zeros(sum(sizes), dtype=np.int32),
            group_sizes=sizes,
            block_indices=[first] * len(sizes),
            chunk_addresses=addresses,
        )
        assert sum(pages) * sum(sizes) == found.total_bytes
        taken += [(at, at + nbytes) for _, at, nbytes in triples(found)]
    taken.sort()
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(taken))
    for begin, end in taken:
        assert begin // layout.chunk_bytes == (end - 1) // layout.chunk_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_addresses": u64(1 << 20)}, "do not match groups"),
        ({"chunk_addresses": u64(0, 4096, 8192)}, r"account for 3 and 2"),
        ({"block_ids": np.array([3, 0], dtype=np.int32)}, "do not match groups|account for"),
        ({"block_ids": np.array([3, 0, 5, 1], dtype=np.int32)}, r"account for 3 and 2"),
        ({"block_ids": np.array([3, 8, 5], dtype=np.int32)}, "block 8 of a tensor of 8 blocks"),
        ({"group_sizes": [2, 1, 1]}, "shorter|longer"),
    ],
)
def test_sides_that_do_not_describe_the_same_blocks(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs(**changes)


def test_nothing_to_copy() -> None:
    found = runs(block_ids=np.zeros(0, dtype=np.int32), group_sizes=[0, 0], chunk_addresses=u64())
    assert ([], 0) == (triples(found), found.total_bytes)
