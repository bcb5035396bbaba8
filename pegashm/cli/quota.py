"""`pegashm quota`: how much may each namespace have?"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from pegashm.cli.common import (
    CONTEXT,
    any_name_option,
    cannot_tell,
    config_option,
    json_option,
    parsed,
)
from pegashm.errors import ConfigError
from pegashm.units import parse_bytes

__all__ = ["quota"]

_SIZE = parsed(parse_bytes)


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@click.option("--namespace", "said", metavar="NS", help="Of this one: id, fingerprint or label.")
@click.option(
    "--reserved", type=_SIZE, metavar="SIZE", help="Others may not evict it below this; 0: none."
)
@click.option(
    "--maximum", type=_SIZE, metavar="SIZE", help="It may not grow above this; 0: no limit."
)
@click.option(
    "--trim", is_flag=True, help="With --maximum: evict now what it has above it, oldest first."
)
@json_option
@cannot_tell
def quota(
    name: str,
    said: str | None,
    reserved: int | None,
    maximum: int | None,
    trim: bool,
    as_json: bool,
) -> None:
    """Show how much each namespace holds and may hold; or set it, on the live arena.

    \b
    Examples:
      pegashm quota --name kv0
      pegashm quota --name kv0 --namespace llama-3-8b --reserved 16G
      pegashm quota --name kv0 --namespace 0x10003 --maximum 64G --trim
      pegashm quota --name kv0 --namespace 0x10003 --reserved 0 --maximum 0

    A reserve is what the others cannot take away from a namespace; all of them together are at most the payload, so that less may be granted
    than was asked for. A maximum holds from then on: what is above it stays until --trim, or until others need the room.

    What is set lasts as long as the arena, or until an engine of that namespace attaches with settings of its own (`reserved_bytes`,
    `maximum_bytes` in kv_connector_extra_config), or leaves it for another and was the last in it (its reserve then lapses).

    \b
    Exit status:
      0  shown, or set as asked
      1  less of the reserve was granted than asked for, or --trim met pinned blocks
      2  wrong usage, no such arena or namespace
    """
    from pegashm.arena import open_arena
    from pegashm.tools.collect import namespaces_of

    setting = reserved is not None or maximum is not None
    if setting and said is None:
        raise ConfigError(
            "--reserved and --maximum need --namespace NS: whose? See `pegashm namespaces`"
        )
    if trim and not maximum:
        raise ConfigError("--trim goes with --maximum SIZE, not 0")
    exit_status = 0
    notes: list[str] = []
    if setting:
        assert said is not None
        exit_status, notes = _set(name, said, reserved, maximum, trim=trim)
    with open_arena(name, writable=False, map_payload=False) as arena:
        rows = namespaces_of(arena)
        payload = int(arena.region.header["payload_bytes"])
    if said is not None and not setting:
        from pegashm.admin.selecting import namespace_of

        with open_arena(name, writable=False, map_payload=False) as arena:
            wanted = namespace_of(arena.region, said)["id"]
        rows = [row for row in rows if row["id"] == wanted]
    _tell(name, rows, payload, notes, exit_status, as_json=as_json)
    sys.exit(exit_status)


def _set(
    name: str, said: str, reserved: int | None, maximum: int | None, *, trim: bool
) -> tuple[int, list[str]]:
    from pegashm.admin.quota import set_quota
    from pegashm.admin.quota import trim as trim_namespace
    from pegashm.arena import open_arena
    from pegashm.cache import Cache
    from pegashm.units import format_bytes

    exit_status = 0
    notes: list[str] = []
    with open_arena(name, map_payload=False) as arena:
        granted = set_quota(arena, said, reserved_bytes=reserved, maximum_bytes=maximum)
    if not granted.in_full:
        exit_status = 1
        notes.append(
            f"of a reserve of {format_bytes(granted.asked_reserve)} there was only {format_bytes(granted.row['reserved_bytes'])} to be had: "
            "others have reserved the rest"
        )
    if trim and maximum:
        with Cache.attach(name, namespace=None, label="pegashm quota") as cache:
            evicted, above = trim_namespace(cache, granted.row["id"], maximum)
        notes.append(f"evicted {evicted} blocks")
        if above:
            exit_status = 1
            notes.append(
                f"{format_bytes(above)} above the maximum are pinned or being stored, and stayed"
            )
    elif maximum and granted.row["resident_bytes"] > maximum:
        notes.append("it holds more than its maximum: --trim evicts what is above it")
    return exit_status, notes


def _tell(
    name: str,
    rows: list[dict[str, Any]],
    payload: int,
    notes: list[str],
    exit_status: int,
    *,
    as_json: bool,
) -> None:
    from pegashm.tools.render import Column, console_for, render_table
    from pegashm.units import format_bytes

    reserved = sum(row["reserved_bytes"] for row in rows)
    if as_json:
        document = {
            "name": name,
            "payload_bytes": payload,
            "reserved_bytes": reserved,
            "namespaces": rows,
            "notes": notes,
            "exit_status": exit_status,
        }
        click.echo(json.dumps(document))
        return
    columns: tuple[Column, ...] = (
        ("id", lambda row: f"{row['id']:#x}"),
        ("label", lambda row: row["label"]),
        ("resident", lambda row: format_bytes(row["resident_bytes"])),
        ("of all", lambda row: f"{row['resident_bytes'] / payload:.1%}"),
        ("reserved", lambda row: _limit(row["reserved_bytes"], "none")),
        ("maximum", lambda row: _limit(row["maximum_bytes"], "no limit")),
        ("clients", lambda row: str(row["clients"])),
    )
    console = console_for(sys.stdout)
    render_table(console, f"Quotas of {name}", rows, columns)
    console.print(f"  reserved {format_bytes(reserved)} of {format_bytes(payload)}")
    for note in notes:
        click.echo(note)


def _limit(nbytes: int, none: str) -> str:
    from pegashm.units import format_bytes

    return format_bytes(nbytes) if nbytes else none
