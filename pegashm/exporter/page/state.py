"""What is now? One reading and its verdict as the JSON of api/state, which the page shows and a script may read.

Sizes in bytes, times in seconds since 1970, ages in seconds. Strings from the arena go out as they are: JSON keeps them
text, and the page never makes them anything else. What there is not is null. `SCHEMA` grows when a field changes its
meaning; new fields do not change it. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from pegashm._native import EVICTIONS, draining_since
from pegashm.exporter.judging import Health
from pegashm.exporter.page.occupancy import occupancy
from pegashm.exporter.reading import Reading, Survey

__all__ = ["SCHEMA", "state_of"]

SCHEMA: Final = 1
_MODES: Final = {0: "read and write", 1: "save only", 2: "load only"}
_NANO: Final = 1e9
_EVENTS: Final = 40


def state_of(reading: Reading, health: Health) -> dict[str, Any]:
    """All but what the exporter says of itself."""
    survey = reading.survey
    return {
        "schema": SCHEMA,
        "at": reading.taken_at_ns / _NANO,
        "name": reading.name,
        "health": health.as_dict(),
        "state": reading.state,
        "arena": _arena(reading) if reading.is_open else None,
        "survey": _survey(survey) if survey is not None else None,
        "memory": _memory(reading, survey) if survey is not None else None,
        "ssd": _ssd(reading),
        "hosts": _hosts(reading),
        "namespaces": _namespaces(reading),
        "clients": _clients(reading),
        "map": (
            occupancy(survey, reading.header, reading.namespaces) if survey is not None else None
        ),
        "reuse": [window.as_dict() for window in survey.reuse] if survey is not None else [],
        "journal": _journal(reading),
    }


def _arena(reading: Reading) -> dict[str, Any]:
    header = reading.header
    return {
        "region_id": reading.region_id,
        "format": f"{header['format_major']}.{header['format_minor']}",
        "layout_signature": f"{header['layout_signature']:016x}",
        "created_at": header["created_at_ns"] / _NANO,
        "payload_bytes": header["payload_bytes"],
        "control_bytes": header["control_bytes"],
        "page_bytes": header["page_bytes"],
        "segment_bytes": header["segment_bytes"],
        "segment_count": header["segment_count"],
        "segments_ready": header["segments_ready"],
        "eviction": _eviction(header),
        "draining_since": draining_since(dict(header)) / _NANO or None,
        "arenas": [
            {"path": _text(arena["path"]), "bytes": arena["bytes"], "numa_node": arena["numa_node"]}
            for arena in header["arenas"]
        ],
        "supervisor": {
            "alive": reading.supervisor_alive,
            "pid": header["supervisor_pid"],
            "started_at": header["supervisor_started_at_ns"] / _NANO,
        },
        "worker": {
            "wanted": reading.has_worker,
            "alive": reading.worker_alive,
            "pid": header["transport_pid"],
        },
    }


def _eviction(header: Mapping[str, Any]) -> str:
    number = int(header["eviction"])
    return EVICTIONS[number] if number < len(EVICTIONS) else str(number)


def _survey(survey: Survey) -> dict[str, Any]:
    return {"age_seconds": survey.age_seconds, "took_seconds": survey.took_seconds}


def _memory(reading: Reading, survey: Survey) -> dict[str, Any]:
    """Bytes as blocks take them: a block takes its stride whole."""
    taken = Counter[str]()
    for part in survey.parts:
        stride = survey.strides[part.segment]
        taken["ready"] += part.ready * stride
        taken["claimed"] += part.claimed * stride
        taken["evicting"] += part.evicting * stride
    tally = survey.tally
    return {
        "payload_bytes": reading.header["payload_bytes"],
        "ready_bytes": taken["ready"],
        "claimed_bytes": taken["claimed"],
        "evicting_bytes": taken["evicting"],
        "pinned_bytes": survey.pinned_bytes,
        "ready": tally["ready"],
        "claimed": tally["claimed"],
        "evicting": tally["evicting"],
        "pinned": survey.pinned,
        "capacity": survey.capacity,
        "damaged": survey.damaged,
        "summed": survey.summed,
        "oldest_ready_seconds": survey.oldest_ready_seconds,
        "oldest_pin_seconds": max(
            (client.oldest_pin_seconds for client in reading.clients), default=0.0
        ),
    }


def _ssd(reading: Reading) -> dict[str, Any] | None:
    spill = reading.spill
    if spill is None or not spill.records:
        return None
    return {
        "worker_alive": reading.worker_alive,
        "files": spill.files,
        "files_usable": spill.files_usable,
        "room": spill.records,
        "listed": spill.listed,
        "backlog_blocks": spill.backlog_blocks,
        "backlog_bytes": spill.backlog_bytes,
        "budget_bytes": spill.daily_bytes_limit,
        "budget_used_bytes": spill.daily_bytes_written,
        "written_bytes": spill.file_bytes,
        "payload_bytes": spill.payload_bytes,
        "read_bytes": spill.bytes_read,
        "amplification": spill.amplification,
    }


def _hosts(reading: Reading) -> dict[str, Any] | None:
    if not reading.header.get("remote_bucket_count"):
        return None
    counters = reading.counters
    found: dict[str, Any] = {
        "worker_alive": reading.worker_alive,
        "room": int(reading.header["remote_bucket_count"]) * 8,
        "fetched": counters.get("remote_fetched", 0),
        "fetched_bytes": counters.get("remote_bytes_fetched", 0),
        "served": counters.get("remote_served", 0),
        "served_bytes": counters.get("remote_bytes_served", 0),
        "listen": None,
        "age_seconds": None,
        "peers": [],
    }
    if reading.peers is not None and "peers" in reading.peers.said:
        said = reading.peers.as_dict()
        found["listen"] = said.get("listen")
        found["fabrics"] = said.get("fabrics", [])
        found["age_seconds"] = said["age_seconds"]
        found["peers"] = [_peer(peer) for peer in said["peers"]]
    return found


def _peer(peer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "address": peer["address"],
        "host_id": peer["host_id"],
        "fabrics": peer["fabrics"],
        "state": "left alone" if peer["breaker"] == "open" else _usable(peer),
        "hints": peer["hints"],
        "share": peer["share"],
        "load": peer["load"] / 1000,
        "fetched": peer["fetched"],
        "failed": peer["failed"],
        "joined_seconds": peer["joined_seconds"],
    }


def _usable(peer: Mapping[str, Any]) -> str:
    return "usable" if peer["usable"] else "not synchronised"


def _namespaces(reading: Reading) -> list[dict[str, Any]]:
    attached = Counter(client.namespace_id for client in reading.clients if client.alive)
    return [
        {
            "id": namespace.id,
            "label": namespace.label,
            "digest": namespace.fingerprint,
            "bytes": namespace.resident_bytes,
            "maximum_bytes": namespace.maximum_bytes,
            "reserved_bytes": namespace.reserved_bytes,
            "ready": namespace.ready,
            "claimed": namespace.claimed,
            "evicting": namespace.evicting,
            "pinned": namespace.pinned,
            "clients": attached[namespace.id],
            "created_at": namespace.created_at_ns / _NANO,
            "attached_at": namespace.attached_at_ns / _NANO,
        }
        for namespace in reading.namespaces
    ]


def _clients(reading: Reading) -> list[dict[str, Any]]:
    return [
        {
            "slot": client.slot,
            "incarnation": client.incarnation,
            "pid": client.pid,
            "label": client.label,
            "mode": _MODES.get(client.mode, str(client.mode)),
            "namespace_id": client.namespace_id,
            "attached_at": client.attached_at_ns / _NANO,
            "alive": client.alive,
            "copiers_alive": client.copiers_alive,
            "pinned": client.pinned,
            "pinned_bytes": client.pinned_bytes,
            "oldest_pin_seconds": client.oldest_pin_seconds,
            "claims": client.claims,
            "claimed_bytes": client.claimed_bytes,
            "oldest_claim_seconds": client.oldest_claim_seconds,
        }
        for client in reading.clients
    ]


def _journal(reading: Reading) -> list[dict[str, Any]]:
    """The newest first."""
    return [
        {
            "sequence": event.sequence,
            "event": event.event,
            "namespace_id": event.namespace_id,
            "group": event.group,
            "key": event.key,
            "seen_at": event.seen_at_ns / _NANO,
        }
        for event in reversed(reading.events[-_EVENTS:])
    ]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
