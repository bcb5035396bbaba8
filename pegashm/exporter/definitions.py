"""Which metrics are there, what do they mean, and in which unit? The one list, for the code and for docs/metrics.md.

Names as Prometheus wants them: base units, the unit last, `_total` for what only grows, `_info` for what is text. Every metric has
the label `arena`. Counters start at zero with each arena (`pegashm_arena_info` names its region) and survive every process.
`keys`: of a metric that is nothing but counters of the control region, which one stands for which label's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["DEFINITIONS", "MISS_REASONS", "TIERS", "Definition", "definitions_by_name"]

TIERS: Final = ("memory", "ssd", "remote")
# Reasons for which a block that a request asked for did not come from the cache: the counters `missed_REASON`.
# Why a block that a request asked for did not come from the cache: the counters `missed_REASON`.
MISS_REASONS: Final[Mapping[str, str]] = {
    "never_stored": "no trace of it: never stored here, or evicted so long ago that nothing remembers it",
    "evicted": "evicted from memory and not on SSD, overwritten there, or gone from the host that had it",
    "other_namespace": "stored by engines whose bytes are not interchangeable (model, dtype, layout, version)",
    "not_yet": "another engine is storing it just now",
    "pinned_out": "its store, or its way back into memory, found all of it pinned, claimed or reserved",
    "tier_off": "on SSD or another host, and nobody brings it: no worker lives, or the engine does not ask",
    "timed_out": "on SSD or another host, and it did not come before the deadline (`spill_deadline_ms`)",
    "checksum": "other bytes than were stored; or without checksums, to an engine that requires them",
    "overloaded": "on SSD or another host, and more was asked for than can be brought",
    "failed": "on SSD or another host, and the device, the connection or the host failed",
    "unused": "found, and the engine did not load it (it computes the end of each prompt itself)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """`kind`: gauge, counter, histogram or info. `labels` besides `arena`. `unit`: what one of it is."""

    name: str
    kind: str
    unit: str
    help: str
    section: str
    labels: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    buckets: str = ""  # of a histogram: what its counters begin with

    @property
    def exposed(self) -> str:
        """The name as Prometheus stores it."""
        return {"counter": f"{self.name}_total", "info": f"{self.name}_info"}.get(
            self.kind, self.name
        )


_ARENA: Final = "The arena"
_REUSE: Final = "What requests got"
_INDEX: Final = "The index"
_NAMESPACES: Final = "Namespaces"
_CLIENTS: Final = "Clients, pins and claims"
_SSD: Final = "The SSD tier"
_HOSTS: Final = "Other hosts"


def _gauge(section: str, name: str, unit: str, text: str, *labels: str) -> Definition:
    return Definition(
        name=f"pegashm_{name}", kind="gauge", unit=unit, help=text, section=section, labels=labels
    )


def _info(section: str, name: str, text: str, *labels: str) -> Definition:
    return Definition(
        name=f"pegashm_{name}", kind="info", unit="", help=text, section=section, labels=labels
    )


def _counter(
    section: str, name: str, unit: str, text: str, label: str | None, keys: Mapping[str, str]
) -> Definition:
    return Definition(
        name=f"pegashm_{name}",
        kind="counter",
        unit=unit,
        help=text,
        section=section,
        labels=() if label is None else (label,),
        keys=keys,
    )


def _histogram(section: str, name: str, text: str, buckets: str) -> Definition:
    return Definition(
        name=f"pegashm_{name}",
        kind="histogram",
        unit="seconds",
        help=text,
        section=section,
        buckets=buckets,
    )


DEFINITIONS: Final[tuple[Definition, ...]] = (
    # -- the arena -----------------------------------------------------------------------------------
    _gauge(_ARENA, "up", "0 or 1", "Whether the arena is there and can be read."),
    _info(
        _ARENA, "build", "This exporter's build.", "version", "format", "layout_signature", "python"
    ),
    _info(
        _ARENA,
        "arena",
        "Which arena this is: another region_id is another arena, whose counters began at zero.",
        "region_id",
        "format",
        "page_bytes",
        "eviction",
    ),
    _gauge(_ARENA, "arena_created_timestamp_seconds", "seconds", "When the arena was created."),
    _gauge(
        _ARENA,
        "health_status",
        "0 or 1",
        "What /health says: 1 for the one of ok, degraded and down that it is.",
        "status",
    ),
    _gauge(
        _ARENA,
        "health_reason",
        "0 or 1",
        "Why it is not ok: 1 for each reason that /health gives, 0 for all others.",
        "reason",
    ),
    _gauge(_ARENA, "supervisor_up", "0 or 1", "Whether a supervisor (pegashm serve) lives."),
    _gauge(
        _ARENA,
        "transport_worker_up",
        "0 or 1",
        "Whether the transport worker lives; only of an arena with an SSD tier or other hosts.",
    ),
    _gauge(_ARENA, "pool_bytes", "bytes", "Payload memory of the arena, ready or not."),
    _gauge(_ARENA, "pool_ready_bytes", "bytes", "Payload memory that is populated and in use."),
    _gauge(_ARENA, "control_bytes", "bytes", "Size of the control region."),
    _gauge(
        _ARENA,
        "segments",
        "segments",
        "Segments by state: unassigned (of no block size yet), assigned, changing.",
        "state",
    ),
    _gauge(
        _ARENA,
        "blocks",
        "blocks",
        "Blocks by tier and state. memory: free (of the assigned segments), claimed (being written), ready, evicting. "
        "ssd: stored. remote: hinted (what other hosts are thought to hold).",
        "tier",
        "state",
    ),
    _gauge(_ARENA, "damaged_blocks", "blocks", "Blocks in memory that are marked as damaged."),
    _gauge(_ARENA, "checksummed_blocks", "blocks", "Ready blocks that have checksums."),
    _gauge(_ARENA, "oldest_block_seconds", "seconds", "Age of the oldest ready block."),
    _gauge(
        _ARENA,
        "survey_age_seconds",
        "seconds",
        "Age of what one pass over all records counts: blocks, segments, pins and claims.",
    ),
    _gauge(_ARENA, "survey_duration_seconds", "seconds", "What that pass took."),
    # -- requests ------------------------------------------------------------------------------------
    _counter(
        _REUSE,
        "asked_blocks",
        "blocks",
        "Blocks that requests of engines asked for, each request's once, counted when it is known what came of them: the "
        "sum of hit_blocks and missed_blocks.",
        None,
        {"": "asked"},
    ),
    _counter(
        _REUSE,
        "hit_blocks",
        "blocks",
        "Blocks asked for and loaded, by the tier where they were found.",
        "tier",
        {tier: f"hits_{tier}" for tier in TIERS},
    ),
    _counter(
        _REUSE,
        "missed_blocks",
        "blocks",
        "Blocks asked for and not loaded, by the reason for which the first missing one of their chain was.",
        "reason",
        {reason: f"missed_{reason}" for reason in MISS_REASONS},
    ),
    _gauge(
        _REUSE,
        "reuse_ceiling_ratio",
        "ratio",
        "Share of the blocks asked for in the window that had been asked for before: what a cache that keeps everything "
        "could answer.",
        "window",
    ),
    _gauge(
        _REUSE,
        "reuse_hit_ratio",
        "ratio",
        "Share of the blocks asked for in the window that was loaded from the cache, whichever tier.",
        "window",
    ),
    _gauge(_REUSE, "reuse_asked_blocks", "blocks", "Blocks asked for in the window.", "window"),
    _gauge(
        _REUSE,
        "reuse_known_seconds",
        "seconds",
        "How much of the window anything is known of.",
        "window",
    ),
    # -- the index -----------------------------------------------------------------------------------
    _counter(
        _INDEX,
        "lookups",
        "keys",
        "Keys looked up in the index by result: hit (in memory), pending (being written by another), spilled (on SSD), "
        "remote (another host may have it), miss. A request that waits is looked up again in each step.",
        "result",
        {
            "hit": "hits",
            "pending": "misses_pending",
            "spilled": "misses_spilled",
            "remote": "misses_remote",
        },
    ),
    _counter(
        _INDEX,
        "stores",
        "blocks",
        "Blocks offered by result: claimed, exists (there already, or being written), and skipped for no_space (all pinned "
        "or claimed), quota, other (too large, index full), draining (the arena is being emptied).",
        "result",
        {
            "claimed": "claims",
            "exists": "claims_existing",
            "no_space": "claims_no_space",
            "quota": "claims_quota",
            "other": "claims_other",
            "draining": "claims_draining",
        },
    ),
    _counter(
        _INDEX,
        "published_blocks",
        "blocks",
        "Claims that ended, by result: published, incomplete (a writer failed), abandoned, reaped (their owner died).",
        "result",
        {
            "published": "publishes",
            "incomplete": "publishes_incomplete",
            "abandoned": "abandons",
            "reaped": "claims_reaped",
        },
    ),
    _counter(
        _INDEX,
        "copied_bytes",
        "bytes",
        "Payload bytes copied, by direction: stored, loaded.",
        "direction",
        {"stored": "bytes_stored", "loaded": "bytes_loaded"},
    ),
    _counter(_INDEX, "evictions", "blocks", "Blocks evicted.", None, {"": "evictions"}),
    _histogram(
        _INDEX,
        "block_residence_seconds",
        "How long evicted blocks had been in memory.",
        "residence",
    ),
    _counter(
        _INDEX,
        "evictions_refused",
        "blocks",
        "Evictions that were not done, by reason: pinned, reserved (another namespace's reserve).",
        "reason",
        {"pinned": "evictions_pinned", "reserved": "evictions_reserved"},
    ),
    _counter(
        _INDEX,
        "loads_failed",
        "blocks",
        "Blocks that changed while they were copied out: the engine computes them.",
        None,
        {"": "loads_failed"},
    ),
    _counter(
        _INDEX,
        "checksums",
        "blocks",
        "Blocks whose checksums were compared before use, by result: held, damaged.",
        "result",
        {"held": "payloads_verified", "damaged": "payloads_damaged"},
    ),
    _counter(
        _INDEX,
        "segments_changed",
        "segments",
        "Segments that moved to another block size.",
        None,
        {"": "segments_changed"},
    ),
    _counter(_INDEX, "journal_events", "events", "Events in the journal, ever.", None, {}),
    # -- namespaces ----------------------------------------------------------------------------------
    _gauge(
        _NAMESPACES,
        "namespace_resident_bytes",
        "bytes",
        "Memory that a namespace's blocks take.",
        "namespace",
        "label",
    ),
    _gauge(
        _NAMESPACES,
        "namespace_reserved_bytes",
        "bytes",
        "What others' evictions leave it.",
        "namespace",
        "label",
    ),
    _gauge(
        _NAMESPACES,
        "namespace_maximum_bytes",
        "bytes",
        "Its limit; absent where it has none.",
        "namespace",
        "label",
    ),
    _gauge(
        _NAMESPACES,
        "namespace_blocks",
        "blocks",
        "Its blocks in memory by state.",
        "namespace",
        "label",
        "state",
    ),
    _gauge(
        _NAMESPACES,
        "namespace_pinned_blocks",
        "blocks",
        "Its ready blocks that somebody has pinned.",
        "namespace",
        "label",
    ),
    # -- clients -------------------------------------------------------------------------------------
    _gauge(
        _CLIENTS,
        "clients",
        "clients",
        "Attached clients by state: alive, orphaned (dead, but a worker of it lives), dead (to be reaped).",
        "state",
    ),
    _gauge(_CLIENTS, "pinned_blocks", "blocks", "Ready blocks that somebody has pinned."),
    _gauge(_CLIENTS, "pinned_bytes", "bytes", "Memory of these."),
    _gauge(
        _CLIENTS,
        "client_pinned_blocks",
        "blocks",
        "Blocks a client has pinned.",
        "slot",
        "pid",
        "label",
    ),
    _gauge(
        _CLIENTS,
        "client_oldest_pin_seconds",
        "seconds",
        "For how long its oldest pin has been seen at least; a survey or two less than it is.",
        "slot",
        "pid",
        "label",
    ),
    _gauge(
        _CLIENTS,
        "client_claimed_blocks",
        "blocks",
        "Blocks a client has claimed and not published.",
        "slot",
        "pid",
        "label",
    ),
    _gauge(
        _CLIENTS,
        "client_oldest_claim_seconds",
        "seconds",
        "Age of its oldest claim.",
        "slot",
        "pid",
        "label",
    ),
    _gauge(
        _CLIENTS,
        "dead_claimed_blocks",
        "blocks",
        "Claims of dead engines by what they wait for: workers (one of the engine still lives and may be writing), reap.",
        "waiting_for",
    ),
    _counter(
        _CLIENTS,
        "clients_attached",
        "clients",
        "Clients that ever attached.",
        None,
        {"": "clients_attached"},
    ),
    _counter(
        _CLIENTS,
        "clients_reaped",
        "clients",
        "Dead clients that were undone.",
        None,
        {"": "clients_reaped"},
    ),
    _counter(
        _CLIENTS,
        "pins_reaped",
        "blocks",
        "Pins of dead clients that were cleared.",
        None,
        {"": "pins_reaped"},
    ),
    # -- SSD -----------------------------------------------------------------------------------------
    _gauge(_SSD, "spill_files", "files", "Spill files by state: usable, unusable.", "state"),
    _gauge(
        _SSD,
        "spill_capacity_blocks",
        "blocks",
        "How many blocks on SSD the arena's table can list.",
    ),
    _gauge(
        _SSD, "spill_daily_limit_bytes", "bytes", "Write budget of 24 hours; absent without one."
    ),
    _gauge(
        _SSD,
        "spill_daily_written_bytes",
        "bytes",
        "Bytes written to SSD in the last 24 hours, as the budget counts them.",
    ),
    _gauge(
        _SSD, "spill_backlog_blocks", "blocks", "Blocks in memory that wait to be written to SSD."
    ),
    _gauge(_SSD, "spill_backlog_bytes", "bytes", "Their payload."),
    _gauge(
        _SSD,
        "spill_write_amplification_ratio",
        "ratio",
        "Bytes written to the files for each byte of payload, ever.",
    ),
    _counter(
        _SSD,
        "spilled_blocks",
        "blocks",
        "Blocks for SSD by result: stored, skipped (admission or budget), late (gone from memory first, or the backlog was full).",
        "result",
        {"stored": "spill_stored", "skipped": "spill_skipped", "late": "spill_late"},
    ),
    _counter(
        _SSD,
        "spill_dropped_blocks",
        "blocks",
        "Blocks on SSD that newer ones overwrote.",
        None,
        {"": "spill_dropped"},
    ),
    _counter(
        _SSD,
        "promotions",
        "blocks",
        "Blocks that engines asked for from SSD, by result: promoted, refused (overloaded, late, no room), failed (the device), "
        "damaged (checksum).",
        "result",
        {
            "promoted": "spill_promoted",
            "refused": "spill_refused",
            "failed": "spill_failed",
            "damaged": "spill_damaged",
        },
    ),
    _histogram(
        _SSD,
        "promotion_seconds",
        "How long a request for blocks on SSD took, whatever came of it.",
        "promote",
    ),
    _counter(
        _SSD,
        "spill_write_errors",
        "writes",
        "Writes that a device refused.",
        None,
        {"": "spill_write_errors"},
    ),
    _counter(
        _SSD,
        "spill_payload_bytes",
        "bytes",
        "Payload written to SSD.",
        None,
        {"": "spill_payload_bytes"},
    ),
    _counter(
        _SSD,
        "spill_written_bytes",
        "bytes",
        "Bytes written to SSD in all.",
        None,
        {"": "spill_file_bytes"},
    ),
    _counter(
        _SSD,
        "spill_read_bytes",
        "bytes",
        "Payload read back from SSD.",
        None,
        {"": "spill_bytes_read"},
    ),
    # -- other hosts ---------------------------------------------------------------------------------
    _gauge(
        _HOSTS,
        "peers",
        "hosts",
        "Other hosts by state: usable, unsynchronised (its blocks are not known yet), left_alone (fetches from it failed).",
        "state",
    ),
    _gauge(
        _HOSTS,
        "peer_hinted_blocks",
        "blocks",
        "Blocks that a host is thought to hold.",
        "peer",
        "host_id",
    ),
    _gauge(
        _HOSTS,
        "peer_load_ratio",
        "ratio",
        "How busy a host says it is, 0 to 1.",
        "peer",
        "host_id",
    ),
    _gauge(
        _HOSTS,
        "peer_share_ratio",
        "ratio",
        "Share of its hints that may be asked for: rises to 1 after it joined.",
        "peer",
        "host_id",
    ),
    Definition(
        name="pegashm_peer_fetches",
        kind="counter",
        unit="blocks",
        help="Blocks fetched from a host since this worker met it, by result: fetched, failed.",
        section=_HOSTS,
        labels=("peer", "host_id", "result"),
    ),
    _counter(
        _HOSTS,
        "fetches",
        "blocks",
        "Blocks that engines asked for from other hosts, by result: fetched, missing (nobody has it any more), refused "
        "(overloaded, nobody to ask, no room), failed (connection or peer), late, damaged (checksum).",
        "result",
        {
            "fetched": "remote_fetched",
            "missing": "remote_missing",
            "refused": "remote_refused",
            "failed": "remote_failed",
            "late": "remote_late",
            "damaged": "remote_damaged",
        },
    ),
    _histogram(
        _HOSTS,
        "fetch_seconds",
        "How long a request for blocks of other hosts took, whatever came of it.",
        "fetch",
    ),
    _counter(
        _HOSTS,
        "fetched_bytes",
        "bytes",
        "Payload fetched from other hosts.",
        None,
        {"": "remote_bytes_fetched"},
    ),
    _counter(
        _HOSTS,
        "serves",
        "blocks",
        "Blocks that other hosts asked us for, by result: pinned, refused.",
        "result",
        {"pinned": "remote_served", "refused": "remote_serve_refused"},
    ),
    _counter(
        _HOSTS,
        "served_bytes",
        "bytes",
        "Payload of blocks pinned for other hosts.",
        None,
        {"": "remote_bytes_served"},
    ),
    _counter(
        _HOSTS,
        "leases_expired",
        "leases",
        "Pins of other hosts that they did not give back in time.",
        None,
        {"": "remote_leases_expired"},
    ),
    _counter(
        _HOSTS,
        "directory_events",
        "events",
        "Changes told to and by other hosts.",
        "direction",
        {"sent": "remote_events_sent", "received": "remote_events_received"},
    ),
    _counter(
        _HOSTS,
        "directory_snapshots",
        "snapshots",
        "Times that all a host holds was told.",
        "direction",
        {"sent": "remote_snapshots_sent", "received": "remote_snapshots_received"},
    ),
    _counter(
        _HOSTS,
        "messages_bad",
        "messages",
        "Messages of other hosts that were none, or not theirs to send.",
        None,
        {"": "remote_messages_bad"},
    ),
    _counter(
        _HOSTS,
        "hints_displaced",
        "blocks",
        "Hints that had to make room for others.",
        None,
        {"": "remote_hints_displaced"},
    ),
)


def definitions_by_name() -> Mapping[str, Definition]:
    return {definition.name: definition for definition in DEFINITIONS}
