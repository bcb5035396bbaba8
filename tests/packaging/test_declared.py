"""Does pyproject.toml still say what is in the tree, and does the bare tree say what to type?

ext-modules knows no wildcards and packages are listed by name, so a new header would not rebuild the module
and a new folder would not be installed. Nothing here needs the package to be freshly installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
INSTALLED_AS = {"pegashm": "pegashm", "connector": "pegashm.connector", "tools": "pegashm.tools"}


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    return table


def test_native_module_depends_on_all_its_sources(setuptools_table: dict[str, Any]) -> None:
    (native,) = setuptools_table["ext-modules"]
    sources = [*ROOT.glob("pegashm/_binding/*.pxi"), *ROOT.glob("pegashm/_core/*.hpp")]
    assert sorted(str(path.relative_to(ROOT)) for path in sources) == sorted(native["depends"])


def test_every_package_is_listed(setuptools_table: dict[str, Any]) -> None:
    found = {
        ".".join([name, *init.parent.relative_to(ROOT / top).parts])
        for top, name in INSTALLED_AS.items()
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert found == set(setuptools_table["packages"])


def test_bare_sources_say_what_to_type(tmp_path: Path) -> None:
    """Nobody should meet "No module named pegashm._native" and have to guess."""
    shutil.copytree(ROOT / "pegashm", tmp_path / "pegashm", ignore=shutil.ignore_patterns("*.so"))
    bare = f"import sys; sys.path = [{str(tmp_path)!r}, *(p for p in sys.path if 'site-packages' not in p)]"
    command = [sys.executable, "-I", "-S", "-c", f"{bare}; import pegashm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install ." in done.stderr


def test_repository_root_stands_aside_for_the_installed_package() -> None:
    """`python -m bench.attach` has the bare sources first on sys.path, and must work all the same."""
    command = [sys.executable, "-c", "import pegashm._native, pegashm.tools, pegashm.connector"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_package_imports_no_engine() -> None:
    """Supervisor and tools run where there is no engine; only the connector may import torch or vLLM."""
    program = """
import importlib, pkgutil, sys
import pegashm, pegashm.tools
for package in (pegashm, pegashm.tools):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name not in ("pegashm.connector", "pegashm.__main__", "pegashm.tools.__main__"):
            importlib.import_module(module.name)
print([name for name in ("torch", "vllm") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.timeout(300)
def test_tests_are_collected_without_an_engine() -> None:
    """As `make test ENGINE=no` does: vLLM, and what only it brings along, is not there."""
    program = """
import sys
sys.modules |= dict.fromkeys(("vllm", "msgspec", "transformers"))
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
