"""An arena in each state that a tool may meet: the scenes that `test_dump.py` shows to pegashm-dump.

`python -m tests.tools.scenes ARENA` is a client that fills an arena, holds a claim and a pin, says so,
and waits to be killed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pegashm.cache import Cache
from pegashm.keys import namespace_of

__all__ = ["CLAIMED_KEY", "FENCE", "KEYS", "PAYLOAD_BYTES", "client_process", "fill"]

FENCE = namespace_of({"model": "scene"}, label="scene [bold]model\x1b[31m", maximum_bytes=1 << 20)
KEYS = [bytes([index + 1]) * 32 + bytes(4) for index in range(6)]
CLAIMED_KEY = b"c" * 32 + bytes(4)
PAYLOAD_BYTES = 4096


def fill(cache: Cache) -> None:
    """Publish all keys, pin the first two, leave another claimed."""
    handles, _ = cache.claim(KEYS, PAYLOAD_BYTES)
    cache.publish(handles)
    cache.pin(handles[:2])
    cache.claim([CLAIMED_KEY], PAYLOAD_BYTES)


@contextlib.contextmanager
def client_process(name: str) -> Iterator[subprocess.Popen[str]]:
    """A living client in a process of its own, holding a claim and two pins."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.tools.scenes", name],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert "ready\n" == child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    with Cache.attach(sys.argv[1], namespace=FENCE, engine_id=b"scene", label="a client") as opened:
        fill(opened)
        print("ready", flush=True)
        time.sleep(3600)
