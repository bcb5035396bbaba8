"""pegashm-dump: what is in an arena, live, abandoned or damaged?

The command line only: `collect` reads, `render` and `watch` show. It maps the control region read-only,
takes no lock and needs nobody running, so it may be used at any time, by anyone who may read the file.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from pegashm.arena import open_arena
from pegashm.errors import PegaShmError
from pegashm.names import control_path

from .collect import snapshot
from .render import console_for, render
from .watch import event_line, events

__all__ = ["main"]

EXIT_STATUS = {"ok": 0, "finding": 1, "cannot tell": 2}


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit status: 0 ok; 1 a finding: what `pegashm fsck` finds, but hints that are off (drift): damage, a"
        " payload file missing or too short, what a dead client left (it and all its workers); 2 cannot tell:"
        " no such arena, not readable, not ready, or another format or build (the raw header is printed all"
        " the same). No supervisor, or a full arena, are no findings."
    ),
)
@click.option("--name", envvar="PEGASHM_ARENA", help="Arena  [env: PEGASHM_ARENA]")
@click.option("--spill", metavar="PATH", help="Show this spill file instead, in use or not.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; keys and digests in hex.")
@click.option("--blocks", is_flag=True, help="List every block that is not free.")
@click.option(
    "--follow",
    is_flag=True,
    help="Print events as they come: publish, evict, and of SSD spill, forget.",
)
@click.option(
    "--backlog", type=click.IntRange(min=0), default=10, show_default=True,
    help="--follow: past events to begin with.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=None, help="--follow: end after so long."
)
def main(
    name: str | None,
    spill: str | None,
    as_json: bool,
    blocks: bool,
    follow: bool,
    backlog: int,
    seconds: float | None,
) -> None:
    """Show an arena: header, supervisor, namespaces, clients, segments, states, pins, SSD, counters.

    \b
    Examples:
      pegashm dump --name kv0
      pegashm dump --name kv0 --json | jq .tally
      pegashm dump --name kv0 --blocks                every block that is not free
      pegashm dump --name kv0 --follow --backlog 0    what is published and evicted, as it comes
      pegashm dump --spill /nvme/kv0.spill

    Reads only, at any time: with or without a supervisor, after a crash, on a damaged region.
    """
    if spill is not None:
        from pegashm.fsck_command import run_spill

        sys.exit(run_spill(spill, payloads=False, as_json=as_json))
    if name is None:
        raise click.UsageError(
            "give --name of an arena (or set PEGASHM_ARENA), or --spill of a file"
        )
    if follow:
        sys.exit(_follow(name, as_json=as_json, backlog=backlog, seconds=seconds))
    document = snapshot(name, with_blocks=blocks)
    document["exit_status"] = EXIT_STATUS[document["verdict"]]
    if as_json:
        click.echo(json.dumps(document))
    else:
        render(console_for(sys.stdout), document)
    sys.exit(document["exit_status"])


def _follow(name: str, *, as_json: bool, backlog: int, seconds: float | None) -> int:
    """Print events until told to stop; 2 when the arena cannot be read or goes away."""
    try:
        with open_arena(name, writable=False, map_payload=False) as arena:
            watched = control_path(name)
            for event in events(arena.region, watched, backlog=backlog, seconds=seconds):
                _print_event(event, as_json=as_json)
                if event["event"] == "gone":
                    return EXIT_STATUS["cannot tell"]
    except KeyboardInterrupt:
        pass
    except (PegaShmError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise  # click ends quietly on it
        click.echo(f"cannot tell: {error}", err=True)
        return EXIT_STATUS["cannot tell"]
    return EXIT_STATUS["ok"]


def _print_event(event: dict[str, Any], *, as_json: bool) -> None:
    click.echo(json.dumps(event) if as_json else event_line(event))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
