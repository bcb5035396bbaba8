"""How do these tests ask the doctor? As a command, in a mount namespace of its own, or in a child that gave up root."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from pegashm.doctor.finding import Finding

from tests.served import pegashm

__all__ = ["NOBODY", "as_nobody", "told", "worst"]

NOBODY = 65534
LEVELS = ("ok", "warning", "error")


def told(*arguments: str, **options: Any) -> dict[str, list[dict[str, str]]]:
    """What `pegashm doctor --json` says, by check; its exit status must be that of the worst."""
    result = pegashm("doctor", "--json", *arguments, **options)
    assert result.stdout, result.stderr
    report = json.loads(result.stdout)
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in report["findings"]:
        assert finding["type"] or finding["level"] == "ok", f"nothing to type: {finding}"
        by_check.setdefault(finding["check"], []).append(finding)
    levels = [LEVELS.index(finding["level"]) for finding in report["findings"]]
    assert max(levels) == report["exit_status"] == result.returncode
    return by_check


def worst(findings: list[dict[str, str]] | list[Finding]) -> tuple[str, str, str]:
    """(level, says, type) of the worst of one check."""
    rows = [each.as_dict() if isinstance(each, Finding) else each for each in findings]
    row = max(rows, key=lambda each: LEVELS.index(each["level"]))
    return row["level"], row["says"], row["type"]


def as_nobody(check: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a check in a child that is an ordinary user without any capability."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give it up")
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            rows = [[f.check, int(f.level), f.says, f.type] for f in check()]
            os.write(write_fd, json.dumps(rows).encode())
        except BaseException:  # noqa: BLE001 - to the parent as text
            os.write(write_fd, json.dumps(traceback.format_exc()).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        rows = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert isinstance(rows, list), rows
    from pegashm.doctor.finding import Level

    return [Finding(check, Level(level), says, do) for check, level, says, do in rows]
