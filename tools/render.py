"""How does a person read a snapshot? As tables, one a topic, most urgent first.

Takes the dict of `collect.snapshot` and prints it with rich: colours and the terminal's width on a
terminal, plain text without either in a pipe. Every string from shared memory goes through
`plain.shown` and into a rich Text, so that a damaged label can neither move the cursor nor be taken for
markup. Called by `dump`; decides nothing: verdict and findings come with the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pegashm._native import EVICTIONS, draining_since
from pegashm.units import format_bytes

from .plain import NS_PER_SECOND, age_text, shown, time_text

__all__ = ["CLIENT_COLUMNS", "NAMESPACE_COLUMNS", "Column", "console_for", "render", "render_table"]

PIPE_COLUMNS = 180
MODE_NAMES = {0: "read-write", 1: "save-only", 2: "load-only"}
VERDICT_STYLES = {"ok": "bold green", "finding": "bold yellow", "cannot tell": "bold red"}
SEGMENT_ROWS_MAX = 64
HOST_ROWS_MAX = 64
SPAN_ONE = 1 << 40  # of the header's `span`

Column = tuple[str, Callable[[dict[str, Any]], str]]


def console_for(stream: TextIO) -> Console:
    """A console that uses a terminal's width, and one wide enough for every table in a pipe."""
    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def render(console: Console, document: dict[str, Any]) -> None:
    """Print the snapshot, whole or as far as it could be read."""
    _verdict(console, document)
    if document.get("header"):
        _header(console, document)
    if document["verdict"] == "cannot tell":
        return
    render_table(console, "Payload arenas", document["arenas"], ARENA_COLUMNS)
    render_table(console, "Namespaces", document["namespaces"], NAMESPACE_COLUMNS)
    render_table(console, "Clients", document["clients"], CLIENT_COLUMNS)
    _segments(console, document["segments"])
    _states(console, document)
    _spill(console, document["spill"])
    _remote(console, document["remote"])
    _reuse(console, document["reuse"])
    render_table(console, "Counters", document["counters"], COUNTER_COLUMNS)
    if "blocks" in document:
        render_table(console, "Blocks", document["blocks"], BLOCK_COLUMNS)


def _verdict(console: Console, document: dict[str, Any]) -> None:
    console.print(
        Text.assemble(
            (f"arena {shown(document['name'])}: ", "bold"),
            (document["verdict"], VERDICT_STYLES[document["verdict"]]),
        )
    )
    if document["error"]:
        console.print(Text(shown(document["error"])), soft_wrap=True)
    for line in document["advice"]:
        console.print(Text(shown(line)), soft_wrap=True)


def _header(console: Console, document: dict[str, Any]) -> None:
    header, supervisor = document["header"], document.get("supervisor")
    if document["verdict"] == "cannot tell":
        console.print(Text("\nHeader, unchecked", "bold"))
        for field, value in header.items():
            console.print(Text(f"  {field}: {shown(value)}"), soft_wrap=True)
        return
    alive = "alive" if supervisor and supervisor["alive"] else "not running"
    lines = {
        "format": f"{header['format_major']}.{header['format_minor']},"
        f" layout {header['layout_signature']:#018x}",
        "region": f"{shown(header['region_id'])}, created {time_text(header['created_at_ns'])}",
        "supervisor": f"{alive}, last pid {_pid(supervisor or {}, header['supervisor_pid'])},"
        f" since {time_text(header['supervisor_started_at_ns'])}",
        "payload": f"{format_bytes(header['payload_bytes'])} in {header['segment_count']} segments of"
        f" {format_bytes(header['segment_bytes'])}, {header['segments_ready']} of them ready,"
        f" pages of {format_bytes(header['page_bytes'])}",
        "control": f"{format_bytes(header['control_bytes'])}: {header['record_count']} records,"
        f" {header['bucket_count']} buckets, {header['journal_entry_count']} journal entries,"
        f" newest event {header['journal_head']}",
        "eviction": _eviction(header),
    }
    if draining_since(header):
        lines["drained"] = f"since {time_text(header['draining_since_ns'])}: no claim is granted"
    for field, value in lines.items():
        console.print(Text(f"  {field:<11}{value}"), soft_wrap=True)


def _eviction(header: dict[str, Any]) -> str:
    """Which block goes first, and what the adaptive way has learned so far."""
    if header["eviction"] != EVICTIONS.index("adaptive"):
        return "least recently used"
    span = (header["span"] or SPAN_ONE) / SPAN_ONE
    return f"adaptive: a use counts for half after {span:.2f} times as many as there is room for"


