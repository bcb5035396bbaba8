"""`pegashm doctor`: is this machine fit, and what to type if not?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from pegashm.cli.common import CONTEXT, clear_errors, config_option, json_option, parsed
from pegashm.units import parse_bytes

if TYPE_CHECKING:
    from pegashm.doctor.checks import Report

__all__ = ["doctor"]

_SIZE = parsed(parse_bytes)


@click.command(context_settings=CONTEXT)
@config_option
@click.option(
    "--name",
    envvar="PEGASHM_NAME",
    show_envvar=True,
    metavar="NAME",
    help="Look at this arena only; without it at all that are here.",
)
@click.option(
    "--size", type=_SIZE, metavar="SIZE", help="Would an arena of that size fit? 64G, 1.5T."
)
@click.option(
    "--directory", metavar="DIR", help="Judge this folder for the payload, as of `serve`."
)
@click.option(
    "--spill",
    multiple=True,
    metavar="PATH",
    help="Try out this path for a spill file; may be given again.",
)
@click.option(
    "--spill-size", type=_SIZE, metavar="SIZE", help="Would a spill file of that size fit?"
)
@click.option("--quiet", "-q", is_flag=True, help="Only what is a warning or an error.")
@json_option
@clear_errors
def doctor(
    name: str | None,
    size: int | None,
    directory: str | None,
    spill: tuple[str, ...],
    spill_size: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check this machine, this user and the arenas here; say what to type where something is amiss.

    \b
    Examples:
      pegashm doctor                                    what can be said in general
      pegashm doctor --size 64G --spill /nvme/kv0.spill --spill-size 2T     before `pegashm serve`
      pegashm doctor --name kv0 --quiet                 this arena, only what is wrong
      pegashm doctor --config /etc/pegashm/kv0.toml     for the options of that file
      pegashm doctor --json | jq '.findings[] | select(.level != "ok")'

    Looks at the kernel, the clock, /dev/shm and huge pages, memory and how much of it may be locked,
    NUMA nodes, io_uring (for information), RDMA devices, vLLM's version (without importing it) and how
    the engines that run here hash their blocks, the folder of the transport worker's socket, what dead
    arenas left, each spill path, and each arena: permission, format, files, supervisor.

    Changes nothing. Run it as the user, and in the container, that will run the engine or supervisor: limits and mounts
    are those of whoever asks.

    \b
    Exit status:
      0  all well
      1  warnings: it works, less well than it could
      2  errors: it does not work like this
    """
    from pegashm.doctor.checks import Asked, examine

    report = examine(
        Asked(
            name=name,
            size_bytes=size,
            directory=directory,
            spill=spill,
            spill_bytes=spill_size,
        )
    )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        _print(report, quiet=quiet)
    sys.exit(report.exit_status)


def _print(report: Report, *, quiet: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from pegashm.doctor.finding import Level
    from pegashm.tools.plain import shown

    words = {
        Level.OK: ("ok", "green"),
        Level.WARNING: ("warning", "yellow"),
        Level.ERROR: ("ERROR", "bold red"),
    }
    console = Console(
        file=sys.stdout,
        width=None if sys.stdout.isatty() else 1000,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for finding in report.findings:
        if quiet and finding.level is Level.OK:
            continue
        word, style = words[finding.level]
        line = Text.assemble(
            (f"{word:<8}", style), (f"{shown(finding.check)}: ", "bold"), shown(finding.says)
        )
        console.print(line)
        if finding.type:
            console.print(Text.assemble(" " * 8, "type: ", (shown(finding.type), "cyan")))
    warnings, errors = report.count(Level.WARNING), report.count(Level.ERROR)
    if not quiet or warnings or errors:
        console.print(
            Text(f"{len(report.findings)} findings: {errors} errors, {warnings} warnings", "bold")
        )
