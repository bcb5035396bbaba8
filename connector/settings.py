"""What did the operator ask for? `kv_connector_extra_config` and the environment, checked once.

Keys that are vLLM's own (chunk size, KV events) pass through; any other unknown key is refused, since a
misspelt option that is silently ignored is found weeks later.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pegashm.cache import Mode
from pegashm.errors import ConfigError
from pegashm.names import check_name
from pegashm.payload_sums import Checksums, checksums_of
from pegashm.units import parse_bytes

__all__ = ["ENVIRONMENT", "OURS", "SPILL_DEADLINE_MS", "VLLM", "Key", "Settings", "settings_of"]

SPILL_DEADLINE_MS: Final = 1000
_SPILL_DEADLINE_MS_MAX: Final = 60_000
_MODES: Final = {
    "read-write": Mode.READ_WRITE,
    "save-only": Mode.SAVE_ONLY,
    "load-only": Mode.LOAD_ONLY,
}


class Key(NamedTuple):
    """A key or variable that an operator may set: what it is when nothing is said, and what it is for."""

    default: str
    meaning: str


# docs/configuration.md is made from these three: `python -m tools.docs.reference`.
OURS: Final[Mapping[str, Key]] = {
    "mode": Key(
        "read-write",
        "`read-write`; `save-only`: store, never look anything up (an engine that only prefills); `load-only`: "
        "look up, never store",
    ),
    "weights_version": Key(
        "digest of the weights",
        "Any text, in place of the digest by which engines with other weights are kept apart. Engines share blocks only "
        "when it is the same",
    ),
    "reserved_bytes": Key(
        "0",
        'Bytes or a size such as `"4G"`: below this, blocks of this engine\'s namespace are not evicted for others',
    ),
    "maximum_bytes": Key(
        "0: no limit",
        "Bytes or a size: a store beyond this evicts blocks of the namespace itself",
    ),
    "copy_threads": Key(
        "1",
        "1 to 64 threads of each worker that copy (CPU engines) and hash (with `checksums`)",
    ),
    "checksums": Key(
        "off",
        "`off`; `on`: store checksums, and verify blocks that have them before they are used; `required`: a block "
        "without is a miss as well",
    ),
    "spill_deadline_ms": Key(
        str(SPILL_DEADLINE_MS),
        "How long a request waits for its blocks on SSD and other hosts before they are computed; 0: it does not "
        "wait; at most 60000",
    ),
    "kv_events_while_idle": Key(
        "false",
        "Publish KV events while no request runs as well: the engine then polls instead of sleeping. See docs/kv-events.md",
    ),
}
VLLM: Final[Mapping[str, Key]] = {
    "block_size": Key(
        "vLLM's block",
        "Tokens of a chunk, the unit that is stored and found; a multiple of vLLM's block size. Larger: fewer, longer "
        "copies and coarser hits",
    ),
    "blocks_per_chunk": Key("1", "The same in vLLM's blocks; give one of the two"),
    "offload_prompt_only": Key("true", "Store blocks of prompts only, not of what is generated"),
    "self_describing_kv_events": Key("false", "KV events that carry what a router needs to hash"),
    "canonical_layout": Key("false", "Not supported yet: an error when it is true"),
    "spec_name": Key("filled in", "Set by PegaShmConnector"),
    "spec_module_path": Key("filled in", "Set by PegaShmConnector"),
}
ENVIRONMENT: Final[Mapping[str, Key]] = {
    "PEGASHM_ARENA": Key("none: an error", "Name of the arena, as given to `pegashm serve --name`"),
    "PEGASHM_REQUIRED": Key(
        "0",
        "1: an engine without its arena does not start. Else it starts, says why once, and attaches when it can",
    ),
    "PEGASHM_CHECKSUMS": Key("off", "`checksums`, where the extra config does not say it"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One engine's use of the cache.

    `arena`: name from PEGASHM_ARENA. `required`: no arena at start is an error (PEGASHM_REQUIRED=1), not a
    warning. `weights_version`: replaces the digest of the weights in the namespace. Quotas in bytes, 0: none.
    `checksums`: of blocks in memory, from the extra config or else PEGASHM_CHECKSUMS; None: what spec.py says.
    `spill_deadline_ms`: how long a request waits for its blocks on SSD before it is computed; 0: it never does.
    `kv_events_while_idle`: KV events are published while no request runs as well, at the price of an engine that polls.
    """

    arena: str
    required: bool = False
    mode: Mode = Mode.READ_WRITE
    weights_version: str | None = None
    reserved_bytes: int = 0
    maximum_bytes: int = 0
    copy_threads: int = 1
    checksums: Checksums | None = None
    spill_deadline_ms: int = SPILL_DEADLINE_MS
    kv_events_while_idle: bool = False

    def __post_init__(self) -> None:
        if not self.arena:
            raise ConfigError(
                "PegaShmConnector needs the arena's name: start the engine with PEGASHM_ARENA=NAME, "
                "where NAME is what `pegashm serve --name NAME` was given"
            )
        check_name(self.arena)
        if not 1 <= self.copy_threads <= 64:
            raise ConfigError(f"copy_threads must be 1 to 64, got {self.copy_threads}")
        if not 0 <= self.spill_deadline_ms <= _SPILL_DEADLINE_MS_MAX:
            raise ConfigError(
                f"spill_deadline_ms must be 0 (never wait for SSD) to {_SPILL_DEADLINE_MS_MAX}, "
                f"got {self.spill_deadline_ms}"
            )


def settings_of(extra: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from vLLM's extra config; ConfigError names the key, the value and what would do."""
    environment = os.environ if environment is None else environment
    unknown = sorted(set(extra) - set(OURS) - set(VLLM))
    if unknown:
        close = difflib.get_close_matches(unknown[0], [*OURS, *VLLM], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"kv_connector_extra_config has unknown keys {unknown}: PegaShm knows {sorted(OURS)}, "
            f"vLLM's offloading {sorted(VLLM)}.{hint}"
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
        reserved_bytes=_bytes(extra, "reserved_bytes"),
        maximum_bytes=_bytes(extra, "maximum_bytes"),
        copy_threads=_count(extra, "copy_threads", 1),
        checksums=_checksums(extra, environment),
        spill_deadline_ms=_count(extra, "spill_deadline_ms", SPILL_DEADLINE_MS),
        kv_events_while_idle=_switch(extra, "kv_events_while_idle"),
    )


def _bytes(extra: Mapping[str, Any], key: str) -> int:
    value = extra.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigError(f'{key} must be a size such as "4G" or a number of bytes, got {value!r}')
    return parse_bytes(value)


def _count(extra: Mapping[str, Any], key: str, default: int) -> int:
    value = extra.get(key, default)
    if isinstance(value, bool) or not str(value).isdecimal():
        raise ConfigError(f"{key} must be a whole number, got {value!r}")
    return int(value)


def _switch(extra: Mapping[str, Any], key: str) -> bool:
    value = extra.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false, got {value!r}")
    return value


def _checksums(extra: Mapping[str, Any], environment: Mapping[str, str]) -> Checksums | None:
    if "checksums" in extra:
        return checksums_of(extra["checksums"])
    said = environment.get("PEGASHM_CHECKSUMS", "")
    return checksums_of(said, "PEGASHM_CHECKSUMS") if said else None


def _flag(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "on"}
