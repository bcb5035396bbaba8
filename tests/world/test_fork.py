"""What has a process that was forked, without exec, from an engine? A copy of its memory, and nothing else.

It must neither keep a dead parent alive (its locks) nor act in a living parent's name (its client): Python's
multiprocessing forks, and so do engines that start helpers. What it tries is refused with a sentence.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

from pegashm.arena import open_arena

from tests.served import Served
from tests.world.actors import SMALL, Actor

HELD = [10, 11, 12]


def test_a_forked_child_keeps_nothing_of_a_dead_parent_alive(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    served = serve(*SMALL).wait_ready()
    parent = start(name)
    parent.do("claim", numbers=HELD)
    parent.do("store", numbers=[1, 2])
    parent.do("pin", numbers=[1, 2])
    child = parent.do("fork")
    parent.kill()
    figures["kills"] += 1
    os.kill(child, 0)  # it lives, with all of the arena mapped
    assert "3 claims, 2 pins" in served.wait_log("reaped client")
    os.kill(child, signal.SIGKILL)


def test_a_worker_s_forked_child_keeps_no_claims_waiting(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    served = serve(*SMALL).wait_ready()
    owner, worker = start(name), start(name, attached=False)
    owner.do("claim", numbers=HELD)
    assert worker.do("serve_for", **without_pid(owner.who))
    child = worker.do("fork")
    owner.kill()
    worker.kill()
    figures["kills"] += 2
    os.kill(child, 0)
    assert "3 claims" in served.wait_log("reaped client")
    os.kill(child, signal.SIGKILL)


def test_a_forked_child_cannot_use_its_parents_client(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    serve(*SMALL).wait_ready()
    parent = start(name)
    parent.do("store", numbers=[1, 2])
    parent.do("pin", numbers=[1, 2])
    parent.do("claim", numbers=HELD)
    before = state(name)

    *tries, own_slot, exit_status = parent.do("fork_and_use", numbers=[1, 2])
    for said in tries:
        assert "ValueError: the arena was opened by process" in said
        assert f"{parent.pid}, which forked this one: open or attach again here" in said
    figures["refusals"] += len(tries)
    assert own_slot != f"own slot {parent.slot}", "attached anew, it is a client like any"
    assert "exit status 0" == exit_status

    # The parent's claims and pins are what they were, and it goes on with them.
    assert before == state(name)
    parent.do("write", numbers=HELD)
    assert ["ok"] * 3 == parent.do("publish", numbers=HELD)
    assert {"right": 2, "wrong": 0} == parent.do("read_pinned")
    assert {"right": 3, "missing": 0, "wrong": 0} == parent.do("check", numbers=HELD)


def without_pid(who: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in who.items() if key != "pid"}


def state(name: str) -> list[tuple[object, ...]]:
    """Every block that is there, its owner, life and pins."""
    with open_arena(name, writable=False, map_payload=False) as arena:
        return [
            tuple(
                block[field].tolist()
                for field in ("record", "state", "owner", "generation", "pins")
            )
            for block in arena.region.blocks()
        ]
