"""How fast are the stores a KV cache could be kept in, beside PegaShm, and what is left of them after a kill?

Every rival that is installed (install.py) has a leg of its own beside PegaShm and a plain memcpy: lookups, puts and gets to and from
the caller's buffers by one client and by two; then its clients and servers are killed. PEGASHM_RIVALS="lmdb redis" measures those only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import tempfile
from collections.abc import Callable
from typing import Any

from bench import harness
from bench.rivals.catalog import NOT_HERE, PEGASHM, RIVALS, YARDSTICK, Rival
from bench.rivals.contenders import Contender
from bench.rivals.deaths import client_killed, server_killed, shared_bytes
from bench.rivals.leg import Extent, copies, idle, lookups
from bench.rivals.store import Servers
from bench.rivals.tables import headline, tables
from bench.rivals.workers import EndedError, SilentError, resident_bytes, without_paths

__all__ = ["measure"]

QUESTION = (
    "How fast are the stores a KV cache could be kept in, beside PegaShm, and what survives a kill?"
)
SMOKE_RIVALS = 2
NOT_SHOWN = (
    "GPUs and RDMA, for which Mooncake and LMCache were built: here they run on a CPU and over loopback or shared memory",
    "eviction: every store has room for what it is asked to hold; remote hosts; stores that need a GPU or an RDMA device",
    "what an engine's connector adds to each call: the stores are called from Python with keys and buffers made beforehand",
    "several copying threads in a client: Mooncake's and Ray's servers may use more than one core for a copy, PegaShm uses one here",
)


def measure(options: harness.Options) -> harness.Findings:
    extent = Extent.of(options)
    asked = os.environ.get("PEGASHM_RIVALS", "").split()
    notes: list[str] = []
    chosen: list[Rival] = []
    for rival in RIVALS:
        if (asked and rival.key not in asked) or (options.smoke and len(chosen) == SMOKE_RIVALS):
            continue
        if missing := rival.missing():
            notes.append(f"{rival.forms[0].title} left out: {missing}")
        else:
            chosen.append(rival)
    notes += [f"{name} left out: {why}" for name, why in NOT_HERE.items()]
    results: list[dict[str, Any]] = []
    for rival in chosen:
        results += tried(notes, "measuring", rival, lambda one: measure_leg(one, extent))
    if not results:
        results = [measure_leg(None, extent)]
    kills: list[dict[str, Any]] = []
    for rival in [PEGASHM, *(one for one in chosen if one.module != PEGASHM.key)]:
        kills += tried(notes, "kills", rival, lambda one: measure_deaths(one, extent))
    figures = {"rounds": extent.rounds, **headline(results), "results": results, "kills": kills}
    work = f"{extent} {[leg['rival'] for leg in results]}"
    return harness.Findings(
        tables(results, kills), figures, hashlib.sha256(work.encode()).hexdigest()[:16], notes
    )


def tried(
    notes: list[str], what: str, rival: Rival | None, act: Callable[[Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    """What `act` says of a rival; nothing, and a note, when that rival fails: the others go on."""
    title = "PegaShm alone" if rival is None else rival.forms[0].title
    harness.progress(f"{title}: {what}")
    try:
        return [act(rival)]
    except (RuntimeError, AssertionError, OSError, EndedError, SilentError) as error:
        notes.append(f"{title}, {what}, failed: {type(error).__name__} {without_paths(str(error))}")
        harness.progress(notes[-1])
        return []


def measure_leg(rival: Rival | None, extent: Extent) -> dict[str, Any]:
    """One rival beside PegaShm and memcpy."""
    stores = [YARDSTICK, PEGASHM, *([] if rival is None else [rival])]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pegashm-bench-"))
        contenders = [
            stack.enter_context(Contender(each, form, servers, place, extent.pass_bytes))
            for each in stores
            for place, servers in [running(stack, each, folder)]
            for form in each.forms
        ]
        servers = contenders[-1].servers
        pids = [] if servers is None else servers.processes
        return {
            "rival": "" if rival is None else rival.key,
            "title": contenders[-1].title,
            "lookups": lookups(contenders, extent),
            "copies": copies(contenders, extent),
            "idle_cpu_share": idle(pids),
            "server_processes": len(pids),
            "server_resident_mib": round(sum(map(resident_bytes, pids)) / 2**20),
        }


def running(stack: contextlib.ExitStack, rival: Rival, folder: str) -> tuple[str, Servers | None]:
    """A folder for a store and its servers, started and stopped with the stack."""
    place = os.path.join(folder, rival.key)
    os.mkdir(place)
    if rival.servers is None:
        return place, None
    servers = rival.servers(place)
    stack.callback(servers.stop)
    servers.start()
    return place, servers


def measure_deaths(rival: Rival, extent: Extent) -> dict[str, Any]:
    """Clients killed while they put, then each server once, with everything fresh."""
    chance = random.Random(harness.SEED)
    before = shared_bytes()
    buffer_bytes = 64 << 20
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pegashm-bench-"))
        place, servers = running(stack, rival, folder)
        contender = Contender(rival, rival.forms[0], servers, place, buffer_bytes)
        stack.enter_context(contender)
        trials = 1 if rival.slow else extent.kills
        clients = [client_killed(contender, trial, chance) for trial in range(trials)]
    killed = []
    for role in rival.roles:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pegashm-bench-"))
            place, servers = running(stack, rival, folder)
            contender = Contender(rival, rival.forms[0], servers, place, buffer_bytes)
            stack.enter_context(contender)
            killed.append(server_killed(contender, role, lambda: max(0, shared_bytes() - before)))
    return {"store": rival.forms[0].title, "clients": clients, "servers": killed}


if __name__ == "__main__":
    harness.run("rivals", QUESTION, not_shown=NOT_SHOWN, measure=measure)
