"""Which namespace holds which part of the memory? The survey's segments as cells of a map, and as a table.

A cell is a segment; a pool of more segments than a screen has room for puts neighbours into one cell. Cells carry bytes
(a block takes its whole stride), so that segments with blocks of several sizes add up. Pure; one survey in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pegashm.exporter.reading import NamespaceReading, SegmentPart, Survey

__all__ = ["CELLS_MAX", "occupancy"]

CELLS_MAX: Final = 640

Cell = list[Any]


def occupancy(
    survey: Survey, header: Mapping[str, Any], namespaces: Sequence[NamespaceReading]
) -> dict[str, Any]:
    """What map.js draws; `cells` as it describes them."""
    ready = int(header["segments_ready"])
    segment_bytes = int(header["segment_bytes"])
    count = len(survey.strides)
    per_cell = -(-count // CELLS_MAX) or 1
    parts: dict[int, list[SegmentPart]] = defaultdict(list)
    for part in survey.parts:
        parts[part.segment].append(part)
    places = {namespace.id: index for index, namespace in enumerate(namespaces)}
    states = [_state(index, stride, ready) for index, stride in enumerate(survey.strides)]
    cells = [
        _cell(range(first, min(first + per_cell, count)), survey, states, parts, places)
        for first in range(0, count, per_cell)
    ]
    return {
        "segment_count": count,
        "segment_bytes": segment_bytes,
        "segments_per_cell": per_cell,
        "cells": cells,
        "by_stride": _by_stride(survey, states, parts),
        "summary": _summary(states),
    }


def _state(index: int, stride: int, segments_ready: int) -> str:
    if stride:
        return "assigned"
    return "unassigned" if index < segments_ready else "absent"


def _cell(
    segments: range,
    survey: Survey,
    states: Sequence[str],
    parts: Mapping[int, Sequence[SegmentPart]],
    places: Mapping[int, int],
) -> Cell:
    capacity = claimed = evicting = 0
    held: dict[int, int] = defaultdict(int)
    for segment in segments:
        stride = survey.strides[segment]
        capacity += survey.capacities[segment] * stride
        for part in parts.get(segment, ()):
            claimed += part.claimed * stride
            evicting += part.evicting * stride
            if part.ready:
                held[places.get(part.namespace_id, -1)] += part.ready * stride
    strides = {survey.strides[segment] for segment in segments} - {0}
    kinds = {states[segment] for segment in segments}
    kind = next(kind for kind in ("assigned", "unassigned", "absent") if kind in kinds)
    if len(kinds) > 1 and kind == "assigned":
        # Neighbours without a block size yet are room as well.
        capacity += sum(_segment_room(survey, states, segment) for segment in segments)
    stride = strides.pop() if len(strides) == 1 and len(kinds) == 1 else 0
    return [kind, stride, capacity, claimed, evicting, sorted(held.items())]


def _segment_room(survey: Survey, states: Sequence[str], segment: int) -> int:
    if states[segment] == "assigned":
        return 0
    return max(
        capacity * stride
        for capacity, stride in zip(survey.capacities, survey.strides, strict=True)
    )


def _by_stride(
    survey: Survey, states: Sequence[str], parts: Mapping[int, Sequence[SegmentPart]]
) -> list[dict[str, Any]]:
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for segment, (state, stride) in enumerate(zip(states, survey.strides, strict=True)):
        row = rows.setdefault(
            (state, stride),
            {"state": state, "stride_bytes": stride, "segments": 0, "blocks": 0}
            | dict.fromkeys(("ready", "claimed", "evicting", "free"), 0),
        )
        row["segments"] += 1
        row["blocks"] += survey.capacities[segment]
        for part in parts.get(segment, ()):
            row["ready"] += part.ready
            row["claimed"] += part.claimed
            row["evicting"] += part.evicting
        row["free"] = row["blocks"] - row["ready"] - row["claimed"] - row["evicting"]
    return [row for _, row in sorted(rows.items())]


def _summary(states: Sequence[str]) -> str:
    used = states.count("assigned")
    empty, absent = states.count("unassigned"), states.count("absent")
    words = [f"{used} of {len(states)} segments in use", f"{empty} empty"]
    if absent:
        words.append(f"{absent} not populated yet")
    return ", ".join(words)