def render_table(
    console: Console, title: str, rows: Iterable[dict[str, Any]], columns: tuple[Column, ...]
) -> None:
    """One topic; its title alone where there is nothing to show."""
    rows = list(rows)
    console.print(Text(f"\n{title}" if rows else f"\n{title}: none", "bold"))
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title_of_column, _ in columns:
        table.add_column(Text(title_of_column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(value_of(row))) for _, value_of in columns))
    console.print(table)


def _segments(console: Console, segments: list[dict[str, Any]]) -> None:
    """Few segments one by one; many as one row for each block size."""
    if len(segments) <= SEGMENT_ROWS_MAX:
        render_table(console, "Segments", segments, SEGMENT_COLUMNS)
        return
    sums: dict[tuple[str, int], dict[str, Any]] = {}
    for segment in segments:
        key = (str(segment["state"]), segment["stride_bytes"])
        row = sums.setdefault(key, {"state": key[0], "stride_bytes": key[1], "segments": 0})
        row["segments"] += 1
        for column in ("blocks", "free", "claimed", "ready", "evicting"):
            row[column] = row.get(column, 0) + segment[column]
    console.print(Text(f"\n{len(segments)} segments, by state and block size", "bold"))
    render_table(console, "Segment groups", sums.values(), SEGMENT_GROUP_COLUMNS)


def _states(console: Console, document: dict[str, Any]) -> None:
    tally, ages = document["tally"], document["ages"]
    rows = []
    for state in ("free", "claimed", "ready", "evicting", "damaged"):
        age = ages.get(state, {})
        rows.append({"state": state, "records": tally[state], **age})
    render_table(console, "Records by state", rows, STATE_COLUMNS)
    pins = document["pins"]
    console.print(
        Text(
            f"  records {tally['record_count']}, capacity {tally['capacity']};"
            f" pinned {pins['blocks']} ({format_bytes(pins['payload_bytes'])})"
        ),
        soft_wrap=True,
    )


def _spill(console: Console, tier: dict[str, Any]) -> None:
    if not tier["record_count"]:
        return
    render_table(console, "Blocks on SSD", tier["files"], SPILL_COLUMNS)
    worker = f"pid {tier['worker_pid']}" if tier["worker_alive"] else "not running"
    console.print(
        Text(
            f"  {tier['listed']} listed, room for {tier['record_count']}; transport worker {worker},"
            f" socket {shown(tier['socket'] or 'none')}"
        ),
        soft_wrap=True,
    )


def _remote(console: Console, directory: dict[str, Any]) -> None:
    if not directory["places"]:
        return
    hosts = sorted(directory["hosts"], key=lambda host: (not host["usable"], -host["hints"]))
    render_table(console, "Other hosts", hosts[:HOST_ROWS_MAX], REMOTE_COLUMNS)
    if len(hosts) > HOST_ROWS_MAX:
        console.print(Text(f"  and {len(hosts) - HOST_ROWS_MAX} more: --json has all"))
    beside = "" if directory["worker_alive"] else "; nobody listens to them: no transport worker"
    console.print(
        Text(
            f"  {directory['hints']} hints of what {len(directory['hosts'])} other hosts hold, room for "
            f"{directory['places']}{beside}"
        ),
        soft_wrap=True,
    )


