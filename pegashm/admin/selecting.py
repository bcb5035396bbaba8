"""Which namespace, and which key, does a person mean?

A namespace is named by its id (0x10003), the beginning of its fingerprint in hex, or its label, whole or a part that only one has. A key is the
engine's block hash in hex, as KV events and `pegashm-dump` show it, with or without its KV group.
"""

from __future__ import annotations

from typing import Any, Final

from pegashm._native import Region
from pegashm.errors import ConfigError
from pegashm.keys import FINGERPRINT_BYTES

__all__ = ["KEY_BYTES_MAX", "key_of", "namespace_of"]

KEY_BYTES_MAX: Final = 32
_GROUP_BYTES: Final = 4
_PREFIX_LEAST: Final = 6


def namespace_of(region: Region, said: str) -> dict[str, Any]:
    """The row of `Region.namespaces` (not counted) that `said` names; ConfigError when it names none, or several."""
    rows = region.namespaces(counted=False)
    found = _matches(rows, said)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{said!r} may be any of {_listed(found)}: give an id")
    raise ConfigError(
        f"no namespace is called {said!r}: expected an id, the beginning of a fingerprint (at least {_PREFIX_LEAST} hex digits), or a part "
        f"of a label of {_listed(rows)}"
    )


def key_of(text: str, group: int | None = None) -> tuple[bytes, int | None]:
    """(hash, group) out of hex; group None: any. 36 bytes are a hash of 32 and its group."""
    cleaned = text.strip().lower().removeprefix("0x")
    try:
        raw = bytes.fromhex(cleaned)
    except ValueError:
        raw = b""
    if len(raw) == KEY_BYTES_MAX + _GROUP_BYTES:
        own = int.from_bytes(raw[KEY_BYTES_MAX:], "big")
        if group is not None and group != own:
            raise ConfigError(f"key {text} ends with group {own}, --group says {group}")
        return raw[:KEY_BYTES_MAX], own
    if not 1 <= len(raw) <= KEY_BYTES_MAX:
        raise ConfigError(
            f"{text!r} is no key: expected the engine's block hash in hex, 2 to {2 * KEY_BYTES_MAX} digits (with its group of 4 bytes: "
            f"{2 * (KEY_BYTES_MAX + _GROUP_BYTES)}), as `pegashm dump --blocks` shows it"
        )
    return raw, group


def _matches(rows: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    text = said.strip()
    number = _number(text)
    by_id = [row for row in rows if row["id"] == number]
    if by_id:
        return by_id
    exact = [row for row in rows if row["label"] == text]
    if exact:
        return exact
    if _PREFIX_LEAST <= len(text) <= 2 * FINGERPRINT_BYTES:
        by_digest = [row for row in rows if row["fingerprint"].hex().startswith(text.lower())]
        if by_digest:
            return by_digest
    return [row for row in rows if text and text in row["label"]]


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _listed(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "none (nobody has attached yet)"
    return ", ".join(f'{row["id"]:#x} "{row["label"]}"' for row in rows[:8]) + (
        f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    )
