"""In what does a procedure start? An arena in the state its name says, and who lives in it.

 nothing     no object of that name
 unfinished  a creator died after it wrote all but the magic
 left        three blocks, nobody attached, no supervisor
 abandoned   the same, and a client that died with a claim in hand
 used        the same, and a client that lives on beside it (the survivor)
Called by the tests, in the process that lives on; leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.creation import create, lock_control
from pegashm.layout import plan_layout
from pegashm.liveness import close_lock_file

from tests.arenas import PREFIX, remove_arena
from tests.crash.blocks import namespace, numbered, store, wrong_payloads
from tests.crash.forker import Forker
from tests.crash.operations import MAIN
from tests.crash.procedures import config_of

__all__ = ["STORED", "Scene", "opened_scene", "stored_blocks"]

STORED = (1, 2, 3)  # numbers of the blocks that are there from the beginning
NEARLY_CREATED = "213:1"  # the last crash point before the magic
CLAIMED = "31:1"


@dataclass(slots=True)
class Scene:
    """An arena's name, who lives on in it, and which arena of that name it was (b"": none)."""

    name: str
    survivor: Cache | None = None
    region_id: bytes = b""


@contextlib.contextmanager
def opened_scene(kind: str, forker: Forker) -> Iterator[Scene]:
    scene = Scene(f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        if kind == "unfinished":
            died(forker, forker.begin("serve: create", scene.name, crash=NEARLY_CREATED))
        elif kind != "nothing":
            make(scene)
        if kind == "used":
            main = namespace(MAIN)
            scene.survivor = Cache.attach(scene.name, namespace=main, label="survivor")
        if kind in ("abandoned", "used"):
            died(forker, forker.start("store", scene.name, CLAIMED))
        yield scene
    finally:
        if scene.survivor is not None:
            scene.survivor.close()
        remove_arena(scene.name)


def died(forker: Forker, pid: int) -> None:
    ended = forker.wait(pid)
    assert ended == ("killed", signal.SIGKILL), f"{ended} {forker.last_words()}"


def make(scene: Scene) -> None:
    layout = plan_layout(config_of(scene.name))
    lock_fd = lock_control(scene.name)
    try:
        create(scene.name, lock_fd, layout, gid=None, checkpoint=lambda _done, _total: None)
    finally:
        close_lock_file(lock_fd)
    with open_arena(scene.name) as arena:
        arena.region.set_segments_ready(arena.region.header["segment_count"])
        scene.region_id = arena.region.header["region_id"]
    with Cache.attach(scene.name, namespace=namespace(MAIN), label="filler") as cache:
        outcomes = store(cache, STORED)
        assert (outcomes == _native.OK).all()


def stored_blocks(cache: Cache) -> tuple[int, list[str]]:
    """How many of the first blocks are found, and what is wrong with any block's bytes."""
    handles, _ = cache.find(numbered(STORED))
    wrong, _ = wrong_payloads(cache)
    return int(np.count_nonzero(handles)), wrong
