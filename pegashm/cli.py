"""The `pegashm` command: what may be typed, where values come from, and how errors read.

Each option is looked for on the command line, then in its PEGASHM_* variable, then in the TOML file of
--config, then there is a default. This file turns text into configs and exceptions into one clear line
and an exit status; what the commands do is in `supervisor.py`, `status.py` and `creation.py`, imported
only when needed so that --help is immediate.
"""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from pegashm import __version__
from pegashm.config import (
    EVICTIONS,
    FABRICS,
    HUGE_PAGE_BYTES,
    SPILL_ADMISSIONS,
    PeersConfig,
    ServeConfig,
    SpillConfig,
    parse_numa,
    read_file,
)
from pegashm.errors import ConfigError, PegaShmError
from pegashm.units import parse_bytes

__all__ = ["main"]

_CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _clear_errors(function: _Function) -> _Function:
    """One line on standard error and the right exit status instead of a traceback."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            raise _UsageFailure(str(error)) from error
        except (PegaShmError, OSError) as error:
            raise click.ClickException(str(error)) from error

    return wrapper  # type: ignore[return-value]


class _UsageFailure(click.ClickException):
    exit_code = 2


def _parsed(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """An option type out of a function that raises ConfigError (which click would not print)."""

    def convert(value: Any) -> Any:
        try:
            return parse(str(value))
        except ConfigError as error:
            raise click.BadParameter(str(error)) from error

    return convert


_SIZE: Final = _parsed(parse_bytes)
_SPILL_DEFAULTS: Final = SpillConfig(paths=("/",), file_bytes=1 << 40)  # only for its other fields
_NUMA: Final = _parsed(parse_numa)


def _load_file(ctx: click.Context, _: click.Parameter, path: str | None) -> str | None:
    """Read the config file before other options are looked at, as their defaults."""
    if path is not None:
        known = {p.name for p in serve.params if p.name not in (None, "config")}
        try:
            options = read_file(path, {name for name in known if name is not None})
        except ConfigError as error:
            raise _UsageFailure(str(error)) from error
        own = {parameter.name for parameter in ctx.command.params}
        ctx.default_map = {key: value for key, value in options.items() if key in own}
    return path


_config_option = click.option(
    "--config",
    envvar="PEGASHM_CONFIG",
    show_envvar=True,
    metavar="FILE",
    is_eager=True,
    callback=_load_file,
    expose_value=False,
    help='TOML file with options of `serve` by their long names, such as  size = "64G".',
)
_name_option = click.option(
    "--name",
    envvar="PEGASHM_NAME",
    show_envvar=True,
    required=True,
    metavar="NAME",
    help="Name of the arena; engines set PEGASHM_ARENA to it.",
)


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="pegashm")
def main() -> None:
    """PegaShm: a KV cache for LLM engines in shared memory that outlives them all.

    \b
    Start an arena of 64 GiB, and let an engine on this host use it:
      pegashm serve --name kv0 --size 64G
      PEGASHM_ARENA=kv0 vllm serve MODEL --kv-transfer-config \\
        '{"kv_connector": "PegaShmConnector", "kv_role": "kv_both",
          "kv_connector_module_path": "pegashm.connector"}'

    \b
    Look at it, and give its memory back:
      pegashm status --name kv0
      pegashm dump --name kv0
      pegashm fsck --name kv0
      pegashm purge --name kv0 --yes

    Exit status: 0 done, 1 failed, 2 wrong usage or configuration (`status`: see there).
    """


@main.command(context_settings=_CONTEXT)
@_config_option
@_name_option
@click.option(
    "--size",
    type=_SIZE,
    metavar="SIZE",
    envvar="PEGASHM_SIZE",
    show_envvar=True,
    required=True,
    help="All the memory it may take, control region included: 64G, 512M, 1.5T.",
)
@click.option(
    "--hugepages",
    type=click.Choice(list(HUGE_PAGE_BYTES)),
    envvar="PEGASHM_HUGEPAGES",
    show_envvar=True,
    help="Keep the payload on a hugetlbfs with such pages, wherever it is mounted.",
)
@click.option(
    "--directory",
    envvar="PEGASHM_DIRECTORY",
    show_envvar=True,
    metavar="DIR",
    help="Keep the payload in files there: a tmpfs mounted with huge=advise, or a hugetlbfs.",
)
@click.option(
    "--numa",
    type=_NUMA,
    metavar="auto|none|NODES",
    default="auto",
    show_default=True,
    envvar="PEGASHM_NUMA",
    show_envvar=True,
    help="One payload arena on each node (auto), one on any (none), or on these nodes: 0,1.",
)
@click.option(
    "--group",
    envvar="PEGASHM_GROUP",
    show_envvar=True,
    help="Let this group use the arena too (mode 0660); without it only its owner can (0600).",
)
@click.option(
    "--segment-size",
    type=_SIZE,
    metavar="SIZE",
    envvar="PEGASHM_SEGMENT_SIZE",
    show_envvar=True,
    help="Unit that is given to one block size at a time; a power of two. Default: near size/64.",
)
@click.option(
    "--block-min",
    type=_SIZE,
    metavar="SIZE",
    envvar="PEGASHM_BLOCK_MIN",
    show_envvar=True,
    help="Smallest block to plan for; smaller costs control memory. Default: 64K.",
)
@click.option(
    "--ephemeral/--keep",
    default=False,
    envvar="PEGASHM_EPHEMERAL",
    show_envvar=True,
    help="Remove the arena on SIGTERM instead of leaving it for the next start.",
)
@click.option(
    "--lock/--no-lock",
    default=True,
    envvar="PEGASHM_LOCK",
    show_envvar=True,
    help="Lock the payload in memory, so that it is never swapped (PEGASHM_LOCK=0: do not).",
)
@click.option(
    "--require-lock/--try-lock",
    default=False,
    envvar="PEGASHM_REQUIRE_LOCK",
    show_envvar=True,
    help="Fail when memory cannot be locked, instead of warning.",
)
@click.option(
    "--populate-threads",
    type=int,
    envvar="PEGASHM_POPULATE_THREADS",
    show_envvar=True,
    help="Threads that fill memory. Default: one a processor, at most 8.",
)
@click.option(
    "--eviction",
    type=click.Choice(list(EVICTIONS)),
    default=EVICTIONS[0],
    show_default=True,
    envvar="PEGASHM_EVICTION",
    show_envvar=True,
    help="Which block goes when room is needed: by recency and frequency, their balance learned from what comes "
    "back; or the least recently used. May be another at the next start.",
)
@click.option(
    "--remote-blocks",
    type=int,
    envvar="PEGASHM_REMOTE_BLOCKS",
    show_envvar=True,
    help="Of how many blocks on other hosts a hint can be kept; 10 bytes of memory each.",
)
@click.option(
    "--spill",
    multiple=True,
    envvar="PEGASHM_SPILL",
    show_envvar=True,
    metavar="PATH",
    help="Keep blocks on SSD too, in this file, made when it is not there. Several for several devices "
    "(in the variable: with spaces between them; in the file: a list).",
)
@click.option(
    "--spill-size",
    type=_SIZE,
    metavar="SIZE",
    envvar="PEGASHM_SPILL_SIZE",
    show_envvar=True,
    help="Size of each spill file, reserved when it is made: 2T, 500G.",
)
@click.option(
    "--spill-records",
    type=int,
    envvar="PEGASHM_SPILL_RECORDS",
    show_envvar=True,
    help="How many blocks on SSD can be found; 192 bytes of memory each. Default: one for each 256K.",
)
@click.option(
    "--spill-admission",
    type=click.Choice(list(SPILL_ADMISSIONS)),
    default=_SPILL_DEFAULTS.admission,
    show_default=True,
    envvar="PEGASHM_SPILL_ADMISSION",
    show_envvar=True,
    help="Write all blocks, soon after they are stored; those used a second time; or only what is evicted.",
)
@click.option(
    "--spill-daily-writes",
    type=_SIZE,
    metavar="SIZE",
    default=_SPILL_DEFAULTS.daily_bytes,
    envvar="PEGASHM_SPILL_DAILY_WRITES",
    show_envvar=True,
    help="Write at most so much in 24 hours, to all files together: 3T. Default: no limit.",
)
@click.option(
    "--spill-sync-seconds",
    type=float,
    default=_SPILL_DEFAULTS.sync_seconds,
    show_default=True,
    envvar="PEGASHM_SPILL_SYNC_SECONDS",
    show_envvar=True,
    help="A power loss may cost what was written in so many seconds (the death of a process: nothing).",
)
@click.option(
    "--spill-backlog",
    type=_SIZE,
    metavar="SIZE",
    default=_SPILL_DEFAULTS.backlog_bytes,
    envvar="PEGASHM_SPILL_BACKLOG",
    show_envvar=True,
    help="How much may wait to be written; more is written when it is evicted. Default: 256M.",
)
@click.option(
    "--spill-backlog-seconds",
    type=float,
    default=_SPILL_DEFAULTS.backlog_seconds,
    show_default=True,
    envvar="PEGASHM_SPILL_BACKLOG_SECONDS",
    show_envvar=True,
    help="How long it may wait.",
)
@click.option(
    "--evict-low",
    type=float,
    default=_SPILL_DEFAULTS.low,
    show_default=True,
    envvar="PEGASHM_EVICT_LOW",
    show_envvar=True,
    help="With --spill: below this fraction of free blocks, evict ahead of need ...",
)
@click.option(
    "--evict-high",
    type=float,
    default=_SPILL_DEFAULTS.high,
    show_default=True,
    envvar="PEGASHM_EVICT_HIGH",
    show_envvar=True,
    help="... up to this one; 0: never.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    envvar="PEGASHM_LISTEN",
    show_envvar=True,
    help="Talk to other hosts, and listen for them there and on the next two ports.",
)
@click.option(
    "--peers",
    multiple=True,
    envvar="PEGASHM_PEERS",
    show_envvar=True,
    metavar="MEMBERS",
    help="Where other hosts are: HOST:PORT,HOST:PORT or dns://NAME:PORT or etcd://HOST:PORT/PREFIX. "
    "Several may be given (in the variable: with spaces between them).",
)
@click.option(
    "--keys",
    envvar="PEGASHM_KEYS",
    show_envvar=True,
    metavar="DIR",
    help="Folder with this host's keys and the list of hosts allowed: see `pegashm keys new`.",
)
@click.option(
    "--fabric",
    type=click.Choice(list(FABRICS)),
    default="auto",
    show_default=True,
    envvar="PEGASHM_FABRIC",
    show_envvar=True,
    help="How payloads come from other hosts: by RDMA where both have it, else by TCP (auto), or only by one.",
)
@click.option(
    "--rdma-devices",
    metavar="NAMES",
    envvar="PEGASHM_RDMA_DEVICES",
    show_envvar=True,
    help="Use only these RDMA devices: mlx5_0,mlx5_1:1. Default: all that are up.",
)
@click.option(
    "--advertise",
    metavar="HOST:PORT",
    envvar="PEGASHM_ADVERTISE",
    show_envvar=True,
    help="What etcd shall list as our address. Default: that of --listen.",
)
@click.option(
    "--log-json/--log-text",
    default=False,
    envvar="PEGASHM_LOG_JSON",
    show_envvar=True,
    help="Log one JSON object a line.",
)
@_clear_errors
def serve(
    name: str,
    size: int,
    hugepages: str | None,
    directory: str | None,
    numa: str | tuple[int, ...],
    group: str | None,
    segment_size: int | None,
    block_min: int | None,
    ephemeral: bool,
    lock: bool,
    require_lock: bool,
    populate_threads: int | None,
    eviction: str,
    remote_blocks: int | None,
    spill: tuple[str, ...],
    spill_size: int | None,
    spill_records: int | None,
    spill_admission: str,
    spill_daily_writes: int,
    spill_sync_seconds: float,
    spill_backlog: int,
    spill_backlog_seconds: float,
    evict_low: float,
    evict_high: float,
    listen: str | None,
    peers: tuple[str, ...],
    keys: str | None,
    fabric: str,
    rdma_devices: str | None,
    advertise: str | None,
    log_json: bool,
) -> None:
    """Create an arena, or re-adopt the one that is there, and look after it.

    \b
    Examples:
      pegashm serve --name kv0 --size 64G
      pegashm serve --name kv0 --size 512G --hugepages 1G --numa 0,1
      pegashm serve --name kv0 --size 64G --directory /mnt/kv --group llm
      pegashm serve --name kv0 --size 64G --spill /ssd0/kv0.spill --spill /ssd1/kv0.spill --spill-size 1T
      pegashm serve --name kv0 --size 64G --listen 10.0.0.7:7420 --peers dns://kv.example:7420 --keys /etc/pegashm/keys
      PEGASHM_NAME=kv0 PEGASHM_SIZE=64G pegashm serve
      pegashm serve --config /etc/pegashm/kv0.toml

    Runs in the foreground, for systemd, Kubernetes or a terminal. Engines can use the arena as soon as
    its first segment is ready, and keep using it while this process is gone: start it again with the
    same options, and it re-adopts everything. SIGTERM leaves the arena in place unless --ephemeral.

    With --spill, blocks are on SSD as well: what memory has no room for is found there, and what is there
    outlives a reboot. A process of its own does this, started and watched by this one.

    With --listen, blocks that other hosts have in memory or on SSD are found and fetched, and ours served to
    them; the same process does it. Where they are is said by --peers, who is allowed by --keys.

    Each option is taken from the command line, else from its environment variable, else from the
    --config file. Flags as variables are 1 or 0.
    """
    config = ServeConfig(
        name=name,
        size_bytes=size,
        hugepage_bytes=HUGE_PAGE_BYTES[hugepages] if hugepages else None,
        directory=directory,
        numa=numa,
        group=group,
        segment_bytes=segment_size,
        block_bytes_min=block_min,
        ephemeral=ephemeral,
        lock=lock,
        require_lock=require_lock,
        populate_threads=populate_threads,
        eviction=eviction,
        remote_blocks=remote_blocks,
        spill=_spill_config(
            spill,
            spill_size,
            records=spill_records,
            admission=spill_admission,
            daily_bytes=spill_daily_writes,
            sync_seconds=spill_sync_seconds,
            backlog_bytes=spill_backlog,
            backlog_seconds=spill_backlog_seconds,
            low=evict_low,
            high=evict_high,
        ),
        peers=_peers_config(
            listen,
            peers,
            keys=keys,
            fabric=fabric,
            rdma_devices=tuple(filter(None, (rdma_devices or "").split(","))),
            advertise=advertise,
        ),
    )
    from pegashm import logs, supervisor

    logs.configure(as_json=log_json)
    supervisor.serve(config)


def _spill_config(
    paths: tuple[str, ...], file_bytes: int | None, **options: Any
) -> SpillConfig | None:
    """None without --spill."""
    if not paths:
        if file_bytes is not None or options["records"] is not None:
            raise ConfigError("--spill-size and --spill-records need --spill PATH")
        return None
    if file_bytes is None:
        raise ConfigError(
            "--spill needs --spill-size: how large each file may become, for example 1T"
        )
    return SpillConfig(paths=paths, file_bytes=file_bytes, **options)


def _peers_config(
    listen: str | None, members: tuple[str, ...], *, keys: str | None, **options: Any
) -> PeersConfig | None:
    """None without --listen."""
    if listen is None:
        if members or keys is not None or options["advertise"] is not None:
            raise ConfigError("--peers, --keys and --advertise need --listen HOST:PORT")
        return None
    split = tuple(part for member in members for part in member.split(",") if part)
    return PeersConfig(listen=listen, members=split, keys=keys, **options)


@main.group(context_settings=_CONTEXT)
def keys() -> None:
    """Make and show the keys by which hosts know each other.

    \b
    On each host:
      pegashm keys new /etc/pegashm/keys      make them, once; prints the public key
      pegashm keys show /etc/pegashm/keys     print it again, and who is allowed
    and list the public keys of the others in /etc/pegashm/keys/allowed, one a line.
    """


@keys.command(name="new", context_settings=_CONTEXT)
@click.argument("folder", metavar="DIR")
@_clear_errors
def keys_new(folder: str) -> None:
    """Make this host's keys in DIR; never overwrites any."""
    from pegashm.peers.keys import make_keys

    click.echo(make_keys(folder).public.decode())


