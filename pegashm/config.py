"""What did the operator ask of `pegashm serve`?

One frozen object, checked here and nowhere else. Where the values come from (command line, PEGASHM_*
variables, a TOML file, defaults, in that order) is the command line's business, except for reading
the file, which is `read_file`. What the machine can give is not judged here, see `layout.py`.
"""

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from pegashm.errors import ConfigError
from pegashm.names import check_name
from pegashm.units import GIB, KIB, MIB, format_bytes, is_power_of_two

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "EVICTIONS",
    "FABRICS",
    "HUGE_PAGE_BYTES",
    "NUMA_AUTO",
    "NUMA_NONE",
    "REMOTE_BLOCKS_DEFAULT",
    "SPILL_ADMISSIONS",
    "PeersConfig",
    "ServeConfig",
    "SpillConfig",
    "parse_numa",
    "read_file",
]

HUGE_PAGE_BYTES: Final = {"2M": 2 * MIB, "1G": GIB}
NUMA_AUTO: Final = "auto"
NUMA_NONE: Final = "none"
EVICTIONS: Final = ("adaptive", "lru")
SPILL_ADMISSIONS: Final = ("all", "second-touch", "evicted")
FABRICS: Final = ("auto", "tcp", "verbs")
_ARENA_COUNT_MAX: Final = 16
_BLOCK_BYTES_STEP: Final = 4 * KIB
_SEGMENT_BYTES_MAX: Final = 64 * GIB
_SPILL_BYTES_A_RECORD: Final = 256 * KIB
_SPILL_RECORDS_LEAST: Final = 4096
_SPILL_FILES_MAX: Final = 64
_SPILL_BYTES_LEAST: Final = 16 * MIB
REMOTE_BLOCKS_DEFAULT: Final = 1_000_000
_REMOTE_BLOCKS_MAX: Final = 1 << 30
_HINTS_A_BUCKET: Final = 8
_BUCKETS_A_PAGE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillConfig:
    """Blocks on SSD: the files, all of one size, and how the transport worker fills them.

    `records`: how many blocks can be listed (None: one for each 256 KiB of the files). `admission`: which
    blocks are written. `daily_bytes`: of writes in 24 hours, 0 for no limit. `sync_seconds`: how much a
    power loss may cost. `backlog_bytes`, `backlog_seconds`: how much may wait to be written, how long.
    `low`, `high`: fractions of free memory between which blocks are evicted ahead of need.
    """

    paths: tuple[str, ...]
    file_bytes: int
    records: int | None = None
    admission: str = "all"
    daily_bytes: int = 0
    sync_seconds: float = 5.0
    backlog_bytes: int = 256 * MIB
    backlog_seconds: float = 2.0
    low: float = 0.01
    high: float = 0.02

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("--spill needs the path of a file")
        if len(set(self.paths)) != len(self.paths) or len(self.paths) > _SPILL_FILES_MAX:
            raise ConfigError(
                f"--spill must name up to {_SPILL_FILES_MAX} different files: {self.paths}"
            )
        for path in self.paths:
            if not os.path.isabs(path):
                raise ConfigError(f"--spill must be an absolute path, got {path!r}")
        if self.file_bytes < _SPILL_BYTES_LEAST:
            raise ConfigError(
                f"--spill-size must be at least {format_bytes(_SPILL_BYTES_LEAST)}, "
                f"got {format_bytes(self.file_bytes)}"
            )
        if self.records is not None and self.records < 1:
            raise ConfigError(f"--spill-records must be at least 1, got {self.records}")
        if self.admission not in SPILL_ADMISSIONS:
            raise ConfigError(
                f"--spill-admission must be one of {', '.join(SPILL_ADMISSIONS)}, got {self.admission!r}"
            )
        if self.daily_bytes < 0 or self.backlog_bytes < 0 or self.backlog_seconds <= 0:
            raise ConfigError(
                "--spill-daily-writes and --spill-backlog cannot be negative, and --spill-backlog-seconds must be "
                f"above 0: got {self.daily_bytes}, {self.backlog_bytes} and {self.backlog_seconds:g}"
            )
        if not 0 <= self.sync_seconds <= 3600:
            raise ConfigError(
                f"--spill-sync-seconds must be from 0 to 3600, got {self.sync_seconds:g}"
            )
        if not 0 <= self.low <= self.high <= 0.5:
            raise ConfigError(
                "--evict-low and --evict-high must be fractions with 0 <= low <= high <= 0.5, got "
                f"{self.low:g} and {self.high:g}"
            )

    @property
    def record_count(self) -> int:
        """How many blocks on SSD the control region has room to list."""
        if self.records is not None:
            return self.records
        return max(_SPILL_RECORDS_LEAST, len(self.paths) * self.file_bytes // _SPILL_BYTES_A_RECORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersConfig:
    """Other hosts: where we listen for them, where they are, who is allowed, and how payloads move.

    `advertise`: the address that others reach us at (None: `listen`). `keys`: a folder made by `pegashm keys new`.
    `rdma_devices`: names as in /sys/class/infiniband, with `:port` or for all ports; none means all.
    """

    listen: str
    members: tuple[str, ...] = ()
    keys: str | None = None
    fabric: str = "auto"
    advertise: str | None = None
    rdma_devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from pegashm.peers.addresses import parse_address
        from pegashm.peers.membership import check_members

        listen = parse_address(self.listen, "--listen")
        check_members(self.members)
        if self.fabric not in FABRICS:
            raise ConfigError(f"--fabric must be one of {', '.join(FABRICS)}, got {self.fabric!r}")
        if self.keys is not None and not os.path.isabs(self.keys):
            raise ConfigError(f"--keys must be the absolute path of a folder, got {self.keys!r}")
        if self.keys is None and not listen.is_loopback:
            raise ConfigError(
                f"--listen {self.listen} can be reached from other machines, so that keys are needed: type `pegashm "
                "keys new /etc/pegashm/keys` on each host, list each other's public keys in /etc/pegashm/keys/allowed, "
                "and add --keys /etc/pegashm/keys. (Only 127.0.0.1 may go without.)"
            )
        if self.advertise is not None:
            parse_address(self.advertise, "--advertise")
        elif listen.is_any and any(member.startswith("etcd://") for member in self.members):
            raise ConfigError(
                f"--listen {self.listen} is no address that others can connect to, and etcd has to list one: add "
                "--advertise HOST:PORT"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """One arena and how to look after it. None: choose well, or accept what an existing arena has."""

    name: str
    size_bytes: int
    hugepage_bytes: int | None = None
    directory: str | None = None
    numa: str | tuple[int, ...] = NUMA_AUTO
    group: str | None = None
    segment_bytes: int | None = None
    block_bytes_min: int | None = None
    ephemeral: bool = False
    lock: bool = True
    require_lock: bool = False
    populate_threads: int | None = None
    spill: SpillConfig | None = None
    remote_blocks: int | None = None
    peers: PeersConfig | None = None
    eviction: str = EVICTIONS[0]

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.size_bytes < 4 * MIB:
            raise ConfigError(f"--size must be at least 4M, got {format_bytes(self.size_bytes)}")
        if self.hugepage_bytes is not None and self.directory is not None:
            raise ConfigError(
                "--hugepages finds a hugetlbfs mount itself, --directory names one: give one of the two"
            )
        if self.hugepage_bytes is not None and self.hugepage_bytes not in HUGE_PAGE_BYTES.values():
            raise ConfigError(f"--hugepages must be one of {', '.join(HUGE_PAGE_BYTES)}")
        if self.directory is not None and not os.path.isabs(self.directory):
            raise ConfigError(
                f"--directory must be an absolute path, since every engine opens it: {self.directory!r}"
            )
        if self.require_lock and not self.lock:
            raise ConfigError("--require-lock and --no-lock contradict each other")
        if self.populate_threads is not None and self.populate_threads < 1:
            raise ConfigError(f"--populate-threads must be at least 1, got {self.populate_threads}")
        if self.remote_blocks is not None and not 0 <= self.remote_blocks <= _REMOTE_BLOCKS_MAX:
            raise ConfigError(
                f"--remote-blocks must be from 0 to {_REMOTE_BLOCKS_MAX}, got {self.remote_blocks}"
            )
        if self.eviction not in EVICTIONS:
            raise ConfigError(
                f"--eviction must be one of {', '.join(EVICTIONS)}, got {self.eviction!r}"
            )
        self._check_numa()
        self._check_shape()

    @property
    def spill_record_count(self) -> int:
        return 0 if self.spill is None else self.spill.record_count

    @property
    def remote_bucket_count(self) -> int:
        """Buckets for the hints of other hosts: so many that they are four fifths full with --remote-blocks."""
        default = REMOTE_BLOCKS_DEFAULT if self.peers is not None else 0
        blocks = default if self.remote_blocks is None else self.remote_blocks
        return -(-blocks * 5 // (4 * _HINTS_A_BUCKET * _BUCKETS_A_PAGE)) * _BUCKETS_A_PAGE

    def _check_numa(self) -> None:
        if isinstance(self.numa, str):
            if self.numa not in (NUMA_AUTO, NUMA_NONE):
                raise ConfigError(f"--numa must be auto, none or nodes like 0,1: got {self.numa!r}")
        elif not 1 <= len(self.numa) <= _ARENA_COUNT_MAX or len(set(self.numa)) != len(self.numa):
            raise ConfigError(
                f"--numa must name 1 to {_ARENA_COUNT_MAX} different nodes: {self.numa}"
            )

    def _check_shape(self) -> None:
        segment, block = self.segment_bytes, self.block_bytes_min
        if segment is not None:
            if not is_power_of_two(segment) or not 64 * KIB <= segment <= _SEGMENT_BYTES_MAX:
                raise ConfigError(
                    "--segment-size must be a power of two from 64K to 64G, "
                    f"got {format_bytes(segment)}"
                )
            if segment > self.size_bytes:
                raise ConfigError(
                    f"--segment-size {format_bytes(segment)} is larger than "
                    f"--size {format_bytes(self.size_bytes)}"
                )
        if block is not None:
            if block <= 0 or block % _BLOCK_BYTES_STEP:
                raise ConfigError(
                    f"--block-min must be a multiple of 4K, got {format_bytes(block)}"
                )
            if segment is not None and block > segment:
                raise ConfigError(
                    f"--block-min {format_bytes(block)} is larger than "
                    f"--segment-size {format_bytes(segment)}"
                )


def parse_numa(text: str) -> str | tuple[int, ...]:
    """`auto`, `none`, or node numbers with commas between them."""
    if text in (NUMA_AUTO, NUMA_NONE):
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--numa must be auto, none or nodes like 0,1: got {text!r}") from None


def read_file(path: str, known: Collection[str]) -> dict[str, Any]:
    """The options a TOML file sets, by parameter name; ConfigError for any it does not know."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    options: dict[str, Any] = {}
    for key, value in table.items():
        parameter = key.replace("-", "_")
        if parameter not in known:
            choices = ", ".join(sorted(name.replace("_", "-") for name in known))
            raise ConfigError(f"{path}: there is no option {key!r}; it must be one of {choices}")
        options[parameter] = _as_option(path, key, value)
    return options


def _as_option(path: str, key: str, value: Any) -> Any:
    """A TOML value as the command line would have given it."""
    if isinstance(value, list) and value and all(type(item) is str for item in value):
        return tuple(value)
    if isinstance(value, list) and all(type(item) is int for item in value):
        return ",".join(str(item) for item in value)
    if isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(f"{path}: {key} must be a string, a number or true/false, got {value!r}")
