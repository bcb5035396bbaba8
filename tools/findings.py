"""Which facts of a snapshot need somebody's attention? The rules behind exit status 1, and only they.

A finding is something that is wrong and that waiting alone does not put right, or that nobody is there
to put right:
  damaged_records   records whose state word or fields cannot be: `pegashm purge` and start anew
  records_lost      the records by state do not add up to the region's
  arena_missing     a payload arena's file is gone or shorter than the header says
  dead_client       a client whose process group is dead still holds claims, pins or evictions; any
                    supervisor, or any client that attaches, reaps it
  orphan            a claim, eviction or pin of a slot that nobody is attached to
No finding: no supervisor (engines do not need one), a dead client that holds nothing (its slot is reused),
a dead client whose workers still live (its blocks must wait for them), a full arena, a pinned one.
Called by `collect`; pure.
"""

from __future__ import annotations

from typing import Any

__all__ = ["findings_of"]


def findings_of(document: dict[str, Any]) -> list[dict[str, str]]:
    """The findings of a snapshot that could be read, as {"kind", "text"}, worst first."""
    findings: list[dict[str, str]] = []

    def found(kind: str, text: str) -> None:
        findings.append({"kind": kind, "text": text})

    tally = document["tally"]
    if tally["damaged"]:
        found(
            "damaged_records",
            f"{tally['damaged']} of {tally['record_count']} block records are damaged: they are never"
            " used again. To start anew, stop the engines and type:"
            f" pegashm purge --name {document['name']} --yes",
        )
    states = ("free", "claimed", "ready", "evicting", "damaged")
    if (counted := sum(tally[state] for state in states)) != tally["record_count"]:
        found("records_lost", f"{counted} records by state, expected {tally['record_count']}")
    for arena in document["arenas"]:
        if arena["file_bytes"] is None:
            found("arena_missing", f"payload arena {arena['path']} is gone; no engine can attach")
        elif arena["file_bytes"] < arena["bytes"]:
            found(
                "arena_missing",
                f"payload arena {arena['path']} has {arena['file_bytes']} bytes, the header says"
                f" {arena['bytes']}; no engine can attach",
            )
    for client in document["clients"]:
        holds = client["claims"] or client["pins"] or client["evictions"]
        if holds and not client["alive"] and not client["copiers_alive"]:
            found(
                "dead_client",
                f"client slot {client['slot']} (pid {client['pid']}) is dead and still holds"
                f" {client['claims']} claims, {client['pins']} pins, {client['evictions']} evictions;"
                " a supervisor reaps it:"
                f" pegashm serve --name {document['name']} (with the size it was created with)",
            )
    if document["orphans"]:
        slots = sorted({entry["slot"] for entry in document["orphans"]})
        found(
            "orphan",
            f"{len(document['orphans'])} claims, evictions or pins belong to slots that nobody is"
            f" attached to: {', '.join(map(str, slots))}",
        )
    return findings
