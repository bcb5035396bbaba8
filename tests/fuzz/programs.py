"""How does a test get a C++ program over the core's headers, under sanitizers, and the story of its failure?

`build` compiles a program of this tree, or the same over a copy of the core that is wrong on purpose, and keeps
it under `.cache/programs` by a digest of all that went into it. `run` runs it in a folder of its own; a
failure becomes an AssertionError with the program's words, and what the program saved (a failing
input) is kept beside, with what to type. Called by the fuzzing and the race suite.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

__all__ = ["ADDRESS", "CLANG", "COMPILER", "CORE", "THREAD", "Program", "build", "mutated", "run"]

ROOT: Final = Path(__file__).resolve().parents[2]
CORE: Final = ROOT / "pegashm" / "_core"
CACHE: Final = ROOT / ".cache" / "programs"
KEPT: Final = ROOT / ".cache" / "failures"
COMPILER: Final = os.environ.get("CXX", "g++")
CLANG: Final = os.environ.get("PEGASHM_CLANG", "clang++")

ADDRESS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD: Final = ("-fsanitize=thread", "-fno-sanitize-recover=all")
COMMON: Final = ("-std=c++20", "-O1", "-g1", "-pthread", "-Wall", "-Wextra", "-Werror")

_KEPT_PROGRAMS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to compile: a source of this tree and how. `core`: where the headers are, mutated ones included."""

    source: Path
    flags: Sequence[str] = ADDRESS
    compiler: str = COMPILER
    core: Path = field(default=CORE)


def build(program: Program) -> Path:
    """The compiled program. Skips the test when there is no such compiler or it lacks the sanitizer."""
    compiler = shutil.which(program.compiler) or pytest.skip(f"no {program.compiler} here")
    parts = [*sorted(program.core.glob("*.hpp")), *sorted(program.source.parent.glob("*.[ch]pp"))]
    digest = hashlib.sha256("\0".join([compiler, *COMMON, *program.flags]).encode())
    for part in parts:
        digest.update(part.name.encode() + b"\0" + part.read_bytes())
    target = CACHE / f"{program.source.stem}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    if not _links(compiler, program.flags):
        pytest.skip(f"{compiler} cannot {' '.join(program.flags)} here")
    scratch = target.with_suffix(f".{os.getpid()}")
    include = ["-I", str(program.core), "-I", str(program.source.parent)]
    command = [compiler, *COMMON, *program.flags, *include, str(program.source), "-o", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, f"{' '.join(command)}\n{done.stderr[-6000:]}"
    scratch.rename(target)
    for old in sorted(CACHE.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT_PROGRAMS]:
        old.unlink(missing_ok=True)
    return target


def _links(compiler: str, flags: Sequence[str]) -> bool:
    """Whether a program can be made with these flags at all: a compiler may come without its sanitizers."""
    empty = "#include <cstdint>\n" + (
        'extern "C" int LLVMFuzzerTestOneInput(const uint8_t*, decltype(sizeof 0)) { return 0; }'
        if any("fuzzer" in flag for flag in flags)
        else "int main() {}"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-std=c++20", *flags, "-x", "c++", "-", "-o", f"{folder}/empty"]
        return subprocess.run(command, input=empty, text=True, capture_output=True, check=False).returncode == 0  # fmt: skip


def mutated(folder: Path, header: str, before: str, after: str) -> Path:
    """A copy of the core with one change. AssertionError when the text is not there: the core has moved on."""
    shutil.copytree(CORE, folder, dirs_exist_ok=True)
    text = (folder / header).read_text(encoding="utf-8")
    assert text.count(before) >= 1, f"{header} no longer has {before!r}: plant the mistake anew"
    (folder / header).write_text(text.replace(before, after), encoding="utf-8")
    return folder


def run(
    program: Path,
    *arguments: object,
    folder: Path,
    seconds: float = 100,
    env: Mapping[str, str] | None = None,
    keep: bool = True,
) -> str:
    """What the program printed. AssertionError with its last words when it failed or did not end."""
    command = [str(program), *map(str, arguments)]
    child = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
    )
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        raise AssertionError(f"hung: {' '.join(command)}\n{out[-2000:]}\n{err[-8000:]}") from None
    if child.returncode != 0:
        kept = _keep(program, folder) if keep else ""
        raise AssertionError(
            f"{' '.join(command)} ended with {child.returncode}{kept}\n{out[-2000:]}\n{err[-12000:]}"
        )
    return out


def _keep(program: Path, folder: Path) -> str:
    """Save failing inputs and the program they fail; what to type."""
    inputs = sorted(folder.glob("fuzz-crash-*")) + sorted(folder.glob("crash-*"))
    if not inputs:
        return ""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = shutil.copy2(program, KEPT)
    for each in inputs:
        shutil.copy2(each, KEPT)
    name = KEPT / inputs[0].name
    return (
        f"\nto run it again: {kept} --replay {name}; to make it smaller: {kept} --minimise {name}"
    )
