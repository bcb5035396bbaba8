"""One process that gets into a bad position, says so and stays there: stopped or killed by its keeper.

`python -m tests.contract.hostage` is the keeper's other half: it forks a hostage for each line of its input, `NAME
POSITION SEED CRASH`; the hostage answers when it is in position, `PID there`. Positions that
no process can be caught in from outside (in the middle of evicting all blocks, of changing all segments) are words
written as a process leaves them that stops there, by a process that is attached and alive; with the checked build
(CRASH, as for PEGASHM_CRASH) a process that really works stops or dies at that very instruction.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pegashm.arena import Arena, open_arena
from pegashm.cache import Cache
from pegashm.keys import Namespace, namespace_of
from pegashm.liveness import REGISTRY_BYTE, copiers_byte, owner_byte, try_lock
from pegashm.names import control_path

from tests.soak.worker import Board, run_worker

HOSTAGE: Namespace = namespace_of({"test": "hostage"}, label="hostage")
CHUNK_BYTES = 4096
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def keys(count: int) -> list[bytes]:
    return [f"{os.getpid():>24}{number:08d}".encode() + bytes(4) for number in range(count)]


def fill(name: str) -> tuple[Cache, Any]:
    """Claim every block there is; those of others that may go are evicted."""
    cache = Cache.attach(name, namespace=HOSTAGE, label="hostage")
    handles, _ = cache.claim(keys(cache.region.header["record_count"]), CHUNK_BYTES)
    return cache, handles[handles != 0]


def claims(name: str) -> object:
    return fill(name)


def pins(name: str) -> object:
    cache, handles = fill(name)
    cache.publish(handles)
    cache.pin(handles)
    return cache


def registry(name: str) -> object:
    """About to attach: the registry and a slot are held, nothing is written."""
    arena = open_arena(name)
    assert try_lock(arena.control_fd, REGISTRY_BYTE)
    free = next(s for s in range(128) if try_lock(arena.control_fd, owner_byte(s)))
    try_lock(arena.control_fd, copiers_byte(free))
    return arena


def reaping(name: str) -> object:
    """In the middle of reaping every dead client: their locks are held, nothing is undone."""
    arena = open_arena(name)
    for client in arena.region.clients():
        if try_lock(arena.control_fd, owner_byte(client["slot"])):
            try_lock(arena.control_fd, copiers_byte(client["slot"]))
    return arena


def evicting(name: str) -> object:
    """In the middle of evicting every block that is READY."""
    cache, handles = fill(name)
    cache.publish(handles)
    states = words(cache.arena, "blocks_offset", cache.region.header["record_count"], 16)
    ready = states & np.uint64(0xFF) == 2
    states[ready] = states[ready] & ~np.uint64(0xFFFFFF) | np.uint64(cache.slot << 8 | 3)
    return cache


def changing(name: str) -> object:
    """In the middle of giving every segment to another size."""
    cache = Cache.attach(name, namespace=HOSTAGE, label="hostage")
    segments = words(cache.arena, "segments_offset", cache.region.header["segment_count"], 8)
    segments[:] = segments & ~np.uint64(0xFFFF) | np.uint64(cache.slot << 8 | 2)
    return cache


def busy(name: str, seed: int) -> None:
    """Anything: whatever it does when it is stopped, or when the crash point comes."""
    say("there")
    run_worker(name, seed % 2, seed, Board(2))


POSITIONS: dict[str, Callable[[str], object]] = {
    "registry": registry,
    "claims": claims,
    "pins": pins,
    "evicting": evicting,
    "changing": changing,
    "reaping": reaping,
}


def words(arena: Arena, table: str, count: int, stride: int) -> Any:
    """The state words of a table, through a mapping of our own."""
    with open(control_path(arena.name), "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    return np.frombuffer(mapped, np.uint64, count * stride, arena.region.header[table])[::stride]


def say(what: str) -> None:
    os.write(1, f"{os.getpid()} {what}\n".encode())


def hold(name: str, position: str, seed: int, crash: str) -> None:
    """In the forked child: never returns."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # gone when the keeper is
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        if crash != "-":
            os.environ["PEGASHM_CRASH"] = crash
        if position == "busy":
            busy(name, seed)
        held = POSITIONS[position](name)
        say("there")
        while held is not None:
            time.sleep(60)
    except BaseException as error:  # noqa: BLE001 - a forked child must not go on as its parent
        say(f"failed: {error!r}")
    finally:
        os._exit(1)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        name, position, seed, crash = line.split()
        pid = os.fork()
        if pid == 0:
            hold(name, position, int(seed), crash)


if __name__ == "__main__":
    main()
