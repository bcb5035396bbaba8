"""Is the core free of warnings, and does each header stand on its own?

The strictest flags are kept off the generated binding, so nothing else in a build would say. Needs a C++20
compiler and nothing built; skipped where there is no compiler (an installed wheel needs none).
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "pegashm" / "_core"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{CORE}", "-fsyntax-only"]
HEADERS = sorted(path.name for path in CORE.glob("*.hpp"))

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER} here")


def complaints(source: str) -> str:
    """What the compiler says about a translation unit; nothing when it is content."""
    command = [COMPILER, *FLAGS, "-x", "c++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("header", HEADERS)
def test_header_alone(header: str) -> None:
    """Each header includes what it uses: included first and twice, it compiles without a warning."""
    assert not complaints(f'#include "{header}"\n#include "{header}"\nint main() {{}}\n')


def test_all_headers_in_one_file() -> None:
    """Headers do not collide; and there are some, so that the tests above did run."""
    assert HEADERS
    assert not complaints("".join(f'#include "{header}"\n' for header in HEADERS))
