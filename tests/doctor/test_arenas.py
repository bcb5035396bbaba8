"""Does the doctor see what is wrong with an arena, or left of one?"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm import _native
from pegashm.cache import Cache
from pegashm.doctor.arenas import check_arena, check_runtime
from pegashm.names import control_path, payload_path, pending_path

from tests.doctor.conftest import NOBODY, as_nobody, told, worst
from tests.served import NAMESPACE, Served


def test_supervised(serve: Callable[..., Served], name: str) -> None:
    serve().wait_ready()
    findings = told("--name", name)[f"arena {name}"]
    assert "ok" == worst(findings)[0]
    assert any("supervised" in finding["says"] for finding in findings)


def test_left_over(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    level, says, do = worst(told("--name", name)[f"arena {name}"])
    assert ("warning", True) == (level, "left over" in says)
    assert f"pegashm purge --name {name} --yes" in do
    with Cache.attach(name, namespace=NAMESPACE):
        level, says, do = worst(told("--name", name)[f"arena {name}"])
    assert ("warning", True) == (level, "1 clients use it and no supervisor" in says)


def test_found_without_being_named(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    assert f"arena {name}" in told()


def test_of_another_format(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with open(control_path(name), "r+b") as file:
        file.seek(8)
        file.write((99).to_bytes(2, "little"))
    level, says, do = worst(told("--name", name)[f"arena {name}"])
    assert "error" == level
    assert "99" in says
    assert str(_native.FORMAT_MAJOR) in says
    assert "purge" in do


def test_never_finished(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with open(control_path(name), "r+b") as file:
        file.write(bytes(8))
    level, says, do = worst(told("--name", name)[f"arena {name}"])
    assert ("error", True) == (level, "nobody is at work" in says)
    assert f"pegashm serve --name {name}" in do


def test_payload_gone_or_cut(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    payload = Path(payload_path(name, "/dev/shm", 0))
    os.truncate(payload, 4096)
    level, says, _ = worst(told("--name", name)[f"arena {name}"])
    assert ("error", True) == (level, "4096 bytes" in says)
    payload.unlink()
    level, says, _ = worst(told("--name", name)[f"arena {name}"])
    assert ("error", True) == (level, "cannot be had" in says)


def test_missing() -> None:
    level, says, do = worst(told("--name", "test-none")["arena test-none"])
    assert ("error", True) == (level, "there is no arena" in says)
    assert "pegashm serve --name test-none" in do


def test_not_for_this_user(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    level, says, do = worst(as_nobody(lambda: check_arena(name)))
    assert ("error", True) == (level, f"uid {NOBODY}" in says)
    assert "--group" in do


def test_may_read_but_not_write(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    os.chmod(control_path(name), 0o644)
    level, says, do = worst(as_nobody(lambda: check_arena(name)))
    assert ("error", True) == (level, "may not read and write" in says)
    assert "usermod -aG" in do


def test_remains_of_an_arena(name: str) -> None:
    Path(pending_path(name)).write_text("")
    findings = told()["leftovers"]
    mine = [finding for finding in findings if name in finding["says"]]
    assert ["warning"] == [finding["level"] for finding in mine]
    assert f"pegashm purge --name {name} --yes" == mine[0]["type"]


def test_runtime_folder_that_others_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    tmp_path.chmod(0o777)
    level, says, do = worst(check_runtime("kv0"))
    assert ("error", True) == (level, "can be changed by others" in says)
    assert f"chmod go-w {tmp_path}" in do
    tmp_path.chmod(0o755)
    assert "ok" == worst(check_runtime("kv0"))[0]


def test_runtime_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder away")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    (tmp_path / "kv0").mkdir()
    os.chown(tmp_path / "kv0", NOBODY, NOBODY)
    level, says, _ = worst(check_runtime("kv0"))
    assert ("error", True) == (level, f"belongs to uid {NOBODY}" in says)


def test_runtime_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, stat.S_IMODE(os.stat(folder).st_mode) | 0o055)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    level, says, do = worst(as_nobody(lambda: check_runtime("kv0")))
    assert ("error", True) == (level, "may not make" in says)
    assert "XDG_RUNTIME_DIR" in do


def test_shape_is_for_the_reader() -> None:
    """The text form: each warning is followed by what to type, and the last line sums up."""
    from tests.served import pegashm

    result = pegashm("doctor", "--name", "test-none", "--quiet")
    lines = result.stdout.splitlines()
    assert any(line.startswith("ERROR   arena test-none: there is no arena") for line in lines)
    assert any(line.startswith("        type: start it with") for line in lines)
    assert "findings" in lines[-1]
    assert 2 == result.returncode
