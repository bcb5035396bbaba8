"""How does a bench get a real, fully populated arena? From a real supervisor: `pegashm serve` as a child.

Waits until every segment is populated, not only the first ones that make it ready. The arena is purged and the child
ended when the context ends, whatever happens. Its name carries the process id, so that benches may run
side by side, beside arenas of other people.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from pegashm.arena import open_arena
from pegashm.errors import ArenaMissingError, ArenaNotReadyError

from bench import harness

__all__ = ["run_pegashm", "served_arena", "wait_until_populated"]

PEGASHM = (sys.executable, "-c", "from pegashm.cli import main; main()")
POLL_SECONDS = 0.05
END_SECONDS = 30
_numbers = itertools.count()  # a bench may have several at once


@contextlib.contextmanager
def served_arena(
    label: str,
    size: int,
    directory: str | None,
    *,
    options: Sequence[str] = (),
    deadline_seconds: float = 300,
) -> Iterator[str]:
    """Name of an arena of `size` bytes in all, populated and locked by its supervisor; `options`: more of `serve`'s."""
    name = f"bench-{label}-{os.getpid()}-{next(_numbers)}"
    told = ["--name", name, "--size", str(size), "--ephemeral", *options]
    told += ["--directory", directory] if directory is not None else []
    child = run_pegashm(["serve", *told])
    try:
        wait_until_populated(child, name, time.monotonic() + deadline_seconds)
        yield name
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_SECONDS)
        child.kill()
        run_pegashm(
            ["purge", "--name", name, "--yes"]
        ).wait()  # for a child that did not get so far


def run_pegashm(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """`pegashm` with these arguments, as a child."""
    root = os.path.expanduser("~")  # not the source tree, which may lack the built module
    return subprocess.Popen(
        [*PEGASHM, *arguments],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if arguments[0] == "purge" else None,
    )


def wait_until_populated(child: subprocess.Popen[bytes], name: str, deadline: float) -> None:
    """Until all of the arena is there, a moment of the monotonic clock at most."""
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise SystemExit(
                f"pegashm serve ended with status {child.returncode}; it says why above"
            )
        with (
            contextlib.suppress(ArenaMissingError, ArenaNotReadyError),
            open_arena(name, writable=False) as arena,
        ):
            header = arena.region.header
            if header["segments_ready"] == header["segment_count"]:
                return
        time.sleep(POLL_SECONDS)
    harness.progress(f"arena {name} is not populated in time")
    raise SystemExit("the arena was not populated in time: is the machine out of memory?")
