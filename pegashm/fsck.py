"""Does an arena keep every promise of FORMAT.md, and can it be made to?

`check` walks the control region read-only and says what does not hold; `repair` undoes it and says what it
did. Both work on an arena that engines use, that everybody has left, or that was damaged; neither needs a
supervisor. Nobody waits for them but who attaches during a repair, for less than the walk takes.

Who is alive is asked of the kernel before a walk and after it. Beside living processes (`live`) a walk meets
what is about to change, so that a finding must stand, unchanged, in every one of several walks; drift is not
judged then. A repair attaches as a client of its own, since evicting needs an owner that can be reaped: killed
half way it leaves what any client leaves. What could be somebody's write in flight is freed only when nobody
else is attached. Called by the command, by `dump` and by the tests; the walk itself is in `_core/audit.hpp`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.arena import Arena, open_arena, read_header
from pegashm.cache import lock_registry, take_slot
from pegashm.errors import ArenaMissingError, ClientsFullError, FormatError
from pegashm.fsck_report import Account, Finding, Report
from pegashm.invariants import INVARIANTS, Subject, describe
from pegashm.liveness import (
    REGISTRY_BYTE,
    SUPERVISOR_BYTE,
    close_lock_file,
    copiers_byte,
    holder_alive,
    live_slots,
    open_lock_file,
    owner_byte,
    try_lock,
    unlock,
)

__all__ = ["Progress", "check", "check_name", "repair", "repair_name"]

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all

_LISTED_MAX: Final = 1 << 16
_SHOWN_MAX: Final = 1000
_RECORDS_PER_STEP: Final = 1 << 19
_BUCKETS_PER_STEP: Final = 1 << 18
_ROUNDS_MAX: Final = 16
_REGISTRY_WAIT_S: Final = 2.0
# Waits before a suspicion is looked at again. The last is for a supervisor that reaps every second.
_PATIENCE_S: Final = (0.02, 0.1, 0.4)
_PATIENCE_SUPERVISED_S: Final = (*_PATIENCE_S, 1.5)
_NOBODY: Final = _native.CLIENT_COUNT


def check_name(name: str, *, live: bool | None = None, progress: Progress | None = None) -> Report:
    """As `check`, of the arena `name`. `live` None: whether somebody is attached decides."""
    with open_arena(name, writable=False, map_payload=False) as arena:
        return check(arena, live=live, progress=progress)


def repair_name(name: str, *, progress: Progress | None = None) -> Report:
    """As `repair`, of the arena `name`."""
    with open_arena(name, writable=False, map_payload=False) as arena:
        return repair(arena, progress=progress)


def check(arena: Arena, *, live: bool | None = None, progress: Progress | None = None) -> Report:
    """What does not hold in this arena now. Writes nothing.

    Raises FormatError when its header cannot be read any more, ArenaMissingError when it was purged.
    """
    started = time.monotonic()
    _check_header(arena)
    with _Witness(arena) as witness:
        live = bool(witness.alive()) if live is None else live
        walk = _settled(arena, witness, live=live, progress=progress)
        return _report(arena, walk, live=live, started=started)


def repair(arena: Arena, *, progress: Progress | None = None) -> Report:
    """Undo what does not hold, as far as it can be now: `repaired` is what was, `findings` what is left.

    Raises as `check`, and ArenaBusyError when somebody has held the registry for seconds.
    """
    started = time.monotonic()
    _check_header(arena)
    with open_arena(arena.name, map_payload=False) as own, _Witness(own) as witness:
        before = _settled(own, witness, live=bool(witness.alive()), progress=progress)
        after = _rounds(own, witness, before, progress) if len(before.findings) else before
        gone = _keys(before.findings) - _keys(after.findings)
        counts = {n: c - after.counts.get(n, 0) for n, c in before.counts.items()}
        return _report(
            own,
            after,
            live=bool(witness.alive()),
            started=started,
            repaired=[row for row in before.findings if _key(row) in gone],
            repaired_counts={n: c for n, c in counts.items() if c > 0},
        )


@dataclass(slots=True)
class _Walk:
    """What one or several walks over the region agree on."""

    findings: NDArray[Any]
    counts: dict[int, int]
    account: dict[str, Any]
    passes: int = 1


@dataclass(slots=True)
class _Witness:
    """Asks who is alive, through a description of its own: one's own locks never answer (liveness.py)."""

    arena: Arena
    ours: set[int] = field(default_factory=set)  # slots to be taken for dead or living as we say
    fd: int = -1

    def __enter__(self) -> _Witness:  # noqa: PYI034 - typing.Self came with Python 3.11
        self.fd = open_lock_file(self.arena.name, writable=False)
        named, opened = os.fstat(self.fd), os.fstat(self.arena.control_fd)
        if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
            close_lock_file(self.fd)
            raise ArenaMissingError(
                f'arena "{self.arena.name}" was purged meanwhile: open it again'
            )
        return self

    def __exit__(self, *_: object) -> None:
        close_lock_file(self.fd)

    def alive(self) -> set[int]:
        """Slots whose owner or copiers live, our own left out."""
        return set(live_slots(self.fd)) - self.ours

    def supervised(self) -> bool:
        return holder_alive(self.fd, SUPERVISOR_BYTE)


