"""What is left of a store, and who hangs, when a client or a server of it is killed with SIGKILL?

`client_killed`: one client puts batches without end and is killed at a random moment; another then looks for what it had finished, and puts
something itself. `server_killed`: two clients are attached, one has put blocks; a server dies; the other looks them up, gets them
and puts new ones; then all clients are killed as well, the server is started again, as a service manager would, and a new client looks what is left. Every wait ends
after PATIENCE_SECONDS: "hangs" means no answer by then.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

from bench.rivals.contenders import Contender
from bench.rivals.workers import Client, EndedError, SilentError, without_paths

__all__ = ["NOT_ASKED", "client_killed", "server_killed", "shared_bytes"]

PATIENCE_SECONDS = 30.0
RESTART_SECONDS = 60.0
BLOCK_BYTES, BLOCKS = 256 << 10, 32
STORM_BLOCKS = 8
FIRST = 1 << 32
NOT_ASKED = "before it was asked"
# Only who put a block can ask for it, and who put these is dead.
NAMELESS = {"nameless": True, "came": 0, "right": 0, "wrong": 0, "seconds": 0.0}


def client_killed(contender: Contender, trial: int, random_: random.Random) -> dict[str, Any]:
    """Kill a client in the middle of its puts: what the other one finds, and how long its own next put takes."""
    victim, witness = contender.client(), contender.clients[0]
    for client in (victim, witness):
        client.ask("prepare", block_bytes=BLOCK_BYTES)
    victim.tell("storm", first=FIRST + (trial << 24), block_bytes=BLOCK_BYTES, a_call=STORM_BLOCKS)
    begun = victim.hear(PATIENCE_SECONDS)
    time.sleep(random_.uniform(0.2, 0.5))
    victim.kill()
    last = [begun, *victim.heard()][-1]
    if "error" in last:
        raise RuntimeError(f"storm: {last['error']}")
    count = int(last["to"] - last["from"])
    found = (
        attempt(witness, "get", count, first=int(last["from"]), put_by=STORM_BLOCKS)
        if contender.form.shared_names
        else NAMELESS
    )
    put = attempt(witness, "put", BLOCKS, first=FIRST + (trial << 24) + (1 << 20))
    delete(witness, int(last["from"]), count)
    delete(witness, FIRST + (trial << 24) + (1 << 20), BLOCKS)
    return {"put_before": count, "get": found, "put": put}


def server_killed(contender: Contender, role: str, left: Callable[[], int]) -> dict[str, Any]:
    """Kill a server: what living clients get, what is left once all were killed and started again."""
    assert contender.servers is not None
    storer, witness = contender.clients[:2]
    for client in (storer, witness):
        client.ask("prepare", block_bytes=BLOCK_BYTES)
    first = FIRST << 1
    storer.ask("put", first=first, count=BLOCKS, block_bytes=BLOCK_BYTES, a_call=BLOCKS)
    before = attempt(witness if contender.form.shared_names else storer, "get", BLOCKS, first=first)

    victim = contender.servers.victims.get(role)
    if victim is not None:  # there may be no server to kill
        os.kill(victim, signal.SIGKILL)
        time.sleep(0.1)
    living = witness if contender.form.shared_names else storer
    row: dict[str, Any] = {
        "role": role,
        "before": before,
        "exists": attempt(living, "exists", BLOCKS, chains=[first], calls=1, hit=True),
        "get": attempt(living, "get", BLOCKS, first=first),
        "put": attempt(living, "put", BLOCKS, first=first + (1 << 20)),
        "left_bytes": left(),
    }
    for client in (storer, witness):
        with contextlib.suppress(OSError):
            client.kill()
    return {**row, **restarted(contender, first)}


def restarted(contender: Contender, first: int) -> dict[str, Any]:
    """Start what was killed again; what a new client finds."""
    assert contender.servers is not None
    began = time.monotonic()
    try:
        contender.servers.start()
        client = contender.client()
        client.ask("prepare", block_bytes=BLOCK_BYTES)
    except (RuntimeError, EndedError, SilentError, SystemExit) as error:
        return {
            "restart": {
                "error": without_paths(str(error))[:300],
                "seconds": time.monotonic() - began,
            }
        }
    seconds = time.monotonic() - began
    found = attempt(client, "get", BLOCKS, first=first) if contender.form.shared_names else NAMELESS
    return {"restart": {**found, "seconds_start": seconds}}


def attempt(client: Client, do: str, count: int, **command: Any) -> dict[str, Any]:
    """What an operation comes to, within the time that we have."""
    if client.process.poll() is not None:
        return {"ended": NOT_ASKED, "seconds": 0.0}
    began = time.monotonic()
    if do != "exists":
        command |= {"block_bytes": BLOCK_BYTES, "a_call": command.get("put_by", count)}
    try:
        client.tell(do, count=count, **command)
        answer = client.hear(PATIENCE_SECONDS)
    except SilentError:
        with contextlib.suppress(OSError):
            client.kill()
        return {"hangs": True, "seconds": time.monotonic() - began}
    except EndedError as error:
        return {"ended": without_paths(str(error))[:300], "seconds": time.monotonic() - began}
    if "error" in answer:
        answer["error"] = without_paths(answer["error"])
    kept: dict[str, Any] = {
        key: answer[key] for key in ("error", "came", "right", "wrong") if key in answer
    }
    if "ended" in answer and "error" not in answer:
        return {**kept, "seconds": (answer["ended"] - answer["began"]) / 1e9}
    return {**kept, "seconds": answer["seconds"]}


def delete(client: Client, first: int, count: int) -> None:
    with contextlib.suppress(RuntimeError, EndedError, SilentError):
        client.ask("delete", first=first, count=count)


def shared_bytes() -> int:
    """What lies in /dev/shm."""
    facts = os.statvfs("/dev/shm")
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize
