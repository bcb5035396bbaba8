"""How do a block in memory, a block to be written, a record in a file and a row of the spill table relate?

Conversions between the four kinds of row, whole batches at a time: `Region.describe` gives the first, `spill.format`
defines the next two, `_native.SPILL_FIELDS` is the last. Pure functions, called by all of the worker's threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegashm._native import SPILL_FIELDS
from pegashm.spill.format import BLOCK_FIELDS, RECORD_FIELDS

__all__ = ["blocks_of", "full_key", "handles_of", "keys_of", "records_of", "table_rows", "words"]

Rows = NDArray[Any]
Words = NDArray[np.uint64]

_IN_RECORDS = tuple(RECORD_FIELDS.names or ())


def table_rows(records: Rows, namespace_id: int, file: int) -> Rows:
    """Records of a file as the spill table lists them."""
    rows = np.zeros(len(records), SPILL_FIELDS)
    for name in _IN_RECORDS:
        rows[name] = records[name]
    rows["namespace_id"] = namespace_id
    rows["file"] = file
    return rows


def records_of(rows: Rows) -> Rows:
    """Rows of the spill table as their file reads them."""
    records = np.zeros(len(rows), RECORD_FIELDS)
    for name in _IN_RECORDS:
        records[name] = rows[name]
    return records


def blocks_of(described: Rows, payload_address: int, sum_layouts: Words) -> Rows:
    """Described blocks of the arena as a file takes them."""
    blocks = np.zeros(len(described), BLOCK_FIELDS)
    for name in ("key", "key_bytes", "group", "payload_bytes", "published_at_ns"):
        blocks[name] = described[name]
    blocks["address"] = described["payload_offset"] + np.uint64(payload_address)
    blocks["sum_layout"] = sum_layouts
    return blocks


def handles_of(described: Rows) -> Words:
    handles: Words = described["generation"] << np.uint64(24) | described["record"].astype(
        np.uint64
    )
    return handles


def keys_of(rows: Rows) -> list[bytes]:
    """Keys as the batched calls take them: hash, then four bytes of group."""
    flat = np.ascontiguousarray(rows["key"]).tobytes()
    return [
        flat[at : at + nbytes] + group.to_bytes(4, "big")
        for at, nbytes, group in zip(
            range(0, len(flat), 32),
            rows["key_bytes"].tolist(),
            rows["group"].tolist(),
            strict=True,
        )
    ]


def full_key(event: dict[str, Any]) -> bytes:
    """The key of a journal event."""
    key: bytes = event["key"]
    return key + int(event["group"]).to_bytes(4, "big")


def words(values: Iterable[int]) -> Words:
    return np.fromiter(values, np.uint64)
