"""What happens to the 129th engine on a host? It is told, runs without the cache, and has the first slot that frees."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from pegashm._native import CLIENT_COUNT

from tests.served import Served, pegashm
from tests.world.actors import SMALL, Actor, ActorError


def test_128_clients_work_and_the_129th_is_told(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    served = serve(*SMALL).wait_ready()
    host = start(name, attached=False)
    pids = host.do("attach_many", count=CLIENT_COUNT)
    figures["actors"] += CLIENT_COUNT
    late = start(name, attached=False)
    with pytest.raises(ActorError) as refused:
        late.do("attach")
    assert "ClientsFullError" == refused.value.kind
    assert f"has {CLIENT_COUNT} client slots, all held by living processes" in refused.value.said
    assert f"`pegashm-dump --name {name}`" in refused.value.said
    figures["refusals"] += 1
    document = json.loads(pegashm("dump", "--name", name, "--json").stdout)
    assert "ok" == document["verdict"]
    assert sorted(pids) == sorted(client["pid"] for client in document["clients"])

    # One dies, not yet reaped by anybody: its slot is free at once. One that is stopped keeps its own.
    served.process.send_signal(signal.SIGSTOP)
    os.kill(pids[40], signal.SIGSTOP)
    host.do("kill_child", pid=pids[77])
    figures["kills"] += 1
    figures["stops"] += 2
    slot = late.do("attach")["slot"]
    assert slot == {client["pid"]: client["slot"] for client in document["clients"]}[pids[77]]
    assert 8 == late.do("store", numbers=list(range(8)))
    another = start(name, attached=False)
    with pytest.raises(ActorError, match="ClientsFullError"):
        another.do("attach")
    served.process.send_signal(signal.SIGCONT)


@pytest.mark.timeout(600)  # the first of its kind in a process imports vLLM
def test_an_engine_without_a_slot_serves_and_attaches_when_one_frees(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    pytest.importorskip("vllm", reason="the engine's side of it is vLLM's")
    from tests.world.engine import Engine

    serve(*SMALL).wait_ready()
    host = start(name, attached=False)
    pids = host.do("attach_many", count=CLIENT_COUNT)
    figures["actors"] += CLIENT_COUNT
    assert "client slots, all held" in Engine.refused(name)
    with Engine(name) as engine:
        assert "client slots, all held by living processes" in engine.said()
        assert not engine.attached
        assert not engine.look()
        assert "" == engine.said(), "the same reason is told once"
        host.do("kill_child", pid=pids[3])
        figures["kills"] += 1
        assert engine.look()
        assert 4 == engine.store(4)
