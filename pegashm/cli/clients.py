"""`pegashm clients`: who is attached to an arena, and what do they hold?"""

import json
import sys

import click

from pegashm.cli.common import CONTEXT, any_name_option, cannot_tell, config_option, json_option

__all__ = ["clients"]


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@json_option
@cannot_tell
def clients(name: str, as_json: bool) -> None:
    """Show who is attached to an arena: engines, the transport worker, tools; and what each has pinned or claimed.

    \b
    Examples:
      pegashm clients --name kv0
      pegashm clients --name kv0 --json | jq '.clients[] | select(.pins > 1000)'

    Whether a client lives is the kernel's word, not a timeout's. Pins are blocks that it is reading; claims blocks that it is storing.
    Nothing of a dead client's is lost: its supervisor, or the next who needs room, takes back what it held. "dead, workers live": its scheduler
    is gone, and a process that copies for it may still write; what it holds waits for that one.

    \b
    Exit status:
      0  all of them live (or nobody is there)
      1  dead clients wait to be reaped: is the supervisor running? (pegashm status)
      2  no such arena, or it cannot be read
    """
    from pegashm.arena import open_arena
    from pegashm.tools.collect import clients_of
    from pegashm.tools.render import CLIENT_COLUMNS, console_for, render_table

    with open_arena(name, writable=False, map_payload=False) as arena:
        rows = clients_of(arena)
    exit_status = 0 if all(row["alive"] for row in rows) else 1
    if as_json:
        click.echo(json.dumps({"name": name, "clients": rows, "exit_status": exit_status}))
    else:
        render_table(console_for(sys.stdout), f"Clients of {name}", rows, CLIENT_COLUMNS)
    sys.exit(exit_status)
