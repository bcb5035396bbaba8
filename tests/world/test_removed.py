"""What if somebody removes, shortens or hides the arena's files under living engines?

Engines go on with what they have mapped and join the next arena; the supervisor says what happened, removes
what is left and ends with status 1, for its service manager to start it anew. Shortening is the one thing that no
user of a file can survive for sure: whoever touches what was cut off dies of SIGBUS, and is not promised otherwise.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm.names import SHM_DIRECTORY, control_path, payload_path

from tests.served import Served, objects, pegashm
from tests.world.actors import SMALL, Actor, ActorError
from tests.world.mounts import mounted

EIGHT = list(range(8))
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


@pytest.mark.parametrize("victim", ["control", "payload"])
def test_rm_under_living_engines(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    figures: Counter[str],
    victim: str,
) -> None:
    served = serve(*SMALL).wait_ready()
    engine, other = start(name), start(name)
    assert 8 == engine.do("store", numbers=EIGHT)
    os.unlink(control_path(name) if victim == "control" else payload_path(name, SHM_DIRECTORY, 0))
    said = served.rest()
    assert 1 == served.process.returncode
    assert "was removed" in said
    assert "start `pegashm serve` again" in said.replace("\n", " ")

    # Two engines still share what they have mapped, and see that the name leads elsewhere.
    assert 8 == other.do("store", numbers=[n + 100 for n in EIGHT])
    judged = engine.do("check", numbers=[*EIGHT, *(n + 100 for n in EIGHT)])
    assert {"right": 16, "missing": 0, "wrong": 0} == judged
    assert not engine.do("linked")

    # The next arena is a new one; they join it when they look, and never mix the two.
    serve(*SMALL).wait_ready()
    engine.do("close")
    engine.do("attach")
    assert {"right": 0, "missing": 8, "wrong": 0} == engine.do("check", numbers=EIGHT)
    assert {"right": 8, "missing": 0, "wrong": 0} == other.do("check", numbers=EIGHT)
    assert 8 == engine.do("store", numbers=EIGHT)


@pytest.mark.timeout(600)  # the first of its kind in a process imports vLLM
@pytest.mark.parametrize("victim", ["control", "payload", "both"])
def test_rm_under_an_engines_attachment(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    figures: Counter[str],
    victim: str,
) -> None:
    """As vLLM's scheduler lives through it: it lets go of what was removed and joins what comes next."""
    pytest.importorskip("vllm", reason="the engine's side of it is vLLM's")
    from tests.world.engine import Engine

    served = serve(*SMALL).wait_ready()
    with Engine(name) as engine, start(name) as other:
        assert 8 == engine.store(8)
        if victim != "payload":
            os.unlink(control_path(name))
        if victim != "control":
            os.unlink(payload_path(name, SHM_DIRECTORY, 0))
        # Until it looks, it goes on with what it has mapped, and nobody's bytes are lost or mixed.
        assert 8 == engine.right(8)
        assert 8 == engine.store(8, first=100)
        assert {"right": 16, "missing": 0, "wrong": 0} == other.do(
            "check", numbers=[*EIGHT, *(n + 100 for n in EIGHT)]
        )
        served.rest()
        assert 1 == served.process.returncode
        engine.look()
        assert not engine.attached
        assert "was purged" in engine.said()
        assert not engine.look(), "there is nothing to join"

        serve(*SMALL).wait_ready()
        assert engine.look()
        assert engine.attached
        assert 0 == engine.right(8)
        assert 8 == engine.store(8)
        # Who has not looked yet still has the old one, alone.
        assert {"right": 8, "missing": 0, "wrong": 0} == other.do("check", numbers=EIGHT)
        assert {"right": 8, "missing": 0, "wrong": 0} == start(name).do("check", numbers=EIGHT)


