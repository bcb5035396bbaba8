"""Is the arena that exists the one that was asked for?

An existing arena is never changed in shape nor overwritten. Each difference that matters is named with
both sides; what the operator left open is taken from what exists. Judged from the header alone, before
anything is mapped. Called by the supervisor, under its lock.
"""

import os
from typing import Any

from pegashm.config import NUMA_AUTO, NUMA_NONE, ServeConfig
from pegashm.errors import ConfigError, FormatError, ResourceError
from pegashm.layout import UNBOUND, choose_place, plan_segments
from pegashm.units import format_bytes

__all__ = ["check_same", "purge_line", "refuse"]


def check_same(config: ServeConfig, info: dict[str, Any]) -> None:
    """ConfigError naming every difference between what exists and what was asked."""
    differences = [
        d
        for d in (
            _shape(config, info),
            _size(config, info),
            _place(config, info),
            _spill(config, info),
            _remote(config, info),
        )
        if d
    ]
    differences += _nodes(config, info)
    if differences:
        raise ConfigError(
            f'arena "{config.name}" exists and differs from what was asked: {"; ".join(differences)}. '
            f"Ask for what exists, or remove it first: {purge_line(config.name)}"
        )


def refuse(name: str, reason: str) -> FormatError:
    """The error for an arena that this build cannot read."""
    return FormatError(
        f'arena "{name}" exists but this build cannot read it: {reason}. '
        f"Start the version that made it, or remove it first: {purge_line(name)}"
    )


def purge_line(name: str) -> str:
    return f"`pegashm purge --name {name} --yes`"


def _shape(config: ServeConfig, info: dict[str, Any]) -> str | None:
    for option, asked, exists in (
        ("--segment-size", config.segment_bytes, info["segment_bytes"]),
        ("--block-min", config.block_bytes_min, info["block_bytes_min"]),
    ):
        if asked is not None and asked != exists:
            return f"it has {option} {format_bytes(exists)}, asked was {format_bytes(asked)}"
    return None


def _size(config: ServeConfig, info: dict[str, Any]) -> str | None:
    """The size is the same when it would again make as many segments of the size that exists."""
    segment_bytes, count = info["segment_bytes"], info["segment_count"]
    try:
        counts = plan_segments(
            config.size_bytes,
            segment_bytes,
            info["block_bytes_min"],
            len(info["arenas"]),
            info["spill_record_count"],
            info["remote_bucket_count"],
            info["reuse_register_count"],
        )
    except ConfigError:
        counts = ()
    if sum(counts) == count:
        return None
    exists = info["payload_bytes"] + info["control_bytes"]
    return (
        f"it takes {format_bytes(exists)} ({count} segments of {format_bytes(segment_bytes)}), "
        f"--size {format_bytes(config.size_bytes)} would make {sum(counts)} segments"
    )


def _spill(config: ServeConfig, info: dict[str, Any]) -> str | None:
    """Room for blocks on SSD was made at creation; less than there is will do."""
    asked, exists = config.spill_record_count, info["spill_record_count"]
    if config.spill is None or asked == exists or (config.spill.records is None and exists):
        return None
    return f"it can list {exists} blocks on SSD, asked was --spill-records {asked}"


def _remote(config: ServeConfig, info: dict[str, Any]) -> str | None:
    """Room for hints of what other hosts hold was made at creation as well."""
    asked, exists = config.remote_bucket_count, info["remote_bucket_count"]
    if asked == exists or (config.remote_blocks is None and (exists or not asked)):
        return None
    return (
        f"it has room for {exists * 32 // 5} hints of what other hosts hold, asked was --remote-blocks "
        f"{asked * 32 // 5}"
    )


def _place(config: ServeConfig, info: dict[str, Any]) -> str | None:
    exists = os.path.dirname(_text(info["arenas"][0]["path"]))
    try:
        asked = choose_place(config).directory
    except ResourceError as error:
        asked = f"a place that is not there ({error})"
    return None if exists == asked else f"its payload lies in {exists}, asked was {asked}"


def _nodes(config: ServeConfig, info: dict[str, Any]) -> list[str]:
    exists = tuple(arena["numa_node"] for arena in info["arenas"])
    asked = (UNBOUND,) if config.numa == NUMA_NONE else config.numa
    if asked in (NUMA_AUTO, exists):
        return []
    return [f"its arenas are on NUMA nodes {_numbers(exists)}, asked was {_numbers(asked)}"]


def _numbers(nodes: str | tuple[int, ...]) -> str:
    return ",".join("none" if node == UNBOUND else str(node) for node in nodes)


def _text(path: str | bytes) -> str:
    return path if isinstance(path, str) else os.fsdecode(path)
