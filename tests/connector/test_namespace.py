"""Which facts of an engine's configuration keep its blocks apart from another's, and which do not?

On vLLM's own configuration objects, of a model that is only a config.json. Weights are `test_weights.py`'s.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

from pegashm.connector.namespace import (
    engine_namespace,
    fresh_namespace,
    refuse_unstable_hashes,
)
from pegashm.connector.settings import Settings
from pegashm.errors import ConfigError

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}
SETTINGS = Settings(arena="kv0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM's configuration of the engine, made once. Making it sets variables for the engine's processes."""
    before = dict(os.environ)
    folder: Path = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    transfer = KVTransferConfig(kv_connector="OffloadingConnector", kv_role="kv_both")
    arguments = EngineArgs(
        model=str(folder),
        dtype="float32",
        max_model_len=512,
        block_size=32,
        skip_tokenizer_init=True,
        kv_transfer_config=transfer,
    )
    yield arguments.create_engine_config()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def config(made: Any) -> Any:
    """A copy that the test may change."""
    return copy.deepcopy(made)


def kv_config(*, heads: int = 2, layers: int = 2, blocks: int = 100) -> KVCacheConfig:
    spec = FullAttentionSpec(block_size=32, num_kv_heads=heads, head_size=64, dtype=torch.float32)
    return KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([f"layers.{number}" for number in range(layers)], spec)],
    )


def fingerprint(
    config: Any, kv: KVCacheConfig | None = None, settings: Settings = SETTINGS
) -> bytes:
    return engine_namespace(config, kv or kv_config(), settings).fingerprint


def weights(config: Any) -> None:
    path = Path(config.model_config.model) / "model.safetensors"
    other = path.parent.with_name("other weights")
    other.mkdir(exist_ok=True)
    (other / path.name).write_bytes(path.read_bytes() + b"\x01")
    config.model_config.model = str(other)


APART: dict[str, Callable[[Any], Any]] = {
    "weights": weights,
    "rope base": lambda c: c.model_config.hf_config.update({"rope_theta": 5e5}),
    "layers": lambda c: c.model_config.hf_config.update({"num_hidden_layers": 3}),
    "dtype": lambda c: setattr(c.model_config, "dtype", torch.bfloat16),
    "KV dtype": lambda c: setattr(c.cache_config, "cache_dtype", "fp8_e5m2"),
    "quantization": lambda c: setattr(c.model_config, "quantization", "fp8"),
    "hash algorithm": lambda c: setattr(c.cache_config, "prefix_caching_hash_algo", "sha256_cbor"),
    "layout": lambda c: setattr(c.cache_config, "kv_cache_layout", "BLHNC"),
    "tensor parallel": lambda c: setattr(c.parallel_config, "tensor_parallel_size", 2),
    "world": lambda c: setattr(c.parallel_config, "world_size", 2),
    "chunk size": lambda c: c.kv_transfer_config.kv_connector_extra_config.update(
        {"blocks_per_chunk": 4}
    ),
    "dummy weights": lambda c: setattr(c.load_config, "load_format", "dummy"),
}

TOGETHER: dict[str, Callable[[Any], Any]] = {
    "served name": lambda c: setattr(c.model_config, "served_model_name", "another"),
    "engine id": lambda c: setattr(c.kv_transfer_config, "engine_id", "another"),
    "rank": lambda c: setattr(c.parallel_config, "rank", 1),
    "GPU memory": lambda c: setattr(c.cache_config, "gpu_memory_utilization", 0.3),
    "length": lambda c: setattr(c.model_config, "max_model_len", 1024),
    "the config's author": lambda c: c.model_config.hf_config.update(
        {"transformers_version": "0.0.1"}
    ),
    "seed": lambda c: setattr(c.model_config, "seed", 17),
}


@pytest.mark.parametrize("fact", APART)
def test_engines_whose_bytes_differ_are_apart(config: Any, fact: str) -> None:
    before = fingerprint(config)
    APART[fact](config)
    assert before != fingerprint(config)


@pytest.mark.parametrize("fact", TOGETHER)
def test_what_changes_no_byte_keeps_them_together(config: Any, fact: str) -> None:
    before = fingerprint(config)
    TOGETHER[fact](config)
    assert before == fingerprint(config)


def test_the_kv_cache_itself(config: Any) -> None:
    """Its shape keeps engines apart, its size does not."""
    shapes = [kv_config(), kv_config(heads=4), kv_config(layers=3)]
    assert 3 == len({fingerprint(config, shape) for shape in shapes})
    assert fingerprint(config) == fingerprint(config, kv_config(blocks=7))


def test_a_seed_matters_to_dummy_weights_only(config: Any) -> None:
    config.load_config.load_format = "dummy"
    before = fingerprint(config)
    config.model_config.seed = 17
    assert before != fingerprint(config)


def test_a_weights_version_stands_for_the_weights(config: Any) -> None:
    """Another version is another namespace; the same one is the same wherever the files lie."""
    one, two = replace(SETTINGS, weights_version="1"), replace(SETTINGS, weights_version="2")
    assert 3 == len({fingerprint(config, settings=s) for s in (SETTINGS, one, two)})
    before = fingerprint(config, settings=one)
    weights(config)
    assert before == fingerprint(config, settings=one)


def test_quotas_are_no_fact(config: Any) -> None:
    quota = replace(SETTINGS, reserved_bytes=1, maximum_bytes=9)
    namespace = engine_namespace(config, kv_config(), quota)
    assert (1, 9) == (namespace.reserved_bytes, namespace.maximum_bytes)
    assert fingerprint(config) == namespace.fingerprint


def test_a_length_that_scales_the_rope_is_a_fact(config: Any) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config.model_config.hf_config.update({"rope_scaling": scaling})
    before = fingerprint(config)
    config.model_config.max_model_len = 1024
    assert before != fingerprint(config)


def test_a_fresh_namespace_is_nobody_elses(config: Any) -> None:
    namespace = engine_namespace(config, kv_config(), replace(SETTINGS, maximum_bytes=5))
    first, second = fresh_namespace(namespace), fresh_namespace(namespace)
    assert 3 == len({one.fingerprint for one in (namespace, first, second)})
    assert 5 == first.maximum_bytes
    again = fresh_namespace(first)
    assert 1 == again.label.count("(reset")


@pytest.mark.parametrize("algorithm", ["xxhash", "xxhash_cbor"])
@pytest.mark.parametrize("seed", [None, "random"])
def test_hashes_that_start_at_random_are_refused(
    config: Any, monkeypatch: pytest.MonkeyPatch, algorithm: str, seed: str | None
) -> None:
    config.cache_config.prefix_caching_hash_algo = algorithm
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if seed is not None:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    with pytest.raises(ConfigError, match=f"{algorithm} starts from a random seed"):
        refuse_unstable_hashes(config)


def test_engines_with_one_hash_seed_share(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config.cache_config.prefix_caching_hash_algo = "xxhash"
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    before = fingerprint(config)
    assert before == fingerprint(config)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert before != fingerprint(config)
