"""PegaShm: an external KV cache for LLM inference engines, in shared memory that outlives them all.

What a program uses lives in the submodules, each named for the one question it answers: `pegashm.cache`
(the index and the blocks), `pegashm.keys` (who may share), `pegashm.arena` (shared-memory objects),
`pegashm.errors` (what can go wrong). This file imports none of them: importing the package costs nothing.

It answers one question: which directory is the package? Almost always its own. But whoever runs
`python -m bench.attach` or `python -m pytest` in the repository has the bare sources first on sys.path,
without the native module and without connector/ and tools/, which install as pegashm.connector and
pegashm.tools. There this file stands aside for the installed package (an editable install counts, and
is made of these very sources); with none installed it says what to type.
"""

import sys
from collections.abc import Iterable
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["__version__"]


def _is_whole(directory: Path) -> bool:
    """Whether this is an installed package: the native module for this very Python, and tools/ inside."""
    built = any((directory / f"_native{suffix}").exists() for suffix in EXTENSION_SUFFIXES)
    return built and (directory / "tools").is_dir()


def _first_whole(directories: Iterable[Path]) -> str:
    for directory in directories:
        if _is_whole(directory):
            return str(directory)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise ImportError(
        f"found pegashm in {Path(__file__).parent}, but not its native module built for Python {python}"
        f" ({sys.executable}). Expected an installed package, not bare sources. In the directory that"
        " holds pyproject.toml, type: pip install ."
        " (to develop: pip install -e . --config-settings editable_mode=strict)"
    )


_here = Path(__file__).parent
__path__ = [_first_whole([_here, *(Path(entry) / "pegashm" for entry in sys.path)])]

try:
    __version__ = version("pegashm")
except PackageNotFoundError:  # on sys.path without being installed, for example a vendored copy
    __version__ = "0+unknown"
