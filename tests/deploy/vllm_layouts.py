"""What blocks does the real vLLM make of a model? One JSON object a model, on the last line; for `test_plan_vllm.py`.

Started as a process of its own: vLLM's environment is one a process. The tiny models of tests/models are made and their
layers asked, as an engine does; of hybrids whose kernels CPUs lack, given by `layers` and a config.json, the model's class
is asked for the shapes of its states, and the layers' specs are made here. Then vLLM's own functions group,
pad and pack them, and PegaShm's connector computes the chunk. Nothing is computed here.

    python -m tests.deploy.vllm_layouts '[{"folder": ..., "options": {...}, "make": "qwen3", "layers": null}, ...]'
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

MODEL_MAKER = Path(__file__).parents[1] / "models" / "make_model.py"
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def engine_config(folder: Path, options: dict[str, Any]) -> Any:
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        max_model_len=4096,
        kv_transfer_config=KVTransferConfig(kv_connector="OffloadingConnector", kv_role="kv_both"),
        **options,
    ).create_engine_config()


def specs_of_model(config: Any) -> dict[str, Any]:
    """Of every layer that keeps something, from the model itself."""
    import torch
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_default_torch_dtype(config.model_config.dtype), torch.device("cpu"):
        initialize_model(vllm_config=config)
    current_platform.update_block_size_for_backend(config)
    found = {}
    for name, layer in config.compilation_config.static_forward_context.items():
        if hasattr(layer, "get_kv_cache_spec") and (spec := layer.get_kv_cache_spec(config)):
            found[name] = spec
    return found


def specs_of_class(config: Any, layers: list[str]) -> dict[str, Any]:
    """Of a hybrid that is not made: `layers` says attention or state, in their order."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

    model = config.model_config
    kind, _ = ModelRegistry.resolve_model_cls(model.architecture, model_config=model)
    type(current_platform)._find_non_ssm_backends = classmethod(lambda *_: [CPUAttentionBackend])
    current_platform._align_hybrid_block_size(config, CPUAttentionBackend)
    cache = config.cache_config
    attention = FullAttentionSpec(
        block_size=cache.block_size,
        num_kv_heads=model.get_num_kv_heads(config.parallel_config),
        head_size=model.get_head_size(),
        dtype=model.dtype,
    )
    state = MambaSpec(
        shapes=tuple(kind.get_mamba_state_shape_from_config(config)),
        dtypes=tuple(kind.get_mamba_state_dtype_from_config(config)),
        block_size=cache.mamba_block_size,
        page_size_padded=cache.mamba_page_size_padded,
        mamba_cache_mode=cache.mamba_cache_mode,
    )
    return {
        f"layers.{number}.{layer}": state if layer == "state" else attention
        for number, layer in enumerate(layers)
    }


def layout(config: Any, specs: dict[str, Any]) -> dict[str, Any]:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import (
        build_offloading_config,
    )
    from vllm.v1.core.kv_cache_utils import (
        generate_scheduler_kv_cache_config,
        get_kv_cache_configs,
    )
    from vllm.v1.kv_cache_layout import KVCacheLayout

    from pegashm.connector.spec import PegaShmOffloadingSpec

    config.cache_config.kv_cache_layout = KVCacheLayout.LBHNC.name
    kept = generate_scheduler_kv_cache_config(get_kv_cache_configs(config, [specs], [1 << 40]))
    offloading = build_offloading_config(config, kept)
    spec = PegaShmOffloadingSpec(offloading)
    return {
        "tokens_per_block": sorted({group.tokens_per_block for group in offloading.groups}),
        "groups": sorted(Counter(len(group.layer_names) for group in offloading.groups).items()),
        "worker_bytes_per_block": offloading.worker_kv_bytes_per_block,
        "chunk_bytes": spec._layout.chunk_bytes,
        "cells": spec._layout.cells,
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes elsewhere
    os.environ.update(QUIET | {"PEGASHM_ARENA": "plan"})
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.models import registry

    # Asking a class what it can do would start a process for each, so that this one need not initialize a GPU.
    registry._run_in_subprocess = lambda ask: ask()

    said = []
    make_model = runpy.run_path(str(MODEL_MAKER))["make_model"]
    for number, job in enumerate(json.loads(sys.argv[1])):
        if job["make"]:
            make_model(job["make"], Path(job["folder"]))
        config = engine_config(Path(job["folder"]), job["options"])
        with set_current_vllm_config(config):
            if job["layers"] is None:
                if number == 0:
                    rendezvous = Path(job["folder"]) / "rendezvous"
                    init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
                    initialize_model_parallel()
                specs = specs_of_model(config)
            else:
                specs = specs_of_class(config, job["layers"])
            said.append(layout(config, specs))
    print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
