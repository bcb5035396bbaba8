"""`pegashm trace record|replay`: live traffic as a trace, and what other sizes would have made of it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from pegashm.cli.common import (
    CONTEXT,
    any_name_option,
    cannot_tell,
    config_option,
    json_option,
    parsed,
)
from pegashm.config import EVICTIONS
from pegashm.errors import ConfigError
from pegashm.units import parse_bytes

if TYPE_CHECKING:
    from pegashm.trace.recorder import Recorded
    from pegashm.trace.replaying import Outcome, Trace

__all__ = ["trace"]

_SIZE = parsed(parse_bytes)


@click.group(context_settings=CONTEXT)
def trace() -> None:
    """Record what engines ask for, and replay it with other sizes of memory.

    \b
    Example: how large should the cache be? Record an hour, then try.
      pegashm trace record --name kv0 --out hour.jsonl --seconds 3600
      pegashm trace replay hour.jsonl --budget 64G --budget 256G --budget 1T

    Exit status: see `pegashm trace record --help` and `pegashm trace replay --help`.
    """


@trace.command(name="record", context_settings=CONTEXT)
@config_option
@any_name_option
@click.option(
    "--out",
    required=True,
    metavar="FILE",
    help="Where to write it; - is standard output. Never overwrites.",
)
@click.option("--seconds", type=click.FloatRange(min=0), metavar="S", help="End after so long.")
@click.option(
    "--requests", type=click.IntRange(min=1), metavar="N", help="End after so many requests."
)
@click.option(
    "--max-size",
    type=_SIZE,
    metavar="SIZE",
    default="1G",
    show_default=True,
    help="End when the file has that size.",
)
@click.option(
    "--salt",
    metavar="FILE",
    help="Salt of the names, so that traces of several hosts go together. Default: random, not kept.",
)
@json_option
@cannot_tell
def trace_record(
    name: str,
    out: str,
    seconds: float | None,
    requests: int | None,
    max_size: int,
    salt: str | None,
    as_json: bool,
) -> None:
    """Write what engines ask the cache for, until Ctrl-C or a limit.

    \b
    Examples:
      pegashm trace record --name kv0 --out hour.jsonl --seconds 3600
      pegashm trace record --name kv0 --out - --requests 1000 | gzip > some.jsonl.gz
      head -c 32 /dev/urandom > salt; pegashm trace record --name kv0 --out a.jsonl --salt salt

    A JSON object a line, as Mooncake publishes its traces: timestamp (ms), input_length (tokens), hash_ids; and block_tokens, block_bytes. Equal ids are equal
    blocks of one namespace. Ids are salted hashes: without the salt nobody can tell what was asked for, so a trace can be shared. `python -m bench.replay --trace FILE`
    of the source tree reads it too.

    Engines notice within two seconds that somebody records, and add one write to memory to each request; they never wait. What is recorded: the prefix of each request that asks the cache
    for something, in whole chunks. Not: prompts shorter than a chunk, requests that an engine serves from its own cache alone, what is generated. While it runs,
    /dev/shm has a file beside the arena (at most 64 MiB; mode and owner of the arena) with hashes of what is asked for.

    \b
    Exit status:
      0  recorded
      1  nothing came, or requests were left out (this could not keep up, or engines found no room); the file has the rest
      2  no such arena, somebody records it already, or the file exists
    """
    from pegashm.termination import Termination
    from pegashm.trace.recorder import Limits, record, salt_of

    salt_bytes = salt_of(salt)
    limits = Limits(seconds=seconds, requests=requests, file_bytes=max_size)
    file = _created(out)
    try:
        with Termination() as termination, _Counter(shown=sys.stderr.isatty()) as counter:
            recorded = record(
                name, file, salt=salt_bytes, limits=limits, wait=termination.wait, tick=counter.show
            )
    finally:
        if out != "-":
            file.close()
    exit_status = 1 if recorded.lost or recorded.damaged_bytes or not recorded.requests else 0
    said = json.dumps({"name": name, "file": out, **recorded.as_dict(), "exit_status": exit_status})
    if as_json:
        click.echo(said, err=out == "-")
    else:
        for text in _recorded_lines(recorded, out):
            click.echo(text, err=True)
    sys.exit(exit_status)


@trace.command(name="replay", context_settings=CONTEXT)
@click.argument("file", metavar="FILE")
@click.option(
    "--budget",
    type=_SIZE,
    multiple=True,
    required=True,
    metavar="SIZE",
    help="Payload memory to try; may be given again.",
)
@click.option(
    "--block-bytes", type=_SIZE, metavar="SIZE", help="Of a block, where the trace does not say it."
)
@click.option(
    "--eviction",
    type=click.Choice(list(EVICTIONS)),
    default=EVICTIONS[0],
    show_default=True,
    help="As of `serve`.",
)
@json_option
@cannot_tell
def trace_replay(
    file: str, budget: tuple[int, ...], block_bytes: int | None, eviction: str, as_json: bool
) -> None:
    """Run a trace through caches of other sizes: what would have been hits, and what is possible at best.

    \b
    Examples:
      pegashm trace replay hour.jsonl --budget 64G --budget 256G
      pegashm trace replay hour.jsonl --budget 64G --eviction lru
      pegashm trace replay conversation_trace.jsonl --block-bytes 64M --budget 1T

    It runs the real index and eviction in private memory, without payloads: a terabyte can be tried anywhere (256 bytes a block). No arena and no engine is
    needed. One engine, one request after the other; for several engines, Belady's optimum and plots see `python -m bench.replay` in the source tree.

    \b
    Columns:
      blocks hit     of all blocks asked for
      requests hit   of those whose second block had been asked for before
      computed       share of prompt tokens that are left to compute

    \b
    Exit status:
      0  replayed
      2  the file cannot be read, or a budget cannot be
    """
    from pegashm.trace.replaying import ceiling, read_trace, replay

    trace_ = read_trace(file)
    size = block_bytes or trace_.block_bytes
    if not size:
        raise ConfigError(
            f"{file} does not say how large a block is: give --block-bytes SIZE (a block of its traffic in your model, see `pegashm plan`)"
        )
    outcomes = []
    for nbytes in sorted(set(budget)):
        with _Counter(shown=sys.stderr.isatty() and not as_json) as counter:
            outcomes.append(
                replay(
                    trace_, nbytes, size, eviction=eviction, tick=counter.of(len(trace_.requests))
                )
            )
    best = ceiling(trace_)
    if as_json:
        click.echo(json.dumps(_replayed(file, trace_, size, eviction, outcomes, best)))
    else:
        _print_replayed(trace_, size, outcomes, best)


def _created(out: str) -> Any:
    if out == "-":
        return sys.stdout
    try:
        return open(out, "x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(
            f"{out} exists, and is not overwritten: name another file, or remove it"
        ) from None


def _recorded_lines(recorded: Recorded, out: str) -> list[str]:
    lines = [
        f"{recorded.requests} requests of {recorded.blocks} blocks in {recorded.seconds:.0f} s written to {out}"
    ]
    if not recorded.requests:
        lines.append(
            "nothing came: is an engine attached (pegashm clients), of this version, and does it get requests longer than a chunk?"
        )
    if recorded.lost:
        lines.append(
            f"{recorded.lost} requests were left out: engines asked faster than this could write"
        )
    if recorded.damaged_bytes:
        lines.append(
            f"{recorded.damaged_bytes} bytes did not check: an engine was killed at it, or /dev/shm is full"
        )
    if recorded.gone:
        lines.append("ended since the arena was purged")
    return lines


def _replayed(
    file: str, trace_: Trace, size: int, eviction: str, outcomes: list[Outcome], best: Outcome
) -> dict[str, Any]:
    return {
        "file": file,
        "requests": len(trace_.requests),
        "blocks": trace_.blocks,
        "distinct": trace_.distinct,
        "block_bytes": size,
        "eviction": eviction,
        "budgets": [outcome.as_dict() for outcome in outcomes],
        "infinite": best.as_dict(),
        "exit_status": 0,
    }


def _print_replayed(trace_: Trace, size: int, outcomes: list[Outcome], best: Outcome) -> None:
    from pegashm.tools.render import Column, console_for, render_table
    from pegashm.units import format_bytes

    columns: tuple[Column, ...] = (
        (
            "budget",
            lambda row: format_bytes(row["budget_bytes"]) if row["budget_bytes"] else "no limit",
        ),
        ("blocks", lambda row: str(row["capacity"])),
        ("blocks hit", lambda row: f"{row['block_rate']:.2%}"),
        ("requests hit", lambda row: f"{row['request_rate']:.2%}"),
        ("computed", lambda row: f"{row['computed']:.2%}"),
        ("evictions", lambda row: str(row["evictions"])),
    )
    title = (
        f"{len(trace_.requests)} requests of {trace_.blocks} blocks, {trace_.distinct} different ones "
        f"({format_bytes(trace_.distinct * size)})"
    )
    rows = [outcome.as_dict() for outcome in [*outcomes, best]]
    render_table(console_for(sys.stdout), title, rows, columns)


class _Counter:
    """A line on the terminal that is written over; nothing in a pipe."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown

    def __enter__(self) -> _Counter:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._say("")

    def show(self, so_far: Recorded) -> None:
        self._say(f"{so_far.requests} requests, {so_far.blocks} blocks, {so_far.seconds:.0f} s")

    def of(self, total: int) -> Any:
        return lambda done: self._say(f"{done} of {total} requests")

    def _say(self, text: str) -> None:
        if self._shown:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
