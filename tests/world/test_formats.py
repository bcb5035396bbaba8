"""Do builds of another format refuse each other's arenas, in words that help, and leave them alone?

The header of a live arena is changed to what a newer or an older build would have written; the engines that
have it open read it once and go on. A newer minor format is opened: it only added fields.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm import _native
from pegashm.names import control_path

from tests.format.spec import fields_of
from tests.served import Served, objects, pegashm, refused, status
from tests.world.actors import SMALL, Actor, ActorError

MAJOR, MINOR, SIGNATURE = _native.FORMAT_MAJOR, _native.FORMAT_MINOR, _native.LAYOUT_SIGNATURE
FIELDS = {field.name: field for field in fields_of("Header")}
OTHERS = [
    pytest.param(
        {"format_major": MAJOR + 1},
        f"has format {MAJOR + 1}.{MINOR}",
        f"reads {MAJOR}.x",
        id="newer",
    ),
    pytest.param(
        {"format_major": MAJOR - 1},
        f"has format {MAJOR - 1}.{MINOR}",
        f"reads {MAJOR}.x",
        id="older",
    ),
    pytest.param(
        {"layout_signature": SIGNATURE ^ 0xFF},
        f"{SIGNATURE ^ 0xFF:016x}",
        f"{SIGNATURE:016x}",
        id="layout",
    ),
    pytest.param({"segment_count": 3}, "contradicts itself", "damaged", id="checksum"),
]


def overwrite(name: str, fields: dict[str, int]) -> None:
    with Path(control_path(name)).open("r+b") as control:
        for field, value in fields.items():
            control.seek(FIELDS[field].offset)
            control.write(value.to_bytes(FIELDS[field].size, "little"))


def original(name: str, fields: dict[str, int]) -> dict[str, int]:
    data = Path(control_path(name)).read_bytes()
    return {f: int.from_bytes(data[FIELDS[f].offset :][: FIELDS[f].size], "little") for f in fields}


@pytest.mark.parametrize(("fields", "theirs", "ours"), OTHERS)
def test_another_format_is_refused_with_both_sides_and_what_to_type(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    figures: Counter[str],
    fields: dict[str, int],
    theirs: str,
    ours: str,
) -> None:
    served = serve(*SMALL).wait_ready()
    working = start(name)
    assert 8 == working.do("store", numbers=list(range(8)))
    served.end(signal.SIGKILL)
    figures["kills"] += 1
    before = original(name, fields)
    overwrite(name, fields)

    purge_line = f"pegashm purge --name {name} --yes"
    messages = [refused(name, *SMALL, exit_status=1)]
    newcomer = start(name, attached=False)
    with pytest.raises(ActorError) as told:
        newcomer.do("attach")
    assert "FormatError" == told.value.kind
    messages.append(told.value.said)
    messages.append(status(name)["reason"])
    document = json.loads(pegashm("dump", "--name", name, "--json").stdout)
    assert "cannot tell" == document["verdict"]
    assert next(iter(fields.values())) == document["header"][next(iter(fields))]
    messages.append(document["error"])
    for message in messages:
        assert theirs in message
        assert ours in message
        assert purge_line in message
    figures["refusals"] += len(messages)

    # Who has it open goes on, and nobody has touched it: with its own header back it is whole.
    assert {"right": 8, "missing": 0, "wrong": 0} == working.do("check", numbers=list(range(8)))
    overwrite(name, before)
    serve(*SMALL).wait_ready()
    newcomer.do("attach")
    assert {"right": 8, "missing": 0, "wrong": 0} == newcomer.do("check", numbers=list(range(8)))


def test_a_newer_minor_format_is_opened_by_all(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor]
) -> None:
    serve(*SMALL).wait_ready().end()
    overwrite(name, {"format_minor": MINOR + 9})
    served = serve(*SMALL).wait_ready()
    served.wait_log("re-adopted")
    assert 8 == start(name).do("store", numbers=list(range(8)))
    assert f"format     {MAJOR}.{MINOR + 9}," in pegashm("dump", "--name", name).stdout


def test_what_the_message_says_to_type_works(
    name: str, serve: Callable[..., Served], start: Callable[..., Actor]
) -> None:
    """The way out of a format that this build cannot read, payload included."""
    serve(*SMALL).wait_ready().end()
    overwrite(name, {"format_major": MAJOR + 1})
    assert 0 == pegashm("purge", "--name", name, "--yes").returncode
    assert set() == objects(name)
    serve(*SMALL).wait_ready()
    assert 8 == start(name).do("store", numbers=list(range(8)))


@pytest.mark.timeout(600)  # the first of its kind in a process imports vLLM
def test_an_engine_starts_without_an_arena_it_cannot_read_unless_required(
    name: str, serve: Callable[..., Served], figures: Counter[str]
) -> None:
    pytest.importorskip("vllm", reason="the engine's side of it is vLLM's")
    from tests.world.engine import Engine

    serve(*SMALL).wait_ready()
    overwrite(name, {"format_major": MAJOR + 1})
    both = (f"has format {MAJOR + 1}.{MINOR}", f"this build reads {MAJOR}.x")
    assert all(side in Engine.refused(name) for side in both)
    figures["refusals"] += 1
    with Engine(name) as engine:
        said = engine.said()
        assert all(side in said for side in (*both, "running without PegaShm"))
        assert not engine.look()
        overwrite(name, {"format_major": MAJOR})
        assert engine.look()
        assert 4 == engine.store(4)
