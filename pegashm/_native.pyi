"""Types of the native module: the one thin Cython layer over `pegashm/_core`.

Buffers in, buffers out, one call a batch, the GIL released around it, nothing decided here.
Handles: a block is named by a `numpy.uint64` handle, `generation << 24 | record`. A handle names one
life of one record: once the block is evicted, its handle never becomes valid again. 0 is "no block".
Keys: every function that takes keys wants a sequence of `bytes`, each the engine's block hash (1 to 32
bytes) followed by 4 bytes of KV-cache group, big-endian (vLLM's `OffloadKey`); the group must be < 65536.
"""

from collections.abc import Sequence
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

Handles = NDArray[np.uint64]
Outcomes = NDArray[np.uint8]

FORMAT_MAJOR: Final[int]
FORMAT_MINOR: Final[int]
LAYOUT_SIGNATURE: Final[int]
CLIENT_COUNT: Final[int]  # 128 index owners
NAMESPACE_COUNT: Final[int]
HEADER_BYTES: Final[int]
SUM_COUNT: Final[int]  # parts of a block that can have a checksum
SPILL_FILE_COUNT: Final[int]  # spill files of one arena
TRANSPORT_PATH_BYTES: Final[int]
EVICTIONS: Final[tuple[str, ...]]  # names of ways to evict, by the header's number
REMOTE_HOST_COUNT: Final[int]  # numbers of other hosts, from 0
REMOTE_HASH_VERSION: Final[
    int
]  # of remote_hashes(): hosts that differ in it do not understand each other's hints
REMOTE_COPIES: Final[int]  # for so many hosts one block is listed
TIER_MEMORY: Final[int]
TIER_SSD: Final[int]
REUSE_TICK_SECONDS: Final[int]  # how finely the time of what was asked for is told apart
REUSE_RANK_COUNT: Final[int]
REUSE_REGISTER_COUNT_MAX: Final[int]

# Outcomes of the batched calls, one byte a block (see `_core/status.hpp`).
OK: Final[int]  # done
MISSING: Final[int]  # no such block, or the handle's generation is over
PENDING: Final[int]  # another client has claimed the key and not published it yet
EXISTS: Final[int]  # claim(): a READY block with this key is there already
NO_SPACE: Final[int]  # claim(): nothing free, nothing evictable (all pinned or claimed)
QUOTA: Final[
    int
]  # claim(): the namespace is at its maximum and none of its own is evictable; evict_untouched(): a reserve keeps it
TOO_LARGE: Final[int]  # claim(): payload larger than a segment can hold
INDEX_FULL: Final[int]  # claim(): both candidate buckets are full of live entries
PINNED: Final[int]  # evict(): somebody holds a pin
INCOMPLETE: Final[int]  # publish(): fewer parts written than expected (or a part failed)
SPILLED: Final[int]  # find(): on SSD, and not (or not yet) in memory: ask the transport worker
REMOTE: Final[int]  # find(): neither, but another host may have it: ask the transport worker
DRAINING: Final[
    int
]  # claim(): the arena is being emptied, nothing is stored: see Region.set_draining

STATUS_NAMES: Final[dict[int, str]]
WHY_NAMES: Final[tuple[str, ...]]  # what Region.why_missing can say

class FormatPlan(TypedDict):
    """Sizes that follow from a region's parameters; all in bytes or counts as named."""

    segment_count: int
    records_per_segment: int
    record_count: int
    bucket_count: int
    journal_entry_count: int
    control_bytes: int
    payload_bytes: int
    spill_record_count: int
    remote_bucket_count: int
    reuse_register_count: int

def plan_region(
    *,
    segment_bytes: int,
    block_bytes_min: int,
    segments_per_arena: Sequence[int],
    spill_records: int = 0,
    remote_buckets: int = 0,
    reuse_registers: int = 0,
) -> FormatPlan:
    """Say how large a control region for such arenas, so many blocks on SSD and buckets of remote hints is.

    `reuse_registers`: what `Region.reuse` counts with, a power of two; 0: it counts nothing.

    ValueError when the format cannot hold them.
    """

