"""`pegashm fsck`: does an arena, or a spill file, keep the promises of its format?"""

import sys

import click

from pegashm.cli.common import CONTEXT, clear_errors, config_option, json_option
from pegashm.errors import ConfigError

__all__ = ["fsck"]


@click.command(context_settings=CONTEXT)
@config_option
@click.option(
    "--name",
    envvar=["PEGASHM_NAME", "PEGASHM_ARENA"],
    show_envvar=True,
    metavar="NAME",
    help="Name of the arena; an engine's own variable will do.",
)
@click.option("--spill", metavar="PATH", help="Check this spill file instead of an arena.")
@click.option(
    "--payloads", is_flag=True, help="With --spill: read every block and compare its checksum."
)
@click.option("--repair", is_flag=True, help="Put right what can be put right now.")
@click.option(
    "--live",
    is_flag=True,
    help="Judge it as one in use even when nobody is attached. Somebody attached is noticed anyway.",
)
@json_option
@clear_errors
def fsck(
    name: str | None,
    spill: str | None,
    payloads: bool,
    repair: bool,
    live: bool,
    as_json: bool,
) -> None:
    """Check that an arena keeps every promise of its format, and account for each block.

    \b
    Examples:
      pegashm fsck --name kv0             look, write nothing
      pegashm fsck --name kv0 --repair    look, and put right what does not hold
      pegashm fsck --name kv0 --json | jq .counts
      pegashm fsck --spill /nvme/kv0.spill              read its headers
      pegashm fsck --spill /nvme/kv0.spill --payloads   and every block

    Works while engines use the arena, after all have left it, without a supervisor, and on damaged
    memory. Findings are of three kinds: damage (bytes that nobody of ours writes: bad memory, a stray
    writer), debris (what a killed process left, until somebody reaps it) and drift (a hint that is
    off, which costs little and is judged only when nobody is attached). Beside living engines only
    what stands through several looks is reported.

    A spill file is checked with --spill, in use or not; it is only read.

    A repair is safe beside them too. It frees what dead clients held, once the kernel proves them dead,
    and evicts what cannot be believed: it costs hits, never a wrong byte. What a living engine might
    still be writing to waits until nobody is attached. The invariants, I1 and so on, are explained in
    FORMAT.md.

    \b
    Exit status:
      0  clean, or clean after --repair
      1  findings remain; the last lines say what to type
      2  it cannot be checked: missing, not ready, or its header cannot be read
    """
    from pegashm.fsck_command import run, run_spill

    if spill is not None:
        if repair:
            raise ConfigError(
                "--repair and --spill contradict each other: a spill file needs no repair, since what does "
                "not check is never used and is overwritten in its turn"
            )
        sys.exit(run_spill(spill, payloads=payloads, as_json=as_json))
    if name is None or payloads:
        raise ConfigError(
            "give --spill PATH with --payloads"
            if payloads
            else "give --name NAME of an arena (or set PEGASHM_ARENA), or --spill PATH of a spill file"
        )
    sys.exit(run(name, with_repair=repair, live=live or None, as_json=as_json))
