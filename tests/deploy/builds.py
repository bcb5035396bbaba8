"""How does a test get another version of PegaShm, installed in an environment of its own?

A copy of the tree with a few words changed (version, format), made into a wheel by pip as a user would, and installed into
a virtual environment whose other packages are those of the environment that runs the tests. What only changes Python
needs no compiler: `altered` is a copy of the installed package. Wheels are kept under `.cache/builds` by a digest of their
sources. Called by the upgrade drill.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HERE", "Build", "BuildError", "altered", "from_wheel"]

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "builds"
SOURCES = (
    "pegashm",
    "connector",
    "tools",
    "pyproject.toml",
    "setup.cfg",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
Changes = Mapping[str, Mapping[str, str]]


class BuildError(RuntimeError):
    """No wheel could be made; the message holds pip's own words."""


@dataclass(frozen=True, slots=True)
class Build:
    """A version that can be run: its interpreter."""

    python: str

    def command(self, *arguments: str) -> list[str]:
        return [self.python, "-m", "pegashm", *arguments]

    def pegashm(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        # Away from the sources, so that the installed package is what runs.
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=cwd or Path(self.python).parent,
        )


HERE = Build(sys.executable)


def from_wheel(folder: Path, changes: Changes) -> Build:
    """`changes`: for each file, what stands there and what shall. BuildError when pip cannot make a wheel of it."""
    tree = folder / "tree"
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "_native.cpp")
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            tree.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / name)
    change(tree, {"pyproject.toml": {'"-O3"': '"-O0"'}})  # a fifth of the time to compile
    change(tree, changes)
    return _install(folder / "venv", _wheel(tree))


def altered(folder: Path, changes: Changes) -> Build:
    """As `from_wheel`, for changes to Python files of `pegashm/` alone: nothing is compiled."""
    import pegashm

    build = _environment(folder / "venv")
    installed = Path(next(iter(pegashm.__path__)))
    target = _site(folder / "venv") / "pegashm"
    shutil.copytree(installed, target, ignore=shutil.ignore_patterns("__pycache__"))
    change(target.parent, changes)
    return build


def change(tree: Path, changes: Changes) -> None:
    for name, words in changes.items():
        path = tree / name
        text = path.read_text()
        for old, new in words.items():
            assert 1 == text.count(old), f"{name} has {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        path.write_text(text)


def _wheel(tree: Path) -> Path:
    kept = CACHE / _digest(tree)
    if not list(kept.glob("*.whl")):
        with _made_whole(kept) as fresh:
            command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--wheel-dir", str(fresh), str(tree)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BuildError(f"pip wheel: {done.stderr[-2000:]}")
    return next(kept.glob("*.whl"))


@contextlib.contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _digest(tree: Path) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(tree)).encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _install(venv: Path, wheel: Path) -> Build:
    build = _environment(venv)
    command = [sys.executable, "-m", "pip", "--python", build.python, "install", "--quiet"]
    # Whatever version the environment around has, which the .pth shows to pip too.
    command += [
        "--ignore-installed",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"pip install: {done.stderr[-2000:]}")
    return build


def _environment(venv: Path) -> Build:
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, capture_output=True
    )
    # After its own packages those of this environment: what PegaShm depends on is not installed again.
    (_site(venv) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return Build(str(venv / "bin" / "python"))


def _site(venv: Path) -> Path:
    return next(venv.glob("lib/python3*/site-packages"))