def format_region(
    control: Any,
    *,
    region_id: bytes,
    segment_bytes: int,
    block_bytes_min: int,
    segments_per_arena: Sequence[int],
    arena_paths: Sequence[str],
    numa_nodes: Sequence[int],
    page_bytes: int,
    created_at_ns: int,
    spill_records: int = 0,
    remote_buckets: int = 0,
    reuse_registers: int = 0,
) -> None:
    """Write a whole control region into `control` (writable, zeroed, of `control_bytes`); magic last.

    `region_id`: 16 bytes, unique. `numa_nodes`: one an arena, -1 for "not bound". `page_bytes`: 4096,
    2 MiB or 1 GiB, what backs the arenas. No segment is ready yet: see `Region.set_segments_ready`.
    """

def check_header(control: Any, file_bytes: int) -> tuple[int, str]:
    """Judge a header of >= HEADER_BYTES: (0 ready | 1 not yet | 2 never, reason naming both sides)."""

def header_info(control: Any) -> dict[str, Any]:
    """All header fields by their FORMAT.md names (arenas as a list of dicts), unchecked, for tools."""

def draining_since(header: dict[str, Any]) -> int:
    """Since when the arena of that header has been drained (`Region.set_draining`), realtime; 0: it is not."""

class Region:
    """The control region and the arenas of one name, mapped in this process (O(1) in their size)."""

    def __init__(self, control_fd: int, arena_fds: Sequence[int], *, writable: bool = True) -> None:
        """Map and validate. Raises `pegashm.errors.FormatError` when check_header says no.

        `writable=False` maps all read-only (tools); `arena_fds` may be empty to map control only.
        """

    def close(self) -> None: ...
    def disown(self, why: str) -> None:
        """Close it for good in a forked child, without unmapping; every later use raises ValueError(why)."""
    @property
    def closed(self) -> bool: ...
    @property
    def writable(self) -> bool: ...
    @property
    def header(self) -> dict[str, Any]: ...
    @property
    def payload_address(self) -> int:
        """Address of payload offset 0 in this process (0 when the arenas are not mapped)."""
    @property
    def payload_bytes(self) -> int: ...
    def payload(self, offset: int, nbytes: int) -> memoryview:
        """A view of payload bytes (read-only on a read-only mapping). ValueError outside the arenas."""
    # -- supervisor side ---------------------------------------------------------------------
    def set_segments_ready(self, count: int) -> None:
        """Let claims use segments [0, count): they are populated. Only ever grows."""
    def set_eviction(self, name: str) -> None:
        """Evict by one of EVICTIONS from now on: a setting that every client reads when it uses or evicts."""

    def set_draining(self, since_ns: int) -> None:
        """From now on no claim is granted, by anybody (DRAINING); 0: they are again. Claims in hand are published as ever."""
    def set_supervisor(self, pid: int, started_at_ns: int) -> None: ...
    def set_transport(self, path: str, pid: int, started_at_ns: int) -> None:
        """Say where the transport worker listens; "" when nowhere. At most TRANSPORT_PATH_BYTES bytes."""
    def populate(self, offset: int, nbytes: int) -> int:
        """MADV_POPULATE_WRITE over payload bytes, GIL released; 0 or an errno."""
    def lock(self, offset: int, nbytes: int) -> int:
        """mlock over payload bytes, GIL released; 0 or an errno."""
    def bind(self, offset: int, nbytes: int, numa_node: int) -> int:
        """mbind(MPOL_BIND) payload bytes to a NUMA node; 0 or an errno."""
    def huge(self, offset: int, nbytes: int) -> int:
        """madvise(MADV_HUGEPAGE); 0 or an errno (a hint: ignore failures)."""
    # -- registration: the caller holds the kernel lock that FORMAT.md names -------------------
    def register_namespace(
        self,
        fingerprint: bytes,
        *,
        label: str,
        reserved_bytes: int = 0,
        maximum_bytes: int = 0,
        now_ns: int,
        in_use: Sequence[int] = (),
        facts: bytes = b"",
    ) -> int:
        """Find or create a namespace (32-byte digest); its id, 0 when the table is full.

        `maximum_bytes` 0: no limit. `in_use`: ids that live clients use, never recycled. All reserves together are at
        most `payload_bytes`: those of namespaces that are not in use lapse first, and then less than
        `reserved_bytes` is granted: see `namespaces`. `facts`: 48 bytes, see `keys.py`; empty: not known here.
        """
    def drop_reserve(self, namespace_id: int) -> None:
        """Take a namespace's reserve away, until it is registered again with one."""
    def attach_client(
        self,
        slot: int,
        *,
        pid: int,
        started_at: int,
        now_ns: int,
        namespace_id: int,
        mode: int,
        engine_id: bytes,
        label: str,
    ) -> int:
        """Write a client slot and mark it attached; returns its incarnation."""
    def set_client_namespace(self, slot: int, namespace_id: int) -> None:
        """Record in a client's own slot which namespace it is in now."""
    def client_incarnation(self, slot: int) -> int:
        """Incarnation of an attached slot, 0 when the slot is free."""
    def reap_client(self, slot: int) -> dict[str, int]:
        """Undo all that a client left and free its slot; what was done: claims, evictions, pins, segments."""
    def repair(self) -> dict[str, int]:
        """Rebuild hints from the records (free bitmap, namespace bytes, missing touches). Idempotent."""
    def count(self, counter: str, amount: int = 1) -> None:
        """Add to a counter by its key."""
    def set_gauge(self, counter: str, value: int) -> None:
        """Store a counter's value: only for its one writer."""
    def count_asked(self, keys: Sequence[bytes], namespace_id: int, *, at_s: int = 0) -> None:
        """Count what one request asks for, for `reuse`: all of it, once. `at_s`: when (0: now)."""
    def count_served(self, amount: int, *, at_s: int = 0) -> None:
        """Count how many blocks of what was asked for came from the cache."""
    # -- reading, by any process; snapshots, consistent per record ------------------------------
    def clients(self) -> list[dict[str, Any]]:
        """Attached slots: slot, incarnation, pid, started_at, attached_at_ns, namespace_id, mode, engine_id, label."""
    def namespaces(self, *, counted: bool = True) -> list[dict[str, Any]]:
        """Live namespaces: id, fingerprint, label, reserved/maximum/resident_bytes, created_at_ns, attached_at_ns, facts, blocks.

        `counted=False` leaves `blocks` at 0 and costs no pass over the records.
        """
    def ghosts(self, keys: Sequence[bytes], namespace_id: int) -> list[bool]:
        """Whether each was evicted, as far as adaptive eviction remembers it: a hint, now and then wrong in either way."""
    def segments(self) -> list[dict[str, Any]]:
        """Segments: index, state, owner, stride_bytes, blocks, free, claimed, ready, evicting."""
    def blocks(self) -> NDArray[Any]:
        """Structured array of all records that are not FREE.

        Fields: record u4, state u1 (1 claimed 2 ready 3 evicting), owner u2, generation u8, key (32 bytes),
        key_bytes u1, group u2, namespace_id u4, payload_offset u8, payload_bytes u8, pins u8[2], touched u8,
        claimed_at_ns u8, published_at_ns u8, parts_done u4, parts_failed u4, sum_parts u1 (0: no
        checksums), damaged u1.
        """
    def describe(self, handles: Handles) -> NDArray[Any]:
        """Rows as of blocks() for these handles; all zero where the life of one is over."""
    def room(self) -> tuple[int, list[dict[str, int]]]:
        """(segments without a stride, [{stride_bytes, capacity, free}]): a pass over the free bits."""
    def spilled(self) -> NDArray[Any]:
        """All blocks on SSD that are listed (SPILL_FIELDS), those of files out of use included."""
    def remote_hosts(self) -> list[dict[str, Any]]:
        """Other hosts that are listed: number, usable, host_id, incarnation, address, sequence, events, hints,
        heard_at_ns. Labels, but for `usable`."""
    def tally(self) -> dict[str, int]:
        """Records by state: free, claimed, ready, evicting, damaged; and `record_count`, `capacity`."""
    def why_missing(self, keys: Sequence[bytes], namespace_id: int) -> list[str]:
        """For keys that a lookup did not find, one of WHY_NAMES each: never_stored, evicted, other_namespace, not_yet,
        refused (no room for it), damaged, present (after all), spilled. Hints, dearer than a lookup."""
    def survey(self, *, pins_max: int = 65536) -> dict[str, Any]:
        """All that one pass over the records can count, without the GIL: tally (records by state; damaged: no state at
        all), capacity, pinned, pinned_bytes, damaged (marked), summed, oldest_ready_ns; segments, parts (of a segment by
        namespace), clients (by slot), namespaces (by slot, the last of those that are no more) and pins (of the first
        `pins_max` pinned blocks) as arrays of SURVEY_*_FIELDS."""
    def counters(self) -> list[dict[str, Any]]:
        """Counters: key, type ("counter" | "gauge"), label, value."""
    def reuse(self, seconds: int, *, at_s: int = 0) -> dict[str, Any]:
        """What was asked for in the last `seconds` (at most a day): asked, served, ranks (registers of a HyperLogLog
        by their largest rank, REUSE_RANK_COUNT + 1 of them), and of how many of these seconds it knows."""
    def journal(self, after: int, limit: int = 1024) -> tuple[int, list[dict[str, Any]]]:
        """Events with sequence > after: (last sequence seen, [{sequence, event, namespace_id, group, key, handle}]).

        Events overwritten, or not written yet, are skipped: a gap in `sequence` shows it, and whether
        to wait for one is the caller's to say.
        """

