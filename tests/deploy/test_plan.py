"""Are the numbers of `pegashm plan` right, and does it refuse what it cannot know?

Worked by hand for models that everybody knows; against arenas and spill files that are really made; as the command says
them. That the blocks are vLLM's is shown by `test_plan_vllm.py`, that an engine stores such ones by tests/e2e/test_models.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pegashm.cache import Cache
from pegashm.cli import main
from pegashm.errors import ConfigError
from pegashm.kv_of_model import ModelKv, read_model
from pegashm.plan import BlockPlan, plan_arena, plan_blocks, plan_size, plan_spill
from pegashm.spill.format import PAGE_BYTES, plan_superblock
from pegashm.units import GIB, KIB, MIB

from tests.arenas import Shape, temporary_arena
from tests.deploy.known_models import KNOWN
from tests.served import NAMESPACE

DOCS = Path(__file__).parents[2] / "docs"
Written = Callable[[dict[str, Any]], str]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a config.json; its path."""

    def write(config: dict[str, Any]) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


def planned(path: str, **options: Any) -> tuple[ModelKv, BlockPlan]:
    block_tokens = options.pop("block_tokens", 16)
    model = read_model(path, **options)
    return model, plan_blocks(
        model, block_tokens=block_tokens, tensor_parallel=options.get("tensor_parallel", 1)
    )


@pytest.mark.parametrize(
    ("name", "layers", "token_bytes", "tokens", "chunk_bytes", "groups"),
    [
        # heads x width x (K and V) x 2 bytes in every layer
        ("Llama-3.1-8B", 32, 8 * 128 * 2 * 2, 16, 2 * MIB, 1),
        ("Llama-3.1-70B", 80, 8 * 128 * 2 * 2, 16, 5 * MIB, 1),
        ("Qwen3-8B", 36, 8 * 128 * 2 * 2, 16, 2304 * KIB, 1),
        # one latent vector and one rotary key, 61 layers: 274.5 pages for 16 tokens
        ("DeepSeek-V3", 61, (512 + 64) * 2, 16, 275 * 4 * KIB, 1),
        # ten layers of full attention: groups of ten, one and six of them
        ("Gemma-3-27B", 62, 16 * 128 * 2 * 2, 16, 16 * 8 * KIB * 10, 7),
        # the state of a gated delta net is as large as 536 tokens, in steps of 16: 544
        ("Qwen3-Next-80B-A3B", 48, 2 * 256 * 2 * 2, 544, 544 * 2 * KIB * 12, 4),
    ],
)
def test_known_models(
    written: Written,
    name: str,
    layers: int,
    token_bytes: int,
    tokens: int,
    chunk_bytes: int,
    groups: int,
) -> None:
    model, blocks = planned(written(KNOWN[name]))
    assert layers == sum(part.count for part in model.layers)
    assert token_bytes == model.token_bytes
    assert (tokens, chunk_bytes) == (blocks.tokens_per_chunk, blocks.chunk_bytes)
    assert groups == len(blocks.groups)
    assert layers == sum(group.layers for group in blocks.groups)


def test_tensor_parallel_divides_heads_and_stores_a_latent_vector_once(written: Written) -> None:
    llama = written(KNOWN["Llama-3.1-70B"])
    one, eight, sixteen = (planned(llama, tensor_parallel=n)[1] for n in (1, 8, 16))
    assert one.chunk_bytes == eight.chunk_bytes
    assert 8 == eight.cells
    assert 2 * one.chunk_bytes == sixteen.chunk_bytes, "eight heads on sixteen workers: each twice"
    deepseek = written(KNOWN["DeepSeek-V3"])
    assert planned(deepseek)[1] == planned(deepseek, tensor_parallel=8)[1]


