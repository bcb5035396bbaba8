"""A writer killed anywhere: does the next one find all that append() had returned, and only right bytes?"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pegashm.spill.file import Fetch, SpillFile

from tests.spill.blocks import found

ROOT = Path(__file__).parents[2]
SIZE = 8 << 20
KILLS = 60 if os.environ.get("PEGASHM_LONG") else 8


@pytest.mark.timeout(600)
def test_killed_at_any_moment(tmp_path: Path, chance: random.Random) -> None:
    """The same file through many deaths, one turn of the ring or more each."""
    path = str(tmp_path / "spill")
    first = 0
    total = 0
    for _ in range(KILLS):
        told = run_and_kill(path, first, chance)
        taken = {line.split()[1] for line in told if line.startswith("taken")}
        said = [line.split()[1:] for line in told if line.startswith("ok")]
        with SpillFile.open_or_create(path, SIZE) as file:
            outcomes = found(file)
            assert set(outcomes.values()) <= {Fetch.OK, Fetch.DAMAGED}
            right = {number for (number, _), got in outcomes.items() if got == Fetch.OK}
            lost = {int(number) for number, sequence in said if sequence not in taken} - right
            # A region may have been taken whose line did not get out any more: then all of it is gone.
            assert not lost, (len(lost), sorted(lost)[:5])
        first = max([first, *(number + 1 for number, _ in outcomes)]) + 100
        total += len(said)
    print(f"{KILLS} kills, {total} blocks said to be stored")
    assert total > KILLS


def run_and_kill(path: str, first: int, chance: random.Random) -> list[str]:
    command = [sys.executable, "-m", "tests.spill.killed", path, str(SIZE), str(first)]
    child = subprocess.Popen(
        [*command, str(chance.randrange(1 << 30))], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert "ready\n" == child.stdout.readline()
    # It must be read while it runs, or it waits for the pipe instead of being killed at work.
    deadline = time.monotonic() + chance.random() * 0.4
    os.set_blocking(child.stdout.fileno(), False)
    told = b""
    while time.monotonic() < deadline:
        told += read_some(child.stdout.fileno())
        time.sleep(0.002)
    child.kill()
    child.wait()
    os.set_blocking(child.stdout.fileno(), True)
    while more := os.read(child.stdout.fileno(), 1 << 20):
        told += more
    child.stdout.close()
    return told.decode().rpartition("\n")[0].splitlines()


def read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return b""
