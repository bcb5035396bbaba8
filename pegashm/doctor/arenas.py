"""What about the arenas that are here? May this user use them, can this build read them, does somebody look after each?

Also what is left in /dev/shm of arenas that are none any more, and the folder where the transport worker will listen. Headers are
read, not mapped; nothing is opened for writing.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, Final

from pegashm._native import FORMAT_MAJOR, FORMAT_MINOR, draining_since
from pegashm.arena import HeaderVerdict, read_header
from pegashm.doctor.finding import Finding, error, ok, warning
from pegashm.errors import PegaShmError
from pegashm.liveness import (
    SUPERVISOR_BYTE,
    TRANSPORT_BYTE,
    close_lock_file,
    holder_alive,
    live_slots,
    open_lock_file,
)
from pegashm.machine import mount_of
from pegashm.names import SHM_DIRECTORY, control_path, runtime_directory
from pegashm.units import format_bytes

__all__ = ["arena_names", "check_arena", "check_leftovers", "check_runtime", "newest_ns"]

_OURS: Final = re.compile(r"pegashm\.([A-Za-z0-9][A-Za-z0-9_-]*)\.(.+)")


def arena_names() -> list[str]:
    """Arenas that have a control object here."""
    return sorted(name for name, kinds in _objects().items() if "control" in kinds)


def check_leftovers() -> list[Finding]:
    """Payload and pending files without a control object: a removal or a start that was killed."""
    findings = [
        warning(
            "leftovers",
            f"of arena {name} only {', '.join(sorted(kinds))} is left in {SHM_DIRECTORY}: whoever made or removed it was killed",
            f"pegashm purge --name {name} --yes",
        )
        for name, kinds in sorted(_objects().items())
        if "control" not in kinds
    ]
    return findings or [ok("leftovers", f"nothing of a dead arena is in {SHM_DIRECTORY}")]


def newest_ns(names: list[str]) -> int:
    """The latest time that any of these arenas has written down, for check_clock."""
    newest = 0
    for name in names:
        try:
            descriptor = open_lock_file(name, writable=False)
        except (PegaShmError, OSError):
            continue
        try:
            info = read_header(descriptor).info
        finally:
            close_lock_file(descriptor)
        for field in ("created_at_ns", "supervisor_started_at_ns"):
            newest = max(newest, int(info.get(field, 0)))
    return newest if newest < 1 << 62 else 0


def check_arena(name: str) -> list[Finding]:
    """Permission, format, who looks after it, its files."""
    check = f"arena {name}"
    try:
        descriptor = open_lock_file(name, writable=False)
    except PegaShmError as problem:
        what, _, do = str(problem).partition(": ")
        return [error(check, what, do or "ls -l " + control_path(name))]
    try:
        verdict = read_header(descriptor)
        alive = _Alive(
            holder_alive(descriptor, SUPERVISOR_BYTE),
            holder_alive(descriptor, TRANSPORT_BYTE),
            len(live_slots(descriptor)),
        )
    finally:
        close_lock_file(descriptor)
    if not verdict.ready:
        return [_not_ready(check, name, verdict, alive)]
    info = verdict.info
    return [
        *_permission(check, name, info),
        ok(
            check,
            f"format {info['format_major']}.{info['format_minor']}, this build reads {FORMAT_MAJOR}.{FORMAT_MINOR}; "
            f"{format_bytes(info['payload_bytes'])} of payload",
        ),
        *_files(check, name, info),
        _looked_after(check, name, alive),
        *_worker(check, name, info, alive),
        *_draining(check, name, info),
    ]


class _Alive:
    """What the kernel's locks say."""

    def __init__(self, supervisor: bool, worker: bool, clients: int) -> None:
        self.supervisor = supervisor
        self.worker = worker
        self.clients = clients


def _not_ready(check: str, name: str, verdict: HeaderVerdict, alive: _Alive) -> Finding:
    if verdict.not_yet and alive.supervisor:
        return warning(
            check,
            f"not ready yet ({verdict.reason}); its supervisor is at work",
            f"pegashm status --name {name}   in a while",
        )
    if verdict.not_yet:
        return error(
            check,
            f"not ready ({verdict.reason}), and nobody is at work on it",
            f"pegashm serve --name {name} --size SIZE   begins anew, or: pegashm purge --name {name} --yes",
        )
    return error(
        check,
        f"cannot be used by this build: {verdict.reason}",
        f"use the PegaShm that made it, or: pegashm purge --name {name} --yes   and serve it anew",
    )


def _permission(check: str, name: str, info: dict[str, Any]) -> list[Finding]:
    paths = [control_path(name), *(_text(arena["path"]) for arena in info["arenas"])]
    for path in paths:
        try:
            facts = os.stat(path)
        except OSError:  # gone meanwhile, which another check says
            continue
        if not os.access(path, os.R_OK | os.W_OK):
            return [
                error(
                    check,
                    f"uid {os.geteuid()} may not read and write {path} (owner uid {facts.st_uid}, gid {facts.st_gid}, mode "
                    f"{facts.st_mode & 0o777:04o}): an engine of this user runs without it",
                    f"run the engine as uid {facts.st_uid}, or serve with --group GROUP and add this user to it: usermod -aG GROUP USER",
                )
            ]
    return [ok(check, f"uid {os.geteuid()} may use it")]


