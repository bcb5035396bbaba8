"""What KV does a model keep, layer by layer? Read from its config.json, without the model and without an engine.

Only what decides sizes is read: heads and their width, latent rank, sliding windows, recurrent states, the types. The
fields are those that vLLM 0.32 reads, by the names that Hugging Face configs give them. A model whose KV cannot be told
from its config alone (layers of different width, an index beside the KV, layers that share) is refused by name: a plan
that is silently wrong costs more than none. One worker's part is told, since tensor parallelism divides heads and not
always evenly. How vLLM packs layers into blocks is `plan.py`'s business.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pegashm.errors import ConfigError

__all__ = ["DTYPES", "KV_DTYPES", "Layers", "ModelKv", "read_model"]

DTYPES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
# Those whose size is simply their width; the quantizations with scales beside each head are refused.
KV_DTYPES: Final = DTYPES | {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}

# Of vLLM's own list of latent attention, those whose KV is one vector a token and nothing beside it.
_LATENT: Final = frozenset(
    {
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe_lite",
        "kimi_k2",
        "pangu_ultra_moe",
    }
)
# Before transformers wrote layer_types: every so many layers one has full attention.
_PERIODS: Final = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
_WINDOW_IF_ASKED: Final = ("qwen2", "qwen3")
_NOT_PLANNED: Final = {
    "num_kv_shared_layers": "layers that share the KV of others",
    "compress_ratios": "KV that is compressed by another ratio in each layer",
    "index_head_dim": "an index beside its KV (sparse attention)",
    "block_configs": "layers of different shape",
    "global_head_dim": "layers with heads of different width",
    "swa_head_dim": "layers with heads of different width",
    "swa_num_key_value_heads": "layers with different numbers of heads",
    "n_heads_in_group": "layers of different shape",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Layers that keep alike, on one worker. A state has bytes in itself, all else bytes for each token."""

    kind: str
    count: int
    token_bytes: int = 0
    state_bytes: int = 0
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKv:
    """All layers of one worker. `latent`: every worker holds the same bytes. `dtype`, `kv_dtype`: as resolved."""

    model_type: str
    layers: tuple[Layers, ...]
    latent: bool
    dtype: str
    kv_dtype: str

    @property
    def token_bytes(self) -> int:
        """Of one token in one layer that grows with tokens: vLLM needs it to be the same in all."""
        return max((part.token_bytes for part in self.layers), default=0)

    @property
    def state_bytes(self) -> int:
        return max((part.state_bytes for part in self.layers), default=0)