def _reuse(console: Console, windows: list[dict[str, Any]]) -> None:
    """What requests asked for lately; nothing in an arena that counts none."""
    if not windows:
        return
    render_table(console, "Reuse", windows, REUSE_COLUMNS)
    console.print(
        Text(
            "  ceiling: the share of blocks asked for that had been asked for before, in that time"
        )
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _pid(process: dict[str, Any], pid: int | None = None) -> str:
    """The number it recorded, and what to call it here when that is another."""
    own = process.get("pid") if pid is None else pid
    here = process.get("pid_here")
    if not process.get("alive") or here == own:
        return str(own)
    return f"{own} (not seen from here)" if here is None else f"{own} (here {here})"


def _alive(client: dict[str, Any]) -> str:
    if client["alive"]:
        return "alive"
    return "dead, workers live" if client["copiers_alive"] else "dead"


ARENA_COLUMNS: tuple[Column, ...] = (
    ("path", lambda row: row["path"]),
    ("bytes", lambda row: format_bytes(row["bytes"])),
    ("NUMA node", lambda row: "unbound" if row["numa_node"] == -1 else str(row["numa_node"])),
    (
        "file",
        lambda row: "missing" if row["file_bytes"] is None else format_bytes(row["file_bytes"]),
    ),
)
NAMESPACE_COLUMNS: tuple[Column, ...] = (
    ("id", lambda row: f"{row['id']:#x}"),
    ("label", lambda row: row["label"]),
    ("fingerprint", lambda row: str(row["fingerprint"])[:16]),
    ("blocks", lambda row: str(row["blocks"])),
    ("resident", lambda row: format_bytes(row["resident_bytes"])),
    ("reserved", lambda row: format_bytes(row["reserved_bytes"]) if row["reserved_bytes"] else "-"),
    ("maximum", lambda row: format_bytes(row["maximum_bytes"]) if row["maximum_bytes"] else "-"),
    ("created", lambda row: time_text(row["created_at_ns"])),
)
CLIENT_COLUMNS: tuple[Column, ...] = (
    ("slot", lambda row: str(row["slot"])),
    ("is", _alive),
    ("pid", _pid),
    ("label", lambda row: row["label"]),
    ("engine", lambda row: row["engine_id"] or "-"),
    ("namespace", lambda row: f"{row['namespace_id']:#x}"),
    ("mode", lambda row: MODE_NAMES.get(row["mode"], str(row["mode"]))),
    ("pins", lambda row: f"{row['pins']} ({format_bytes(row['pinned_bytes'])})"),
    ("claims", lambda row: f"{row['claims']} ({format_bytes(row['claimed_bytes'])})"),
    ("evictions", lambda row: str(row["evictions"])),
    ("attached", lambda row: time_text(row["attached_at_ns"])),
)
SEGMENT_GROUP_COLUMNS: tuple[Column, ...] = (
    ("segments", lambda row: str(row["segments"])),
    ("state", lambda row: str(row["state"])),
    ("block size", lambda row: format_bytes(row["stride_bytes"])),
    ("blocks", lambda row: str(row["blocks"])),
    ("free", lambda row: str(row["free"])),
    ("claimed", lambda row: str(row["claimed"])),
    ("ready", lambda row: str(row["ready"])),
    ("evicting", lambda row: str(row["evicting"])),
)
SEGMENT_COLUMNS: tuple[Column, ...] = (
    ("segment", lambda row: str(row["index"])),
    *SEGMENT_GROUP_COLUMNS[1:2],
    ("owner", lambda row: str(row["owner"]) if row["state"] in ("changing", 2) else "-"),
    *SEGMENT_GROUP_COLUMNS[2:],
)
SPILL_COLUMNS: tuple[Column, ...] = (
    ("file", lambda row: str(row["file"])),
    ("is", lambda row: "in use" if row["usable"] else "out of use"),
    ("blocks", lambda row: str(row["blocks"])),
    ("payload", lambda row: format_bytes(row["payload_bytes"])),
)
REMOTE_COLUMNS: tuple[Column, ...] = (
    ("host", lambda row: str(row["number"])),
    ("is", lambda row: "in use" if row["usable"] else "not heard"),
    ("stream", lambda row: row["address"] or "-"),
    ("id", lambda row: str(row["host_id"])[:12]),
    ("hints", lambda row: str(row["hints"])),
    ("events", lambda row: str(row["events"])),
    ("heard", lambda row: age_text(row["heard_ago_ns"])),
)
REUSE_COLUMNS: tuple[Column, ...] = (
    ("in the last", lambda row: row["window"]),
    ("known of it", lambda row: age_text(row["known_seconds"] * NS_PER_SECOND)),
    ("asked for", lambda row: str(row["asked"])),
    ("different", lambda row: f"{row['unique']:.0f}"),
    ("ceiling", lambda row: _share(row["ceiling"])),
    ("served", lambda row: _share(row["hit_rate"])),
)
STATE_COLUMNS: tuple[Column, ...] = (
    ("state", lambda row: row["state"]),
    ("records", lambda row: str(row["records"])),
    ("newest", lambda row: age_text(row.get("newest_ns"))),
    ("median", lambda row: age_text(row.get("median_ns"))),
    ("oldest", lambda row: age_text(row.get("oldest_ns"))),
)
COUNTER_COLUMNS: tuple[Column, ...] = (
    ("counter", lambda row: str(row["key"])),
    ("value", lambda row: str(row["value"])),
    ("type", lambda row: str(row["type"])),
    ("meaning", lambda row: str(row["label"])),
)
BLOCK_COLUMNS: tuple[Column, ...] = (
    ("record", lambda row: str(row["record"])),
    ("generation", lambda row: str(row["generation"])),
    ("state", lambda row: row["state"]),
    ("owner", lambda row: "-" if row["owner"] is None else str(row["owner"])),
    ("key", lambda row: row["key"]),
    ("group", lambda row: str(row["group"])),
    ("namespace", lambda row: f"{row['namespace_id']:#x}"),
    ("offset", lambda row: str(row["payload_offset"])),
    ("bytes", lambda row: str(row["payload_bytes"])),
    ("pinned by", lambda row: ",".join(map(str, row["pinned_by"])) or "-"),
    ("touched", lambda row: str(row["touched"])),
    ("age", lambda row: age_text(row["age_ns"])),
)
