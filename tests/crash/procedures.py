"""What of PegaShm is written in Python and changes what others share? One procedure each, for a child to die in.

The whole life of a supervisor (create, re-adopt, populate, reap, leave or remove), purge, attaching and
detaching, copying for a client, reaping, and `fsck --repair`. Each names the scene it starts in (`scenes.py`) and
what may be expected after its death (`aftermath.py`). They run in a forked child of `server.py`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pegashm import fsck, supervisor
from pegashm.arena import open_arena
from pegashm.cache import Cache, Copyist
from pegashm.config import NUMA_NONE, ServeConfig
from pegashm.creation import purge
from pegashm.errors import PegaShmError
from pegashm.names import SHM_DIRECTORY, payload_path
from pegashm.reaper import reap_dead_clients
from pegashm.units import KIB, MIB

from tests.crash.blocks import SMALL, namespace
from tests.crash.operations import MAIN

__all__ = ["PROCEDURES", "Procedure", "config_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Procedure:
    """`scene`: see `scenes.py`. `keeps`: whatever happens, the arena and its blocks are still there."""

    name: str
    act: Callable[[str], object]
    scene: str
    keeps: bool = False


def config_of(name: str, *, ephemeral: bool = False) -> ServeConfig:
    """The smallest arena that `serve` makes."""
    return ServeConfig(
        name=name,
        size_bytes=4 * MIB,
        segment_bytes=512 * KIB,
        block_bytes_min=SMALL,
        numa=NUMA_NONE,
        populate_threads=1,
        ephemeral=ephemeral,
    )


def serve_briefly(name: str, *, ephemeral: bool = False, rob: bool = False) -> None:
    """A supervisor's life, from its first line to its last: it is told to end after its first second.

    Its memory is populated before that, so that each life passes the same lines as often. `rob`: its payload
    is removed under it. Only for a process that ends with it.
    """
    life = supervisor._Supervisor
    loop, each_second = life._loop, life._each_second

    def loop_when_populated(self: supervisor._Supervisor, populator: Any, *others: Any) -> None:
        while not populator.progress.finished:
            time.sleep(0.0002)
        loop(self, populator, *others)

    def only_second(self: supervisor._Supervisor, populator: Any) -> None:
        if rob:
            os.unlink(payload_path(name, SHM_DIRECTORY, 0))
        each_second(self, populator)
        os.kill(os.getpid(), signal.SIGTERM)

    life._loop = loop_when_populated  # type: ignore[method-assign]
    life._each_second = only_second  # type: ignore[method-assign]
    supervisor.serve(config_of(name, ephemeral=ephemeral))


def serve_and_lose_payload(name: str) -> None:
    try:
        serve_briefly(name, rob=True)
    except PegaShmError as error:
        assert "was damaged under its supervisor" in str(error)
    else:
        raise AssertionError("a supervisor did not see that its payload is gone")


def attach_enter_and_close(name: str) -> None:
    """In the slot of somebody dead, in a known namespace and in a new one, leaving a claim behind."""
    with Cache.attach(name, namespace=namespace(MAIN), engine_id=b"e", label="child") as cache:
        cache.enter(namespace("new"))
        cache.claim([bytes(36)], SMALL)


def copy_for_the_living(name: str) -> None:
    with Copyist.open(name) as copyist:
        client = copyist.region.clients()[0]
        assert copyist.serve(copyist.region_id, client["slot"], client["incarnation"])


def reap(name: str) -> None:
    with open_arena(name) as arena:
        assert reap_dead_clients(arena), "there was somebody to reap"


def repair(name: str) -> None:
    assert fsck.repair_name(name).clean


PROCEDURES = (
    Procedure(name="serve: create", act=serve_briefly, scene="nothing"),
    Procedure(name="serve: create after a creator died", act=serve_briefly, scene="unfinished"),
    Procedure(name="serve: adopt", act=serve_briefly, scene="used", keeps=True),
    Procedure(
        name="serve: ephemeral",
        act=lambda name: serve_briefly(name, ephemeral=True),
        scene="nothing",
    ),
    Procedure(name="serve: payload removed under it", act=serve_and_lose_payload, scene="used"),
    Procedure(name="purge", act=lambda name: purge(name, force=False), scene="left"),
    Procedure(
        name="purge after a creator died",
        act=lambda name: purge(name, force=False),
        scene="unfinished",
    ),
    Procedure(name="purge: by force", act=lambda name: purge(name, force=True), scene="used"),
    Procedure(name="attach, enter, close", act=attach_enter_and_close, scene="used", keeps=True),
    Procedure(name="copy for a client", act=copy_for_the_living, scene="used", keeps=True),
    Procedure(name="reap", act=reap, scene="used", keeps=True),
    Procedure(name="fsck: repair", act=repair, scene="abandoned", keeps=True),
)