def read_model(
    path: str,
    *,
    tensor_parallel: int = 1,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    state_dtype: str = "auto",
) -> ModelKv:
    """The KV of the model whose config.json (or folder) is at `path`; ConfigError when it cannot be told.

    `dtype`, `kv_dtype` and `state_dtype` are vLLM's --dtype, --kv-cache-dtype and --mamba-ssm-cache-dtype.
    """
    if tensor_parallel < 1:
        raise ConfigError(f"--tensor-parallel must be at least 1, got {tensor_parallel}")
    fields = _Fields.read(path)
    fields.refuse_what_is_not_planned()
    resolved = _resolve_dtype(fields, dtype)
    kept = resolved if kv_dtype == "auto" else kv_dtype
    if kept not in KV_DTYPES:
        raise ConfigError(
            f"a KV type of {kept!r} is not planned: expected auto or one of {', '.join(KV_DTYPES)} "
            "(types with scales beside each head depend on the kernel)"
        )
    latent = fields.model_type in _LATENT and fields.has("kv_lora_rank")
    token_bytes = KV_DTYPES[kept] * (
        fields.count("kv_lora_rank") + fields.count("qk_rope_head_dim")
        if latent
        else 2 * _head_width(fields) * _heads_a_worker(fields, tensor_parallel)
    )
    state = _state_of(fields, tensor_parallel, resolved, state_dtype)
    layers = tuple(
        Layers(
            kind="latent attention (MLA)" if latent and kind == _FULL else kind,
            count=count,
            token_bytes=0 if kind == _STATE else token_bytes,
            state_bytes=state if kind == _STATE else 0,
            window_tokens=window,
        )
        for (kind, window), count in Counter(_kinds(fields)).items()
    )
    return ModelKv(
        model_type=fields.model_type, layers=layers, latent=latent, dtype=resolved, kv_dtype=kept
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """A config's fields, those of the language model where it is a part of several."""

    path: str
    text: Mapping[str, Any]
    whole: Mapping[str, Any]

    @classmethod
    def read(cls, path: str) -> "_Fields":
        path = os.path.join(path, "config.json") if os.path.isdir(path) else path
        try:
            with open(path, encoding="utf-8") as file:
                whole = json.load(file)
        except OSError as error:
            raise ConfigError(
                f"cannot read {path}: {error.strerror}. --model-config takes the config.json of a model, or its folder"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"{path} is not JSON ({error}): expected a model's config.json"
            ) from error
        if not isinstance(whole, dict):
            raise ConfigError(f"{path} holds no JSON object: expected a model's config.json")
        text = next(
            (whole[k] for k in ("text_config", "llm_config") if isinstance(whole.get(k), dict)),
            whole,
        )
        return cls(path, text, whole)

    @property
    def model_type(self) -> str:
        return str(self.text.get("model_type") or self.whole.get("model_type") or "")

    def has(self, name: str) -> bool:
        return self.text.get(name) is not None

    def count(self, *names: str, default: int | None = None) -> int:
        """The first of these fields that is there, a whole number above 0; ConfigError when there is none."""
        for name in names:
            value = self.text.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"{self.path}: {name} is {value!r}, expected a whole number above 0"
                )
            return value
        if default is not None:
            return default
        raise ConfigError(
            f"{self.path} does not say {names[0]}: its class may have a default that is not written there. Write all of "
            "it: python -c \"from transformers import AutoConfig; AutoConfig.from_pretrained('MODEL')"
            ".to_json_file('config.json', use_diff=False)\""
        )

    def list_of(self, name: str) -> list[str]:
        value = self.text.get(name)
        return [str(item) for item in value] if isinstance(value, list) else []

    def refuse_what_is_not_planned(self) -> None:
        for name, what in _NOT_PLANNED.items():
            if self.text.get(name):
                raise ConfigError(self.not_planned(f"it has {what} ({name})"))
        if self.whole.get("is_encoder_decoder"):
            raise ConfigError(self.not_planned("it is an encoder-decoder"))
        if not self.model_type:
            raise ConfigError(f"{self.path} has no model_type: expected a model's config.json")

    def not_planned(self, why: str) -> str:
        return (
            f"the KV of {self.model_type or self.path} cannot be planned from its config: {why}. Start one engine with "
            "PegaShm and read the size of its blocks from `pegashm dump`"
        )


# -- attention -------------------------------------------------------------------------------------------

_FULL: Final = "full attention"
_STATE: Final = "recurrent state"


def _kv_heads(fields: _Fields) -> int:
    if (
        fields.model_type in ("falcon", "RefinedWeb", "RefinedWebModel")
        and not fields.text.get("new_decoder_architecture")
        and fields.text.get("multi_query")
    ):
        return 1
    names = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")
    return fields.count(
        *names, "num_attention_groups", default=fields.count("num_attention_heads", "n_head")
    )


