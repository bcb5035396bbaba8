"""What does `pegashm peers` print? The worker's own list, with the hints that shared memory has of each host.

The list is a file that the worker writes every few seconds beside its socket (PEERS_FILE), so that reading it
disturbs nobody and works when the worker is stopped or dead; how old it is, is said. Hints and events are in the
arena (`Region.remote_hosts`). Only reads.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any, Final

from pegashm.arena import Arena, open_arena
from pegashm.errors import ConfigError, PegaShmError
from pegashm.names import runtime_directory
from pegashm.transport.client import worker_alive

__all__ = ["PEERS_FILE", "PeersReport", "peers_of", "read_peers"]

PEERS_FILE: Final = "peers.json"
_OLD_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class PeersReport:
    """`said`: what the worker wrote, `age` seconds ago. `hints`: of each number, in shared memory."""

    name: str
    alive: bool
    age: float
    said: dict[str, Any]
    hints: dict[int, dict[str, Any]]

    @property
    def exit_status(self) -> int:
        return 0 if self.alive and self.age < _OLD_SECONDS else 1

    def as_dict(self) -> dict[str, Any]:
        peers = [
            peer
            | {
                "usable": bool(self.hints.get(peer["number"], {}).get("usable")),
                "hints": int(self.hints.get(peer["number"], {}).get("hints", 0)),
            }
            for peer in self.said["peers"]
        ]
        return self.said | {
            "name": self.name,
            "worker_alive": self.alive,
            "age_seconds": round(self.age, 1),
            "peers": peers,
        }

    def lines(self) -> list[str]:
        said = self.as_dict()
        fabrics = ", ".join(said["fabrics"])
        lines = [
            f"arena {self.name} listens on {said['listen']} ({fabrics}), host {said['host_id'][:12]}"
        ]
        if self.exit_status:
            what = "does not answer" if self.alive else "is not running"
            lines.append(f"the transport worker {what}: this is what it said {self.age:.0f} s ago")
        if not said["peers"]:
            lines.append("no other host has been met")
            return lines
        head = (
            "ADDRESS",
            "HOST",
            "FABRICS",
            "HINTS",
            "SHARE",
            "LOAD",
            "FETCHED",
            "FAILED",
            "STATE",
        )
        rows = [head]
        for peer in said["peers"]:
            state = "usable" if peer["usable"] else "not synchronised"
            if peer["breaker"] == "open":
                state = "left alone (fetches failed)"
            rows.append(
                (
                    peer["address"],
                    peer["host_id"][:12],
                    ",".join(peer["fabrics"]),
                    str(peer["hints"]),
                    f"{peer['share']:.0%}",
                    f"{peer['load'] / 10:.0f}%",
                    str(peer["fetched"]),
                    str(peer["failed"]),
                    state,
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return lines + [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]


def read_peers(name: str) -> PeersReport:
    """ConfigError when there is no such arena, or its worker has nothing to do with other hosts."""
    try:
        with open_arena(name, writable=False, map_payload=False) as arena:
            return _report(arena)
    except PegaShmError as error:
        raise ConfigError(str(error)) from error
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f'arena "{name}" knows no other hosts ({error}): start it with `pegashm serve --listen HOST:PORT --peers '
            "...`, or look again in a few seconds"
        ) from error


def peers_of(arena: Arena) -> PeersReport | None:
    """The same of an arena that is open already; None when the worker has said nothing (yet)."""
    try:
        return _report(arena)
    except (OSError, ValueError, KeyError):
        return None


def _report(arena: Arena) -> PeersReport:
    path = arena.region.header["transport_path"]
    text = path if isinstance(path, str) else os.fsdecode(path)
    folder = os.path.dirname(text) or runtime_directory(arena.name)
    with open(os.path.join(folder, PEERS_FILE), encoding="utf-8") as file:
        said = json.load(file)
    return PeersReport(
        arena.name,
        worker_alive(arena),
        max(0.0, (time.time_ns() - int(said["written_at_ns"])) / 1e9),
        said,
        {int(host["number"]): host for host in arena.region.remote_hosts()},
    )