class Client:
    """One attached slot's view of the index. Thread-safe; every call is bounded and never waits."""

    def __init__(self, region: Region, slot: int, incarnation: int) -> None: ...
    @property
    def slot(self) -> int: ...
    def retire(self) -> None:
        """Wait for the calls in hand of other threads; later ones find nothing and change nothing. Before
        one's own slot is reaped, which is then somebody else's."""
    def find(
        self, keys: Sequence[bytes], namespace_id: int, *, pin: bool = False, counted: bool = True
    ) -> tuple[Handles, Outcomes]:
        """Handles of READY blocks (0 where not OK) and OK | MISSING | PENDING | SPILLED | REMOTE. `pin`: hold each
        found. `counted` False: these are no lookups of an engine here, and leave its counters alone."""
    def find_prefix(
        self, keys: Sequence[bytes], namespace_id: int, *, pin: bool = False
    ) -> tuple[Handles, Outcomes]:
        """As find(), but stops after the first key that nobody has: neither OK nor SPILLED nor REMOTE (arrays are
        cut there, it included)."""
    def pin(self, handles: Handles) -> Outcomes: ...
    def unpin(self, handles: Handles) -> None:
        """Drop one pin on each; pins nest and the last one clears the bit. 0 is skipped."""
    def locate(self, handles: Handles) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """(payload offsets, payload bytes) of blocks this client has pinned or claimed; 0, 0 where it is over."""
    def claim(
        self, keys: Sequence[bytes], namespace_id: int, payload_bytes: int
    ) -> tuple[Handles, Outcomes]:
        """Take a block for each key, evicting as needed: OK | EXISTS | PENDING | NO_SPACE | QUOTA | ..."""
    def publish(self, handles: Handles, parts_expected: int = 0) -> Outcomes:
        """CLAIMED -> READY: OK | INCOMPLETE (a part failed: claim dropped) | PENDING (a writer has not
        reported: claim kept) | MISSING. 0 parts expected: do not check."""
    def abandon(self, handles: Handles) -> None:
        """Give claims back. Only when nobody writes to them any more."""
    def touch(self, handles: Handles) -> None:
        """Mark as used now, in one batch: later entries count as more recent (pass tail to head)."""
    def touch_keys(self, keys: Sequence[bytes], namespace_id: int) -> int:
        """As touch(), by key: how many were READY. Counts no lookups."""
    def evict(self, handles: Handles) -> Outcomes:
        """Evict these: OK | PINNED | MISSING."""
    def evict_lru(self, payload_bytes: int, count: int) -> int:
        """Evict up to `count` least recently used blocks of this size class; returns how many."""

    def oldest(self, payload_bytes: int, count: int) -> tuple[Handles, NDArray[np.uint64]]:
        """Up to `count` least recently used blocks of this size class, oldest first, pinned by us: their
        handles, and when each was used (for evict_untouched)."""
    def evict_untouched(self, handles: Handles, touches: NDArray[np.uint64]) -> Outcomes:
        """Drop our pins on what oldest() gave and evict what was not used since: OK | PINNED | QUOTA | MISSING."""