def _heads_a_worker(fields: _Fields, parts: int) -> int:
    """With more workers than heads, several hold the same one."""
    heads = _kv_heads(fields)
    if max(heads, parts) % min(heads, parts):
        raise ConfigError(
            f"{fields.path}: {heads} KV heads cannot be shared out among --tensor-parallel {parts} workers"
        )
    return max(1, heads // parts)


def _head_width(fields: _Fields) -> int:
    """Elements of one head of K (V has as many)."""
    if fields.has("head_dim"):
        return fields.count("head_dim")
    return fields.count("hidden_size", "n_embd") // fields.count("num_attention_heads", "n_head")


def _kinds(fields: _Fields) -> list[tuple[str, int | None]]:
    """Kind and window of each cache: one a layer, in most models."""
    layers = fields.count("num_hidden_layers", "n_layer")
    if fields.model_type in _STATES:
        return _STATES[fields.model_type].kinds(fields, layers)
    if types := fields.list_of("layer_types"):
        return [_kind_of(fields, kind) for kind in types]
    window = fields.text.get("sliding_window")
    if fields.model_type.startswith(_WINDOW_IF_ASKED):
        first = fields.text.get("max_window_layers", layers)
        asked = bool(fields.text.get("use_sliding_window")) and window
        return [
            _kind_of(fields, _SLIDING if asked and i >= first else _FULL) for i in range(layers)
        ]
    if not window or fields.text.get("use_sliding_window") is False:
        return [(_FULL, None)] * layers
    if fields.model_type in _PERIODS:
        period = fields.count("sliding_window_pattern", default=_PERIODS[fields.model_type])
        return [
            _kind_of(fields, _FULL if (layer + 1) % period == 0 else _SLIDING)
            for layer in range(layers)
        ]
    if fields.has("sliding_window_pattern"):
        raise ConfigError(fields.not_planned("it has a sliding_window_pattern and no layer_types"))
    return [_kind_of(fields, _SLIDING)] * layers


_SLIDING: Final = "sliding_attention"


def _kind_of(fields: _Fields, kind: str) -> tuple[str, int | None]:
    if kind in ("full_attention", "attention", _FULL):
        return _FULL, None
    if kind == "chunked_attention":  # vLLM keeps it as full attention, unless told otherwise
        return _FULL, None
    if kind == _SLIDING:
        window = fields.count("sliding_window")
        return f"sliding window of {window} tokens", window
    raise ConfigError(fields.not_planned(f"it has layers of {kind!r}"))


# -- recurrent states: vLLM keeps one for each block of tokens ----------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """How models of one type say which layers have a state, and of how many elements it is.

    `elements`: of the convolution and of the state proper, which may have another type.
    """

    kinds: Callable[[_Fields, int], list[tuple[str, int | None]]]
    elements: Callable[[_Fields, int], tuple[int, int]]
    dtype_field: str = ""
    dtype_default: str = "auto"


def _state_of(fields: _Fields, tensor_parallel: int, dtype: str, asked: str) -> int:
    state = _STATES.get(fields.model_type)
    if state is None:
        return 0
    if asked == "auto":
        asked = str(fields.text.get(state.dtype_field) or state.dtype_default)
    if asked not in (*DTYPES, "auto"):
        raise ConfigError(
            f"--state-dtype {asked!r}: expected auto or one of {', '.join(DTYPES)}, as vLLM's --mamba-ssm-cache-dtype"
        )
    convolution, proper = state.elements(fields, tensor_parallel)
    return convolution * DTYPES[dtype] + proper * DTYPES[dtype if asked == "auto" else asked]


def _split(fields: _Fields, what: str, count: int, parts: int) -> int:
    if count % parts:
        raise ConfigError(
            f"{fields.path}: {what} is {count}, which --tensor-parallel {parts} does not divide: vLLM refuses that"
        )
    return count // parts


def _by_layer_types(state_name: str) -> Callable[[_Fields, int], list[tuple[str, int | None]]]:
    def kinds(fields: _Fields, layers: int) -> list[tuple[str, int | None]]:
        types = fields.list_of("layer_types") or fields.list_of("layers_block_type")
        if not types and fields.has("full_attention_interval"):
            interval = fields.count("full_attention_interval")
            types = [
                "full_attention" if (i + 1) % interval == 0 else state_name for i in range(layers)
            ]
        if not types:
            raise ConfigError(
                f"{fields.path} does not say layer_types: which layers have a state is unknown"
            )
        return [(_STATE, None) if kind == state_name else _kind_of(fields, kind) for kind in types]

    return kinds


def _nemotron_kinds(fields: _Fields, _: int) -> list[tuple[str, int | None]]:
    """A letter a layer: M a state, * attention, - and E no cache."""
    pattern = str(fields.text.get("hybrid_override_pattern") or "")
    if not pattern or set(pattern) - set("M*-E"):
        raise ConfigError(fields.not_planned(f"hybrid_override_pattern is {pattern!r}"))
    return [
        (_STATE, None) if letter == "M" else (_FULL, None) for letter in pattern if letter in "M*"
    ]


def _both_in_each(_: _Fields, layers: int) -> list[tuple[str, int | None]]:
    return [(_FULL, None), (_STATE, None)] * layers


def _jamba_kinds(fields: _Fields, layers: int) -> list[tuple[str, int | None]]:
    period = fields.count("attn_layer_period")
    offset = int(fields.text.get("attn_layer_offset") or 0)
    return [
        (_FULL, None) if layer % period == offset else (_STATE, None) for layer in range(layers)
    ]


def _gated_delta_net(fields: _Fields, parts: int) -> tuple[int, int]:
    keys, values = fields.count("linear_num_key_heads"), fields.count("linear_num_value_heads")
    key_dim, value_dim = fields.count("linear_key_head_dim"), fields.count("linear_value_head_dim")
    width = _split(fields, "the convolution", 2 * keys * key_dim + values * value_dim, parts)
    heads = _split(fields, "linear_num_value_heads", values, parts)
    return (
        width * (fields.count("linear_conv_kernel_dim") - 1),
        heads * value_dim * key_dim,
    )


def _mamba2(
    heads: str, head_dim: str, state: str, groups: str, kernel: str
) -> Callable[[_Fields, int], tuple[int, int]]:
    def elements(fields: _Fields, parts: int) -> tuple[int, int]:
        count, dim = fields.count(heads), fields.count(head_dim)
        size, shared = fields.count(state), fields.count(groups)
        if shared % parts:  # each worker needs the groups of its heads
            shared = parts
        inner = count * dim
        if fields.has("mamba_d_ssm"):
            inner = fields.count("mamba_d_ssm")
        elif fields.has("mamba_expand"):
            inner = int(float(fields.text["mamba_expand"]) * fields.count("hidden_size"))
        width = _split(fields, "the convolution", inner + 2 * shared * size, parts)
        return (
            width * (fields.count(kernel) - 1),
            _split(fields, heads, count, parts) * dim * size,
        )

    return elements


def _mamba1(fields: _Fields, parts: int) -> tuple[int, int]:
    inner = _split(
        fields,
        "the inner width",
        fields.count("mamba_expand") * fields.count("hidden_size"),
        parts,
    )
    return inner * (fields.count("mamba_d_conv") - 1), inner * fields.count("mamba_d_state")


_GRANITE: Final = _mamba2(
    "mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv"
)
_NEMOTRON: Final = _mamba2(
    "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel"
)
_STATES: Final[dict[str, _State]] = {
    "qwen3_next": _State(_by_layer_types("linear_attention"), _gated_delta_net),
    "qwen3_5_text": _State(
        _by_layer_types("linear_attention"), _gated_delta_net, "mamba_ssm_dtype"
    ),
    "qwen3_5_moe_text": _State(
        _by_layer_types("linear_attention"), _gated_delta_net, "mamba_ssm_dtype"
    ),
    "granitemoehybrid": _State(_by_layer_types("mamba"), _GRANITE),
    "nemotron_h": _State(_nemotron_kinds, _NEMOTRON, "mamba_ssm_cache_dtype", "float32"),
    "falcon_h1": _State(_both_in_each, _GRANITE),
    "jamba": _State(_jamba_kinds, _mamba1),
}


# -- types ---------------------------------------------------------------------------------------------


def _resolve_dtype(fields: _Fields, asked: str) -> str:
    """vLLM's rule for GPUs: what the config says, but bfloat16 where it says float32 or nothing."""
    if asked != "auto":
        if asked not in DTYPES:
            raise ConfigError(f"--dtype must be auto or one of {', '.join(DTYPES)}, got {asked!r}")
        return asked
    said = next(
        (
            str(part[name]).removeprefix("torch.")
            for part in (fields.whole, fields.text)
            for name in ("dtype", "torch_dtype")
            if part.get(name)
        ),
        "float32",
    )
    if said not in DTYPES:
        raise ConfigError(
            f"{fields.path} says dtype {said!r}, expected one of {', '.join(DTYPES)}: give --dtype"
        )
    return "bfloat16" if said == "float32" else said
