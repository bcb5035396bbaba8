"""How does a test get a /dev/shm of its own: tiny, full, or read-only?

In a mount namespace that only its own commands see; the machine's /dev/shm stays as it is. The namespace
lives as long as a sleeping process in it, and commands join it by `nsenter`. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

__all__ = ["mounted", "run_in"]

SHM = "/dev/shm"


@contextlib.contextmanager
def mounted(*commands: str) -> Iterator[tuple[str, ...]]:
    """Run shell commands (mounts, mostly) in a new mount namespace; the prefix that joins it."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("needs root, unshare and nsenter")
    script = " && ".join([*commands, "echo mounted", "exec sleep 600"])
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert holder.stdout is not None
        said = holder.stdout.readline()
        if "mounted" not in said:
            pytest.skip(f"may not mount here: {said.strip()}")
        yield ("nsenter", "--target", str(holder.pid), "--mount", f"--wd={os.getcwd()}")
    finally:
        holder.kill()
        holder.wait()


def run_in(prefix: tuple[str, ...], script: str) -> str:
    """What a shell script in that namespace prints; AssertionError when it fails."""
    result = subprocess.run(
        [*prefix, "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert 0 == result.returncode, result.stderr
    return result.stdout