def _check_header(arena: Arena) -> None:
    verdict = read_header(arena.control_fd)
    if not verdict.ready:
        raise FormatError(
            f'arena "{arena.name}" cannot be checked: {verdict.reason}. If no other version made it, '
            f"remove it with `pegashm purge --name {arena.name} --yes`"
        )


# -- walking -------------------------------------------------------------------------------------------


def _settled(arena: Arena, witness: _Witness, *, live: bool, progress: Progress | None) -> _Walk:
    """One walk at rest; beside others as many as it takes for only what stays to be left."""
    walk = _walk(arena, witness, live=live, progress=progress)
    if not live:
        return walk
    waits = _PATIENCE_SUPERVISED_S if witness.supervised() else _PATIENCE_S
    for passes, wait_s in enumerate(waits, start=2):
        if not len(walk.findings):
            break
        time.sleep(wait_s)
        again = _walk(arena, witness, live=live, progress=progress)
        stays = _keys(walk.findings) & _keys(again.findings)
        keep = np.array([_key(row) in stays for row in again.findings], dtype=np.bool_)
        again.findings = again.findings[keep]
        if not again.counts or sum(again.counts.values()) <= _LISTED_MAX:
            again.counts = _count(again.findings)
        again.passes = passes
        walk = again
    return walk


