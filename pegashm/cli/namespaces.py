"""`pegashm namespaces`: who shares with whom in an arena, and how much is theirs?"""

import json
import sys

import click

from pegashm.cli.common import CONTEXT, any_name_option, cannot_tell, config_option, json_option

__all__ = ["namespaces"]


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@json_option
@cannot_tell
def namespaces(name: str, as_json: bool) -> None:
    """Show an arena's namespaces: engines whose KV bytes are interchangeable share one, others never see its blocks.

    \b
    Examples:
      pegashm namespaces --name kv0
      pegashm namespaces --name kv0 --json | jq '.namespaces[] | {label, blocks}'

    Two engines that should share and do not have two lines here: `pegashm explain` says in what they differ. A namespace without a client keeps
    its blocks until others need the room; `pegashm drop` takes them out, `pegashm quota` says how much each may have.

    \b
    Exit status:
      0  shown
      2  no such arena, or it cannot be read
    """
    from pegashm.arena import open_arena
    from pegashm.tools.collect import namespaces_of
    from pegashm.tools.render import NAMESPACE_COLUMNS, Column, console_for, render_table
    from pegashm.units import format_bytes

    with open_arena(name, writable=False, map_payload=False) as arena:
        rows = namespaces_of(arena)
    if as_json:
        click.echo(json.dumps({"name": name, "namespaces": rows, "exit_status": 0}))
        return
    more: tuple[Column, ...] = (("clients", lambda row: str(row["clients"])),)
    if any(row["ssd_blocks"] for row in rows):
        more += (("on SSD", lambda row: f"{row['ssd_blocks']} ({format_bytes(row['ssd_bytes'])})"),)
    columns = (*NAMESPACE_COLUMNS[:-1], *more, NAMESPACE_COLUMNS[-1])
    render_table(console_for(sys.stdout), f"Namespaces of {name}", rows, columns)
