"""What becomes of an engine that is stopped, for ever as far as anybody knows? Nothing: it may go on.

SIGSTOP is what a debugger, a frozen container, a full swap or a closed laptop does. Its memory may be
written again at any moment, so no time that passes may free it; all others must work around it.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable

from pegashm.arena import open_arena

from tests.figures import LONG
from tests.served import Served, pegashm
from tests.world.actors import SMALL, Actor, ActorError, wait_until

EVERY = list(range(300))


def test_a_stopped_owner_keeps_its_claims_and_pins_and_ends_its_work_right(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    """Mid-claim: half of the payload is written. Mid-pin: it has found its blocks and not read them."""
    served = serve(*SMALL).wait_ready()
    owner, other = start(name, label="stopped"), start(name, label="hungry")
    assert 6 == owner.do("store", numbers=list(range(6)))
    assert 6 == owner.do("pin", numbers=list(range(6)))
    assert ["ok"] * 4 == owner.do("claim", numbers=[100, 101, 102, 103])
    owner.do("write", numbers=[100, 101])
    owner.signal(signal.SIGSTOP)
    figures["stops"] += 1

    # More is stored than fits, by one who reaps and evicts all it can, for many ticks of the supervisor.
    end = time.monotonic() + (20 if LONG else 3)
    capacity = other.do("tally")["record_count"]
    stored = rounds = 0
    while time.monotonic() < end:
        stored += other.do("store", numbers=[1000 + stored + i for i in range(50)])
        other.do("evict", count=20)
        assert 0 == other.do("reap")
        rounds += 1
    assert stored > 2 * capacity, "there was need for the stopped one's blocks"
    with open_arena(name, writable=False, map_payload=False) as arena:
        assert 4 == arena.region.tally()["claimed"]
        assert {"stopped", "hungry"} == {c["label"] for c in arena.region.clients()}
    assert ["pending"] * 4 == other.do("claim", numbers=[100, 101, 102, 103])

    owner.signal(signal.SIGCONT)
    assert {"right": 6, "wrong": 0} == owner.do("read_pinned")
    owner.do("write", numbers=[102, 103])
    assert ["ok"] * 4 == owner.do("publish", numbers=[100, 101, 102, 103])
    judged = other.do("check", numbers=[100, 101, 102, 103])
    figures["wrong"] += judged["wrong"]
    assert {"right": 4, "missing": 0, "wrong": 0} == judged
    assert "reaped" not in served.log
    assert 0 == served.end()
    assert "reaped" not in served.log


def test_stopped_anywhere_others_go_on_and_nothing_is_lost(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    figures: Counter[str],
    chance: random.Random,
) -> None:
    """Two that store, read and evict at random; one is stopped at whatever it does, again and again."""
    serve(*SMALL).wait_ready()
    churners = [start(name, label=f"churner {i}") for i in range(2)]
    judge = start(name, label="judge")
    for churner in churners:
        churner.tell("churn", seed=chance.randrange(1 << 30), keys=200)
        assert "churning" == churner.listen()
    for _ in range(100 if LONG else 12):
        victim = chance.choice(churners)
        time.sleep(chance.uniform(0.001, 0.03))
        victim.signal(signal.SIGSTOP)
        figures["stops"] += 1
        assert 0 == judge.do("reap")
        judged = judge.do("check", numbers=EVERY[:200])
        figures["wrong"] += judged["wrong"]
        assert 0 == judged["wrong"]
        judge.do("store", numbers=chance.sample(EVERY, 20))
        victim.signal(signal.SIGCONT)
    for churner in churners:
        churner.signal(signal.SIGUSR1)
        total = churner.listen()
        assert total["stored"] > 0
        assert total["right"] > 0
        figures["wrong"] += total["wrong"]
        assert 0 == total["wrong"]
        assert churner.answered() is None
        churner.do("close")
    tally = judge.do("tally")
    figures["leaked"] += tally["claimed"] + tally["evicting"]
    assert 0 == tally["claimed"] + tally["evicting"]


def test_stopped_in_the_middle_of_attaching_it_delays_only_those_who_attach(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    """It holds the registry. Who is attached does not need it, and who is not is told, in bounded time."""
    served = serve(*SMALL).wait_ready()
    working = start(name)
    holder = start(name, attached=False)
    assert holder.do("hold_registry")
    holder.signal(signal.SIGSTOP)
    figures["stops"] += 1

    assert 8 == working.do("store", numbers=list(range(8)))
    newcomer = start(name, attached=False)
    began = time.monotonic()
    try:
        newcomer.do("attach", wait_s=0.3)
    except ActorError as error:
        assert "ArenaBusyError" == error.kind
        assert "pegashm-dump" in error.said
    else:
        raise AssertionError("attached while another held the registry")
    assert time.monotonic() - began > 0.3
    assert {"right": 8, "missing": 0, "wrong": 0} == working.do("check", numbers=list(range(8)))

    # Neither a restart of the supervisor nor the reaping of others needs it.
    served.end(signal.SIGKILL)
    served = serve(*SMALL).wait_ready()
    working.do("claim", numbers=[50])
    working.kill()
    figures["kills"] += 2
    served.wait_log("reaped client")
    refused = pegashm("purge", "--name", name, "--yes")
    assert 1 == refused.returncode
    assert "living supervisor" in refused.stderr

    holder.kill()
    newcomer.do("attach")
    assert {"right": 8, "missing": 0, "wrong": 0} == newcomer.do("check", numbers=list(range(8)))


def test_a_stopped_supervisor_is_no_reason_to_take_its_place(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    """Stopped, it still holds the lock: another is refused, and engines do its work among themselves."""
    served = serve(*SMALL).wait_ready()
    working, dying = start(name), start(name)
    served.process.send_signal(signal.SIGSTOP)
    figures["stops"] += 1
    dying.do("claim", numbers=[1, 2, 3])
    dying.kill()
    assert 1 == working.do("reap")
    assert 8 == working.do("store", numbers=list(range(8)))
    refused = pegashm("serve", "--name", name, *SMALL)
    assert 1 == refused.returncode
    assert f"(pid {served.process.pid})" in refused.stderr
    assert 1 == pegashm("purge", "--name", name, "--yes").returncode
    figures["refusals"] += 2
    served.process.send_signal(signal.SIGCONT)
    dying = start(name)
    dying.do("claim", numbers=[100])
    dying.kill()
    figures["kills"] += 2
    assert "1 claims" in served.wait_log("reaped client")
    wait_until(lambda: 0 == working.do("tally")["claimed"], "reaped")
