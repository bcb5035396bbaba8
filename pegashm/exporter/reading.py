"""What can be said about an arena right now? One reading of it, that metrics, status page and `pegashm top` share.

Use it so, from any number of threads:

    reader = Reader("kv0")                # needs no arena yet, and outlives any
    reading = reader.read()               # never raises for a state of the arena: `reading.state` says it
    reading.counters["hits"], reading.survey.tally["ready"]

A reading is made of two parts. The cheap one (header, counters, clients and who of them lives, namespaces, journal:
half a millisecond, a system call a client in it) is made anew for each `read()` that comes later than `fresh_seconds`
after the last. The dear one, `survey`, is one pass over all block records (20 to 50 ms a million, in native code,
without the GIL) and over the registers of the reuse ceiling; it is made at most every `survey_seconds`, and its age is
`reading.survey.age_seconds`. Nothing is written, no lock of the arena is taken, the payload is not mapped.

States: "ready", "unsupervised", "not_ready", "missing", "unreadable", as `pegashm status` says them. In the last three
there is nothing but `reason`. A purged arena is let go of at the next `read()` or `let_go()`, and its successor (another
`region_id`) is opened by the one after: whoever keeps numbers between readings compares `region_id`.

Strings out of the arena (labels, paths, addresses) were written by other processes: show them as text only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.arena import Arena, open_arena
from pegashm.errors import ArenaMissingError, ArenaNotReadyError, PegaShmError
from pegashm.liveness import (
    SUPERVISOR_BYTE,
    TRANSPORT_BYTE,
    close_lock_file,
    copiers_byte,
    holder_alive,
    open_lock_file,
    owner_byte,
)
from pegashm.peers.report import PeersReport, peers_of
from pegashm.reuse import ReuseWindow, read_reuse

__all__ = [
    "ClientReading",
    "Event",
    "NamespaceReading",
    "Reader",
    "Reading",
    "SegmentPart",
    "SpillReading",
    "Survey",
]

FRESH_SECONDS: Final = 0.5
SURVEY_SECONDS: Final = 10.0
_SEGMENT_STATES: Final = ("unassigned", "assigned", "changing", "damaged")
EVENTS: Final = 64  # of the journal, in a reading


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPart:
    """Blocks of one namespace in one segment: what an occupancy map is drawn of. `namespace_id` 0: of several others."""

    segment: int
    namespace_id: int
    claimed: int
    ready: int
    evicting: int
    pinned: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over all records found, `age_seconds` ago; it took `took_seconds`.

    `tally`: records by state (free, claimed, ready, evicting, damaged). `capacity`: blocks that assigned segments hold.
    `damaged`, `summed`: blocks marked as damaged, blocks with checksums. Of segments, in order: `states` (unassigned,
    assigned, changing, damaged), `strides` (bytes of a block, 0 where it has none yet), `capacities` (blocks); and `parts`,
    ordered by segment. `reuse`: ceiling and hit rate by window.
    """

    age_seconds: float
    took_seconds: float
    tally: Mapping[str, int]
    capacity: int
    pinned: int
    pinned_bytes: int
    damaged: int
    summed: int
    oldest_ready_seconds: float
    states: Sequence[str]
    strides: Sequence[int]
    capacities: Sequence[int]
    parts: Sequence[SegmentPart]
    reuse: Sequence[ReuseWindow]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceReading:
    """Who shares. `label` is for people, `fingerprint` (hex) for comparing; maximum_bytes 0: no limit.

    The numbers of blocks are of the survey, 0 before the first.
    """

    id: int
    label: str
    fingerprint: str
    resident_bytes: int
    reserved_bytes: int
    maximum_bytes: int
    created_at_ns: int
    attached_at_ns: int
    claimed: int = 0
    ready: int = 0
    evicting: int = 0
    pinned: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientReading:
    """An attached slot. Dead: not `alive`; its claims wait for its workers as long as `copiers_alive`, then for a reap.

    Pins and claims are of the survey. `oldest_pin_seconds`: since when it has been seen to hold one block without
    interruption, so a pin is at least that old, and less than two surveys older.
    """

    slot: int
    incarnation: int
    pid: int
    label: str
    engine_id: str
    mode: int
    namespace_id: int
    attached_at_ns: int
    alive: bool
    copiers_alive: bool
    pinned: int = 0
    pinned_bytes: int = 0
    oldest_pin_seconds: float = 0.0
    claims: int = 0
    claimed_bytes: int = 0
    oldest_claim_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillReading:
    """The SSD tier; `records` 0: there is none. Backlog and budget are what the worker said last, 0 when it is dead."""

    records: int
    files: int
    files_usable: int
    listed: int
    backlog_blocks: int
    backlog_bytes: int
    daily_bytes_limit: int  # 0: no limit
    daily_bytes_written: int
    payload_bytes: int
    file_bytes: int
    bytes_read: int

    @property
    def amplification(self) -> float | None:
        """Bytes written to the files for each byte of payload; None before anything was."""
        return self.file_bytes / self.payload_bytes if self.payload_bytes else None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal. `event`: publish, evict (memory), spill, forget (SSD); `seen_at_ns`: when a reading met it first."""

    sequence: int
    event: str
    namespace_id: int
    group: int
    key: str
    seen_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """See the head of this file. `header`: all its fields, as `pegashm-dump --json` names them."""

    name: str
    taken_at_ns: int
    state: str
    reason: str = ""
    region_id: str = ""
    header: Mapping[str, Any] = field(default_factory=dict)
    supervisor_alive: bool = False
    worker_alive: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)
    namespaces: Sequence[NamespaceReading] = ()
    clients: Sequence[ClientReading] = ()
    spill: SpillReading | None = None
    peers: PeersReport | None = None
    events: Sequence[Event] = ()
    survey: Survey | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is more to it than `state` and `reason`."""
        return bool(self.region_id)

    @property
    def has_worker(self) -> bool:
        """Whether it was made for one: with an SSD tier, or other hosts."""
        return bool(self.header.get("spill_record_count") or self.header.get("remote_bucket_count"))

    def namespace_label(self, namespace_id: int) -> str:
        for namespace in self.namespaces:
            if namespace.id == namespace_id:
                return namespace.label
        return ""


