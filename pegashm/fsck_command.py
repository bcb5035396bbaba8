"""What does `pegashm fsck` print, and how does it end?

The report as lines or as one JSON object on standard output, a bar on standard error when that is a terminal
and the arena is large, and the exit status. What is checked is in `fsck.py`; options are in `cli.py`.
"""

from __future__ import annotations

import json
import sys
from typing import Final

import click
from rich.console import Console
from rich.progress import Progress as Bar

from pegashm.errors import (
    ArenaMissingError,
    ArenaNotReadyError,
    FormatError,
    PegaShmError,
)
from pegashm.fsck import check_name, repair_name

__all__ = ["run", "run_spill"]

_CANNOT_TELL: Final = 2


def run(name: str, *, with_repair: bool, live: bool | None, as_json: bool) -> int:
    """Check or repair the arena `name`, print what was found; the exit status."""
    try:
        with _Display() as display:
            if with_repair:
                report = repair_name(name, progress=display.show)
            else:
                report = check_name(name, live=live, progress=display.show)
    except (PegaShmError, OSError) as error:
        return _cannot({"name": name}, _reason(name, error), as_json=as_json)
    click.echo(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    return report.exit_status


def run_spill(path: str, *, payloads: bool, as_json: bool) -> int:
    """Check the spill file at `path`, print what was found; the exit status."""
    from pegashm.spill.survey import survey

    try:
        with _Display() as display:
            seen = survey(path, payloads=payloads, progress=display.show)
    except (PegaShmError, OSError) as error:
        return _cannot({"spill": path}, str(error), as_json=as_json)
    click.echo(json.dumps(seen.as_json()) if as_json else "\n".join(seen.lines()))
    return seen.exit_status


def _cannot(what: dict[str, str], reason: str, *, as_json: bool) -> int:
    if as_json:
        told = {"tool": "pegashm-fsck", **what, "exit_status": _CANNOT_TELL, "error": reason}
        click.echo(json.dumps(told))
    else:
        click.echo(f"cannot check: {reason}", err=True)
    return _CANNOT_TELL


def _reason(name: str, error: Exception) -> str:
    """What happened, and what to type: the errors of an open arena say the first, not always the second."""
    text = str(error)
    if isinstance(error, ArenaMissingError) or f"--name {name}" in text:
        return text
    if isinstance(error, ArenaNotReadyError):
        return f"{text}. `pegashm serve --name {name}` with its size finishes it, or begins anew"
    if isinstance(error, FormatError):
        return f"{text}. Remove it and everything cached in it with `pegashm purge --name {name} --yes`"
    return text


class _Display:
    """A bar that appears only on a terminal, and is gone when the report is printed."""

    def __init__(self) -> None:
        self._bar = Bar(console=Console(stderr=True), transient=True)
        self._shown = sys.stderr.isatty()
        self._task = self._bar.add_task("checking", total=None)

    def __enter__(self) -> _Display:  # noqa: PYI034 - typing.Self came with Python 3.11
        if self._shown:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=what, completed=done, total=total)
