"""Does `pegashm top` show what is there, on a terminal, in a pipe, and when there is nothing to show?"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from pegashm.exporter.reading import Reader
from pegashm.top.rates import moment
from pegashm.top.screen import screen

from tests.admin.scenes import attach, key_of, run, said, store
from tests.arenas import Shape
from tests.served import Served, pegashm


def _drawn(name: str, width: int, height: int = 40) -> str:
    """A screen as plain text."""
    reader = Reader(name, survey_seconds=0, fresh_seconds=0)
    now = moment(reader.read(), reader.read())
    reader.close()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=width, height=height, file=nowhere)
        console.print(screen(now, width=width, height=height, interval=2.0))
        return console.export_text()


def test_what_is_there(arena_name: Callable[..., str]) -> None:
    name = arena_name(Shape(reuse_registers=64))
    with attach(name, "a", reserved_bytes=16384) as one, attach(name, "b") as two:
        store(one, range(10))
        store(two, range(4))
        one.find([key_of(n) for n in range(3)], pin=True)
        one.count_asked([key_of(n) for n in range(10)])
        text = _drawn(name, 120)
        report = said("top", "--name", name, "--interval", "0.1")
    for words in (
        "model a",
        "model b",
        "engine a",
        "14 ready, 3 pinned",
        "unsupervised",
        "publish",
        "16 KiB",
    ):
        assert words in text, words
    assert "pegashm serve --name" in text  # what to type, since nobody supervises it
    assert (14, 3, 2) == (report["blocks"]["ready"], report["pinned"], report["clients"])
    assert {"model a": 40960, "model b": 16384} == report["namespaces"]
    assert 1 == report["exit_status"]


def test_rates_are_of_the_interval(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(5))
        reader = Reader(name, fresh_seconds=0)
        before = reader.read()
        cache.find([key_of(n) for n in range(8)])
        cache.evict(cache.find([key_of(0)])[0])
        time.sleep(0.05)
        now = moment(reader.read(), before)
        reader.close()
    assert pytest.approx(9 / now.seconds) == now.rates["lookups"]
    assert pytest.approx(1 / now.seconds) == now.rates["evicted"]
    assert 0 == now.rates["stored"]
    assert pytest.approx(6 / 9) == now.shares.memory
    assert pytest.approx(3 / 9) == now.shares.missed


def test_an_arena_made_anew_has_no_rates(name: str) -> None:
    from tests.arenas import make_arena, remove_arena

    reader = Reader(name, fresh_seconds=0)
    make_arena(Shape(), name)
    with attach(name) as cache:
        store(cache, range(5))
        before = reader.read()
    remove_arena(name)
    make_arena(Shape(), name)
    reader.read()
    now = moment(reader.read(), before)
    reader.close()
    assert now.reading.is_open
    assert not now.has_rates


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(arena_name: Callable[..., str], width: int) -> None:
    name = arena_name(Shape(spill_records=16, remote_buckets=64, reuse_registers=64))
    with attach(name, "a") as cache:
        store(cache, range(30))
        text = _drawn(name, width)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width


def test_labels_are_text_and_nothing_else(arena_name: Callable[..., str]) -> None:
    """Neither markup nor control characters out of shared memory reach the terminal."""
    from pegashm.cache import Cache
    from pegashm.keys import Namespace

    name = arena_name()
    hostile = "[red]\x1b[2J<b>"
    with Cache.attach(
        name, namespace=Namespace(fingerprint=b"h" * 32, label=hostile), label=hostile
    ):
        text = _drawn(name, 140)
    assert "[red]\\x1b[2J<b>" in text
    assert "\x1b[2J" not in text


def test_no_arena() -> None:
    report = said("top", "--name", "test-none", "--interval", "0.1")
    assert (2, "missing") == (report["exit_status"], report["state"])
    status, text = run("top", "--name", "test-none", "--once")
    assert (2, True) == (status, "pegashm serve --name test-none" in text)


def test_a_supervised_arena_is_well(serve: Callable[..., Served], name: str) -> None:
    serve().wait_ready()
    result = pegashm("top", "--name", name, "--once", "--interval", "0.2")
    assert 0 == result.returncode, result.stdout
    assert "ready" in result.stdout
    assert "transport worker" not in result.stdout  # no tier below memory: no panel of it


def test_lines_in_a_pipe(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(5))
        result = pegashm("top", "--name", name, "--interval", "0.1", "--count", "3")
    lines = result.stdout.splitlines()
    assert 0 == result.returncode
    assert (4, True) == (len(lines), lines[0].startswith("TIME"))
    assert "\x1b" not in result.stdout


def test_on_a_terminal_until_q(arena_name: Callable[..., str], tmp_path: Path) -> None:
    """It draws, obeys keys, and leaves the terminal as it was."""
    name = arena_name()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    before = termios.tcgetattr(slave)
    command = [sys.executable, "-m", "pegashm", "top", "--name", name, "--interval", "0.5"]
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    seen = ""

    def until(words: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while words not in seen:
            assert time.monotonic() < deadline, f"not seen: {words!r} in {seen[-2000:]!r}"
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 65536).decode(errors="replace")

    try:
        until(name)
        os.write(master, b"p")
        until("PAUSED")
        os.write(master, b"q")
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 65536).decode(errors="replace")
        assert 0 == process.poll()
        assert before == termios.tcgetattr(slave)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_json_is_one_object(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    result = pegashm("top", "--name", name, "--json", "--interval", "0.1")
    assert {"rates", "shares", "health", "blocks", "exit_status"} <= set(json.loads(result.stdout))
