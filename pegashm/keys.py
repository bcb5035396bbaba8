"""Who may share blocks? The namespace: a digest of everything that makes two engines' bytes alike.

Two engines share exactly when their namespaces are equal; anything else is a miss, never a wrong hit.
What goes in is the caller's knowledge (the connector's for vLLM); this file only makes the digest
canonical, so that the same facts give the same 32 bytes in every process, version and host.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from pegashm.errors import ConfigError

__all__ = [
    "FACTS",
    "FACTS_BYTES",
    "FINGERPRINT_BYTES",
    "Fact",
    "Namespace",
    "differing_facts",
    "facts_of",
    "namespace_of",
]

FINGERPRINT_BYTES: Final = 32
FACTS_BYTES: Final = 48

# Which digest in a region's `facts` is of which fact. Part of the format: a place is never given to another fact.
FACTS: Final = (
    "vllm",
    "weights",
    "load_format",
    "loader",
    "seed",
    "config",
    "quantization",
    "dtype",
    "kv_dtype",
    "max_position",
    "tokens_per_hash",
    "blocks_per_chunk",
    "worker_bytes_per_block",
    "groups",
    "kv_layout",
    "attention",
    "draft",
    "parallel",
    "replicated",
    "hash",
    "device",
    "reset",  # weights that changed while an engine ran: a namespace of its own
)

Fact: TypeAlias = "str | int | bool | Sequence[Fact] | Mapping[str, Fact] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A sharing domain. `reserved_bytes`: others may not evict below it; `maximum_bytes` 0: no limit.

    `facts`: digests of what the fingerprint was made of, for people to see in what two of them differ; empty: not told.
    """

    fingerprint: bytes
    label: str
    reserved_bytes: int = 0
    maximum_bytes: int = 0
    facts: bytes = b""

    def __post_init__(self) -> None:
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise ConfigError(
                f"a fingerprint has {FINGERPRINT_BYTES} bytes, got {len(self.fingerprint)}"
            )
        if len(self.facts) not in (0, FACTS_BYTES):
            raise ConfigError(f"facts are {FACTS_BYTES} bytes or none, got {len(self.facts)}")
        if self.reserved_bytes < 0 or self.maximum_bytes < 0:
            raise ConfigError("a quota cannot be negative")
        if self.maximum_bytes and self.reserved_bytes > self.maximum_bytes:
            raise ConfigError(
                f"reserved_bytes ({self.reserved_bytes}) is above maximum_bytes ({self.maximum_bytes})"
            )


def namespace_of(
    facts: Mapping[str, Fact], *, label: str, reserved_bytes: int = 0, maximum_bytes: int = 0
) -> Namespace:
    """The namespace that these facts define: SHA-256 of their canonical JSON.

    Floats are not accepted: their text differs between writers.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=_refuse)
    return Namespace(
        fingerprint=hashlib.sha256(text.encode()).digest(),
        label=label,
        reserved_bytes=reserved_bytes,
        maximum_bytes=maximum_bytes,
        facts=facts_of(facts),
    )


def facts_of(facts: Mapping[str, Fact], before: bytes = b"") -> bytes:
    """Their digests in the order of FACTS, over those that `before` has; facts that have no place there are left out."""
    digests = bytearray(before or bytes(FACTS_BYTES))
    for place, name in enumerate(FACTS):
        if name in facts:
            text = json.dumps(facts[name], sort_keys=True, separators=(",", ":"), default=_refuse)
            digest = hashlib.sha256(text.encode()).digest()[:2]
            digests[2 * place : 2 * place + 2] = digest if any(digest) else b"\1\0"
    return bytes(digests)


def differing_facts(one: bytes, other: bytes) -> tuple[list[str], list[str]]:
    """(facts in which they differ, facts that one of them does not tell). Differing facts may have equal digests once in 65536 times."""
    differing: list[str] = []
    untold: list[str] = []
    for place, name in enumerate(FACTS):
        mine, theirs = (digests[2 * place : 2 * place + 2] for digests in (one, other))
        if mine == theirs:
            continue
        told_by_both = any(mine) and any(theirs)
        (differing if told_by_both or name == "reset" else untold).append(name)
    return differing, untold


def _refuse(value: object) -> object:
    raise TypeError(f"a fact is text, a whole number, a flag or a list of them, got {value!r}")
