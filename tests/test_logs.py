"""Can an operator rely on the log: its format, its names, its ids, and that it does not drown him?

Format and limits by calling `tell`; names by reading the sources and the docs; ids with a real supervisor and a real
transport worker, compared with what the dump says.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pegashm import logs, notices
from pegashm.errors import ConfigError
from pegashm.logs import Limiter, LogConfig, tell
from pegashm.notices import NOTICES, Notice

from tests.served import PATIENCE_SECONDS, Served, pegashm
from tests.tools.scenes import client_process

ROOT = Path(__file__).parents[1]
STABLE = {"time", "epoch", "level", "event", "message", "process_pid"}
LOUD = Notice("test_loud", logging.WARNING)
SELDOM = Notice("test_seldom", logging.WARNING, 10.0)

Lines = Callable[..., list[str]]


class Said:
    """What goes to standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """This process's log is as it was afterwards."""
    logger = logs.logger
    before = (logger.handlers[:], logger.level, logger.propagate, logs.configuration())
    monkeypatch.setattr(logs, "_limiter", Limiter())
    yield Said(capsys)
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]
    logs._configuration = before[3]


# -- the lines -----------------------------------------------------------------------------------------


def test_a_line_of_text(said: Said) -> None:
    logs.configure(LogConfig())
    tell(LOUD, "%d of %s", 3, "these", slot=7)
    (line,) = said.getvalue().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d warning \[test_loud\] 3 of these", line)


def test_a_line_of_json(said: Said) -> None:
    logs.configure(LogConfig(format="json", arena="kv0", process="supervisor"))
    tell(LOUD, "%d of %s", 3, "th\u00e9se\nlines", slot=7, host_id="ab")
    (line,) = said.getvalue().splitlines()
    fields = json.loads(line)
    assert {*STABLE, "arena", "process", "slot", "host_id"} == set(fields)
    assert ("warning", "test_loud", "3 of th\u00e9se\nlines") == (
        fields["level"],
        fields["event"],
        fields["message"],
    )
    assert ("kv0", "supervisor", os.getpid()) == (
        fields["arena"],
        fields["process"],
        fields["process_pid"],
    )
    assert fields["time"].endswith("Z")
    at = datetime.fromisoformat(fields["time"].replace("Z", "+00:00")).timestamp()
    assert abs(at - fields["epoch"]) < 0.002


def test_levels(said: Said) -> None:
    logs.configure(LogConfig(level="error"))
    tell(LOUD, "not worth it")
    tell(Notice("test_error", logging.ERROR), "worth it")
    (line,) = said.getvalue().splitlines()
    assert "worth it" in line
    for wrong in ({"level": "loud"}, {"format": "xml"}):
        with pytest.raises(ConfigError, match=r"got '(loud|xml)'"):
            LogConfig(**wrong)


def test_an_exception_is_one_object(said: Said) -> None:
    logs.configure(LogConfig(format="json"))
    try:
        raise ValueError("oh")
    except ValueError:
        tell(LOUD, "it failed", trace=True)
    (line,) = said.getvalue().splitlines()
    assert "ValueError: oh" in json.loads(line)["traceback"]


