"""May blocks be used again whose engine's scheduler is dead, while one of its workers still writes them?

No: not until the last worker is gone. The worker here writes its blocks over and over, long after its
scheduler was killed, while another engine wants all the memory there is and reaps all it may.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pegashm.arena import open_arena

from tests.figures import LONG
from tests.served import Served
from tests.world.actors import SMALL, Actor

HELD = [100, 101, 102, 103]


def test_blocks_wait_for_the_worker_and_then_are_reaped(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    served = serve(*SMALL).wait_ready()
    scheduler, hungry = start(name, label="engine"), start(name)
    workers = [start(name, attached=False) for _ in range(2)]
    scheduler.do("claim", numbers=HELD)
    blocks = scheduler.do("offsets")
    who = {key: scheduler.who[key] for key in ("region_id", "slot", "incarnation")}
    for worker in workers:
        assert worker.do("serve_for", **who)
        worker.tell("scribble", blocks=blocks, numbers=HELD, seconds=10 if LONG else 2.5)
    scheduler.kill()
    figures["kills"] += 1

    # Everything is stored again and again around the blocks that are being written; none is touched.
    stored = 0
    capacity = hungry.do("tally")["record_count"]
    while stored < (20 if LONG else 3) * capacity:
        fresh = [1000 + stored + i for i in range(40)]
        stored += hungry.do("store", numbers=fresh)
        judged = hungry.do("check", numbers=fresh)
        figures["wrong"] += judged["wrong"]
        assert 0 == judged["wrong"], "a worker wrote into a block of another engine"
        assert 0 == hungry.do("reap")
    assert 4 == hungry.do("tally")["claimed"]
    # Its restarted scheduler gets another slot: this one is not free.
    again = start(name, label="engine")
    assert again.slot != scheduler.slot
    for worker in workers:
        assert worker.answered() > 0

    # Their copies have ended, but they are still there: only that counts.
    workers[0].kill()
    assert 4 == hungry.do("tally")["claimed"]
    assert 0 == hungry.do("reap")
    workers[1].do("stop_serving")
    figures["kills"] += 1
    assert "4 claims" in served.wait_log("reaped client")
    tally = hungry.do("tally")
    figures["leaked"] += tally["claimed"]
    assert 0 == tally["claimed"]


def test_a_worker_that_comes_too_late_is_told_and_writes_nothing(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    served = serve(*SMALL).wait_ready()
    scheduler, worker = start(name), start(name, attached=False)
    scheduler.do("claim", numbers=HELD)
    who = {key: scheduler.who[key] for key in ("region_id", "slot", "incarnation")}
    scheduler.kill()
    figures["kills"] += 1
    served.wait_log("reaped client")
    assert not worker.do("serve_for", **who)
    # Nor for the next client of that slot, nor for a region of another life.
    successor = start(name)
    assert successor.slot == who["slot"]
    assert not worker.do("serve_for", **who)
    assert not worker.do("serve_for", **(who | {"region_id": bytes(16).hex()}))
    current = {key: successor.who[key] for key in ("region_id", "slot", "incarnation")}
    assert worker.do("serve_for", **current)
    with open_arena(name) as arena:
        assert [successor.slot] == [client["slot"] for client in arena.region.clients()]
