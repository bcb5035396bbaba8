"""`pegashm status`: can the arena be used, and does somebody look after it?"""

import json
import sys

import click

from pegashm.cli.common import CONTEXT, any_name_option, clear_errors, config_option, json_option

__all__ = ["status"]


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@json_option
@clear_errors
def status(name: str, as_json: bool) -> None:
    """Say whether an arena can be used.

    \b
    Examples:
      pegashm status --name kv0
      pegashm status --name kv0 --json | jq .segments_ready
      until pegashm status --name kv0 >/dev/null; do sleep 0.2; done      wait for it in a script

    Reads the control region only and needs nobody running. Not ready: why, and what to type, is the last line. An arena that is being drained
    can be used, and says so.

    \b
    Exit status:
      0  ready: at least one segment can be used, and a supervisor is alive
      1  it exists, but is not ready or nobody supervises it
      2  there is none, or it cannot be read
    """
    from pegashm.status import read_status

    report = read_status(name)
    click.echo(json.dumps(report.as_dict()) if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_status)
