"""What do these tests put into an arena? Blocks whose key says their number, in namespaces whose label is their letter."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from pegashm.cache import Cache
from pegashm.cli import main
from pegashm.keys import Namespace

__all__ = ["attach", "hash_of", "key_of", "run", "said", "store"]

BLOCK_BYTES = 4096


def hash_of(number: int) -> bytes:
    return number.to_bytes(2, "big") * 16


def key_of(number: int, group: int = 0) -> bytes:
    return hash_of(number) + group.to_bytes(4, "big")


def attach(name: str, letter: str = "a", **limits: int) -> Cache:
    fingerprint = letter.encode() * 32
    namespace = Namespace(fingerprint=fingerprint, label=f"model {letter}", **limits)
    return Cache.attach(name, namespace=namespace, label=f"engine {letter}")


def store(cache: Cache, numbers: range, group: int = 0) -> None:
    """Blocks of 4 KiB, one after the other, each used later than the one before it."""
    for number in numbers:
        handles, outcomes = cache.claim([key_of(number, group)], BLOCK_BYTES)
        assert not outcomes.any(), outcomes
        assert not cache.publish(handles).any()


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and everything said, on both streams."""
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def said(*arguments: str) -> dict[str, Any]:
    """The JSON object that a command prints; its `exit_status` must be the real one."""
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["exit_status"] == result.exit_code
    return report
