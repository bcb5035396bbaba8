"""Does any call of an engine wait for somebody who stands still, or for somebody who is dead?

Everybody else is stopped (SIGSTOP) or killed at the worst moments there are; the engine goes on meanwhile, one
request after the other. When the stopped are killed as well, all that they held comes back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm.arena import open_arena
from pegashm.liveness import TRANSPORT_BYTE, holder_alive
from pegashm.units import KIB

from tests.arenas import Shape
from tests.contract.hostage import POSITIONS
from tests.contract.hostages import PATIENCE_S, Hostage, Keeper, crash_points
from tests.contract.rig import Figures, Rig
from tests.figures import LONG
from tests.served import Served
from tests.soak.plan import SHAPE

Make = Callable[..., Rig]
Name = Callable[..., str]
Check = Callable[[str, Figures], None]

SMALL = Shape(segment_bytes=64 * KIB, segments_per_arena=(3,))
STEPS = 60 if LONG else 20
POINTS_AT_ONCE = 4
pytestmark = pytest.mark.timeout(600)  # the first may have to build the core


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("end", ["stopped", "killed"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_process_in_the_way(
    position: str,
    end: str,
    gpu: bool,
    rig: Make,
    arena_name: Name,
    keeper: Keeper,
    figures: Figures,
    nothing_left: Check,
) -> None:
    name = arena_name(SMALL)
    engine = rig(name, gpu=gpu)
    engine.until_hits()
    if position == "reaping":
        keeper.take(name, "pins").kill()  # somebody dead, for the reaper to be in the middle of
    hostage = keeper.take(name, position)
    finish(hostage, end, figures)
    engine.steps(STEPS)
    other = rig(name)
    other.steps(STEPS)
    other.shutdown()
    finish(hostage, "killed", figures)
    engine.until_hits()
    engine.shutdown()
    nothing_left(name, figures)


def finish(hostage: Hostage, end: str, figures: Figures) -> None:
    if end == "stopped":
        hostage.stop()
        figures.stops += 1
    else:
        hostage.kill()
        figures.kills += 1


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_others_at_every_crash_point(
    end: str,
    rig: Make,
    arena_name: Name,
    keeper: Keeper,
    figures: Figures,
    nothing_left: Check,
    chance: random.Random,
) -> None:
    """Real workers stop, or die, at a numbered instruction in the middle of what they do; several at once."""
    if not keeper.checked:
        pytest.skip("the checked build needs a C++ compiler and Cython")
    points = crash_points()
    chance.shuffle(points)
    if not LONG:
        points = points[:16]
    for begin in range(0, len(points), POINTS_AT_ONCE):
        name = arena_name(SHAPE)
        engine = rig(name)
        engine.until_hits()
        suffix = ":stop" if end == "stop" else ""
        hostages = {
            point: keeper.take(
                name,
                "busy",
                seed=chance.getrandbits(32),
                crash=f"{point}:{chance.randint(1, 5)}{suffix}",
            )
            for point in points[begin : begin + POINTS_AT_ONCE]
        }
        for point, hostage in hostages.items():
            engine.steps(2)
            # Not every point is passed by everybody; whoever has not come by is stopped where it is.
            if hostage.settle("Tt-ZX", 1.0):
                figures.points.add(point)
            elif end == "stop":
                hostage.stop()
        engine.steps(STEPS)
        for hostage in hostages.values():
            finish(hostage, "killed", figures)
        figures.stops += len(hostages) * (end == "stop")
        engine.until_hits()
        engine.shutdown()
        nothing_left(name, figures)


def test_everybody_at_a_random_moment(
    rig: Make,
    arena_name: Name,
    keeper: Keeper,
    figures: Figures,
    nothing_left: Check,
    chance: random.Random,
) -> None:
    name = arena_name(SHAPE)
    engine = rig(name)
    for round_ in range(12 if LONG else 4):
        hostages = [keeper.take(name, "busy", seed=chance.getrandbits(32)) for _ in range(4)]
        engine.steps(chance.randint(1, 8))
        for hostage in hostages:
            finish(hostage, ("stopped", "killed")[round_ % 2], figures)
        engine.steps(STEPS)
        for hostage in hostages:
            hostage.kill()
        engine.until_hits()
    engine.shutdown()
    nothing_left(name, figures)


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_the_supervisor(
    end: str, rig: Make, name: str, serve: Callable[..., Served], figures: Figures
) -> None:
    """While it populates: what is ready is used, and nothing waits for the rest."""
    served = serve("--size", "64M").wait_ready()
    engine = rig(name)
    finish(Hostage(served.process.pid), end, figures)
    engine.until_hits()
    engine.steps(STEPS)


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_the_transport_worker(
    end: str,
    rig: Make,
    name: str,
    serve: Callable[..., Served],
    figures: Figures,
    tmp_path: Path,
) -> None:
    """Blocks are on SSD and nobody brings them: a request waits for its deadline at most, a call for nobody."""
    spill = ("--spill", str(tmp_path / "blocks.spill"), "--spill-size", "64M")
    serve("--size", "4M", "--segment-size", "64K", *spill).wait_ready()
    pid = transport_worker(name)
    engine = rig(name, spill_deadline_ms=200)
    engine.reset_chance = 0.0  # a namespace of its own has nothing on SSD yet
    engine.until_hits()
    until(engine.is_on_ssd)
    until(engine.evict_all)
    assert engine.pending_steps(STEPS), "nothing was waited for"
    finish(Hostage(pid), end, figures)
    for _ in range(4):
        engine.evict_all()
        engine.pending_steps(STEPS // 2)
    if end == "stopped":
        finish(Hostage(pid), "killed", figures)
    assert transport_worker(name, not_pid=pid) != pid
    engine.until_hits()


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def transport_worker(name: str, not_pid: int = 0) -> int:
    """The process id of the one that serves, and is not that one."""
    with open_arena(name) as arena:

        def serving() -> int:
            header = arena.region.header
            ready = header["transport_path"] and header["spill_usable"]
            alive = holder_alive(arena.control_fd, TRANSPORT_BYTE)
            return int(header["transport_pid"]) if ready and alive else 0

        until(lambda: serving() not in (0, not_pid))
        return serving()
