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

__all__ = ["FINGERPRINT_BYTES", "Fact", "Namespace", "namespace_of"]

FINGERPRINT_BYTES: Final = 32

Fact: TypeAlias = "str | int | bool | Sequence[Fact] | Mapping[str, Fact] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A sharing domain. `reserved_bytes`: others may not evict below it; `maximum_bytes` 0: no limit."""

    fingerprint: bytes
    label: str
    reserved_bytes: int = 0
    maximum_bytes: int = 0

    def __post_init__(self) -> None:
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise ConfigError(
                f"a fingerprint has {FINGERPRINT_BYTES} bytes, got {len(self.fingerprint)}"
            )
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
    )


def _refuse(value: object) -> object:
    raise TypeError(f"a fact is text, a whole number, a flag or a list of them, got {value!r}")
