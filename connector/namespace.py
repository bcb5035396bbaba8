"""Who may share with this engine? Everything that decides whether two engines' KV bytes are alike.

Called once in the scheduler process, from vLLM's configuration. What is left out on purpose: the amount of KV
memory, the served name, the engine's id: they change no byte. What vLLM already puts into every block hash
(tokens, LoRA adapter, multi-modal input, cache salt) is in the key. When in doubt a fact goes in: the price of one
too many is a miss, of one too few a wrong byte.
"""

import hashlib
import json
import os
import platform
from typing import TYPE_CHECKING, Any, Final

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.platforms import current_platform

from pegashm.connector.settings import Settings
from pegashm.connector.weights import weights_identity
from pegashm.errors import ConfigError
from pegashm.keys import Fact, Namespace, facts_of, namespace_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["engine_namespace", "fresh_namespace", "refuse_unstable_hashes"]

# Fields of a model's config that differ between copies of the same model.
_CONFIG_NOISE: Final = frozenset({"transformers_version", "_name_or_path", "name_or_path"})
_STABLE_WITHOUT_SEED: Final = frozenset({"sha256", "sha256_cbor"})


def engine_namespace(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", settings: Settings
) -> Namespace:
    """The namespace of this engine; ConfigError when its block hashes cannot be shared at all."""
    refuse_unstable_hashes(vllm_config)
    model = vllm_config.model_config
    cache = vllm_config.cache_config
    offloading = build_offloading_config(vllm_config, kv_cache_config)
    parallel = offloading.parallel
    facts: dict[str, Fact] = {
        "vllm": vllm.__version__,
        "weights": settings.weights_version or _weights(model),
        "load_format": str(vllm_config.load_config.load_format),
        "loader": repr(vllm_config.load_config.model_loader_extra_config),
        "seed": model.seed if str(vllm_config.load_config.load_format) == "dummy" else None,
        "config": _config_digest(model.hf_config),
        "quantization": str(model.quantization),
        "dtype": str(model.dtype),
        "kv_dtype": str(cache.cache_dtype),
        "max_position": model.max_model_len if _rope_depends_on_length(model.hf_config) else None,
        "tokens_per_hash": offloading.cache.tokens_per_hash,
        "blocks_per_chunk": offloading.cache.blocks_per_chunk,
        "worker_bytes_per_block": offloading.worker_kv_bytes_per_block,
        "groups": [
            {
                "id": group.group_id,
                "tokens_per_block": group.tokens_per_block,
                "layers": list(group.layer_names),
                "spec": repr(kv_cache_config.kv_cache_groups[group.group_id].kv_cache_spec),
            }
            for group in offloading.groups
        ],
        "kv_layout": str(offloading.kv_cache_layout),
        "attention": str(vllm_config.attention_config.backend),
        "draft": _draft(vllm_config.speculative_config),
        "parallel": [
            parallel.world_size,
            parallel.tp_size,
            parallel.pp_size,
            parallel.pcp_size,
            parallel.dcp_size,
        ],
        "replicated": offloading.replicated_layout,
        "hash": [cache.prefix_caching_hash_algo, os.environ.get("PYTHONHASHSEED", "default")],
        "device": _device(),
    }
    return namespace_of(
        facts,
        label=f"{os.path.basename(os.path.normpath(model.model))} {facts['dtype']} tp{parallel.tp_size}",
        reserved_bytes=settings.reserved_bytes,
        maximum_bytes=settings.maximum_bytes,
    )


def fresh_namespace(namespace: Namespace) -> Namespace:
    """A namespace that nobody has been in: for an engine whose weights changed while it ran."""
    nonce = os.urandom(16)
    return Namespace(
        fingerprint=hashlib.sha256(namespace.fingerprint + nonce).digest(),
        label=f"{namespace.label.split(' (reset')[0]} (reset {nonce.hex()[:8]})",
        reserved_bytes=namespace.reserved_bytes,
        maximum_bytes=namespace.maximum_bytes,
        facts=facts_of({"reset": nonce.hex()}, namespace.facts),
    )


def refuse_unstable_hashes(vllm_config: "VllmConfig") -> None:
    """ConfigError when block hashes differ from process to process: nothing could ever be found again."""
    algorithm = vllm_config.cache_config.prefix_caching_hash_algo
    if algorithm in _STABLE_WITHOUT_SEED or os.environ.get("PYTHONHASHSEED", "random") != "random":
        return
    raise ConfigError(
        f"--prefix-caching-hash-algo {algorithm} starts from a random seed in every process, so no other "
        "engine, and not this one after a restart, would ever find a block. Leave the default (sha256), or "
        "set the same PYTHONHASHSEED for all engines"
    )


def _weights(model: Any) -> str:
    # The commit is known when the config came from the hub, or from its cache.
    commit = getattr(model.hf_config, "_commit_hash", None)
    return weights_identity(model.model, commit or model.revision)


def _draft(speculative: Any) -> str | None:
    """A draft model's layers have KV as well, and it is stored with the rest."""
    draft = getattr(speculative, "draft_model_config", None)
    if draft is None:
        return None
    return f"{speculative.method} {_weights(draft)} {_config_digest(draft.hf_config)}"


def _config_digest(hf_config: Any) -> str:
    text = json.dumps(_without_noise(hf_config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_noise(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    return {
        str(key): _without_noise(value) for key, value in fields.items() if key not in _CONFIG_NOISE
    }


def _rope_depends_on_length(hf_config: Any) -> bool:
    """Whether rotary embedding is scaled by the engine's maximum length (dynamic NTK and its kin)."""
    text = json.dumps(hf_config.to_dict(), default=str)
    return '"dynamic"' in text or '"longrope"' in text


def _device() -> list[str]:
    kind = current_platform.device_type
    if kind == "cpu":  # kernels, and with them the layout of K and V, follow the instruction set
        return [kind, platform.machine(), torch.backends.cpu.get_cpu_capability()]
    return [kind, str(current_platform.get_device_name())]
