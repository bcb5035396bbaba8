"""Is everything right after a procedure died? Judged as its neighbours meet it: at once, and by whoever comes next.

At once: no lock is left, who lives on goes on, and whoever attaches is served or told what to type. Next comes a
new supervisor, or a purge. A supervisor has to bring up a right arena at once; only where the files of an arena
were being removed while clients used it may it ask for the purge to be finished first, by name. In the end
nothing is left in /dev/shm. Every check adds complaints, none when all is well.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from pegashm import _native, fsck
from pegashm.cache import Cache
from pegashm.creation import purge
from pegashm.errors import PegaShmError
from pegashm.liveness import (
    REGISTRY_BYTE,
    SUPERVISOR_BYTE,
    close_lock_file,
    holder_alive,
    live_slots,
    open_lock_file,
)
from pegashm.names import control_path

from tests.crash.blocks import namespace, numbered, store
from tests.crash.forker import Forker
from tests.crash.judge import HANG_SECONDS, Verdict
from tests.crash.operations import MAIN
from tests.crash.procedures import Procedure
from tests.crash.scenes import STORED, Scene, stored_blocks
from tests.served import objects

__all__ = ["NEXT", "come_next", "look_around"]

NEXT = ("supervisor", "purge")
SUCCESSOR = "serve: adopt"  # its life is the same whatever it finds
OWN, FRESH = 21, range(30, 34)  # numbers of blocks stored afterwards


def look_around(scene: Scene, verdict: Verdict) -> None:
    """What everybody else meets at once."""
    began = time.monotonic()
    locks_are_free(scene, verdict)
    survivor_goes_on(scene, verdict)
    newcomer(scene, verdict)
    if time.monotonic() - began > HANG_SECONDS:
        verdict.hangs += 1
        verdict.complaints.append(f"the living needed {time.monotonic() - began:.1f} s")


def come_next(
    who: str, procedure: Procedure, scene: Scene, forker: Forker, verdict: Verdict
) -> None:
    if who == "supervisor":
        supervisor_comes(procedure, scene, forker, verdict)
    elif procedure.keeps and scene.survivor is not None:  # an engine reaps as well as a supervisor
        scene.survivor.reap_dead()
        sound(scene, verdict)
    survivor_goes_on(scene, verdict)
    purge_comes(scene, verdict)


def locks_are_free(scene: Scene, verdict: Verdict) -> None:
    """But those of the survivor; the kernel has dropped all others."""
    if not Path(control_path(scene.name)).exists():
        return
    lock_fd = open_lock_file(scene.name, writable=False)
    try:
        held = [byte for byte in (SUPERVISOR_BYTE, REGISTRY_BYTE) if holder_alive(lock_fd, byte)]
        slots = live_slots(lock_fd)
    finally:
        close_lock_file(lock_fd)
    if held:
        verdict.complaints.append(f"locks {held} are still held")
    if scene.survivor is not None and scene.survivor.arena.is_linked():
        slots = [slot for slot in slots if slot != scene.survivor.slot]
    if slots:
        verdict.complaints.append(f"clients {slots} are still alive")


def survivor_goes_on(scene: Scene, verdict: Verdict) -> None:
    """Whatever became of the files, who has the arena mapped finds its blocks and stores more."""
    if scene.survivor is None:
        return
    found, wrong = stored_blocks(scene.survivor)
    count(verdict, found, wrong)
    if found != len(STORED):
        verdict.complaints.append(f"the survivor finds {found} of {len(STORED)} blocks")
    handles, _ = scene.survivor.find(numbered([OWN]))
    scene.survivor.evict(handles)
    if store(scene.survivor, [OWN])[0] != _native.OK:
        verdict.complaints.append("the survivor cannot store")


def newcomer(scene: Scene, verdict: Verdict) -> None:
    """Whoever attaches now is served, or told what to type."""
    try:
        with Cache.attach(scene.name, namespace=namespace(MAIN), label="newcomer") as cache:
            if cache.region.header[
                "segments_ready"
            ]:  # else all is a miss until the next supervisor
                used(cache, verdict, "the newcomer")
    except PegaShmError as error:
        told_what_to_type(error, verdict, "a newcomer")


def supervisor_comes(procedure: Procedure, scene: Scene, forker: Forker, verdict: Verdict) -> None:
    words = serve(scene, forker, verdict)
    half_removed = scene.survivor is not None and not procedure.keeps
    if words and half_removed and "pegashm purge --name" in words:
        purge(scene.name, force=True)  # as it says
        words = serve(scene, forker, verdict)
    if words:
        verdict.complaints.append(f"the next supervisor is refused: {words}")
        return
    try:
        with Cache.attach(scene.name, namespace=namespace(MAIN), label="next") as cache:
            if procedure.keeps and cache.region_id != scene.region_id:
                verdict.complaints.append("the next supervisor made another arena")
            if cache.region_id == scene.region_id:
                found, wrong = stored_blocks(cache)
                count(verdict, found, wrong)
                if found != len(STORED):
                    verdict.complaints.append(f"{found} of {len(STORED)} blocks are left")
            used(cache, verdict, "under the next supervisor, a client")
            ready, total = (cache.region.header[f"segment{name}"] for name in ("s_ready", "_count"))
            if ready != total:
                verdict.complaints.append(f"{ready} of {total} segments are ready")
    except PegaShmError as error:
        verdict.complaints.append(f"under the next supervisor nobody can attach: {error}")
        return
    sound(scene, verdict)


def serve(scene: Scene, forker: Forker, verdict: Verdict) -> str:
    """A supervisor's whole life; what it said when it was refused."""
    words = forker.log.with_name("words")
    words.write_text("")
    ended = forker.wait(forker.begin(SUCCESSOR, scene.name, words=str(words)))
    if ended[0] == "hung":
        verdict.hangs += 1
    if ended == ("exited", 0):
        return ""
    return words.read_text(encoding="utf-8") or f"{ended} {forker.last_words()}"


def purge_comes(scene: Scene, verdict: Verdict) -> None:
    """It finishes, a second finds nothing, and nothing is left."""
    try:
        purge(scene.name, force=scene.survivor is not None)
        if again := purge(scene.name, force=False):
            verdict.complaints.append(f"a second purge found {again}")
    except PegaShmError as error:
        verdict.complaints.append(f"purge is refused: {error}")
    if left := objects(scene.name):
        verdict.complaints.append(f"left behind: {sorted(left)}")
        for name in left:
            os.unlink(f"/dev/shm/{name}")


def sound(scene: Scene, verdict: Verdict) -> None:
    report = fsck.check_name(scene.name)
    if not report.clean:
        verdict.complaints.append(f"fsck says {report.as_json()['findings']}")


def used(cache: Cache, verdict: Verdict, who: str) -> None:
    """Store and find."""
    handles, _ = cache.find(numbered(FRESH))
    cache.evict(handles)
    if not (store(cache, FRESH) == _native.OK).all():
        verdict.complaints.append(f"{who} cannot store")
    found, _ = cache.find(numbered(FRESH))
    if np.count_nonzero(found) != len(FRESH):
        verdict.complaints.append(f"{who} does not find what it stored")
    count(verdict, *stored_blocks(cache))


def count(verdict: Verdict, found: int, wrong: list[str]) -> None:
    verdict.reads += found
    verdict.wrong_bytes += len(wrong)
    verdict.complaints += wrong


def told_what_to_type(error: PegaShmError, verdict: Verdict, who: str) -> None:
    if "`pegashm " not in str(error):
        verdict.complaints.append(f"{who} is not told what to type: {error}")
