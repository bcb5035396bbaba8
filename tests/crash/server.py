"""The fork server: how do hundreds of children die without hundreds of interpreters having to start?

Run with the checked flavour of the native module, it imports all once and then forks a child for each
request, so that a death costs milliseconds. Nothing of an arena is open in the server itself: a
forked child opens and attaches for itself (locks are not inherited, see `pegashm/liveness.py`).

One JSON request a line on standard input, one JSON answer a line on standard output:
 {"do": "start", "operation", "arena", "crash", "log"}  -> {"pid"}
 {"do": "begin", "procedure", "arena", "line", "crash", "log", "words", "passes"} -> {"pid"}
 {"do": "work", "options", "line", "passes", "runtime"} -> {"pid"}
 {"do": "wait", "pid", "seconds"}                       -> {"state": killed | stopped | exited | hung, "code"}
`operation` names one of `operations.py`, `procedure` one of `procedures.py`, `options` are a transport worker's. Ends when its input ends, and its
children with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.errors import PegaShmError
from pegashm.keys import Namespace
from pegashm.liveness import copiers_byte, owner_byte, try_lock
from pegashm.transport import worker

from tests.crash.blocks import namespace
from tests.crash.operations import OPERATIONS, Actor, Operation
from tests.crash.procedures import PROCEDURES
from tests.crash.tracing import Line, Tracer, of_a_worker

__all__ = ["REFUSED", "perform"]

PR_SET_PDEATHSIG = 1
REFUSED = 3  # exit status of a procedure that ended with a PegaShmError
BY_NAME = {operation.name: operation for operation in OPERATIONS}
LIBC = ctypes.CDLL(None)


def perform(operation: Operation, arena_name: str, arm: Callable[[], None]) -> None:
    """One operation in this process: attach, prepare, then `arm`, then the act itself."""
    actor = Actor(arena_name)
    if operation.attach is not None:
        there = namespace(operation.attach, maximum_bytes=operation.maximum_bytes)
        if operation.slot is None:
            actor.client = Cache.attach(arena_name, namespace=there, label="child")
        else:
            actor.client = attach_at(operation.slot, arena_name, there)
    operation.prepare(actor)
    arm()
    operation.act(actor)


def attach_at(slot: int, arena_name: str, there: Namespace) -> Cache:
    """A client in this very slot, whatever dead clients lie in others: Cache.attach would reap them."""
    arena = open_arena(arena_name)
    assert try_lock(arena.control_fd, owner_byte(slot))
    assert try_lock(arena.control_fd, copiers_byte(slot), exclusive=False)
    namespace_id = arena.region.register_namespace(
        there.fingerprint, label=there.label, now_ns=time.time_ns()
    )
    incarnation = arena.region.attach_client(
        slot,
        pid=os.getpid(),
        started_at=0,
        now_ns=time.time_ns(),
        namespace_id=namespace_id,
        mode=0,
        engine_id=b"",
        label="child",
    )
    return Cache(arena, slot, incarnation, namespace_id)


def proceed(request: dict[str, Any], arm: Callable[[], None]) -> int:
    """One procedure in this process, from its first line, traced if that is asked for; its exit status."""
    procedure = next(each for each in PROCEDURES if each.name == request["procedure"])
    tracer = Tracer(Line(*request["line"]) if request["line"] else None)
    arm()
    try:
        if request["line"] or request["passes"]:
            tracer.start()
        procedure.act(request["arena"])
    except PegaShmError as error:
        Path(request["words"] or os.devnull).write_text(str(error), encoding="utf-8")
        return REFUSED
    finally:
        tracer.stop()
    if request["passes"]:
        passes = [(*line, count) for line, count in tracer.passes.items()]
        Path(request["passes"]).write_text(json.dumps(passes), encoding="utf-8")
    return 0


def work(request: dict[str, Any]) -> int:
    """A transport worker's whole life in this process, traced if that is asked for; its exit status."""
    os.environ["RUNTIME_DIRECTORY"] = request["runtime"]
    tracer = Tracer(Line(*request["line"]) if request["line"] else None, of_a_worker)
    if request["line"] or request["passes"]:
        tracer.start()
    status = worker.main([request["options"]])
    tracer.stop()
    if request["passes"]:
        passes = [(*line, count) for line, count in tracer.passes.items()]
        Path(request["passes"]).write_text(json.dumps(passes), encoding="utf-8")
    return status


def child(request: dict[str, Any]) -> None:
    """In the forked child: never returns. It leaves without a word to the arena, as one that crashed."""
    status = 1
    try:
        # Whatever becomes of the server, no stopped child stays behind.
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        faulthandler.enable()

        def arm() -> None:
            os.environ["PEGASHM_CRASH_LOG"] = request["log"]
            os.environ["PEGASHM_CRASH"] = request["crash"]

        if request["do"] == "begin":
            status = proceed(request, arm)
        elif request["do"] == "work":
            status = work(request)
        else:
            perform(BY_NAME[request["operation"]], request["arena"], arm)
            status = 0
    except BaseException:  # noqa: BLE001 - whatever it was, the forked child may not return
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> dict[str, Any]:
    """What became of a child. One that neither ends nor stops in time is killed, and said to have hung."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"state": "hung", "code": 0}
        time.sleep(0.0003)
    if os.WIFSTOPPED(status):
        return {"state": "stopped", "code": os.WSTOPSIG(status)}
    if os.WIFSIGNALED(status):
        return {"state": "killed", "code": os.WTERMSIG(status)}
    return {"state": "exited", "code": os.WEXITSTATUS(status)}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] != "wait":
            pid = os.fork()
            if pid == 0:
                child(request)
            answer: dict[str, Any] = {"pid": pid}
        else:
            answer = wait(int(request["pid"]), float(request["seconds"]))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
