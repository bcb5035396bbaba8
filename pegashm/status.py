"""Is there an arena of that name, can engines use it, and does somebody look after it?

Reads only, maps the control region only, needs nobody running. The answer is a report for people or
programs and an exit status: 0 usable and supervised, 1 it exists but is not, 2 missing or cannot tell.
"""

import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from pegashm._native import draining_since
from pegashm.arena import open_arena
from pegashm.errors import ArenaMissingError, ArenaNotReadyError, FormatError, PegaShmError
from pegashm.liveness import (
    SUPERVISOR_BYTE,
    TRANSPORT_BYTE,
    close_lock_file,
    holder_alive,
    live_slots,
    open_lock_file,
)
from pegashm.units import format_bytes

__all__ = ["StatusReport", "read_status"]

_EXIT_STATUS = {"ready": 0, "unsupervised": 1, "not_ready": 1, "missing": 2, "unreadable": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """`state` is ready, unsupervised, not_ready, missing or unreadable; `reason` says why not ready."""

    name: str
    state: str
    reason: str = ""
    supervisor_alive: bool = False
    supervisor_pid: int = 0
    segments_ready: int = 0
    segment_count: int = 0
    segment_bytes: int = 0
    block_bytes_min: int = 0
    payload_bytes: int = 0
    control_bytes: int = 0
    page_bytes: int = 0
    created_at_ns: int = 0
    draining_since_ns: int = 0
    region_id: str = ""
    spill: dict[str, Any] = field(default_factory=dict)
    arenas: list[dict[str, Any]] = field(default_factory=list)
    clients: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        return _EXIT_STATUS[self.state]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        if not self.segment_count:
            return [f'arena "{self.name}": {self.state}', f"  {self.reason}"]
        alive = sum(1 for client in self.clients if client["alive"])
        supervisor = f"pid {self.supervisor_pid}" if self.supervisor_alive else "none is running"
        segment, page = format_bytes(self.segment_bytes), format_bytes(self.page_bytes)
        payload, control = format_bytes(self.payload_bytes), format_bytes(self.control_bytes)
        lines = [
            f'arena "{self.name}": {self.state}',
            f"  segments    {self.segments_ready} of {self.segment_count} ready, {segment} each",
            f"  memory      {payload} payload on {page} pages, {control} control",
            *(f"  payload     {arena['path']}" for arena in self.arenas),
            f"  supervisor  {supervisor}",
            f"  clients     {alive} alive, {len(self.clients) - alive} dead and not yet reaped",
            *self._spill_lines(),
            *self._drain_lines(),
        ]
        return lines + ([f"  why         {self.reason}"] if self.reason else [])

    def _drain_lines(self) -> list[str]:
        if not self.draining_since_ns:
            return []
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.draining_since_ns / 1e9))
        return [
            f"  drained     since {since}: engines store nothing until `pegashm drain --name {self.name} --undo`"
        ]

    def _spill_lines(self) -> list[str]:
        """The SSD tier; nothing in an arena without one."""
        tier = self.spill
        if not tier.get("record_count"):
            return []
        worker = (
            f"pid {tier['worker_pid']} at {tier['path'] or 'no socket yet'}"
            if tier["worker_alive"]
            else "none is running: blocks on SSD are misses"
        )
        payload = tier["payload_bytes"]
        amplification = f", amplification {tier['file_bytes'] / payload:.3f}" if payload else ""
        written = f"{format_bytes(tier['file_bytes'])} written"
        return [
            f"  transport   {worker}",
            f"  ssd         {tier['files_usable']} files in use, room to list {tier['record_count']} blocks",
            f"  ssd so far  {written}{amplification}, {format_bytes(tier['bytes_read'])} read back",
        ]


def read_status(name: str) -> StatusReport:
    """The state of the arena `name` now. Raises only for a name that cannot be one."""
    supervisor_alive = False
    try:
        lock_fd = open_lock_file(name, writable=False)
        try:
            supervisor_alive = holder_alive(lock_fd, SUPERVISOR_BYTE)
            worker_alive = holder_alive(lock_fd, TRANSPORT_BYTE)
            alive = set(live_slots(lock_fd))
        finally:
            close_lock_file(lock_fd)
        with open_arena(name, writable=False, map_payload=False) as arena:
            header, clients = arena.region.header, arena.region.clients()
            counters = {entry["key"]: int(entry["value"]) for entry in arena.region.counters()}
    except ArenaMissingError as error:
        return StatusReport(name=name, state="missing", reason=str(error))
    except ArenaNotReadyError as error:
        creator = "is at work" if supervisor_alive else "is dead: `pegashm serve` begins anew"
        reason = f"{error}; its creator {creator}"
        return StatusReport(
            name=name, state="not_ready", reason=reason, supervisor_alive=supervisor_alive
        )
    except (FormatError, OSError, PegaShmError) as error:
        return StatusReport(
            name=name, state="unreadable", reason=str(error), supervisor_alive=supervisor_alive
        )
    missing = [path for arena in header["arenas"] if _is_gone(path := _text(arena["path"]))]
    state, reason = _judge(name, int(header["segments_ready"]), supervisor_alive, missing)
    return StatusReport(
        name=name,
        state=state,
        reason=reason,
        supervisor_alive=supervisor_alive,
        supervisor_pid=int(header["supervisor_pid"]),
        segments_ready=int(header["segments_ready"]),
        segment_count=int(header["segment_count"]),
        segment_bytes=int(header["segment_bytes"]),
        block_bytes_min=int(header["block_bytes_min"]),
        payload_bytes=int(header["payload_bytes"]),
        control_bytes=int(header["control_bytes"]),
        page_bytes=int(header["page_bytes"]),
        created_at_ns=int(header["created_at_ns"]),
        draining_since_ns=draining_since(header),
        region_id=_hex(header["region_id"]),
        spill={
            "record_count": int(header["spill_record_count"]),
            "worker_alive": worker_alive,
            "worker_pid": int(header["transport_pid"]),
            "path": _text(header["transport_path"]),
            "files_usable": int(header["spill_usable"]).bit_count() if worker_alive else 0,
            "payload_bytes": counters.get("spill_payload_bytes", 0),
            "file_bytes": counters.get("spill_file_bytes", 0),
            "bytes_read": counters.get("spill_bytes_read", 0),
        },
        arenas=[
            {"path": _text(a["path"]), "bytes": int(a["bytes"]), "numa_node": int(a["numa_node"])}
            for a in header["arenas"]
        ],
        clients=[
            {
                "slot": int(client["slot"]),
                "pid": int(client["pid"]),
                "label": _text(client["label"]),
                "alive": int(client["slot"]) in alive,
            }
            for client in clients
        ],
    )


def _judge(
    name: str, segments_ready: int, supervisor_alive: bool, missing: list[str]
) -> tuple[str, str]:
    if missing:
        return "unreadable", (
            f"{', '.join(missing)} is gone: engines that have it serve on, no other can attach. Type "
            f"`pegashm purge --name {name} --yes --force`, then start `pegashm serve --name {name}` with its size again"
        )
    if not supervisor_alive:
        return "unsupervised", (
            "engines can use it, but nobody reaps the dead: start "
            f"`pegashm serve --name {name}` with its size again"
        )
    if segments_ready == 0:
        return "not_ready", "its first segment is still being populated"
    return "ready", ""


def _is_gone(path: str) -> bool:
    """Not: cannot be looked at by us."""
    try:
        os.stat(path)
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
    ):  # a damaged header's path can be anything
        return True
    except OSError:
        return False
    return False


def _hex(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else os.fsdecode(value)
