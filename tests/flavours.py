"""How does a test run the native module in another flavour: with crash points, or under sanitizers?

`build` compiles `pegashm/_native.pyx` once more with the flags of `pyproject.toml` and those of the flavour,
and keeps the result under `.cache/flavours` by a digest of all that went into it. The release build is
never touched. `command` and `environment` start a child of that flavour: this very file, run as a
script, answers the import of `pegashm._native` with the other build and then runs the module asked for.

 checked   crash points: see `pegashm/_core/crash.hpp` for PEGASHM_CRASH and PEGASHM_CRASH_LOG
 asan      address and undefined-behaviour sanitizers; any finding ends the child with status 99

Called by the suites that kill, fuzz or sanitize; needs a C++ compiler and Cython, else those suites skip.
Imports nothing of `pegashm`: it runs before `pegashm` may be imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "FLAVOURS",
    "SANITIZER_EXIT",
    "FlavourError",
    "build",
    "command",
    "environment",
    "inherited",
    "missing_tool",
    "use",
]

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / ".cache" / "flavours"
MODULE: Final = "pegashm._native"
COMPILER: Final = os.environ.get("CXX", "g++")
SANITIZER_EXIT: Final = 99
VARIABLE: Final = "PEGASHM_TEST_FLAVOUR"

FLAVOURS: Final[dict[str, tuple[str, ...]]] = {
    # -O1: a third of the time to compile, and the points stand in the same order.
    "checked": ("-DPEGASHM_CHECKED", "-O1"),
    "asan": (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        # Lines without variables, no optimisation: a fifth of the time to compile, and Python is what the tests wait for.
        "-g1",
        "-O0",
    ),
}

_KEPT_BUILDS: Final = 6


class FlavourError(RuntimeError):
    """The flavour could not be built; the message holds the compiler's own words."""


def missing_tool() -> str | None:
    """What is missing for a build, and what to type; None when nothing is."""
    if shutil.which(COMPILER) is None:
        return f"no {COMPILER} here: install a C++20 compiler, or name one with CXX="
    if importlib.util.find_spec("Cython") is None:
        return "no Cython here: pip install 'Cython>=3.1,<4'"
    return None


def build(flavour: str, core: Path | None = None) -> Path:
    """The extension module of that flavour, built now unless the same sources were built before.

    `core`: a folder with headers to use in place of the tree's own, wrong on purpose.
    """
    extension = _extension()
    include = [ROOT / folder for folder in extension["include-dirs"]] if core is None else [core]
    pyx = ROOT / extension["sources"][0]
    headers = sorted(header for folder in include for header in folder.glob("*.hpp"))
    flags = [*extension["extra-compile-args"], *FLAVOURS[flavour]]
    digest = _digest([*_parts(pyx), *headers], [*flags, _version(), sys.version])
    target = CACHE / f"{flavour}-{digest}" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists():
        return target
    if (reason := missing_tool()) is not None:
        raise FlavourError(reason)
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / f"{flavour}.lock"):
        if not target.exists():  # somebody else was quicker
            _compile(_cythonize(pyx), target, flags, include)
            _forget_old(flavour)
    return target


def command(flavour: str, module: str, *arguments: object, core: Path | None = None) -> list[str]:
    """Run `python -m module arguments` with that flavour; start it with cwd=ROOT and `environment`."""
    return [
        sys.executable,
        "-X",
        "faulthandler",
        str(Path(__file__).resolve()),
        str(build(flavour, core)),
        module,
        *map(str, arguments),
    ]


def environment(flavour: str, **more: str) -> dict[str, str]:
    """The environment such a child needs: ours, `more`, and for a sanitizer its library loaded first.

    Its own children by `tests/children.py` are of that flavour as well: see `inherited`.
    """
    found = {**os.environ, VARIABLE: flavour, **more}
    if flavour == "asan":
        # The sanitizer must come before all else, and needs the C++ library to catch what it throws.
        found["LD_PRELOAD"] = " ".join(_library(name) for name in ("libasan.so", "libstdc++.so.6"))
        found["ASAN_OPTIONS"] = (
            f"detect_leaks=0:exitcode={SANITIZER_EXIT}:allocator_may_return_null=1"
        )
        found["UBSAN_OPTIONS"] = f"print_stacktrace=1:halt_on_error=1:exitcode={SANITIZER_EXIT}"
        found["PYTHONMALLOC"] = "malloc"  # so that buffers of Python objects are watched as well
    return found


def inherited() -> str | None:
    """The flavour that this process was started in by `environment`, if it was."""
    return os.environ.get(VARIABLE)


def use(extension: Path) -> None:
    """Answer the import of `pegashm._native` in this process with `extension`; before pegashm is imported."""
    if MODULE in sys.modules:
        raise FlavourError(f"{MODULE} is imported already: use() must come first")
    sys.meta_path.insert(0, _Finder(extension))


class _Finder:
    """Finds one module in one file; every other import goes its usual way."""

    def __init__(self, extension: Path) -> None:
        self.extension = extension

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        return importlib.util.spec_from_file_location(name, self.extension)


def _extension() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        modules = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    found: dict[str, Any] = next(module for module in modules if module["name"] == MODULE)
    return found


def _digest(files: Sequence[Path], words: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _version() -> str:
    compiler = shutil.which(COMPILER)
    return "" if compiler is None else _output([compiler, "-dumpfullversion"])


def _output(line: Sequence[str]) -> str:
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()


def _library(name: str) -> str:
    """Where the compiler keeps a library; some compilers answer with a linker script's name for .so."""
    return str(Path(_output([COMPILER, f"-print-file-name={name}"])).resolve())


def _parts(pyx: Path) -> list[Path]:
    """The binding's source and all that it includes."""
    return [pyx, *sorted(pyx.parent.glob("_binding/*.pxi"))]


def _cythonize(pyx: Path) -> Path:
    """The C++ of the binding: the same for every flavour, so made once."""
    source = CACHE / f"cpp-{_digest(_parts(pyx), [])}" / "_native.cpp"
    with _locked(CACHE / "cpp.lock"):
        if not source.exists():
            source.parent.mkdir(exist_ok=True)
            scratch = source.with_suffix(".new.cpp")
            _run([sys.executable, "-m", "cython", "--cplus", str(pyx), "-o", str(scratch)])
            scratch.rename(source)
    return source


def _compile(source: Path, target: Path, flags: Sequence[str], include: Sequence[Path]) -> None:
    target.parent.mkdir(exist_ok=True)
    scratch = target.with_suffix(".new")
    paths = [*include, Path(sysconfig.get_paths()["include"])]
    _run(
        [
            COMPILER,
            "-shared",
            "-fPIC",
            "-pthread",
            *flags,
            *(f"-I{path}" for path in paths),
            str(source),
            "-o",
            str(scratch),
        ]
    )
    scratch.rename(target)


def _run(line: Sequence[str]) -> None:
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FlavourError(f"{' '.join(line)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two test runs at once build once."""
    with open(path, "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_old(flavour: str) -> None:
    builds = sorted(CACHE.glob(f"{flavour}-*"), key=lambda path: path.stat().st_mtime)
    for old in builds[:-_KEPT_BUILDS]:
        shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """usage: flavours.py EXTENSION MODULE ARGUMENT..."""
    extension, module, *arguments = sys.argv[1:]
    sys.path[0] = str(ROOT)  # not tests/, whose modules are imported as tests.…
    use(Path(extension))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
