"""`pegashm peers`: the other hosts that an arena's transport worker knows."""

import json
import sys

import click

from pegashm.cli.common import CONTEXT, any_name_option, clear_errors, config_option, json_option

__all__ = ["peers"]


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@json_option
@clear_errors
def peers(name: str, as_json: bool) -> None:
    """Show the other hosts that an arena's transport worker knows, and how fetches from them go.

    \b
    Examples:
      pegashm peers --name kv0
      pegashm peers --name kv0 --json | jq '.peers[] | select(.usable | not) | .address'

    HINTS: blocks that the host has told it holds. SHARE: of the fetches it is asked for; one that comes back gets its share gradually. LOAD: how busy
    it says it is. A host from which fetches failed is left alone for a while, up to 30 s.

    \b
    Exit status:
      0  the worker is at work
      1  it is not; what it said last is shown
      2  no such arena, or it was started without --listen
    """
    from pegashm.peers.report import read_peers

    report = read_peers(name)
    click.echo(json.dumps(report.as_dict()) if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_status)