# What Region.survey counts by; see `_core/survey.hpp`.
SURVEY_SEGMENT_FIELDS: Final[
    np.dtype[Any]
]  # stride_bytes, capacity, state (0 unassigned, 1 assigned, 2 changing)
SURVEY_PART_FIELDS: Final[
    np.dtype[Any]
]  # segment, namespace_id (0: others), claimed, ready, evicting, pinned, bytes
SURVEY_CLIENT_FIELDS: Final[
    np.dtype[Any]
]  # pinned, pinned_bytes, claims, claimed_bytes, oldest_claim_ns, evicting
SURVEY_NAMESPACE_FIELDS: Final[np.dtype[Any]]  # claimed, ready, evicting, pinned, bytes
SURVEY_PIN_FIELDS: Final[np.dtype[Any]]  # handle, pins (two words, a bit a client slot)

SPILL_FIELDS: Final[np.dtype[Any]]
"""A block on SSD: key (32 bytes, zero padded), key_bytes u1, group u2, namespace_id u4, file u1, file_offset u8,
payload_bytes u8, checksum u8, sum_layout u8, published_at_ns u8, sequence u8."""

class SpillTable:
    """What lies on SSD, as every lookup sees it. One writer: who holds the lock of the transport worker.

    Thread-safe. Begin with clear(): what a former writer left is not believed.
    """

    def __init__(self, region: Region) -> None: ...
    def __len__(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    def clear(self) -> None:
        """Forget everything; no file counts until set_usable()."""
    def set_usable(self, files: int) -> None:
        """Which files' blocks lookups may see: bit f for file f."""
    def store(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Make blocks (SPILL_FIELDS) findable; an older one of the same key gives way. False where the
        table or the index is full. ValueError for a key or a file number that cannot be."""
    def find(self, keys: Sequence[bytes], namespace_id: int) -> NDArray[Any]:
        """A row of SPILL_FIELDS for each key; `payload_bytes` 0 where it is not on SSD."""
    def forget(self, rows: NDArray[Any]) -> int:
        """Take out those that still lie where the row says (key, file, offset, sequence); how many."""
    def drop(self, file: int, first: int, end: int) -> int:
        """Take out all blocks of a file whose offset is in [first, end); how many."""
    def keep_log(self, size: int) -> None:
        """From now on keep each change for take_log(), up to `size` of them between two calls."""
    def take_log(self) -> tuple[NDArray[np.uint8], NDArray[np.uint64], bool]:
        """What changed since the last call, in order: operations (3 on SSD now, 4 no more), remote hashes, and whether
        there were more than are kept."""

# What other hosts hold, and what they are told of us. See FORMAT.md, "Other hosts".
def remote_hashes(
    region: Region, keys: Sequence[bytes] | Handles, namespace_id: int | None = None
) -> NDArray[np.uint64]:
    """The hash by which hosts speak of a block: the same on each. For keys of a namespace (ValueError when it is not
    live here), or, without one, for handles of blocks (0 where their life, or their namespace, is over)."""

def remote_hashes_of(fingerprint: bytes, keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """The same, of a namespace that need not be known here."""

def remote_events(
    region: Region, after: int, settled: int, limit: int
) -> tuple[int, int, int, NDArray[np.uint8], NDArray[np.uint64]]:
    """What happened to our blocks after event `after` of the journal: (last event read, events overwritten before they
    could be read, events that nobody finished writing, operations (1 in memory now, 2 no more), remote hashes).

    An event that is not readable yet ends the batch, unless it is not above `settled`, a journal_head that was seen
    long enough ago: then nobody is writing it any more.
    """

def remote_holdings(
    region: Region, first: int, end: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """(remote hashes, tiers) of the blocks in records [first, end) that can be read. Records from `record_count` on
    are those on SSD; in all there are record_count + spill_record_count."""

# What one namespace has on this host, for who keeps a list of it in step: see `connector/events.py`.
def residency_signs(region: Region) -> tuple[int, int, int]:
    """What to watch: journal_head, which spill files are usable, when the transport worker started. When one of the
    latter two changes, any block may have come to or gone from SSD without an event."""

def residency(region: Region, keys: Sequence[bytes], namespace_id: int) -> NDArray[np.uint8]:
    """In which tiers each key's block is: TIER_MEMORY | TIER_SSD. One that is being evicted counts until it is gone."""

def changed_keys(
    region: Region, namespace_id: int, after: int, settled: int, limit: int
) -> tuple[int, int, int, list[bytes]]:
    """Keys that events of the journal after `after` speak of, at most `limit` events of all namespaces: (last event read,
    events overwritten, events that nobody finished writing, keys). `settled`: as for remote_events(). Ask residency()
    how they stand."""

def resident_keys(
    region: Region, namespace_id: int, first: int, records_max: int, keys_max: int
) -> tuple[int, list[bytes]]:
    """Keys of a namespace's blocks in the records from `first` on, those on SSD from `record_count` on, until so many
    records were looked at or so many keys found: (the next record to look at, keys)."""

class RemoteTable:
    """Which blocks other hosts hold, as every lookup sees it. One writer: who holds the lock of the transport worker.

    Thread-safe. Hosts are numbered by the writer, below REMOTE_HOST_COUNT. Begin with clear(): what a former writer
    left is not believed. A table that is full forgets other hints. Tiers: 1 memory, 2 SSD, 3 both.
    """

    def __init__(self, region: Region) -> None: ...
    def __len__(self) -> int: ...
    @property
    def count(self) -> int:
        """Hints in it."""
    @property
    def capacity(self) -> int:
        """Places for hints; 0 when the region has no such table, and then nothing is kept."""
    @property
    def displaced(self) -> int:
        """Hints that had to make room for others."""
    def hints(self, host: int) -> int:
        """How many there are of one host."""
    def clear(self) -> None:
        """Forget everything; no host counts until set_usable()."""
    def set_usable(self, host: int, usable: bool) -> None:
        """Whether lookups may see this host's hints: takes effect at once, whatever their number."""
    def set_none_usable(self) -> None:
        """No host's hints are seen any more."""
    def add(self, host: int, hashes: NDArray[np.uint64], tier: int = 1) -> int:
        """The host has these blocks in `tier`, besides what is known; how many hints are new."""
    def remove(self, host: int, hashes: NDArray[np.uint64], tier: int = 3) -> int:
        """The host does not have them in `tier`; how many hints are gone."""
    def apply(self, host: int, ops: NDArray[np.uint8], hashes: NDArray[np.uint64]) -> None:
        """What a host told, in its order: 1 in memory, 2 not in memory, 3 on SSD, 4 not on SSD; others are ignored."""
    def retire(self, host: int) -> None:
        """Its hints count no more and may be overwritten. The number must not be used again before drop_retired()."""
    def begin_anew(self, host: int) -> None:
        """Its hints may be overwritten, but count until drop_retired(), which must come before any of them is added."""
    def drop_retired(self) -> int:
        """Take out the hints of all hosts retired, or beginning anew; one pass over the table. How many."""
    def drop_host(self, host: int) -> int:
        """retire() and drop_retired()."""
    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """For each hash a row of REMOTE_COPIES: numbers of usable hosts that have it (-1: no more), and their tiers."""
    def describe(
        self,
        host: int,
        *,
        host_id: bytes,
        incarnation: bytes,
        address: str,
        sequence: int,
        events: int,
        heard_at_ns: int,
    ) -> None:
        """What tools show of a host (Region.remote_hosts); an address is cut after 56 bytes."""

class Copier:
    """Copies byte runs with a fixed set of threads, GIL released; usable without any region."""

    def __init__(self, threads: int = 1) -> None: ...
    def copy(
        self,
        destinations: NDArray[np.uint64],
        sources: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        *,
        method: str = "auto",
    ) -> int:
        """Copy run i from address sources[i] to destinations[i]; total bytes. The caller vouches for addresses.

        `method`: "auto" (best measured per size), "memcpy", "streaming", "rep_movsb" (x86 only).
        """
    def close(self) -> None: ...
    @staticmethod
    def methods() -> list[str]: ...

# Worker side (a process that copies for a client but owns no slot): see FORMAT.md, "Parts".
def generations_hold(region: Region, handles: Handles) -> NDArray[np.bool_]:
    """Whether each handle's record is still in the same life (READY or CLAIMED of that generation)."""

def part_done(region: Region, handles: Handles, ok: bool) -> None:
    """Record that one writer finished its part of each claimed block (or failed to)."""

def parts_total(region: Region, handles: Handles) -> NDArray[np.uint32]:
    """Parts reported (done + failed) for each handle; 0 where its life is over."""

# Checksums of payloads: kept here, computed and compared in `payload_sums.py`. See FORMAT.md, "Checksums".
def write_sums(
    region: Region,
    handles: Handles,
    sums: NDArray[np.uint64],
    *,
    part: int,
    part_count: int,
    part_bytes: int,
) -> NDArray[np.bool_]:
    """Keep the checksum of part `part` of each claimed block; False where its life is over, or the parts
    are larger than its payload. Before the part is reported. ValueError for a part that cannot be."""

def read_sums(
    region: Region, handles: Handles
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32], NDArray[np.bool_]]:
    """(checksums, a row of SUM_COUNT each, 0 = none; bytes of a part; parts, 0 = none; marked as damaged)."""

def mark_damaged(region: Region, handles: Handles) -> NDArray[np.bool_]:
    """Mark READY blocks, so that nobody pins them again; True where nobody had before."""

# Invariants of FORMAT.md, by their numbers there; `fsck.py` says them in words.
FINDING_FIELDS: Final[np.dtype[Any]]  # invariant u4, slot u4, where u8, seen u8, expected u8

class Audit:
    """One walk over a region that judges every invariant. In slices, so that a caller can show progress."""

    def __init__(
        self, region: Region, alive: bytes, *, at_rest: bool, findings_max: int = ...
    ) -> None:
        """`alive`: 128 bytes, 1 for a slot whose owner or copiers live. `at_rest`: judge hints as well."""
    def segments(self, first: int, last: int) -> None:
        """Segments [first, last) and their records."""
    def buckets(self, first: int, last: int) -> None:
        """Index buckets [first, last)."""
    def tables(self) -> None:
        """All else; call it after every segment."""
    @property
    def findings(self) -> NDArray[Any]:
        """Structured array (FINDING_FIELDS) of the first `findings_max`."""
    @property
    def counts(self) -> dict[int, int]:
        """All findings by invariant."""
    @property
    def account(self) -> dict[str, Any]:
        """blocks and bytes by use, records_spare, records_stray, segment_tail_bytes, unassigned_bytes."""

def mend(
    region: Region, findings: NDArray[Any], *, slot: int, alive: bytes, at_rest: bool
) -> NDArray[np.bool_]:
    """Undo what an Audit found, as far as it still stands: which of them it acted on.

    `slot`: the caller's own, attached, with the registry lock held. Leaves dead clients to `reap_client`
    and hints to `repair`. `at_rest`: nobody else is attached or can attach meanwhile.
    """

# Bytes between files and memory: see `_core/disk.hpp`. What is in the files is `pegashm/spill`'s business.
class DiskTransfer:
    """Runs that a DiskPool is moving."""

    @property
    def finished(self) -> bool: ...
    def wait(self, *, helping: bool = False) -> NDArray[np.int32]:
        """An errno for each run, 0 where all its bytes were moved. Waits as long as the device takes, GIL
        released. `helping`: by this thread too."""

class DiskPool:
    """A fixed set of threads that move batches of runs between files and memory; for several callers at once."""

    def __init__(self, threads: int = 4, piece_bytes: int = ...) -> None:
        """`piece_bytes`: what one call moves at most: long runs are cut, neighbours gathered up to it."""
    @property
    def threads(self) -> int: ...
    @property
    def waiting_seconds(self) -> float:
        """How long the oldest unfinished transfer has been under way; 0 when there is none."""
    def start(
        self,
        fd: int,
        offsets: NDArray[np.uint64],
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        *,
        write: bool,
    ) -> DiskTransfer:
        """Move `sizes[i]` bytes between file offset `offsets[i]` and `addresses[i]`. The caller vouches for the
        addresses until the transfer is finished; dropping the object waits for that."""
    def transfer(
        self,
        fd: int,
        offsets: NDArray[np.uint64],
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        *,
        write: bool,
    ) -> NDArray[np.int32]:
        """start() and wait(helping=True)."""
    def close(self, patience_seconds: float = 1.0) -> bool:
        """End the threads. False when some still hang in a call: they end when that returns."""
