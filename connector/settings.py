"""What did the operator ask for? `kv_connector_extra_config` and the environment, checked once.

Keys that are vLLM's own (chunk size, KV events) pass through; any other unknown key is refused, since a
misspelt option that is silently ignored is found weeks later.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pegashm.cache import Mode
from pegashm.errors import ConfigError
from pegashm.units import parse_bytes

__all__ = ["Settings", "settings_of"]

_MODES: Final = {
    "read-write": Mode.READ_WRITE,
    "save-only": Mode.SAVE_ONLY,
    "load-only": Mode.LOAD_ONLY,
}
_OURS: Final = frozenset(
    {"mode", "weights_version", "reserved_bytes", "maximum_bytes", "copy_threads"}
)
_VLLM: Final = frozenset(
    {
        "spec_name",
        "spec_module_path",
        "block_size",
        "blocks_per_chunk",
        "canonical_layout",
        "offload_prompt_only",
        "self_describing_kv_events",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One engine's use of the cache.

    `arena`: name from PEGASHM_ARENA. `required`: no arena at start is an error (PEGASHM_REQUIRED=1), not a
    warning. `weights_version`: replaces the digest of the weights in the namespace. Quotas in bytes, 0: none.
    """

    arena: str
    required: bool = False
    mode: Mode = Mode.READ_WRITE
    weights_version: str | None = None
    reserved_bytes: int = 0
    maximum_bytes: int = 0
    copy_threads: int = 1

    def __post_init__(self) -> None:
        if not self.arena:
            raise ConfigError(
                "PegaShmConnector needs the arena's name: start the engine with PEGASHM_ARENA=NAME, "
                "where NAME is what `pegashm serve --name NAME` was given"
            )
        if not 1 <= self.copy_threads <= 64:
            raise ConfigError(f"copy_threads must be 1 to 64, got {self.copy_threads}")


def settings_of(extra: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from vLLM's extra config; ConfigError names the key, the value and what would do."""
    environment = os.environ if environment is None else environment
    unknown = sorted(set(extra) - _OURS - _VLLM)
    if unknown:
        raise ConfigError(
            f"kv_connector_extra_config has unknown keys {unknown}: PegaShm knows {sorted(_OURS)}, "
            f"vLLM's offloading {sorted(_VLLM)}"
        )
    mode = extra.get("mode", "read-write")
    if mode not in _MODES:
        raise ConfigError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
    version = extra.get("weights_version")
    return Settings(
        arena=environment.get("PEGASHM_ARENA", ""),
        required=_flag(environment.get("PEGASHM_REQUIRED", "")),
        mode=_MODES[mode],
        weights_version=None if version is None else str(version),
        reserved_bytes=parse_bytes(extra.get("reserved_bytes", 0)),
        maximum_bytes=parse_bytes(extra.get("maximum_bytes", 0)),
        copy_threads=int(extra.get("copy_threads", 1)),
    )


def _flag(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "on"}