def test_nobody_reads_the_log(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    logs.configure(LogConfig())

    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    tell(LOUD, "to nobody")


def test_in_an_engines_log(caplog: pytest.LogCaptureFixture, said: Said) -> None:
    engine = logging.getLogger("an engine")
    tell(LOUD, "%s", "text", to=engine)
    assert ["PegaShm [test_loud]: text"] == [record.getMessage() for record in caplog.records]


# -- what is said again and again ------------------------------------------------------------------------


def test_the_same_is_said_seldom_and_counted() -> None:
    now = [100.0]
    limiter = Limiter(lambda: now[0])
    assert (True, 0) == limiter.ask(SELDOM, "a")
    assert [(False, 0)] * 3 == [limiter.ask(SELDOM, "a") for _ in range(3)]
    assert (True, 0) == limiter.ask(SELDOM, "b"), "each subject has its own"
    now[0] += 9.9
    assert (False, 0) == limiter.ask(SELDOM, "a")
    now[0] += 0.2
    assert (True, 4) == limiter.ask(SELDOM, "a")
    now[0] += 11
    assert (True, 0) == limiter.ask(SELDOM, "a")


def test_once_is_once() -> None:
    now = [0.0]
    limiter = Limiter(lambda: now[0])
    assert limiter.ask(notices.CHUNK_TOO_LARGE)[0]
    now[0] = 1e9
    assert not limiter.ask(notices.CHUNK_TOO_LARGE)[0]


def test_subjects_are_bounded() -> None:
    limiter = Limiter()
    for number in range(5000):
        assert limiter.ask(SELDOM, number)[0]
    assert len(limiter._told) <= 1024


def test_a_line_says_how_many_were_left_out(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    now = [0.0]
    monkeypatch.setattr(logs, "_limiter", Limiter(lambda: now[0]))
    logs.configure(LogConfig(format="json"))
    for _ in range(5):
        tell(SELDOM, "again: %s", "x")
    now[0] = 20.0
    tell(SELDOM, "again: %s", "x")
    first, second = map(json.loads, said.getvalue().splitlines())
    assert "again: x" == first["message"]
    assert "suppressed" not in first
    assert "again: x (4 more like it since the last line)" == second["message"]
    assert 4 == second["suppressed"]


def test_what_is_not_logged_is_not_counted(said: Said) -> None:
    logs.configure(LogConfig(level="error"))
    tell(SELDOM, "nobody sees it")
    logs.configure(LogConfig())
    tell(SELDOM, "the first that is seen")
    assert "(" not in said.getvalue()


# -- names ---------------------------------------------------------------------------------------------


def sources() -> list[Path]:
    return [
        path
        for folder in ("pegashm", "connector", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("logs.py", "notices.py")
    ]


def test_every_line_is_a_notice() -> None:
    """Nobody speaks to a logger but `tell`, which wants a notice."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in (
                *("debug", "info", "warning", "error", "exception", "critical"),
                *("warning_once", "info_once"),
            ):
                raise AssertionError(f"{path}:{node.lineno}: say it by logs.tell, with a notice")


def test_every_notice_is_used() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources())
    constants = {constant for constant, value in vars(notices).items() if isinstance(value, Notice)}
    assert len(constants) == len(NOTICES)
    unused = {constant for constant in constants if not re.search(rf"\b{constant},", text)}
    assert not unused
    for constant in constants:
        assert constant.lower() == getattr(notices, constant).name


def test_the_docs_have_every_event_with_its_level() -> None:
    """docs/logs.md: rows of `| event | level | what happened | what to do |`."""
    text = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    told = {name: level for name, level, _, _ in rows}
    assert len(told) == len(rows), "an event stands there twice"
    expected = {name: logging.getLevelName(one.level).lower() for name, one in NOTICES.items()}
    assert expected == told


# -- real processes ---------------------------------------------------------------------------------------


def objects_in(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def test_supervisor_and_worker_speak_json_with_the_ids_of_the_dump(
    name: str, serve: Callable[..., Served], tmp_path: Path
) -> None:
    spill = str(tmp_path / "one.spill")
    served = serve(
        *("--size", "32M", "--log-format", "json", "--spill", spill, "--spill-size", "64M")
    )
    served.wait_log("arena_populated")
    served.wait_log("spill_in_use")
    with client_process(name) as child:
        dump = json.loads(pegashm("dump", "--name", name, "--json").stdout)
        (client,) = (row for row in dump["clients"] if row["pid"] == child.pid)
        child.kill()
        child.wait(PATIENCE_SECONDS)
        served.wait_log("client_reaped")
    assert 0 == served.end()
    lines = objects_in(served.log)
    assert all(set(line) >= STABLE for line in lines)
    assert {name} == {line["arena"] for line in lines}
    assert {line["event"] for line in lines} <= set(NOTICES)
    events = {line["event"]: line for line in lines}
    reaped = events["client_reaped"]
    assert {key: client[key] for key in ("slot", "pid", "label")} == {
        key: reaped[key] for key in ("slot", "pid", "label")
    }
    assert 1 == reaped["undone"]["claims"]
    assert dump["supervisor"]["pid"] == events["arena_ready"]["process_pid"]
    opened = events["spill_opened"]
    assert ("transport worker", dump["spill"]["worker_pid"]) == (
        opened["process"],
        opened["process_pid"],
    )
    assert (0, spill) == (opened["spill_file"], opened["path"])
    assert "ending" in events


def test_why_it_could_not_start_is_json_too(name: str, serve: Callable[..., Served]) -> None:
    served = serve("--size", "32M", env=os.environ | {"PEGASHM_LOG_FORMAT": "json"})
    served.wait_ready()
    second = serve("--size", "32M", "--log-format", "json", "--log-level", "error")
    (line,) = objects_in(second.rest())
    assert ("failed", "error") == (line["event"], line["level"])
    assert name in line["message"]
    assert 1 == second.process.returncode
    assert 0 == served.end(signal.SIGTERM)


def test_only_what_is_asked_for(serve: Callable[..., Served]) -> None:
    served = serve("--size", "32M", "--no-lock", "--log-level", "error").wait_ready()
    assert 0 == served.end()
    assert "" == served.log
