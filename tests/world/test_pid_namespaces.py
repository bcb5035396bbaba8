"""Do engines in other containers count as what they are, alive or dead, whatever their process numbers?

Each actor here is process 1 of a PID namespace of its own, as in a container, on the same shared memory. The
supervisor outside does not see their numbers, and finds all of them equal. Only the kernel's locks decide;
numbers are for people, and the tools translate them into those of whoever asks.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable

from pegashm.arena import open_arena

from tests.served import Served, pegashm
from tests.world.actors import Actor, wait_until

SIXTEEN = list(range(16))
CLAIMED = [100, 101, 102]


def dump(name: str) -> dict[str, object]:
    result = pegashm("dump", "--name", name, "--json")
    document: dict[str, object] = json.loads(result.stdout)
    return document


def claims(name: str) -> int:
    with open_arena(name, writable=False, map_payload=False) as arena:
        return arena.region.tally()["claimed"]


def test_engines_in_other_pid_namespaces_live_and_die_like_any(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    pid_namespace: tuple[str, ...],
    figures: Counter[str],
) -> None:
    served = serve().wait_ready()
    first = start(name, prefix=pid_namespace, label="container a")
    second = start(name, prefix=pid_namespace, label="container b")
    assert (1, 1) == (first.pid_inside, second.pid_inside), "both are process 1 where they live"
    assert first.slot != second.slot

    # One stores, the other loads, and each holds something.
    assert 16 == first.do("store", numbers=SIXTEEN)
    assert {"right": 16, "missing": 0, "wrong": 0} == second.do("check", numbers=SIXTEEN)
    assert ["ok"] * 3 == first.do("claim", numbers=CLAIMED)
    assert ["ok"] * 2 == second.do("claim", numbers=[200, 201])
    assert 4 == second.do("pin", numbers=[0, 1, 2, 3])

    # The supervisor does not reap what it cannot see; neither does a client in yet another namespace.
    third = start(name, prefix=pid_namespace)
    assert 0 == third.do("reap")
    assert "reaped" not in served.log
    assert 5 == claims(name)

    # Only the dead one's claims go, though a living process has its number: its own, and the outsider's.
    first.kill()
    figures["kills"] += 1
    assert "3 claims" in served.wait_log("reaped client")
    wait_until(lambda: 2 == claims(name), "reaped")
    assert {"right": 4, "wrong": 0} == second.do("read_pinned")
    second.do("write", numbers=[200, 201])
    assert ["ok", "ok"] == second.do("publish", numbers=[200, 201])
    assert {"right": 2, "missing": 0, "wrong": 0} == third.do("check", numbers=[200, 201])

    # A client inside reaps one that died in another namespace, with no supervisor at all.
    assert ["ok"] * 3 == second.do("claim", numbers=CLAIMED)
    served.end(signal.SIGKILL)
    second.kill()
    figures["kills"] += 2
    assert 1 == third.do("reap")
    assert 0 == claims(name)


def test_a_supervisor_in_a_container_looks_after_engines_outside(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    pid_namespace: tuple[str, ...],
    figures: Counter[str],
) -> None:
    served = serve("--size", "32M", prefix=pid_namespace).wait_ready()
    outside = start(name)
    inside = start(name, prefix=pid_namespace)
    assert 16 == outside.do("store", numbers=SIXTEEN)
    assert {"right": 16, "missing": 0, "wrong": 0} == inside.do("check", numbers=SIXTEEN)
    outside.do("claim", numbers=CLAIMED)
    outside.kill()
    figures["kills"] += 1
    assert "3 claims" in served.wait_log("reaped client")
    # Whoever is refused is told a number that means something to him.
    refused = pegashm("serve", "--name", name, "--size", "32M")
    assert 1 == refused.returncode
    assert "(pid 1 in a PID namespace of its own, " in refused.stderr
    figures["refusals"] += 1


def test_a_number_used_again_says_nothing(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    pid_namespace: tuple[str, ...],
    figures: Counter[str],
) -> None:
    """A client dies and the very next process gets its number and attaches: it is not taken for the dead one."""
    served = serve().wait_ready()
    host = start(name, prefix=pid_namespace)
    for _ in range(3):
        first = host.do("spawn_as", pid=77)
        host.do("kill_child", pid=77)
        second = host.do("spawn_as", pid=77)
        figures["kills"] += 1
        # Either the supervisor was first, or the newcomer took the dead one's slot and reaped it himself.
        wait_until(lambda: 1 == claims(name), "reaped")
        served_again = {c["slot"]: c["pid"] for c in dump(name)["clients"]}  # type: ignore[attr-defined]
        assert 77 == served_again[second], f"slots were {first} and {second}"
        host.do("kill_child", pid=77)
        figures["kills"] += 1
        wait_until(lambda: 0 == claims(name), "reaped")
    assert served.process.poll() is None


def test_dump_tells_who_holds_what_in_numbers_of_ours(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    pid_namespace: tuple[str, ...],
) -> None:
    serve().wait_ready()
    inside = start(name, prefix=pid_namespace, label="inside")
    outside = start(name, label="outside")
    inside.do("claim", numbers=CLAIMED)
    outside.do("store", numbers=SIXTEEN)
    outside.do("pin", numbers=SIXTEEN[:4])

    by_label = {client["label"]: client for client in dump(name)["clients"]}  # type: ignore[attr-defined]
    assert (1, inside.pid) == (by_label["inside"]["pid"], by_label["inside"]["pid_here"])
    assert 3 == by_label["inside"]["claims"]
    assert outside.pid == by_label["outside"]["pid"] == by_label["outside"]["pid_here"]
    assert 4 == by_label["outside"]["pins"]
    text = pegashm("dump", "--name", name).stdout
    assert f"1 (here {inside.pid})" in text

    # Seen from a third namespace, neither is there; both are alive all the same.
    within = json.loads(
        pegashm("dump", "--name", name, "--json", prefix=pid_namespace).stdout,
    )["clients"]
    assert [(True, None), (True, None)] == [(c["alive"], c["pid_here"]) for c in within]
    assert "(not seen from here)" in pegashm("dump", "--name", name, prefix=pid_namespace).stdout