class Reader:
    """Reads one arena again and again. Thread-safe; `read` may be called as often as one likes."""

    def __init__(
        self,
        name: str,
        *,
        survey_seconds: float = SURVEY_SECONDS,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        self.name = name
        self.survey_seconds = survey_seconds
        self._fresh_seconds = fresh_seconds
        self._mutex = threading.Lock()
        self._arena: Arena | None = None
        self._last: Reading | None = None
        self._last_at = 0.0
        self._survey: _Surveyed | None = None
        self._pins = _PinAges()
        self._events: list[Event] = []

    def read(self) -> Reading:
        """The state of the arena now, or up to `fresh_seconds` ago."""
        with self._mutex:
            now = time.monotonic()
            if self._last is not None and now < self._last_at + self._fresh_seconds:
                return self._last
            self._last = self._read()
            self._last_at = time.monotonic()
            return self._last

    def let_go(self) -> None:
        """Unmap an arena that was purged, whose memory would else be held until somebody reads."""
        with self._mutex:
            if self._arena is not None and not self._arena.is_linked():
                self._close()

    def close(self) -> None:
        with self._mutex:
            self._close()

    # -- under the mutex -------------------------------------------------------------------------------

    def _close(self) -> None:
        arena, self._arena = self._arena, None
        self._last = self._survey = None
        self._pins = _PinAges()
        self._events = []
        if arena is not None:
            arena.close()

    def _read(self) -> Reading:
        now_ns = time.time_ns()
        try:
            if self._arena is not None and not self._arena.is_linked():
                self._close()
            if self._arena is None:
                self._arena = open_arena(self.name, writable=False, map_payload=False)
            return self._read_open(self._arena, now_ns)
        except ArenaMissingError as error:
            state, reason = "missing", str(error)
        except ArenaNotReadyError as error:
            state, reason = "not_ready", str(error)
        except (PegaShmError, OSError, ValueError) as error:
            state, reason = "unreadable", str(error)
        self._close()
        return Reading(
            name=self.name,
            taken_at_ns=now_ns,
            state=state,
            reason=reason,
            supervisor_alive=_supervisor_alive(self.name),
        )

    def _read_open(self, arena: Arena, now_ns: int) -> Reading:
        region = arena.region
        header = region.header
        surveyed = self._surveyed(region, now_ns)
        counters = {entry["key"]: int(entry["value"]) for entry in region.counters()}
        supervisor_alive = holder_alive(arena.control_fd, SUPERVISOR_BYTE)
        worker_alive = holder_alive(arena.control_fd, TRANSPORT_BYTE)
        state, reason = "ready", ""
        if not supervisor_alive:
            state = "unsupervised"
            reason = "engines can use it, but nobody reaps the dead"
        elif not header["segments_ready"]:
            state, reason = "not_ready", "its first segment is still being populated"
        return Reading(
            name=self.name,
            taken_at_ns=now_ns,
            state=state,
            reason=reason,
            region_id=header["region_id"].hex(),
            header=header,
            supervisor_alive=supervisor_alive,
            worker_alive=worker_alive,
            counters=counters,
            namespaces=_namespaces(region, surveyed),
            clients=_clients(arena, surveyed, now_ns),
            spill=_spill(header, counters, worker_alive),
            peers=peers_of(arena) if header["remote_bucket_count"] else None,
            events=self._recent(region, int(header["journal_head"]), now_ns),
            survey=surveyed.survey(),
        )

    def _surveyed(self, region: _native.Region, now_ns: int) -> _Surveyed:
        now = time.monotonic()
        if self._survey is None or now >= self._survey.at + self.survey_seconds:
            found = region.survey()
            reuse = read_reuse(region)
            took = time.monotonic() - now
            self._survey = _Surveyed(now, now_ns, took, found, reuse, self._pins.update(found, now))
        return self._survey

    def _recent(self, region: _native.Region, head: int, now_ns: int) -> Sequence[Event]:
        known = self._events[-1].sequence if self._events else 0
        _, entries = region.journal(max(known, head - EVENTS), EVENTS)
        fresh = [
            Event(
                entry["sequence"],
                entry["event"],
                entry["namespace_id"],
                entry["group"],
                entry["key"].hex(),
                now_ns,
            )
            for entry in entries
        ]
        self._events = (self._events + fresh)[-EVENTS:]
        return tuple(self._events)


@dataclass(frozen=True, slots=True)
class _Surveyed:
    """A survey as it came; `at`: by the monotonic clock. `pin_ages`: seconds by slot."""

    at: float
    at_ns: int
    took: float
    found: Mapping[str, Any]
    reuse: Sequence[ReuseWindow]
    pin_ages: Mapping[int, float]

    def survey(self) -> Survey:
        found = self.found
        oldest = found["oldest_ready_ns"]
        return Survey(
            age_seconds=time.monotonic() - self.at,
            took_seconds=self.took,
            tally=found["tally"],
            capacity=found["capacity"],
            pinned=found["pinned"],
            pinned_bytes=found["pinned_bytes"],
            damaged=found["damaged"],
            summed=found["summed"],
            oldest_ready_seconds=_seconds_since(oldest, self.at_ns),
            states=[_SEGMENT_STATES[state] for state in found["segments"]["state"].tolist()],
            strides=found["segments"]["stride_bytes"].tolist(),
            capacities=found["segments"]["capacity"].tolist(),
            parts=[
                SegmentPart(
                    segment=segment,
                    namespace_id=namespace_id,
                    claimed=claimed,
                    ready=ready,
                    evicting=evicting,
                    pinned=pinned,
                    bytes=nbytes,
                )
                for segment, namespace_id, claimed, ready, evicting, pinned, nbytes in found[
                    "parts"
                ].tolist()
            ],
            reuse=self.reuse,
        )


class _PinAges:
    """Since when is each pin seen? Compares the pinned blocks of one survey with those of the one before."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[NDArray[np.uint64], NDArray[np.float64]]] = {}

    def update(self, found: Mapping[str, Any], now: float) -> Mapping[int, float]:
        """How long the oldest pin of each slot has been seen, in seconds."""
        before, self._seen = self._seen, {}
        pins = found["pins"]
        for slot in np.flatnonzero(found["clients"]["pinned"]).tolist():
            bit = np.uint64(1 << slot % 64)
            handles = np.sort(pins["handle"][(pins["pins"][:, slot // 64] & bit) != 0])
            since = np.full(len(handles), now)
            if slot in before and len(handles):
                known, known_since = before[slot]
                at = np.minimum(np.searchsorted(known, handles), len(known) - 1)
                same = known[at] == handles
                since[same] = known_since[at[same]]
            if len(handles):
                self._seen[slot] = (handles, since)
        return {slot: now - float(since.min()) for slot, (_, since) in self._seen.items()}


def _namespaces(region: _native.Region, surveyed: _Surveyed) -> Sequence[NamespaceReading]:
    counted = surveyed.found["namespaces"]
    rows = []
    for entry in region.namespaces(counted=False):
        numbers = counted[entry["id"] & 0xFFFF]
        rows.append(
            NamespaceReading(
                id=entry["id"],
                label=entry["label"],
                fingerprint=entry["fingerprint"].hex(),
                resident_bytes=entry["resident_bytes"],
                reserved_bytes=entry["reserved_bytes"],
                maximum_bytes=entry["maximum_bytes"],
                created_at_ns=entry["created_at_ns"],
                attached_at_ns=entry["attached_at_ns"],
                claimed=int(numbers["claimed"]),
                ready=int(numbers["ready"]),
                evicting=int(numbers["evicting"]),
                pinned=int(numbers["pinned"]),
            )
        )
    return tuple(rows)


def _clients(arena: Arena, surveyed: _Surveyed, now_ns: int) -> Sequence[ClientReading]:
    rows = []
    for client in arena.region.clients():
        slot = client["slot"]
        alive = holder_alive(arena.control_fd, owner_byte(slot))
        copiers_alive = alive or holder_alive(arena.control_fd, copiers_byte(slot))
        # A client that closes gives its slot back, then its lock: dead is only who is still attached.
        if not alive and arena.region.client_incarnation(slot) != client["incarnation"]:
            continue
        held = surveyed.found["clients"][slot]
        rows.append(
            ClientReading(
                slot=slot,
                incarnation=client["incarnation"],
                pid=client["pid"],
                label=client["label"],
                engine_id=client["engine_id"],
                mode=client["mode"],
                namespace_id=client["namespace_id"],
                attached_at_ns=client["attached_at_ns"],
                alive=alive,
                copiers_alive=copiers_alive,
                pinned=int(held["pinned"]),
                pinned_bytes=int(held["pinned_bytes"]),
                oldest_pin_seconds=surveyed.pin_ages.get(slot, 0.0),
                claims=int(held["claims"]),
                claimed_bytes=int(held["claimed_bytes"]),
                oldest_claim_seconds=_seconds_since(int(held["oldest_claim_ns"]), now_ns),
            )
        )
    return tuple(rows)


def _spill(header: Mapping[str, Any], counters: Mapping[str, int], alive: bool) -> SpillReading:
    def said(gauge: str) -> int:
        return counters.get(gauge, 0) if alive else 0

    return SpillReading(
        records=int(header["spill_record_count"]),
        files=counters.get("spill_files", 0),
        files_usable=int(header["spill_usable"]).bit_count() if alive else 0,
        listed=said("spill_listed"),
        backlog_blocks=said("spill_backlog_blocks"),
        backlog_bytes=said("spill_backlog_bytes"),
        daily_bytes_limit=said("spill_daily_bytes_limit"),
        daily_bytes_written=said("spill_daily_bytes_written"),
        payload_bytes=counters.get("spill_payload_bytes", 0),
        file_bytes=counters.get("spill_file_bytes", 0),
        bytes_read=counters.get("spill_bytes_read", 0),
    )


def _supervisor_alive(name: str) -> bool:
    """Of an arena that cannot be opened (yet)."""
    try:
        descriptor = open_lock_file(name, writable=False)
    except (PegaShmError, OSError):
        return False
    try:
        return holder_alive(descriptor, SUPERVISOR_BYTE)
    finally:
        close_lock_file(descriptor)


def _seconds_since(then_ns: int, now_ns: int) -> float:
    return max(0.0, (now_ns - then_ns) / 1e9) if then_ns else 0.0
