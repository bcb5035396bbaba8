"""`pegashm serve`: every option of the supervisor, and how it becomes a ServeConfig.

What the supervisor does is in `supervisor.py`, imported only when it is to run.
"""

from typing import Any, Final

import click

from pegashm.cli.common import (
    CONTEXT,
    clear_errors,
    config_option,
    log_options,
    name_option,
    parsed,
)
from pegashm.config import (
    EVICTIONS,
    FABRICS,
    HUGE_PAGE_BYTES,
    SPILL_ADMISSIONS,
    PeersConfig,
    ServeConfig,
    SpillConfig,
    parse_numa,
)
from pegashm.errors import ConfigError, PegaShmError
from pegashm.notices import FAILED
from pegashm.units import parse_bytes

__all__ = ["serve"]

_SIZE: Final = parsed(parse_bytes)
_SPILL_DEFAULTS: Final = SpillConfig(paths=("/",), file_bytes=1 << 40)  # only for its other fields
_NUMA: Final = parsed(parse_numa)


@click.command(context_settings=CONTEXT)
@config_option
@name_option
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
@log_options
@clear_errors
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
    log_format: str,
    log_level: str,
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

    \b
    Exit status:
      0  ended by SIGTERM or SIGINT
      1  it cannot be created or served (why, and what to type, is said), or it was removed meanwhile
      2  wrong usage or configuration
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

    logs.configure(
        logs.LogConfig(format=log_format, level=log_level, arena=name, process="supervisor")
    )
    try:
        supervisor.serve(config)
    except (PegaShmError, OSError) as error:
        if log_format != "json":
            raise
        # Whoever reads JSON finds the reason in it as well, and nothing else.
        logs.tell(FAILED, "%s", error)
        raise click.exceptions.Exit(2 if isinstance(error, ConfigError) else 1) from error


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