def _files(check: str, name: str, info: dict[str, Any]) -> list[Finding]:
    for arena in info["arenas"]:
        path = _text(arena["path"])
        try:
            facts = os.stat(path)
        except OSError as problem:
            return [
                error(
                    check,
                    f"its payload file {path} cannot be had ({problem.strerror}): nobody can attach",
                    f"mount its folder here too; or, if it is lost: pegashm purge --name {name} --yes",
                )
            ]
        if not stat.S_ISREG(facts.st_mode) or facts.st_size < int(arena["bytes"]):
            return [
                error(
                    check,
                    f"its payload file {path} has {facts.st_size} bytes, expected {int(arena['bytes'])}: nobody can attach",
                    f"pegashm purge --name {name} --yes   and serve it anew",
                )
            ]
    page = int(info["page_bytes"])
    folder = os.path.dirname(_text(info["arenas"][0]["path"])) if info["arenas"] else SHM_DIRECTORY
    if page == 4096 and mount_of(folder).gives_huge_pages:
        return [
            warning(
                check,
                f"its payload is on 4 KiB pages, while {folder} gives 2 MiB pages now",
                f"when its engines can do without: pegashm purge --name {name} --yes --force   and serve it anew",
            )
        ]
    return [ok(check, f"payload on pages of {format_bytes(page)} in {folder}")]


def _looked_after(check: str, name: str, alive: _Alive) -> Finding:
    if alive.supervisor:
        return ok(check, f"supervised; {alive.clients} clients alive")
    if alive.clients:
        return warning(
            check,
            f"{alive.clients} clients use it and no supervisor looks after it: what dies is not reaped, and its SSD and other hosts are "
            "out of reach",
            f"pegashm serve --name {name} --size SIZE   with the size it was made with",
        )
    return warning(
        check,
        "left over: no supervisor and no client; its memory stays taken",
        f"pegashm serve --name {name} --size SIZE   goes on with what is in it; pegashm purge --name {name} --yes   frees it",
    )


def _worker(check: str, name: str, info: dict[str, Any], alive: _Alive) -> list[Finding]:
    """Where engines reach the transport worker."""
    path = _text(info["transport_path"])
    if not alive.worker:
        if int(info["spill_usable"]) or path:
            return [
                warning(
                    check,
                    "its transport worker is dead: blocks on SSD and of other hosts are misses",
                    f"pegashm status --name {name}   and the supervisor's log",
                )
            ]
        return []
    if path and not os.access(path, os.R_OK | os.W_OK):
        return [
            warning(
                check,
                f"uid {os.geteuid()} cannot reach the transport worker's socket {path}: blocks on SSD and of other hosts are misses for its "
                "engines",
                f"run the engine as the supervisor's user or in its --group; in a container, mount {os.path.dirname(path)} too",
            )
        ]
    return [ok(check, f"its transport worker listens on {path}")] if path else []


def _draining(check: str, name: str, info: dict[str, Any]) -> list[Finding]:
    if not draining_since(info):
        return []
    return [
        warning(
            check,
            "it is being drained: engines store nothing in it",
            f"pegashm drain --name {name} --undo   or purge it",
        )
    ]


def check_runtime(name: str) -> list[Finding]:
    """Whether `pegashm serve` of this user can make the folder of its transport worker's socket, and nobody else can."""
    check, folder = "runtime folder", runtime_directory(name)
    place = folder
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    facts = os.lstat(place)
    if not stat.S_ISDIR(facts.st_mode):
        return [error(check, f"{place} is no folder", f"rm {place}")]
    if place == folder and facts.st_uid != os.geteuid():
        return [
            error(
                check,
                f"{folder} belongs to uid {facts.st_uid}, this is uid {os.geteuid()}: a transport worker of ours will not listen there",
                f"rm -r {folder}   (as root), or set XDG_RUNTIME_DIR to a folder of this user's",
            )
        ]
    above = place if place != folder else os.path.dirname(folder)
    facts = os.lstat(above)
    if facts.st_uid not in (os.geteuid(), 0) or (
        facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX
    ):
        return [
            error(
                check,
                f"{above} (uid {facts.st_uid}, mode {facts.st_mode & 0o7777:04o}) can be changed by others, who could listen in our worker's "
                "place: it will not start",
                f"chmod go-w {above}   or set XDG_RUNTIME_DIR to a folder of this user's",
            )
        ]
    if place != folder and not os.access(place, os.W_OK | os.X_OK):
        return [
            error(
                check,
                f"uid {os.geteuid()} may not make {folder}: --spill and --listen cannot work",
                "set XDG_RUNTIME_DIR (or RUNTIME_DIRECTORY) to a folder of this user's; systemd: RuntimeDirectory=pegashm",
            )
        ]
    return [ok(check, f"{folder} can be used")]


def _objects() -> dict[str, set[str]]:
    """What lies in /dev/shm, by arena: control, pending, arena0, ..."""
    found: dict[str, set[str]] = {}
    try:
        entries = [path.name for path in Path(SHM_DIRECTORY).iterdir()]
    except OSError:
        return {}
    for entry in entries:
        match = _OURS.fullmatch(entry)
        if match:
            found.setdefault(match[1], set()).add(match[2])
    return found


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else os.fsdecode(value)