def test_types(written: Written) -> None:
    llama = written(KNOWN["Llama-3.1-8B"])
    assert 1 * MIB == planned(llama, kv_dtype="fp8")[1].chunk_bytes
    assert 4 * MIB == planned(llama, dtype="float32")[1].chunk_bytes
    assert 4 * MIB == planned(llama, kv_dtype="float32")[1].chunk_bytes
    half = written(KNOWN["Llama-3.1-8B"] | {"torch_dtype": "float32"})
    assert 2 * MIB == planned(half)[1].chunk_bytes, "vLLM makes bfloat16 of float32"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": None}, "does not say num_hidden_layers"),
        ({"num_attention_heads": "32"}, "num_attention_heads is '32'"),
        ({"layer_types": ["full_attention", "telepathy"]}, "'telepathy'"),
        ({"index_head_dim": 128}, "sparse attention"),
        ({"num_kv_shared_layers": 10}, "share the KV"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": None}, "no model_type"),
        ({"torch_dtype": "int7"}, "dtype 'int7'"),
    ],
)
def test_what_cannot_be_known_is_refused_by_name(
    written: Written, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read_model(written(KNOWN["Llama-3.1-8B"] | changes))


def test_a_kv_type_with_scales_and_heads_that_cannot_be_shared_out_are_refused(
    written: Written,
) -> None:
    llama = written(KNOWN["Llama-3.1-8B"])
    with pytest.raises(ConfigError, match="int8_per_token_head"):
        read_model(llama, kv_dtype="int8_per_token_head")
    with pytest.raises(ConfigError, match="8 KV heads cannot be shared out"):
        read_model(llama, tensor_parallel=3)


@pytest.mark.parametrize("chunk_bytes", [64 * KIB, 68 * KIB, 320 * KIB])
def test_an_arena_holds_what_was_planned_and_not_one_block_more(chunk_bytes: int) -> None:
    """A real arena of the planned shape takes as many blocks as the plan says."""
    wanted = plan_arena(300, chunk_bytes)
    exact = plan_size(wanted.size_bytes, chunk_bytes)
    assert exact.blocks >= 300
    shape = Shape(
        segment_bytes=exact.segment_bytes,
        block_bytes_min=exact.block_bytes_min,
        segments_per_arena=(exact.payload_bytes // exact.segment_bytes,),
    )
    with (
        temporary_arena(shape) as arena,
        Cache.attach(arena.name, namespace=NAMESPACE) as cache,
    ):
        keys = [number.to_bytes(36, "little") for number in range(1, exact.blocks + 2)]
        handles, outcomes = cache.claim(keys, chunk_bytes)
        assert exact.blocks == int((handles != 0).sum())
        assert 1 == int((outcomes != 0).sum())
        cache.abandon(handles[handles != 0])


def test_a_planned_size_is_what_serve_makes_of_it() -> None:
    """The numbers that the command prints are those of the supervisor's own layout."""
    from pegashm.config import ServeConfig
    from pegashm.layout import plan_layout

    for size in (64 * MIB, 3 * GIB, 700 * GIB):
        ours = plan_size(size, 2 * MIB)
        theirs = plan_layout(ServeConfig(name="kv0", size_bytes=size, numa="none"))
        assert (theirs.segment_bytes, theirs.block_bytes_min) == (
            ours.segment_bytes,
            ours.block_bytes_min,
        )
        assert theirs.plan["payload_bytes"] == ours.payload_bytes
        assert theirs.plan["control_bytes"] == ours.control_bytes


def test_spill_files_hold_what_was_planned() -> None:
    spill = plan_spill(100_000, 2 * MIB, files=2)
    superblock = plan_superblock(spill.file_bytes, None, file_id=b"x" * 16, created_at_ns=1)
    room = superblock.region_bytes - 16 * PAGE_BYTES
    assert 2 * (superblock.region_count - 1) * (room // (2 * MIB)) >= 100_000
    assert not spill.records_given
    small = plan_spill(100_000, 64 * KIB)
    assert (100_000, True) == (small.records, small.records_given), "more than one for each 256 KiB"


def test_the_command(written: Written) -> None:
    llama = written(KNOWN["Llama-3.1-8B"])
    run = CliRunner().invoke
    said = run(main, ["plan", "--model-config", llama, "--tokens", "1M", "--ssd-tokens", "20M"])
    assert 0 == said.exit_code, said.output
    assert "128 KiB; a million take 122.1 GiB" in said.output
    assert "16 tokens, 2 MiB; 512 a GiB, 8,192 tokens a GiB" in said.output
    assert re.search(r"62,500 blocks in 12[3-6] GiB", said.output)
    report = json.loads(
        run(main, ["plan", "--model-config", llama, "--size", "64G", "--json"]).output
    )
    assert (2 * MIB, 16) == (report["block"]["chunk_bytes"], report["block"]["tokens_per_chunk"])
    assert report["tokens"] == 16 * report["arena"]["blocks"]
    assert "--size 64G" == report["arena"]["options"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --tokens N"),
        (["--tokens", "1M", "--size", "1G"], "give --tokens N"),
        (["--tokens", "many"], "is not a number of tokens"),
        (["--size", "4M", "--segment-size", "64K"], "no room for a block of 2 MiB"),
    ],
)
def test_wrong_usage_says_what_to_type(written: Written, arguments: list[str], says: str) -> None:
    llama = written(KNOWN["Llama-3.1-8B"])
    result = CliRunner().invoke(main, ["plan", "--model-config", llama, *arguments])
    assert 2 == result.exit_code
    assert says in result.output
    assert "Traceback" not in result.output


def test_the_table_of_the_docs(written: Written) -> None:
    """docs/capacity.md says of every known model what the command says."""
    rows = {
        cells[0]: cells[1:]
        for line in (DOCS / "capacity.md").read_text().splitlines()
        if line.startswith("| ") and (cells := [c.strip() for c in line.strip("|").split("|")])
    }
    for name, config in KNOWN.items():
        _, blocks = planned(written(config))
        assert [
            f"{blocks.bytes_per_token / KIB:.1f}",
            str(blocks.tokens_per_chunk),
            f"{blocks.chunk_bytes / MIB:.2f}",
            str(len(blocks.groups)),
            f"{blocks.bytes_per_token * 1e6 / GIB:.1f}",
        ] == rows[name][:5], name