@keys.command(name="show", context_settings=_CONTEXT)
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_clear_errors
def keys_show(folder: str, as_json: bool) -> None:
    """Print this host's public key and the hosts it allows. The secret is never printed."""
    from pegashm.peers.keys import Keys

    found = Keys.load(folder)
    public = found.pair.public.decode()
    allowed = [(entry.public.decode(), entry.hosts) for entry in found.allowed.entries]
    if as_json:
        click.echo(json.dumps({"public": public, "allowed": dict(allowed)}))
        return
    click.echo(public)
    for key, hosts in allowed:
        click.echo(f"allowed: {key} {' '.join(hosts)}".rstrip())
    if not allowed:
        click.echo(f"nobody is allowed: list public keys in {found.allowed.path}", err=True)


@main.command(context_settings=_CONTEXT)
@_config_option
@click.option(
    "--name",
    envvar=["PEGASHM_NAME", "PEGASHM_ARENA"],
    show_envvar=True,
    required=True,
    metavar="NAME",
    help="Name of the arena; an engine's own variable will do.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_clear_errors
def peers(name: str, as_json: bool) -> None:
    """Show the other hosts that an arena's transport worker knows, and how fetches from them go.

    \b
    Exit status: 0 the worker is at work, 1 it is not (what it said last is shown), 2 no such arena, or
    it was started without --listen.
    """
    from pegashm.peers.report import read_peers

    report = read_peers(name)
    click.echo(json.dumps(report.as_dict()) if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_status)


@main.command(context_settings=_CONTEXT)
@_config_option
@click.option(
    "--name",
    envvar=["PEGASHM_NAME", "PEGASHM_ARENA"],
    show_envvar=True,
    required=True,
    metavar="NAME",
    help="Name of the arena; an engine's own variable will do.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_clear_errors
def status(name: str, as_json: bool) -> None:
    """Say whether an arena can be used.

    \b
    Exit status:
      0  ready: at least one segment can be used, and a supervisor is alive
      1  it exists, but is not ready or nobody supervises it
      2  there is none, or it cannot be read

    \b
    Wait for it in a script:
      until pegashm status --name kv0 >/dev/null; do sleep 0.2; done
    """
    from pegashm.status import read_status

    report = read_status(name)
    click.echo(json.dumps(report.as_dict()) if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_status)


@main.command(context_settings=_CONTEXT)
@_config_option
@_name_option
@click.option("--yes", is_flag=True, help="Really do it.")
@click.option(
    "--force",
    is_flag=True,
    help="Even under a living supervisor (which then ends) or clients (which keep what they mapped).",
)
@_clear_errors
def purge(name: str, yes: bool, force: bool) -> None:
    """Remove an arena and everything cached in it. Nothing else ever does.

    \b
    Example:
      pegashm purge --name kv0 --yes
    """
    if not yes:
        raise ConfigError(f'add --yes to remove arena "{name}" and everything cached in it')
    from pegashm.creation import purge as purge_arena

    removed = purge_arena(name, force=force)
    if not removed:
        click.echo(f'there is no arena "{name}": nothing to remove', err=True)
    for path in removed:
        click.echo(f"removed {path}")


@main.command(context_settings=_CONTEXT)
@_config_option
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_clear_errors
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


@main.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def dump(arguments: tuple[str, ...]) -> None:
    """Print what is inside an arena: the same as `pegashm-dump`."""
    from pegashm.tools.dump import main as dump_main

    dump_main(list(arguments), prog_name="pegashm dump")
