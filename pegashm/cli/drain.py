"""`pegashm drain`: empty an arena under living engines."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from pegashm.cli.common import CONTEXT, any_name_option, cannot_tell, config_option, json_option
from pegashm.errors import ConfigError

if TYPE_CHECKING:
    from pegashm.admin.drain import Drained

__all__ = ["drain"]


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@click.option(
    "--keep",
    is_flag=True,
    help="Evict nothing: only stop stores, and wait for those under way and for SSD.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up waiting after so long; the arena stays as it is then. Default: wait.",
)
@click.option("--undo", is_flag=True, help="Let engines store again.")
@json_option
@cannot_tell
def drain(name: str, keep: bool, timeout: float | None, undo: bool, as_json: bool) -> None:
    """Empty an arena under living engines, before it is purged or its host is taken down.

    \b
    Examples:
      pegashm drain --name kv0                     stop stores, evict all, wait until it is empty
      pegashm drain --name kv0 --timeout 60        at most a minute; a second call goes on
      pegashm drain --name kv0 --keep              before a reboot, with --spill: all that is to be on SSD is there
      pegashm drain --name kv0 --undo              back to normal
      pegashm drain --name kv0 && pegashm purge --name kv0 --yes --force

    From the first moment no engine stores anything, and nothing is brought in from SSD or other hosts; engines go on by computing. What they are
    storing is published, what is to go to SSD is written, then blocks are evicted as their readers let go of them. What is on SSD
    stays there, for after the reboot.

    The arena stays drained, whoever dies or restarts (supervisor included), until --undo or purge; `pegashm status` and `pegashm doctor` say so.
    Interrupted, it is still being drained.

    \b
    Exit status:
      0  drained (with --keep: nothing is being stored any more); or, with --undo, it takes blocks again
      1  not in time: what is left, and who holds it, is printed
      2  no such arena, or wrong usage
    """
    from pegashm.admin.drain import drain as drain_arena
    from pegashm.admin.drain import undo as undo_drain
    from pegashm.arena import open_arena
    from pegashm.cache import Cache

    if undo and (keep or timeout is not None):
        raise ConfigError("--undo goes alone")
    if undo:
        with open_arena(name, map_payload=False) as arena:
            was = undo_drain(arena.region)
        said = "takes blocks again" if was else "was not being drained"
        click.echo(
            json.dumps({"name": name, "undone": was, "exit_status": 0})
            if as_json
            else f'arena "{name}" {said}'
        )
        return
    try:
        with (
            Cache.attach(name, namespace=None, label="pegashm drain") as cache,
            _Display(shown=sys.stderr.isatty() and not as_json) as display,
        ):
            drained = drain_arena(
                cache,
                keep=keep,
                timeout_seconds=float("inf") if timeout is None else timeout,
                tick=display.show,
            )
    except KeyboardInterrupt:
        click.echo(
            f'interrupted: arena "{name}" is still being drained; --undo takes it back', err=True
        )
        sys.exit(1)
    exit_status = 0 if drained.done else 1
    if as_json:
        click.echo(json.dumps({"name": name, **drained.as_dict(), "exit_status": exit_status}))
    else:
        click.echo("\n".join(_lines(name, drained, keep=keep)))
    sys.exit(exit_status)


def _lines(name: str, drained: Drained, *, keep: bool) -> list[str]:
    from pegashm.units import format_bytes

    ssd = f"; {drained.on_ssd} blocks are on SSD" if drained.on_ssd else ""
    back = f"back to normal: pegashm drain --name {name} --undo"
    if not drained.done:
        return [
            (
                f'arena "{name}" is not drained yet: {drained.blocks} blocks ({format_bytes(drained.blocks_bytes)}) are left, {drained.pinned} pinned, '
                f"{drained.storing} being stored"
            ),
            *(f"  {holder}" for holder in drained.holders),
            "it stores nothing new; call this again to go on waiting",
            back,
        ]
    if keep:
        return [
            f'arena "{name}" stores nothing any more: {drained.blocks} blocks in memory{ssd}',
            back,
        ]
    return [
        f'arena "{name}" is empty: {drained.evicted} blocks evicted{ssd}',
        f"remove it: pegashm purge --name {name} --yes --force",
        back,
    ]


class _Display:
    """A line on the terminal that is written over; nothing in a pipe."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._since = time.monotonic()

    def __enter__(self) -> _Display:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, so_far: Drained) -> None:
        if self._shown:
            text = (
                f"{so_far.step}: {so_far.blocks} blocks left, {so_far.pinned} pinned, {so_far.storing} being stored, "
                f"{time.monotonic() - self._since:.0f} s"
            )
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
