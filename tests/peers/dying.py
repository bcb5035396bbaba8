"""A fetch of which one side dies, or stands still, at a line of Python; what has to be so then, and when all goes on.

The engine that asked has an answer by its deadline or learns that its worker is gone; what it then finds in memory is right in
every byte; the other side ends up without pins, claims and leases; and once the dead has a successor (or the stopped
goes on) everything can be fetched. Shared by the tests over TCP and those over real verbs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pegashm import fsck
from pegashm.transport.messages import Answer

from tests.crash.tracing import Line
from tests.peers.rig import BYTES, Host
from tests.transport.rig import MACHINE, PATIENCE_SECONDS, eventually

__all__ = ["PART", "chosen_of", "die_at_each", "lines_of"]

DEADLINE_MS = int(2500 * MACHINE)
LATE_SECONDS = 5.0 * MACHINE  # of the machine's own
COUNT = 24
PART = os.environ.get("PEGASHM_LINES", "").replace("all", "1/1")


def chosen_of(lines: Iterable[Line], chance: random.Random, sample: int) -> list[Line]:
    """At which of them to die. PEGASHM_LINES=2/8: the second eighth of all, `all`: all."""
    if not PART:
        return sorted(chance.sample(list(lines), sample))
    part, of = map(int, PART.split("/"))
    return sorted(lines)[part - 1 :: of]


def order(line: Line | None, number: signal.Signals, passes: str = "") -> dict[str, Any]:
    return {"line": line, "signal": number.name, "passes": passes}


def stood_still(host: Host) -> bool:
    """Dead, or stopped."""
    try:
        text = Path(f"/proc/{host.process.pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return text.rpartition(")")[2].split()[0] in "ZTt"


def lines_of(hosts: tuple[Host, Host], side: int, folder: Path) -> list[Line]:
    """What a fetch passes on that side when nobody disturbs it."""
    passes = folder / f"passes{side}"
    server, reader = hosts
    for number, host in enumerate(hosts):
        host.spawn(order(None, signal.SIGKILL, str(passes)) if number == side else None)
    keys = server.store(range(1, COUNT + 1), BYTES)
    eventually(lambda: reader.sees(keys) == COUNT)

    def came() -> bool:
        fetch_anyway(reader, keys)  # traced, a first connection may take too long
        return reader.judge(keys) == COUNT

    eventually(came)
    reader.evict(keys)
    for host in hosts:
        assert 0 == host.end(), host.said()
    return [Line(file, number) for file, number, _ in json.loads(passes.read_text())]


def fetch_anyway(reader: Host, keys: list[bytes]) -> list[Answer] | None:
    """Ask, whatever becomes of it; None when nobody could be asked. Never waits beyond the deadline."""
    began = time.monotonic()
    ticket = None
    while ticket is None and time.monotonic() < began + MACHINE and not stood_still(reader):
        ticket = reader.client.promote(keys, reader.cache.namespace_id, DEADLINE_MS)
        time.sleep(0.005)
    if ticket is None:
        return None
    asked = time.monotonic()
    while time.monotonic() < asked + DEADLINE_MS / 1000 + LATE_SECONDS:
        for reply in reader.client.replies():
            if reply.request_id == ticket:
                return [Answer(outcome) for outcome in reply.outcomes]
        if stood_still(reader) and reader.process.poll() is None:
            break  # stopped: its engine gives up by its own clock
        time.sleep(0.005)
    else:
        raise AssertionError("no answer by the deadline")
    return None


def undisturbed(server: Host, reader: Host, keys: list[bytes], line: Line) -> None:
    """All is well again: everything can be fetched, nothing is held. Who stands still only now is told to go on."""

    def all_there() -> bool:
        for host in (server, reader):
            host.go_on()
        return reader.judge(keys) + reader.sees(keys) == COUNT

    deadline = time.monotonic() + 3 * PATIENCE_SECONDS  # it is greeted less and less often
    while not all_there() or reader.judge(keys) < COUNT:
        assert time.monotonic() < deadline, (
            f"never whole again after {line}: outcomes {reader.outcomes(keys)}, there "
            f"{server.outcomes(keys)}, known {reader.peers()}, {list(reader.arena.region.remote_hosts())}"
        )
        if all_there():
            fetch_anyway(reader, [k for k, o in zip(keys, reader.outcomes(keys), strict=True) if o])
    for host in (server, reader):
        host.cache.reap_dead()
        eventually(lambda: not host.arena.region.blocks()["pins"].any())  # noqa: B023
        eventually(lambda: not host.arena.region.tally()["claimed"])  # noqa: B023
        report = fsck.check(host.arena)
        assert report.clean, report


def die_at_each(
    hosts: tuple[Host, Host], side: int, number: signal.Signals, lines: Iterable[Line]
) -> tuple[int, int]:
    """One fetch for each line; how often that side stood still there, and how many blocks came all the same."""
    server, reader = hosts
    hosts[1 - side].spawn()
    died = fetched = 0
    keys = server.store(range(1, COUNT + 1), BYTES)
    for line in lines:
        print(line, flush=True)
        hosts[side].spawn(order(line, number))
        # Not by hints alone: those of its life before are there a little longer.
        eventually(
            lambda: (
                stood_still(hosts[side]) or (reader.has_met(server) and reader.sees(keys) == COUNT)
            )
        )
        answers = fetch_anyway(reader, keys)
        reader.judge(keys)
        fetched += (answers or []).count(Answer.OK)
        # Some lines are passed only now and then, some when it ends.
        told_to_end = not stood_still(hosts[side])
        if told_to_end:
            hosts[side].process.terminate()
            eventually(lambda: stood_still(hosts[side]))
        died += hosts[side].process.poll() != 0
        if number == signal.SIGSTOP and not told_to_end:
            hosts[side].go_on()
            undisturbed(server, reader, keys, line)
        hosts[side].kill()
        hosts[side].spawn()
        undisturbed(server, reader, keys, line)
        reader.evict(keys)
        hosts[side].kill()
    return died, fetched
