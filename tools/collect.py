"""What is in this arena now? One snapshot, as a plain dict that `json` and `render` both take.

Maps the control region read-only and never the payload, takes no lock, waits for nobody: it works on a
live arena, on one that everybody has left, and on a damaged one. Three ends, as `verdict`:
  "ok"           read, and nothing in it needs anybody
  "finding"      read, and `findings` says what is wrong: what `pegashm fsck` says, but hints that are off
  "cannot tell"  missing, not ready, unreadable or refused; `error` says why, and when the file is there
                 the raw header fields are given all the same, unchecked.
A live arena changes while it is read. Each record is consistent in itself; of what is wrong only what stands
in several walks is reported, so that a snapshot with findings can take two seconds. The rules are those of
`fsck` and no others.
Called by `dump`; writes nothing, prints nothing.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegashm import _native, fsck, liveness
from pegashm.arena import Arena, open_arena
from pegashm.errors import PegaShmError
from pegashm.names import control_path
from pegashm.reuse import read_reuse
from pegashm.witness import pid_of_holder, pids_by_start

from .holders import STATE_NAMES, Held, held_by_slot, slots_in
from .plain import plain

__all__ = ["SCHEMA", "clients_of", "namespaces_of", "snapshot"]

SCHEMA = 2


def snapshot(name: str, *, with_blocks: bool = False) -> dict[str, Any]:
    """Everything that can be said about the arena `name`; raises nothing for any state of it."""
    document: dict[str, Any] = {
        "tool": "pegashm-dump",
        "schema": SCHEMA,
        "name": name,
        "taken_at_ns": time.time_ns(),
        "verdict": "cannot tell",
        "error": None,
        "findings": [],
        "counts": {},
        "advice": [],
    }
    try:
        document["path"] = control_path(name)
        lock_fd = liveness.open_lock_file(name, writable=False)
    except (PegaShmError, OSError) as error:
        document["error"] = str(error)
        return document
    try:
        document["header"] = _raw_header(lock_fd)
        document["supervisor"] = _supervisor(name, lock_fd, document["header"])
        with open_arena(name, writable=False, map_payload=False) as arena:
            document |= _contents(arena.region, lock_fd, with_blocks=with_blocks)
            document |= _judgement(arena)
    except (PegaShmError, OSError, ValueError) as error:
        document["error"] = str(error)
        return document
    finally:
        liveness.close_lock_file(lock_fd)
    document["verdict"] = "finding" if document["counts"] else "ok"
    return document


def _judgement(arena: Arena) -> dict[str, Any]:
    """What does not hold and needs somebody; the first thousand, and `counts` of all."""
    report = fsck.check(arena).without_drift()
    read = report.as_json()
    return {
        **{key: read[key] for key in ("findings", "counts", "account")},
        "advice": report.finding_lines(),
    }


def _raw_header(fd: int) -> dict[str, Any]:
    """The header's fields, unchecked and in plain types; {} when the file is too short to have one."""
    if os.fstat(fd).st_size < _native.HEADER_BYTES:
        return {}
    fields: dict[str, Any] = plain(_native.header_info(os.pread(fd, _native.HEADER_BYTES, 0)))
    return fields


def _supervisor(name: str, fd: int, header: dict[str, Any]) -> dict[str, Any]:
    alive = liveness.holder_alive(fd, liveness.SUPERVISOR_BYTE)
    pid = header.get("supervisor_pid", 0)
    return {
        "alive": alive,
        "pid": pid,
        "pid_here": pid_of_holder(name, pid) if alive else None,
        "started_at_ns": header.get("supervisor_started_at_ns", 0),
    }


def clients_of(arena: Arena) -> list[dict[str, Any]]:
    """Who is attached, alive or not, and what each holds."""
    region = arena.region
    held = held_by_slot(region.blocks())
    # Through another description than one that may hold a lock itself: see liveness.py.
    lock_fd = liveness.open_lock_file(arena.name, writable=False)
    try:
        return _clients(region, lock_fd, region.clients(), held)
    finally:
        liveness.close_lock_file(lock_fd)


def namespaces_of(arena: Arena) -> list[dict[str, Any]]:
    """Who may share with whom: blocks and bytes of each namespace, on SSD too, its quota, and how many clients are in it."""
    region = arena.region
    on_ssd = region.spilled()
    clients = [client["namespace_id"] for client in region.clients()]
    return [
        {
            **row,
            "clients": clients.count(row["id"]),
            "ssd_blocks": int((on_ssd["namespace_id"] == row["id"]).sum()),
            "ssd_bytes": int(on_ssd["payload_bytes"][on_ssd["namespace_id"] == row["id"]].sum()),
        }
        for row in plain(region.namespaces())
    ]


def _contents(region: _native.Region, fd: int, *, with_blocks: bool) -> dict[str, Any]:
    blocks = region.blocks()
    clients = region.clients()
    held = held_by_slot(blocks)
    header = plain(region.header)
    now_ns = time.time_ns()
    contents: dict[str, Any] = {
        "header": header,
        "arenas": [_arena(entry) for entry in header["arenas"]],
        "namespaces": plain(region.namespaces()),
        "clients": _clients(region, fd, clients, held),
        "segments": plain(region.segments()),
        "spill": _spill(region, fd, header),
        "remote": _remote(region, fd, header, now_ns),
        "tally": plain(region.tally()),
        "pins": _pins(blocks),
        "ages": _ages(blocks, now_ns),
        "counters": plain(region.counters()),
        "reuse": [window.as_dict() for window in read_reuse(region)],
    }
    if with_blocks:
        contents["blocks"] = [_block(block, now_ns) for block in blocks]
    return contents


