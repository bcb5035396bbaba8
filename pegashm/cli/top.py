"""`pegashm top`: watch an arena on a terminal."""

import sys

import click

from pegashm.cli.common import CONTEXT, any_name_option, cannot_tell, config_option, json_option
from pegashm.names import check_name

__all__ = ["top"]


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="Look for one interval, print one screen, end.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many looks.")
@json_option
@cannot_tell
def top(name: str, interval: float, once: bool, count: int | None, as_json: bool) -> None:
    """Watch an arena: hit rate by tier against what is possible, memory, namespaces, clients and pins, SSD, other hosts, events.

    \b
    Examples:
      pegashm top --name kv0
      pegashm top --name kv0 --interval 0.5
      pegashm top --name kv0 --once
      pegashm top --name kv0 | tee kv0.log         a line for each look, like vmstat
      pegashm top --name kv0 --json --interval 10 | jq .rates

    \b
    Keys: q quits, p pauses, + and - look more or less often.

    "found" is where the blocks that all engines looked up were; beneath it, for three windows, what was served and what could have been at best (the share
    that had been asked for before). Bars of memory show blocks by state. Lines that begin with ! say what is wrong, and what to type.

    It maps the arena read-only and looks by itself: engines do not notice. States, pins and claims are counted at most every 5 s. An arena that is not there
    (yet, or any more) is waited for.

    \b
    Exit status:
      0  ended by q, --count or Ctrl-C; with --once or --json: all is well
      1  with --once or --json: something is wrong, which is printed
      2  with --once or --json: no such arena, or it cannot be read; or wrong usage
    """
    check_name(name)
    if once or as_json:
        from pegashm.top.loop import once as look

        sys.exit(look(name, interval, as_json=as_json))
    from pegashm.top.loop import watch

    sys.exit(watch(name, interval, count))
