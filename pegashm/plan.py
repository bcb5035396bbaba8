"""How much memory, and how much SSD, do so many tokens of this model's KV take?

Two steps, both plain arithmetic. How vLLM packs layers into blocks: layers of one kind form groups, each with blocks of its
own, and all groups share one pool, so that a block is as large as the widest group's. And how an arena holds blocks: whole
pages, whole blocks a segment, a control region beside them. The second step uses the functions that `pegashm serve` uses;
the first repeats vLLM 0.32's `kv_cache_utils.py` and is compared with it, and with the connector, by tests/deploy.
Nothing here looks at the machine: an arena may be planned on a laptop. Called by `pegashm plan`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pegashm._native import plan_region
from pegashm.config import SpillConfig
from pegashm.connector.chunks import ChunkLayout
from pegashm.errors import ConfigError
from pegashm.kv_of_model import ModelKv
from pegashm.layout import (
    default_block_bytes_min,
    default_segment_bytes,
    plan_segments,
    reuse_registers,
)
from pegashm.spill.format import PAGE_BYTES, default_region_bytes
from pegashm.units import GIB, KIB, MIB, format_bytes, round_up

__all__ = [
    "ArenaPlan",
    "BlockPlan",
    "Group",
    "SpillPlan",
    "lines",
    "plan_arena",
    "plan_blocks",
    "plan_size",
    "plan_spill",
    "report",
]

# What the attention kernels of GPUs and CPUs take at least (vLLM's "kernel block").
_KERNEL_TOKENS: Final = 16
_KERNEL_TOKENS_LATENT: Final = 128
_TOO_MANY_LAYERS: Final = 1.5  # vLLM's limit for padding the smaller of two kinds of layers
_SPILL_RECORD_BYTES: Final = 192
_FRAMES_A_REGION: Final = 15
_SIZE_STEP: Final = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that share a block table: each block of tokens is one block of the arena in every group."""

    kind: str
    layers: int
    window_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """What one engine stores. `chunk`: what the connector moves, one block in the arena."""

    tokens_per_block: int
    tokens_per_chunk: int
    worker_bytes_per_block: int
    cells: int
    chunk_bytes: int
    groups: tuple[Group, ...]

    @property
    def bytes_per_token(self) -> float:
        """In the arena, of a long prompt all of whose blocks are kept."""
        return len(self.groups) * self.chunk_bytes / self.tokens_per_chunk

    def blocks_of(self, tokens: int) -> int:
        """Blocks that so many tokens take: the last, unfilled one of a prompt is never stored."""
        return len(self.groups) * -(-tokens // self.tokens_per_chunk)

    def tokens_of(self, blocks: int) -> int:
        """Tokens that so many blocks hold."""
        return blocks // len(self.groups) * self.tokens_per_chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaPlan:
    """An arena that holds them: what to give to `pegashm serve`."""

    blocks: int
    size_bytes: int
    payload_bytes: int
    control_bytes: int
    segment_bytes: int
    block_bytes_min: int
    segment_given: bool

    @property
    def options(self) -> str:
        size = f"--size {_size_text(self.size_bytes)}"
        if not self.segment_given:
            return size
        return f"{size} --segment-size {_size_text(self.segment_bytes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillPlan:
    """Spill files that hold them, all of one size."""

    blocks: int
    files: int
    file_bytes: int
    records: int
    record_bytes: int
    records_given: bool

    @property
    def options(self) -> str:
        size = f"--spill-size {_size_text(self.file_bytes)}"
        return f"{size} --spill-records {self.records}" if self.records_given else size


def plan_blocks(
    model: ModelKv, *, block_tokens: int, blocks_per_chunk: int = 1, tensor_parallel: int = 1
) -> BlockPlan:
    """vLLM's blocks of this model, and the connector's chunks of them."""
    if block_tokens < 1 or blocks_per_chunk < 1:
        raise ConfigError(
            f"--block-size and --blocks-per-chunk must be at least 1, got {block_tokens} and {blocks_per_chunk}"
        )
    if not model.token_bytes:
        raise ConfigError(
            f"{model.model_type} has no attention layers: vLLM keeps no blocks of tokens for it"
        )
    if model.state_bytes:
        block_tokens = _tokens_that_hold_a_state(model, block_tokens)
    groups = _groups(model)
    layout = ChunkLayout(
        worker_bytes_per_block=block_tokens
        * model.token_bytes
        * max(group.layers for group in groups),
        blocks_per_chunk=blocks_per_chunk,
        cells=1 if model.latent else tensor_parallel,
    )
    return BlockPlan(
        tokens_per_block=block_tokens,
        tokens_per_chunk=block_tokens * blocks_per_chunk,
        worker_bytes_per_block=layout.worker_bytes_per_block,
        cells=layout.cells,
        chunk_bytes=layout.chunk_bytes,
        groups=groups,
    )


def _tokens_that_hold_a_state(model: ModelKv, block_tokens: int) -> int:
    """vLLM makes blocks of a hybrid so large that a page of attention holds a state, and pads the state to it."""
    step = max(_KERNEL_TOKENS_LATENT if model.latent else _KERNEL_TOKENS, block_tokens)
    needed = step * -(-model.state_bytes // (step * model.token_bytes))
    return max(block_tokens, round_up(needed, _KERNEL_TOKENS))


def _groups(model: ModelKv) -> tuple[Group, ...]:
    """As many layers in each group as the rarest kind has; or all of one kind in one."""
    counts = [part.count for part in model.layers]
    size = min(counts)
    if max(counts) < size * _TOO_MANY_LAYERS:
        size = max(counts)
    groups = []
    for part in model.layers:
        parts = -(-part.count // size)
        # Dealt in turn, as vLLM does: the first are the larger ones.
        groups += [
            Group(
                kind=part.kind,
                layers=len(range(first, part.count, parts)),
                window_tokens=part.window_tokens,
            )
            for first in range(parts)
        ]
    return tuple(groups)


def plan_arena(
    blocks: int,
    chunk_bytes: int,
    *,
    segment_bytes: int | None = None,
    arenas: int = 1,
    spill_records: int = 0,
    remote_buckets: int = 0,
    page_bytes: int = 4 * KIB,
) -> ArenaPlan:
    """The smallest --size, in steps of 64 MiB (of 1 GiB from 64 GiB), whose arena holds so many blocks."""
    step = _SIZE_STEP if blocks * chunk_bytes < 64 * GIB else GIB
    size = round_up(max(blocks * chunk_bytes, step), step)
    while True:
        segment = segment_bytes or default_segment_bytes(size, page_bytes, arenas)
        if segment < chunk_bytes:
            if segment_bytes is not None:
                raise ConfigError(
                    f"--segment-size {format_bytes(segment)} is smaller than a block of {format_bytes(chunk_bytes)}"
                )
            segment = 1 << (chunk_bytes - 1).bit_length()
        planned = _arena(
            blocks,
            size,
            segment=segment,
            arenas=arenas,
            spill_records=spill_records,
            remote_buckets=remote_buckets,
            page_bytes=page_bytes,
        )
        if planned is not None and _capacity(planned, chunk_bytes) >= blocks:
            return planned
        size += step


def plan_size(
    size_bytes: int,
    chunk_bytes: int,
    *,
    segment_bytes: int | None = None,
    arenas: int = 1,
    spill_records: int = 0,
    remote_buckets: int = 0,
    page_bytes: int = 4 * KIB,
) -> ArenaPlan:
    """The arena that `serve --size` makes, and how many blocks it holds."""
    segment = segment_bytes or default_segment_bytes(size_bytes, page_bytes, arenas)
    planned = _arena(
        0,
        size_bytes,
        segment=segment,
        arenas=arenas,
        spill_records=spill_records,
        remote_buckets=remote_buckets,
        page_bytes=page_bytes,
    )
    blocks = 0 if planned is None else _capacity(planned, chunk_bytes)
    if planned is None or not blocks:
        raise ConfigError(
            f"--size {format_bytes(size_bytes)} (segments of {format_bytes(segment)}) has no room for a block of "
            f"{format_bytes(chunk_bytes)}: give a larger --size or --segment-size"
        )
    return replace(planned, blocks=blocks)


def _arena(
    blocks: int,
    size: int,
    *,
    segment: int,
    arenas: int,
    spill_records: int,
    remote_buckets: int,
    page_bytes: int,
) -> ArenaPlan | None:
    """What `serve --size` would make; None when it would refuse."""
    block_min = default_block_bytes_min(size, segment)
    registers = reuse_registers(size)
    try:
        counts = plan_segments(
            size, segment, block_min, arenas, spill_records, remote_buckets, registers
        )
    except ConfigError:
        return None
    region = plan_region(
        segment_bytes=segment,
        block_bytes_min=block_min,
        segments_per_arena=counts,
        spill_records=spill_records,
        remote_buckets=remote_buckets,
        reuse_registers=registers,
    )
    return ArenaPlan(
        blocks=blocks,
        size_bytes=size,
        payload_bytes=region["payload_bytes"],
        control_bytes=region["control_bytes"],
        segment_bytes=segment,
        block_bytes_min=block_min,
        segment_given=segment != default_segment_bytes(size, page_bytes, arenas),
    )


def _capacity(arena: ArenaPlan, chunk_bytes: int) -> int:
    """Blocks in all segments: each starts at a multiple of its stride and ends inside its segment (FORMAT.md)."""
    stride = max(round_up(chunk_bytes, PAGE_BYTES), arena.block_bytes_min)
    starts = range(0, arena.payload_bytes, arena.segment_bytes)
    return sum(
        max(0, (start + arena.segment_bytes - round_up(start, stride)) // stride)
        for start in starts
    )


def plan_spill(blocks: int, chunk_bytes: int, *, files: int = 1) -> SpillPlan:
    """The smallest --spill-size, in whole GiB, with which so many files hold so many blocks beside what is being written."""
    if files < 1:
        raise ConfigError(f"--spill-files must be at least 1, got {files}")
    stride = round_up(chunk_bytes, PAGE_BYTES)
    each = -(-blocks // files)
    file_bytes = round_up(each * stride, GIB)
    while _spill_capacity(file_bytes, stride) < each:
        file_bytes += GIB
    paths = tuple(f"/{number}" for number in range(files))
    default = SpillConfig(paths=paths, file_bytes=file_bytes).record_count
    records = max(default, blocks)
    return SpillPlan(
        blocks=blocks,
        files=files,
        file_bytes=file_bytes,
        records=records,
        record_bytes=records * _SPILL_RECORD_BYTES,
        records_given=records != default,
    )


def _spill_capacity(file_bytes: int, stride: int) -> int:
    """Blocks in all regions but the one that is emptied to be written next."""
    region = default_region_bytes(file_bytes)
    regions = (file_bytes - PAGE_BYTES) // region
    return (regions - 1) * ((region - (1 + _FRAMES_A_REGION) * PAGE_BYTES) // stride)


# -- words and numbers ------------------------------------------------------------------------------------


def report(
    model: ModelKv, blocks: BlockPlan, arena: ArenaPlan, spill: SpillPlan | None, tokens: int
) -> dict[str, Any]:
    """All of it as one JSON object; bytes are bytes, and a GiB is 2^30 of them."""
    return {
        "model": asdict(model) | {"token_bytes_per_layer": model.token_bytes},
        "tokens": tokens,
        "block": asdict(blocks)
        | {
            "bytes_per_token": blocks.bytes_per_token,
            "blocks_per_gib": GIB // blocks.chunk_bytes,
            "tokens_per_gib": GIB / blocks.bytes_per_token,
            "gib_per_million_tokens": blocks.bytes_per_token * 1e6 / GIB,
        },
        "arena": asdict(arena) | {"options": arena.options},
        "spill": None if spill is None else asdict(spill) | {"options": spill.options},
    }


def lines(
    model: ModelKv, blocks: BlockPlan, arena: ArenaPlan, spill: SpillPlan | None, tokens: int
) -> Sequence[str]:
    """What a person reads."""
    said = [f"model     {model.model_type}, KV in {model.kv_dtype}{_workers(model, blocks)}"]
    for part in model.layers:
        size = (
            f"a state of {format_bytes(part.state_bytes)}"
            if part.state_bytes
            else f"{format_bytes(part.token_bytes)} a token"
        )
        said.append(f"          {part.count} layers of {part.kind}: {size}, a layer and worker")
    groups = "" if len(blocks.groups) == 1 else f" in each of {len(blocks.groups)} groups"
    per_gib = (
        f"{GIB // blocks.chunk_bytes:,} a GiB, {GIB / blocks.bytes_per_token:,.0f} tokens a GiB"
    )
    million = f"{blocks.bytes_per_token * 1e6 / GIB:.1f} GiB"
    index = format_bytes(arena.control_bytes)
    size = format_bytes(arena.size_bytes)
    said += [
        f"token     {format_bytes(round(blocks.bytes_per_token))}; a million take {million}",
        f"block     {blocks.tokens_per_chunk} tokens{groups}, {format_bytes(blocks.chunk_bytes)}; {per_gib}",
        f"memory    {tokens:,} tokens: {arena.blocks:,} blocks in {size}, {index} of it to find them",
        f"          pegashm serve {arena.options} ...",
    ]
    if spill is not None:
        files = f"{spill.files} file(s) of {format_bytes(spill.file_bytes)}"
        records = format_bytes(spill.record_bytes)
        said += [
            f"SSD       {spill.blocks:,} blocks in {files}, listed in {records} of the memory",
            f"          {'--spill PATH ' * spill.files}{spill.options}",
        ]
    return said


def _workers(model: ModelKv, blocks: BlockPlan) -> str:
    if model.latent:
        return ", the same bytes on every worker: stored once"
    return "" if blocks.cells == 1 else f", {blocks.cells} workers"


def _size_text(count: int) -> str:
    for letter, scale in (("G", GIB), ("M", MIB), ("K", KIB)):
        if count % scale == 0:
            return f"{count // scale}{letter}"
    return str(count)