def _walk(arena: Arena, witness: _Witness, *, live: bool, progress: Progress | None) -> _Walk:
    region, header = arena.region, arena.region.header
    before = witness.alive()
    audit = _native.Audit(
        region, _flags(before | witness.ours), at_rest=not live, findings_max=_LISTED_MAX
    )
    segments = max(1, _RECORDS_PER_STEP // header["records_per_segment"])
    steps = [
        (audit.segments, first, first + segments)
        for first in range(0, header["segment_count"], segments)
    ]
    tables = len(steps)
    steps += [
        (audit.buckets, first, first + _BUCKETS_PER_STEP)
        for first in range(0, header["bucket_count"], _BUCKETS_PER_STEP)
    ]
    for done, (step, first, last) in enumerate(steps):
        if progress is not None:
            progress("checking", done, len(steps))
        if done == tables:
            audit.tables()
        step(first, last)
    if progress is not None:
        progress("checking", len(steps), len(steps))
    # Whoever came after we asked was alive all the same.
    newcomers = witness.alive() - before
    findings = audit.findings
    counts = audit.counts
    if newcomers and len(findings):
        of_slot = np.isin(findings["invariant"], (11, 13, 15, 16))
        findings = findings[~(of_slot & np.isin(findings["slot"], list(newcomers)))]
        if sum(counts.values()) <= _LISTED_MAX:
            counts = _count(findings)
    return _Walk(findings, counts, audit.account)


def _flags(slots: Iterable[int]) -> bytes:
    flags = bytearray(_native.CLIENT_COUNT)
    for slot in slots:
        flags[slot] = 1
    return bytes(flags)


def _key(row: Any) -> tuple[int, int, int, int]:
    return int(row["invariant"]), int(row["slot"]), int(row["where"]), int(row["seen"])


def _keys(rows: NDArray[Any]) -> set[tuple[int, int, int, int]]:
    return {_key(row) for row in rows}


def _count(rows: NDArray[Any]) -> dict[int, int]:
    numbers, counts = np.unique(rows["invariant"], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


# -- repairing -----------------------------------------------------------------------------------------


def _rounds(arena: Arena, witness: _Witness, walk: _Walk, progress: Progress | None) -> _Walk:
    """Repair and look again until nothing is left that can be repaired now (one repair can bare another)."""
    with _registry(arena):
        slot = _own_slot(arena)
    witness.ours = {slot} - {_NOBODY}
    try:
        for number in range(_ROUNDS_MAX):
            if progress is not None:
                progress("repairing", number, _ROUNDS_MAX)
            with _registry(arena):
                _undo(arena, witness, walk.findings, slot)
            live = bool(witness.alive())
            again = _settled(arena, witness, live=live, progress=progress)
            stuck = _keys(again.findings) == _keys(walk.findings)
            walk = again
            if stuck or not len(walk.findings):
                break
    finally:
        if slot != _NOBODY:
            arena.region.reap_client(slot)
            unlock(arena.control_fd, owner_byte(slot))
            unlock(arena.control_fd, copiers_byte(slot))
        witness.ours = set()
    return walk


@contextlib.contextmanager
def _registry(arena: Arena) -> Iterator[None]:
    """Nobody attaches or registers meanwhile. Held for as long as a repair takes, never while it looks."""
    lock_registry(arena, _REGISTRY_WAIT_S)
    try:
        yield
    finally:
        unlock(arena.control_fd, REGISTRY_BYTE)


def _undo(arena: Arena, witness: _Witness, findings: NDArray[Any], slot: int) -> None:
    """One round, under the registry lock: who is dead now stays dead, and nobody comes."""
    _reap(arena, witness, findings)
    alive = witness.alive()
    flags = _flags(alive | witness.ours)
    _native.mend(arena.region, findings, slot=slot, alive=flags, at_rest=not alive)
    arena.region.repair()


def _own_slot(arena: Arena) -> int:
    """A client slot to evict with; nobody's when all are taken, and then nothing is evicted."""
    try:
        slot = take_slot(arena)
    except ClientsFullError:
        return _NOBODY
    arena.region.reap_client(slot)  # a slot that is free may have been left pins by damage
    arena.region.attach_client(
        slot,
        pid=os.getpid(),
        started_at=0,
        now_ns=time.time_ns(),
        namespace_id=0,
        mode=0,
        engine_id=b"",
        label="pegashm fsck --repair",
    )
    return slot


def _reap(arena: Arena, witness: _Witness, findings: NDArray[Any]) -> None:
    """Reap every slot that findings name, if its locks prove that nobody lives there."""
    left_by_dead = np.isin(findings["invariant"], (11, 13, 15, 16))
    for slot in set(findings["slot"][left_by_dead].tolist()) - witness.ours:
        if not try_lock(arena.control_fd, owner_byte(slot)):
            continue
        if try_lock(arena.control_fd, copiers_byte(slot)):
            arena.region.reap_client(slot)
            unlock(arena.control_fd, copiers_byte(slot))
        unlock(arena.control_fd, owner_byte(slot))


# -- reporting -----------------------------------------------------------------------------------------


def _report(
    arena: Arena,
    walk: _Walk,
    *,
    live: bool,
    started: float,
    repaired: Iterable[Any] = (),
    repaired_counts: dict[int, int] | None = None,
) -> Report:
    header = arena.region.header
    subject = Subject(
        header["records_per_segment"], header["record_count"], header["journal_entry_count"]
    )
    files = _payload_findings(arena.name, header)
    counts = dict(walk.counts)
    if files:
        counts[2] = len(files)
    return Report(
        name=arena.name,
        live=live,
        passes=walk.passes,
        seconds=time.monotonic() - started,
        findings=(*files, *(_finding(row, subject, live) for row in walk.findings[:_SHOWN_MAX])),
        counts=counts,
        repaired=tuple(_finding(row, subject, live) for row in list(repaired)[:_SHOWN_MAX]),
        repaired_counts=repaired_counts or {},
        account=Account.of(walk.account, header),
    )


def _finding(row: Any, subject: Subject, live: bool) -> Finding:
    invariant = INVARIANTS[int(row["invariant"])]
    where, message = describe(row, subject)
    return Finding(
        invariant=invariant.number,
        name=invariant.name,
        kind=invariant.kind,
        where=where,
        message=message,
        repair=invariant.repair,
        repairable=not (live and invariant.number == 14),
    )


def _payload_findings(name: str, header: dict[str, Any]) -> list[Finding]:
    invariant = INVARIANTS[2]
    found = []
    for arena in header["arenas"]:
        try:
            has = os.stat(arena["path"]).st_size
        except (OSError, ValueError):
            message = "is gone: nobody can attach any more"
        else:
            if has >= arena["bytes"]:
                continue
            message = f"has {has} bytes of {arena['bytes']}: nobody can attach any more"
        found.append(
            Finding(
                invariant=2,
                name=invariant.name,
                kind=invariant.kind,
                where=f"payload file {arena['path']}",
                message=message,
                repair=f"start anew: pegashm purge --name {name} --yes",
                repairable=False,
            )
        )
    return found
