"""`pegashm plan`: how large an arena for so many tokens of this model, before anything is bought or started?

The arithmetic is in `plan.py`, what a config.json means in `kv_of_model.py`.
"""

import json
import re
from typing import Any, Final

import click

from pegashm.cli.common import CONTEXT, clear_errors, json_option, parsed
from pegashm.errors import ConfigError
from pegashm.units import parse_bytes

__all__ = ["plan"]

_SIZE: Final = parsed(parse_bytes)
_COUNT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGB]?)")
_SCALES: Final = {"": 1, "k": 1000, "K": 1000, "M": 10**6, "G": 10**9, "B": 10**9}


def _parse_count(text: str) -> int:
    match = _COUNT.fullmatch(text.replace(",", "").replace("_", "").strip())
    count = 0 if match is None else round(float(match[1]) * _SCALES[match[2]])
    if count < 1:
        raise ConfigError(
            f"{text!r} is not a number of tokens: write for example 500000, 2M or 1.5G"
        )
    return count


@click.command(context_settings=CONTEXT)
@click.option(
    "--model-config",
    "model_config",
    required=True,
    metavar="FILE",
    help="config.json of the model (Hugging Face), or the folder it lies in.",
)
@click.option(
    "--tokens",
    type=parsed(_parse_count),
    metavar="N",
    help="How many tokens memory shall hold, of all prompts together: 500000, 2M.",
)
@click.option(
    "--size",
    type=_SIZE,
    metavar="SIZE",
    help="Instead of --tokens: how many tokens an arena of this size holds.",
)
@click.option(
    "--ssd-tokens",
    type=parsed(_parse_count),
    metavar="N",
    help="How many tokens SSD shall hold (what is in memory is there as well, unless only evicted blocks are written).",
)
@click.option(
    "--spill-files",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="On how many devices, with one spill file each.",
)
@click.option(
    "--tensor-parallel",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="vLLM's --tensor-parallel-size.",
)
@click.option(
    "--block-size",
    type=int,
    default=16,
    show_default=True,
    metavar="N",
    help="Tokens in a block of the engine: vLLM's --block-size. An engine logs another when its kernels want one "
    "(128 on CPUs); the bytes of a token hardly depend on it.",
)
@click.option(
    "--blocks-per-chunk",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="As in kv_connector_extra_config: how many of them make one block of the arena.",
)
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    help="vLLM's --dtype. auto: the config's; bfloat16 where it says float32.",
)
@click.option(
    "--kv-dtype",
    default="auto",
    show_default=True,
    help="vLLM's --kv-cache-dtype: auto (the model's), fp8, bfloat16, ...",
)
@click.option(
    "--state-dtype",
    default="auto",
    show_default=True,
    help="vLLM's --mamba-ssm-cache-dtype, for hybrids with recurrent states.",
)
@click.option(
    "--segment-size",
    type=_SIZE,
    metavar="SIZE",
    help="As for `serve`. Default: near size/64.",
)
@click.option(
    "--remote-blocks",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="As for `serve --listen`, which has 1000000 when it is not given.",
)
@json_option
@clear_errors
def plan(
    model_config: str,
    tokens: int | None,
    size: int | None,
    ssd_tokens: int | None,
    spill_files: int,
    tensor_parallel: int,
    block_size: int,
    blocks_per_chunk: int,
    dtype: str,
    kv_dtype: str,
    state_dtype: str,
    segment_size: int | None,
    remote_blocks: int,
    as_json: bool,
) -> None:
    """Say how much memory and SSD so many tokens of a model take.

    \b
    Examples:
      pegashm plan --model-config Llama-3.1-8B/config.json --tokens 1M
      pegashm plan --model-config DeepSeek-V3 --tokens 20M --tensor-parallel 8 --kv-dtype fp8
      pegashm plan --model-config Qwen3-8B --tokens 2M --ssd-tokens 50M --spill-files 2
      pegashm plan --model-config Qwen3-8B --size 512G

    Reads the model's config.json and nothing else: no engine, no GPU, no arena. Grouped-query, multi-query and
    multi-head attention, latent attention (MLA), sliding windows, and hybrids with recurrent states (Mamba, gated
    delta nets), as vLLM 0.32 lays them out. A model that cannot be told from its config is refused, never guessed.

    Tokens are those of different prefixes: a system prompt that a thousand requests share counts once. Each
    tensor-parallel size, KV type and model keeps blocks of its own. For hybrids it is the most that can be needed: vLLM
    stores fewer states than it has blocks. What the numbers mean: docs/capacity.md.

    \b
    Exit status: 0 planned, 2 wrong usage, or a config that cannot be planned.
    """
    from pegashm.config import ServeConfig
    from pegashm.kv_of_model import read_model
    from pegashm.plan import lines, plan_arena, plan_blocks, plan_size, plan_spill, report

    if (tokens is None) == (size is None):
        raise ConfigError(
            "give --tokens N (how large must it be) or --size SIZE (what does it hold)"
        )
    model = read_model(
        model_config,
        tensor_parallel=tensor_parallel,
        dtype=dtype,
        kv_dtype=kv_dtype,
        state_dtype=state_dtype,
    )
    blocks = plan_blocks(
        model,
        block_tokens=block_size,
        blocks_per_chunk=blocks_per_chunk,
        tensor_parallel=tensor_parallel,
    )
    spill = None
    if ssd_tokens is not None:
        spill = plan_spill(blocks.blocks_of(ssd_tokens), blocks.chunk_bytes, files=spill_files)
    hints = ServeConfig(name="plan", size_bytes=size or 1 << 40, remote_blocks=remote_blocks)
    more: dict[str, Any] = {
        "segment_bytes": segment_size,
        "spill_records": 0 if spill is None else spill.records,
        "remote_buckets": hints.remote_bucket_count,
    }
    if tokens is not None:
        arena = plan_arena(blocks.blocks_of(tokens), blocks.chunk_bytes, **more)
    else:
        assert size is not None
        arena = plan_size(size, blocks.chunk_bytes, **more)
        tokens = blocks.tokens_of(arena.blocks)
    if as_json:
        click.echo(json.dumps(report(model, blocks, arena, spill, tokens)))
    else:
        click.echo("\n".join(lines(model, blocks, arena, spill, tokens)))
