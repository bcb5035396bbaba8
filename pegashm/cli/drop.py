"""`pegashm drop`: take blocks out of a live arena."""

from __future__ import annotations

import json
import sys

import click

from pegashm.cli.common import (
    CONTEXT,
    any_name_option,
    cannot_tell,
    config_option,
    json_option,
)
from pegashm.errors import ConfigError

__all__ = ["drop"]


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@click.option(
    "--namespace",
    "said",
    metavar="NS",
    help="All blocks of this namespace: id, fingerprint or label.",
)
@click.option("--key", metavar="HEX", help="Only this key: the engine's block hash.")
@click.option(
    "--group", type=click.IntRange(0, 65535), help="Only this KV group of the key; else all."
)
@click.option("--all", "everything", is_flag=True, help="All blocks of all namespaces.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="So long try again what is pinned or being stored.",
)
@click.option("--yes", is_flag=True, help="Really do it; without it only what would go is counted.")
@json_option
@cannot_tell
def drop(
    name: str,
    said: str | None,
    key: str | None,
    group: int | None,
    everything: bool,
    wait: float,
    yes: bool,
    as_json: bool,
) -> None:
    """Evict blocks of a namespace, or a key, while engines use the arena.

    \b
    Examples:
      pegashm drop --name kv0 --namespace llama-3-8b            count, do nothing
      pegashm drop --name kv0 --namespace 0x10003 --yes
      pegashm drop --name kv0 --key 5be1...c7 --yes             in whatever namespace it is
      pegashm drop --name kv0 --all --wait 30 --yes

    It is safe beside living engines: what one of them has pinned (is reading) or claimed (is storing) stays, and is counted. What is dropped
    is a miss from then on, and is computed and stored again when it is asked for: nothing keeps it out. Blocks on SSD stay, and are brought back into memory
    when they are asked for: to be rid of them too, stop the supervisor and remove the spill file.

    \b
    Exit status:
      0  nothing of it is left in memory
      1  some is pinned or being stored, and stayed; or, without --yes, there is something to drop
      2  wrong usage, no such arena or namespace
    """
    from pegashm.admin.drop import Dropped, Wanted
    from pegashm.admin.drop import drop as drop_blocks
    from pegashm.admin.selecting import key_of, namespace_of
    from pegashm.arena import open_arena
    from pegashm.cache import Cache

    if sum((said is not None or key is not None, everything)) != 1:
        raise ConfigError("give --namespace NS, --key HEX (or both), or --all")
    digest, key_group = (None, None) if key is None else key_of(key, group)
    with open_arena(name, writable=False, map_payload=False) as arena:
        row = None if said is None else namespace_of(arena.region, said)
        wanted = Wanted(
            namespace_id=None if row is None else row["id"], key=digest, group=key_group
        )
        if not yes:
            found = len(wanted.among(arena.region.blocks()))
            on_ssd = len(wanted.among(arena.region.spilled()))
            _tell(name, Dropped(found=found, on_ssd=on_ssd), as_json=as_json, done=False)
            sys.exit(1 if found else 0)
    with Cache.attach(name, namespace=None, label="pegashm drop") as cache:
        dropped = drop_blocks(cache, wanted, wait_seconds=wait)
    _tell(name, dropped, as_json=as_json, done=True)
    sys.exit(1 if dropped.left else 0)


def _tell(name: str, dropped: object, *, as_json: bool, done: bool) -> None:
    from pegashm.admin.drop import Dropped
    from pegashm.units import format_bytes

    assert isinstance(dropped, Dropped)
    if as_json:
        left = dropped.left if done else dropped.found
        click.echo(
            json.dumps(
                {"name": name, "done": done, **dropped.as_dict(), "exit_status": 1 if left else 0}
            )
        )
        return
    if not done:
        click.echo(f"{dropped.found} blocks would be dropped: add --yes to do it")
    else:
        click.echo(
            f"dropped {dropped.evicted} of {dropped.found} blocks ({format_bytes(dropped.evicted_bytes)})"
        )
    if dropped.pinned:
        click.echo(f"{dropped.pinned} are pinned and stayed: try again, or --wait SECONDS")
    if dropped.stored:
        click.echo(f"{dropped.stored} are being stored and stayed: try again, or --wait SECONDS")
    if dropped.on_ssd:
        click.echo(f"{dropped.on_ssd} are on SSD, where they stay hits")