def _arena(entry: dict[str, Any]) -> dict[str, Any]:
    """One payload arena: what the header says, and what is on disk."""
    file_bytes = None
    try:
        status = os.stat(entry["path"])
        if stat.S_ISREG(status.st_mode):
            file_bytes = status.st_size
    except (OSError, ValueError):
        pass
    return {**entry, "file_bytes": file_bytes}


def _clients(
    region: _native.Region, fd: int, clients: list[dict[str, Any]], held: dict[int, Held]
) -> list[dict[str, Any]]:
    rows = []
    here = pids_by_start()
    for client in clients:
        slot = client["slot"]
        alive = liveness.holder_alive(fd, liveness.owner_byte(slot))
        copiers_alive = liveness.holder_alive(fd, liveness.copiers_byte(slot))
        # A client that closes gives its slot back, then its lock: dead is only who is still attached.
        if not alive and region.client_incarnation(slot) != client["incarnation"]:
            continue
        rows.append(
            {
                **plain(client),
                "alive": alive,
                "copiers_alive": copiers_alive,
                # Its number where the tool runs: in a container it has another, which it recorded.
                "pid_here": here.get((client["pid"], client["started_at"])) if alive else None,
                **asdict(held.get(slot, Held())),
            }
        )
    return rows


def _spill(region: _native.Region, fd: int, header: dict[str, Any]) -> dict[str, Any]:
    """The SSD tier: its worker, and by file what is listed."""
    rows = region.spilled()
    numbers, counts = np.unique(rows["file"], return_counts=True)
    return {
        "worker_alive": liveness.holder_alive(fd, liveness.TRANSPORT_BYTE),
        "worker_pid": header["transport_pid"],
        "socket": header["transport_path"],
        "record_count": header["spill_record_count"],
        "listed": len(rows),
        "files": [
            {
                "file": number,
                "usable": bool(header["spill_usable"] >> number & 1),
                "blocks": count,
                "payload_bytes": int(rows["payload_bytes"][rows["file"] == number].sum()),
            }
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        ],
    }


def _remote(region: _native.Region, fd: int, header: dict[str, Any], now_ns: int) -> dict[str, Any]:
    """The directory: which hosts are known here, and what they were last heard to hold."""
    hosts: list[dict[str, Any]] = plain(region.remote_hosts())
    return {
        "worker_alive": liveness.holder_alive(fd, liveness.TRANSPORT_BYTE),
        "places": header["remote_bucket_count"] * 8,
        "hints": sum(host["hints"] for host in hosts),
        "hosts": [
            {**host, "heard_ago_ns": now_ns - host["heard_at_ns"] if host["heard_at_ns"] else None}
            for host in hosts
        ],
    }


def _pins(blocks: NDArray[Any]) -> dict[str, int]:
    pinned = (blocks["pins"] != 0).any(axis=1)
    return {
        "blocks": int(pinned.sum()),
        "payload_bytes": int(blocks["payload_bytes"][pinned].sum()),
    }


def _ages(blocks: NDArray[Any], now_ns: int) -> dict[str, Any]:
    """Per state, how long ago its blocks were claimed or published: least, median, most."""
    ages: dict[str, Any] = {}
    for state, state_name in STATE_NAMES.items():
        column = "claimed_at_ns" if state_name == "claimed" else "published_at_ns"
        times = np.sort(blocks[column][blocks["state"] == state])
        if len(times):
            ages[state_name] = {
                "since": column,
                "blocks": len(times),
                "newest_ns": now_ns - int(times[-1]),
                "median_ns": now_ns - int(times[len(times) // 2]),
                "oldest_ns": now_ns - int(times[0]),
            }
    return ages


def _block(block: Any, now_ns: int) -> dict[str, Any]:
    key_bytes = min(int(block["key_bytes"]), 32)
    state = int(block["state"])
    return {
        "record": int(block["record"]),
        "generation": int(block["generation"]),
        "state": STATE_NAMES.get(state, str(state)),
        "owner": int(block["owner"]) if STATE_NAMES.get(state) != "ready" else None,
        "key": bytes(block["key"]).ljust(32, b"\0")[:key_bytes].hex(),
        "group": int(block["group"]),
        "namespace_id": int(block["namespace_id"]),
        "payload_offset": int(block["payload_offset"]),
        "payload_bytes": int(block["payload_bytes"]),
        "pinned_by": slots_in(block["pins"]),
        "touched": int(block["touched"]),
        "claimed_at_ns": int(block["claimed_at_ns"]),
        "published_at_ns": int(block["published_at_ns"]),
        "age_ns": now_ns - int(block["claimed_at_ns"] if state == 1 else block["published_at_ns"]),
        "parts_done": int(block["parts_done"]),
        "parts_failed": int(block["parts_failed"]),
    }