def test_a_payload_file_that_is_cut_short(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    """Not promised, and shown: it cannot be prevented, it kills who touches it, and it is never opened."""
    served = serve(*SMALL).wait_ready()
    engine = start(name)
    assert 8 == engine.do("store", numbers=EIGHT)
    path = payload_path(name, SHM_DIRECTORY, 0)
    with open(path, "r+b") as payload, pytest.raises(PermissionError):
        fcntl.fcntl(payload, F_ADD_SEALS, F_SEAL_SHRINK)  # for memfds only
    os.truncate(path, 0)
    engine.tell("check", numbers=EIGHT)
    assert -signal.SIGBUS == engine.process.wait(30)
    figures["kills"] += 1
    said = served.rest()
    assert 1 == served.process.returncode
    assert "was cut to 0 of" in said
    assert set() == objects(name)


def test_a_read_only_shm_is_told_and_can_be_looked_at(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], figures: Counter[str]
) -> None:
    serve(*SMALL).wait_ready()
    engine = start(name)
    assert 8 == engine.do("store", numbers=EIGHT)
    with mounted("mount --bind /dev/shm /dev/shm", "mount -o remount,bind,ro /dev/shm") as prefix:
        newcomer = start(name, prefix=prefix, attached=False)
        with pytest.raises(ActorError) as told:
            newcomer.do("attach")
        assert "ResourceError" == told.value.kind
        messages = [told.value.said]
        for command in (("serve", *SMALL), ("purge", "--yes")):
            result = pegashm(command[0], "--name", name, *command[1:], prefix=prefix)
            assert 1 == result.returncode
            messages.append(result.stderr)
        result = pegashm("serve", "--name", f"{name}-x", *SMALL, prefix=prefix)
        assert 1 == result.returncode
        messages.append(result.stderr)
        for message in messages:
            assert "/dev/shm is mounted read-only here" in message
            assert "remount,rw /dev/shm" in message
            assert "Traceback" not in message
        figures["refusals"] += len(messages)
        assert 0 == pegashm("status", "--name", name, prefix=prefix).returncode
        assert 0 == pegashm("dump", "--name", name, prefix=prefix).returncode
        assert 8 == newcomer.do("read_only_tally")["ready"]


def test_after_a_restart_of_the_host_what_lies_in_a_directory_is_explained_and_made_anew(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    figures: Counter[str],
    tmp_path: Path,
) -> None:
    """/dev/shm is empty after a reboot; payload files on a disk are not, and nobody knows what is in them."""
    arguments = (*SMALL, "--directory", str(tmp_path))
    served = serve(*arguments).wait_ready()
    with start(name) as engine:
        assert 8 == engine.do("store", numbers=EIGHT)
    served.end(signal.SIGKILL)
    figures["kills"] += 2
    os.unlink(control_path(name))  # what a reboot does
    (old,) = tmp_path.iterdir()

    served = serve(*arguments).wait_ready()
    assert old.name in served.wait_log("left by an arena whose control region is gone")
    (new,) = tmp_path.iterdir()
    assert old != new
    assert {"right": 0, "missing": 8, "wrong": 0} == start(name).do("check", numbers=EIGHT)


def test_a_directory_shared_by_containers_with_a_shm_each(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor], tmp_path: Path
) -> None:
    """The same name, the same --directory, another /dev/shm: neither takes the other's payload."""
    arguments = (*SMALL, "--directory", str(tmp_path))
    serve(*arguments).wait_ready()
    outside = start(name)
    assert 8 == outside.do("store", numbers=EIGHT)
    with mounted("mount -t tmpfs -o size=16M,mode=1777 none /dev/shm") as prefix:
        second = serve(*arguments, prefix=prefix)
        second.wait_log("is left alone: it belongs to another arena of this name")
        second.wait_log("ready: arena")
        assert 2 == len(list(tmp_path.iterdir()))
        inside = start(name, prefix=prefix)
        assert {"right": 0, "missing": 8, "wrong": 0} == inside.do("check", numbers=EIGHT)
        assert 8 == inside.do("store", numbers=[n + 50 for n in EIGHT])
        assert {"right": 8, "missing": 0, "wrong": 0} == start(name).do("check", numbers=EIGHT)
        inside.kill()
        second.end(signal.SIGKILL)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="gives up root by setpriv"
)
def test_a_user_who_may_not_lock_so_much_is_told_how_much(name: str, figures: Counter[str]) -> None:
    prefix = (
        *("prlimit", "--memlock=1048576:1048576"),
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"),
    )
    look = [*prefix, sys.executable, "-c", "import pegashm._native"]
    if subprocess.run(look, cwd="/", capture_output=True, check=False).returncode:
        pytest.skip(f"other users may not read {sys.prefix}, or where its Python lies")
    result = pegashm("serve", "--name", name, "--size", "6M", "--require-lock", prefix=prefix)
    assert 1 == result.returncode
    for part in (
        "may lock 1 MiB",
        "the arena needs",
        "LimitMEMLOCK=infinity",
        "ulimit -l unlimited",
    ):
        assert part in result.stderr
    assert set() == objects(name)
    figures["refusals"] += 1
