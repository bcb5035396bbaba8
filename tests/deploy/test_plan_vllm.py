"""Does `pegashm plan` lay out blocks as vLLM and the connector do? The real vLLM, in a process of its own.

The four tiny models of tests/models are made and asked; of hybrids with recurrent states, which CPUs cannot run, the
model's class is. Every number is compared: tokens a block, layers in each group, bytes of a worker's block and of a chunk.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pegashm.kv_of_model import read_model
from pegashm.plan import plan_blocks

from tests.deploy.known_models import KNOWN

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

# What is small is written in full, so that vLLM takes the config; what decides sizes is as in real models.
COMMON = {"vocab_size": 512, "max_position_embeddings": 4096, "torch_dtype": "bfloat16"}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": KNOWN["Qwen3-Next-80B-A3B"]
    | {"architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 8, "num_experts": 0},
    "granitemoehybrid": {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 10,
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "layer_types": ["mamba"] * 4 + ["attention"] + ["mamba"] * 4 + ["attention"],
        "mamba_n_heads": 48,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    },
    "nemotron_h": {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "num_hidden_layers": 8,
        "hybrid_override_pattern": "M-M*M-M*",
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "mamba_num_heads": 32,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "expand": 2,
    },
    "falcon_h1": {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "num_hidden_layers": 6,
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_d_ssm": 1536,
        "mamba_n_heads": 24,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    },
    "jamba": {
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "num_hidden_layers": 8,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "num_experts": 1,
    },
}
TINY = {"qwen3": 128, "llama": 128, "gemma3": 128, "dsv2": 16}


def layers_of(folder: Path) -> list[str]:
    """In the order of the model, which is that of the config."""
    from pegashm.kv_of_model import _Fields, _kinds

    kinds = _kinds(_Fields.read(str(folder)))
    return ["state" if kind == "recurrent state" else "attention" for kind, _ in kinds]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Of each model: its folder, and what vLLM and the connector make of it. One process for all."""
    top = tmp_path_factory.mktemp("models")
    jobs: list[dict[str, Any]] = []
    for kind, tokens in TINY.items():
        options = {"dtype": "float32", "block_size": tokens}
        job = {"folder": str(top / kind), "options": options}
        jobs.append(job | {"make": kind, "layers": None})
    for kind, config in HYBRIDS.items():
        (top / kind).mkdir()
        (top / kind / "config.json").write_text(json.dumps(COMMON | config))
        (top / kind / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        options = {"dtype": "bfloat16", "block_size": 128, "enable_prefix_caching": True}
        job = {"folder": str(top / kind), "options": options}
        jobs.append(job | {"make": None, "layers": layers_of(top / kind)})
    done = subprocess.run(
        [sys.executable, "-m", "tests.deploy.vllm_layouts", json.dumps(jobs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    return {
        name: (top / name, layout) for name, layout in zip([*TINY, *HYBRIDS], said, strict=True)
    }


@pytest.mark.parametrize("name", [*TINY, *HYBRIDS])
def test_blocks_are_those_of_vllm_and_chunks_those_of_the_connector(
    name: str, layouts: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    folder, theirs = layouts[name]
    dtype = "float32" if name in TINY else "bfloat16"
    blocks = plan_blocks(read_model(str(folder), dtype=dtype), block_tokens=TINY.get(name, 128))
    assert theirs == {
        "tokens_per_block": [blocks.tokens_per_block],
        "groups": [list(pair) for pair in sorted(Counter(g.layers for g in blocks.groups).items())],
        "worker_bytes_per_block": blocks.worker_bytes_per_block,
        "chunk_bytes": blocks.chunk_bytes,
        "cells": blocks.cells,
    }
