"""Do the core's operations race? `race.cpp`, run under each sanitizer that this compiler has.

Thread sanitizer judges the memory orders, address and undefined-behaviour sanitizers the rest. The seed is
printed; the program itself checks that no payload was wrong and that nothing was left held or lost.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = os.environ.get("PEGASHM_RACE_SECONDS", "3")


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_core_under_a_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    """Four clients on eight blocks: no data race, no wrong byte, no block or free bit lost."""
    compiler = shutil.which("g++") or pytest.skip("no g++ here")
    program = tmp_path / "race"
    flags = [
        "-std=c++20",
        "-O1",
        "-g",
        "-pthread",
        f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover",
    ]
    include = ["-I", str(ROOT / "pegashm" / "_core")]
    source = str(ROOT / "tests" / "race" / "race.cpp")
    subprocess.run([compiler, *flags, *include, source, "-o", str(program)], check=True)
    seed = str(random.SystemRandom().randrange(1 << 32))

    run = subprocess.run([program, SECONDS, seed], capture_output=True, text=True, check=False)

    print(f"seed {seed}: {run.stdout}")
    assert 0 == run.returncode, f"seed {seed}\n{run.stdout}\n{run.stderr[-8000:]}"
    assert " wrong 0 held 0 lost_bits 0" in run.stdout
