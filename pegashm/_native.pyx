# cython: language_level=3, boundscheck=False, wraparound=False, binding=True, embedsignature=True
# distutils: language=c++
"""The thin layer between Python and `_core`: converts, releases the GIL, and turns a status into an exception.

Decides nothing. The types and the contract of every name are in `_native.pyi`; the bytes in
`_core/FORMAT.md`. No other module touches a shared word.
"""

import os

import numpy as np

from pegashm.errors import ArenaNotReadyError, FormatError, ResourceError

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer)
from cpython.object cimport PyObject
from cpython.sequence cimport PySequence_Fast, PySequence_Fast_GET_SIZE, PySequence_Fast_ITEMS
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from libcpp cimport bool as cbool


cdef extern from "client.hpp" namespace "pegashm" nogil:
    enum: arena_count_max
    enum: namespace_count
    enum: client_count
    enum: counter_count
    enum: record_count_max
    enum: key_words
    enum: sum_count
    enum: spill_file_count
    enum: remote_host_count
    const uint64_t remote_hash_version
    const uint64_t layout_signature
    const uint64_t draining_mark
    bint core_is_draining "pegashm::is_draining"(uint64_t)
    const uint16_t format_major
    const uint16_t format_minor

    cdef cppclass COutcome "pegashm::Outcome":
        pass

    cdef struct ArenaEntry:
        uint64_t bytes
        int32_t numa_node
        uint32_t path_bytes
        char path[176]

    cdef struct Header:
        uint64_t magic
        uint16_t format_major
        uint16_t format_minor
        uint32_t header_bytes
        uint64_t layout_signature
        uint8_t region_id[16]
        uint64_t created_at_ns
        uint64_t control_bytes
        uint64_t payload_bytes
        uint64_t segment_bytes
        uint64_t block_bytes_min
        uint32_t segment_count
        uint32_t records_per_segment
        uint32_t record_count
        uint32_t arena_count
        uint64_t bucket_count
        uint64_t journal_entry_count
        uint64_t namespaces_offset
        uint64_t clients_offset
        uint64_t counter_labels_offset
        uint64_t counter_values_offset
        uint64_t segments_offset
        uint64_t free_bits_offset
        uint64_t blocks_offset
        uint64_t touches_offset
        uint64_t buckets_offset
        uint64_t journal_offset
        uint64_t page_bytes
        uint64_t sums_offset
        uint64_t spill_offset
        uint32_t spill_record_count
        uint32_t reuse_register_count
        uint64_t remote_hosts_offset
        uint64_t remote_offset
        uint64_t remote_bucket_count
        uint64_t checksum
        uint64_t segments_ready
        uint64_t supervisor_pid
        uint64_t supervisor_started_at_ns
        uint64_t spill_usable
        uint64_t remote_usable
        uint64_t eviction
        uint64_t span
        uint64_t again_share
        uint64_t access_clock
        uint64_t journal_head
        uint64_t freed_clock
        ArenaEntry arenas[16]
        uint64_t transport_pid
        uint64_t transport_started_at_ns
        uint32_t transport_path_bytes
        char transport_path[104]
        uint64_t draining_since_ns

    cdef struct NamespaceEntry:
        uint64_t state
        uint8_t fingerprint[32]
        uint64_t reserved_bytes
        uint64_t maximum_bytes
        uint64_t resident_bytes
        uint64_t created_at_ns
        uint64_t attached_at_ns
        uint64_t facts[6]
        char label[128]

    cdef struct ClientSlot:
        uint64_t state
        uint64_t pid
        uint64_t started_at
        uint64_t attached_at_ns
        uint32_t namespace_id
        uint32_t mode
        char engine_id[64]
        char label[64]

    cdef struct CounterLabel:
        uint32_t type
        uint32_t key_bytes
        char key[56]

    cdef struct CounterValue:
        uint64_t value

    cdef struct Segment:
        uint64_t state

    cdef struct Block:
        uint64_t state
        uint64_t key[4]
        uint64_t identity
        uint64_t payload_offset
        uint64_t payload_bytes
        uint64_t pins[2]
        uint64_t parts
        uint64_t sum_layout
        uint64_t claimed_at_ns
        uint64_t published_at_ns

    cdef struct RemoteHost:
        uint8_t host_id[16]
        uint8_t incarnation[16]
        uint64_t sequence
        uint64_t events
        uint64_t hints
        uint64_t heard_at_ns
        uint32_t address_bytes
        char address[56]

    cdef struct RemoteHosts:
        RemoteHost hosts[4096]

    cdef struct JournalEntry:
        uint64_t sequence
        uint64_t what
        uint64_t handle
        uint64_t key[4]

    cdef struct Key:
        uint64_t words[4]
        uint64_t identity

    cdef struct Geometry:
        uint64_t segment_bytes
        uint64_t block_bytes_min
        uint64_t payload_bytes
        uint64_t bucket_count
        uint64_t journal_entry_count
        uint64_t remote_bucket_count
        uint64_t control_bytes
        uint32_t segment_count
        uint32_t records_per_segment
        uint32_t record_count
        uint32_t spill_record_count
        uint32_t reuse_register_count

    cdef cppclass View:
        uint8_t* control
        uint8_t* payload
        Geometry geometry
        Header& header()
        NamespaceEntry& name_space(uint32_t)
        ClientSlot& client(uint32_t)
        CounterLabel& counter_label(uint32_t)
        CounterValue& counter_value(uint32_t)
        Segment& segment(uint32_t)
        Block& block(uint32_t)
        uint64_t& touched(uint32_t)
        RemoteHosts& remote_hosts()
        uint32_t first_record(uint32_t)
        uint32_t segments_ready()

    uint64_t make_identity(uint32_t, uint16_t, uint8_t)
    cbool plan_geometry(uint64_t, uint64_t, uint64_t, Geometry&, uint64_t, uint64_t, uint64_t)
    uint64_t load_acquire(const uint64_t&)
    void store_release(uint64_t&, uint64_t)
    uint32_t segment_capacity(const Geometry&, uint32_t, uint64_t)
    uint64_t block_generation(uint64_t)
    uint32_t block_owner(uint64_t)
    uint64_t segment_stride(uint64_t)
    uint32_t segment_owner(uint64_t)
    cbool client_attached(uint64_t)
    uint64_t client_incarnation(uint64_t)
    cbool namespace_live(uint64_t)
    uint64_t namespace_generation(uint64_t)
    uint32_t c_namespace_id "pegashm::namespace_id"(uint64_t, uint32_t)
    uint64_t c_resident_bytes "pegashm::resident_bytes"(const NamespaceEntry&)
    cbool read_event(const View&, uint64_t, JournalEntry&)
    cbool life_holds(const View&, uint64_t)
    void report_part(const View&, uint64_t, cbool)
    uint32_t parts_reported(const View&, uint64_t)
    uint64_t make_sum_layout(uint64_t, uint32_t)
    uint32_t sum_part_count(uint64_t)
    cbool c_is_damaged "pegashm::is_damaged"(const Block&)
    cbool write_sum(const View&, uint64_t, uint32_t, uint64_t, uint64_t)
    cbool c_mark_damaged "pegashm::mark_damaged"(const View&, uint64_t)
    cdef struct SumsRead:
        uint64_t part_bytes
        uint32_t part_count
        cbool damaged
        uint64_t sums[8]
    SumsRead c_read_sums "pegashm::read_sums"(const View&, uint64_t)
    const char* const counter_keys[]
    enum: counters_used "static_cast<int>(pegashm::Counter::count_)"
    void c_count "pegashm::add_relaxed"(uint64_t&, uint64_t)
    uint32_t free_in_segment(const View&, uint32_t, uint32_t)

    cdef cppclass CClient "pegashm::Client":
        CClient(const View&, uint32_t)
        cbool valid()
        void retire()
        uint32_t find(const Key*, uint32_t, cbool, cbool, uint64_t*, COutcome*, cbool)
        void pin(const uint64_t*, uint32_t, COutcome*)
        void unpin(const uint64_t*, uint32_t)
        void locate(const uint64_t*, uint32_t, uint64_t*, uint64_t*)
        void claim(const Key*, uint32_t, uint64_t, uint64_t*, COutcome*)
        void publish(const uint64_t*, uint32_t, uint32_t, COutcome*)
        void abandon(const uint64_t*, uint32_t)
        void touch(const uint64_t*, uint32_t)
        uint32_t touch_keys(const Key*, uint32_t)
        void evict(const uint64_t*, uint32_t, COutcome*)
        uint32_t evict_oldest(uint64_t, uint32_t)
        uint32_t oldest(uint64_t, uint32_t, uint64_t*, uint64_t*)
        void evict_untouched(const uint64_t*, const uint64_t*, uint32_t, COutcome*)

cdef extern from "adaptive.hpp" namespace "pegashm" nogil:
    cdef cppclass CEviction "pegashm::Eviction":
        pass
    void core_set_eviction "pegashm::set_eviction"(const View&, CEviction)
    bint is_ghost(const View&, const Key&)

cdef extern from "reuse.hpp" namespace "pegashm" nogil:
    enum: reuse_tick_seconds
    enum: reuse_rank_count
    enum: reuse_register_count_max "static_cast<int>(pegashm::reuse_register_count_max)"

    cdef struct ReuseWindow:
        uint64_t asked
        uint64_t served
        uint32_t first_tick
        uint32_t ranks[33]

    uint32_t reuse_tick_of(uint64_t)
    uint32_t reuse_tick_now()
    void c_count_asked "pegashm::count_asked"(const View&, const Key*, uint32_t, uint32_t)
    void c_count_served "pegashm::count_served"(const View&, uint64_t, uint32_t)
    void read_reuse(const View&, uint32_t, uint32_t, ReuseWindow&)

cdef extern from "missing.hpp" namespace "pegashm" nogil:
    cdef cppclass CWhy "pegashm::Why":
        pass
    CWhy why_missing(const View&, const Key&)

cdef extern from "survey.hpp" namespace "pegashm" nogil:
    enum: survey_parts_max

    cdef struct SurveyPart:
        uint32_t segment
    cdef struct SurveySegment:
        uint32_t state
    cdef struct SurveyPin:
        uint64_t handle
    cdef struct SurveyClient:
        uint64_t pinned
    cdef struct SurveyNamespace:
        uint64_t ready

    cdef struct Survey:
        uint64_t tally[5]
        uint64_t capacity
        uint64_t pinned
        uint64_t pinned_bytes
        uint64_t damaged
        uint64_t summed
        uint64_t oldest_ready_ns
        uint32_t part_count
        uint32_t pin_count
        SurveyClient clients[128]
        SurveyNamespace namespaces[257]

    cdef struct SurveyRoom:
        SurveySegment* segments
        SurveyPart* parts
        SurveyPin* pins
        uint32_t pins_max

    void survey_region(const View&, const SurveyRoom&, Survey&)

cdef extern from "spill.hpp" namespace "pegashm" nogil:
    cdef struct Spilled:
        Key key
        uint32_t file
        uint64_t file_offset
        uint64_t payload_bytes
        uint64_t checksum
        uint64_t sum_layout
        uint64_t published_at_ns
        uint64_t sequence

    void read_spilled(const View&, uint32_t, Spilled&)
    cbool is_listed(const View&, uint32_t)

    cdef cppclass CSpillTable "pegashm::SpillTable":
        CSpillTable(const View&) except +
        uint32_t capacity()
        uint32_t size()
        void clear()
        void set_usable(uint64_t)
        uint32_t store(const Spilled&)
        uint32_t find(const Key&, Spilled&)
        cbool forget(const Spilled&)
        uint32_t drop(uint32_t, uint64_t, uint64_t)
        void keep_log(uint32_t) except +
        uint32_t take_log(uint8_t*, uint64_t*, uint32_t, cbool&)
        uint32_t log_count()

cdef extern from "holdings.hpp" namespace "pegashm" nogil:
    enum: copies_max "static_cast<int>(pegashm::RemoteTable::copies_max)"

    cdef struct EventsRead:
        uint64_t last
        uint64_t overrun
        uint64_t torn
        uint32_t count

    cdef struct RemoteLabels:
        const uint8_t* host_id
        const uint8_t* incarnation
        uint64_t sequence
        uint64_t events
        uint64_t heard_at_ns
        const char* address
        uint64_t address_bytes

    EventsRead read_events(const View&, uint64_t, uint64_t, uint32_t, uint8_t*, uint64_t*)
    uint32_t read_holdings(const View&, uint32_t, uint32_t, uint64_t*, uint8_t*)
    uint64_t remote_seed(const uint64_t*)
    uint64_t remote_hash(uint64_t, const Key&)
    cbool seed_of(const View&, uint32_t, uint64_t&)
    Key read_key(const Block&)
    cbool host_usable(const View&, uint32_t)

    cdef cppclass CRemoteTable "pegashm::RemoteTable":
        CRemoteTable(const View&) except +
        uint64_t capacity()
        uint64_t size()
        uint64_t displaced()
        uint64_t hints(uint32_t)
        void clear()
        void set_usable(uint32_t, cbool)
        void set_none_usable()
        uint64_t add(uint32_t, const uint64_t*, uint64_t, uint32_t)
        uint64_t remove(uint32_t, const uint64_t*, uint64_t, uint32_t)
        void apply(uint32_t, const uint8_t*, const uint64_t*, uint64_t)
        void retire(uint32_t)
        void begin_anew(uint32_t)
        uint64_t drop()
        void find(const uint64_t*, uint64_t, uint16_t*, uint8_t*)
        void describe(uint32_t, const RemoteLabels&)

cdef extern from "residency.hpp" namespace "pegashm" nogil:
    cdef struct Residents:
        uint32_t next
        uint32_t count

    uint8_t c_residency "pegashm::residency"(const View&, const Key&)
    EventsRead read_changed(const View&, uint64_t, uint64_t, uint32_t, uint32_t, Key*)
    Residents read_residents(const View&, uint32_t, uint32_t, uint32_t, uint32_t, Key*)

cdef extern from "header.hpp" namespace "pegashm" nogil:
    void write_format "pegashm::format"(const View&)
    void set_ready(Header&)
    cdef cppclass HeaderFault:
        pass
    HeaderFault judge_header "pegashm::check"(const Header&, uint64_t, Geometry&)
    void write_header(Header&, const Geometry&)

cdef extern from "registry.hpp" namespace "pegashm" nogil:
    cdef struct NamespaceRequest:
        const uint8_t* fingerprint
        const char* label
        uint64_t label_bytes
        uint64_t reserved_bytes
        uint64_t maximum_bytes
        uint64_t now_ns
        const uint32_t* in_use
        uint64_t in_use_count
        const uint64_t* facts

    cdef struct ClientRequest:
        uint64_t pid
        uint64_t started_at
        uint64_t now_ns
        uint32_t namespace_id
        uint32_t mode
        const char* engine_id
        uint64_t engine_id_bytes
        const char* label
        uint64_t label_bytes

    uint32_t c_register_namespace "pegashm::register_namespace"(const View&, const NamespaceRequest&)
    void c_drop_reserve "pegashm::drop_reserve"(NamespaceEntry&)
    cbool is_live_namespace(const View&, uint32_t)
    uint64_t c_attach_client "pegashm::attach_client"(const View&, uint32_t, const ClientRequest&)
    void enter_namespace(const View&, uint32_t, uint32_t)

cdef extern from "repair.hpp" namespace "pegashm" nogil:
    cdef struct Repaired:
        uint64_t claims
        uint64_t evictions
        uint64_t pins
        uint64_t segments
        uint64_t free_bits
        uint64_t touches
    Repaired c_reap_client "pegashm::reap_client"(const View&, uint32_t)
    Repaired rebuild_hints(const View&)

cdef extern from "mend.hpp" namespace "pegashm" nogil:
    enum: invariant_count

    cdef struct CFinding "pegashm::Finding":
        uint32_t invariant

    cdef struct CAccount "pegashm::Account":
        uint64_t blocks[11]
        uint64_t bytes[11]
        uint64_t records_spare
        uint64_t records_stray
        uint64_t segment_tail_bytes
        uint64_t unassigned_bytes

    cdef cppclass CAudit "pegashm::Audit":
        CAudit(const View&, const uint8_t*, cbool, CFinding*, uint64_t)
        void segments(uint32_t, uint32_t)
        void buckets(uint64_t, uint64_t)
        void tables()
        uint64_t listed()
        const uint64_t* counts()
        const CAccount& account()

    cdef cppclass CMender "pegashm::Mender":
        CMender(const View&, uint32_t, const uint8_t*, cbool)
        cbool mend(const CFinding&)

cdef extern from "mapping.hpp" namespace "pegashm" nogil:
    cdef struct Mapping:
        uint8_t* address
        uint64_t bytes
    int map_one(int, uint64_t, cbool, Mapping&)
    int map_together(const int*, const uint64_t*, uint32_t, cbool, Mapping&)
    void unmap(Mapping&)
    int populate_pages(uint8_t*, uint64_t)
    int lock_pages(uint8_t*, uint64_t)
    int advise_huge(uint8_t*, uint64_t)
    int bind_pages(uint8_t*, uint64_t, uint32_t)

cdef extern from "copy.hpp" namespace "pegashm" nogil:
    cdef cppclass CopyMethod:
        pass
    cdef cppclass CopyBatch:
        const uint64_t* to
        const uint64_t* source "from"
        const uint64_t* bytes
        uint64_t count
        CopyMethod method
    cdef cppclass CCopier "pegashm::Copier":
        CCopier(uint32_t)
        uint64_t copy(const CopyBatch&)


FORMAT_MAJOR = format_major
FORMAT_MINOR = format_minor
LAYOUT_SIGNATURE = layout_signature
CLIENT_COUNT = client_count
NAMESPACE_COUNT = namespace_count
HEADER_BYTES = sizeof(Header)
SUM_COUNT = sum_count
SPILL_FILE_COUNT = spill_file_count
TRANSPORT_PATH_BYTES = 104
REMOTE_HOST_COUNT = remote_host_count
REMOTE_HASH_VERSION = remote_hash_version
REMOTE_COPIES = copies_max
TIER_MEMORY, TIER_SSD = 1, 2
REUSE_TICK_SECONDS = reuse_tick_seconds
REUSE_RANK_COUNT = reuse_rank_count
REUSE_REGISTER_COUNT_MAX = reuse_register_count_max
EVICTIONS = ("lru", "adaptive")  # by the header's number

OK, MISSING, PENDING, EXISTS, NO_SPACE, QUOTA, TOO_LARGE, INDEX_FULL, PINNED, INCOMPLETE, SPILLED, REMOTE, DRAINING = range(13)
STATUS_NAMES = {
    OK: "ok", MISSING: "missing", PENDING: "pending", EXISTS: "exists", NO_SPACE: "no_space", QUOTA: "quota",
    TOO_LARGE: "too_large", INDEX_FULL: "index_full", PINNED: "pinned", INCOMPLETE: "incomplete",
    SPILLED: "spilled", REMOTE: "remote", DRAINING: "draining",
}

_MAGIC = int.from_bytes(b"PEGASHM1", "little")
_COPY_METHODS = {"auto": 0, "memcpy": 1, "streaming": 2, "rep_movsb": 3}
# Names of `_core/missing.hpp`'s Why.
WHY_NAMES = ("never_stored", "evicted", "other_namespace", "not_yet", "refused", "damaged", "present", "spilled")
_COUNTER_INDEX = {counter_keys[i].decode(): i for i in range(counters_used)}

BLOCK_FIELDS = np.dtype([
    ("record", "u4"), ("state", "u1"), ("owner", "u2"), ("generation", "u8"), ("key", "u1", 32),
    ("key_bytes", "u1"), ("group", "u2"), ("namespace_id", "u4"), ("payload_offset", "u8"),
    ("payload_bytes", "u8"), ("pins", "u8", 2), ("touched", "u8"), ("claimed_at_ns", "u8"),
    ("published_at_ns", "u8"), ("parts_done", "u4"), ("parts_failed", "u4"), ("sum_parts", "u1"),
    ("damaged", "u1"),
])


# One row of BLOCK_FIELDS, which numpy packs.
cdef packed struct BlockRow:
    uint32_t record
    uint8_t state
    uint16_t owner
    uint64_t generation
    uint8_t key[32]
    uint8_t key_bytes
    uint16_t group
    uint32_t namespace_id
    uint64_t payload_offset
    uint64_t payload_bytes
    uint64_t pins[2]
    uint64_t touched
    uint64_t claimed_at_ns
    uint64_t published_at_ns
    uint32_t parts_done
    uint32_t parts_failed
    uint8_t sum_parts
    uint8_t damaged


SPILL_FIELDS = np.dtype([
    ("key", "u1", 32), ("key_bytes", "u1"), ("group", "u2"), ("namespace_id", "u4"), ("file", "u1"),
    ("file_offset", "u8"), ("payload_bytes", "u8"), ("checksum", "u8"), ("sum_layout", "u8"),
    ("published_at_ns", "u8"), ("sequence", "u8"),
])


# One row of SPILL_FIELDS, which numpy packs.
cdef packed struct SpillRow:
    uint8_t key[32]
    uint8_t key_bytes
    uint16_t group
    uint32_t namespace_id
    uint8_t file
    uint64_t file_offset
    uint64_t payload_bytes
    uint64_t checksum
    uint64_t sum_layout
    uint64_t published_at_ns
    uint64_t sequence


# What a survey counts: see `_core/survey.hpp`, whose structs these are.
SURVEY_SEGMENT_FIELDS = np.dtype([("stride_bytes", "u8"), ("capacity", "u4"), ("state", "u4")])
SURVEY_PART_FIELDS = np.dtype([
    ("segment", "u4"), ("namespace_id", "u4"), ("claimed", "u4"), ("ready", "u4"), ("evicting", "u4"),
    ("pinned", "u4"), ("bytes", "u8"),
])
SURVEY_CLIENT_FIELDS = np.dtype([
    ("pinned", "u8"), ("pinned_bytes", "u8"), ("claims", "u8"), ("claimed_bytes", "u8"),
    ("oldest_claim_ns", "u8"), ("evicting", "u8"),
])
SURVEY_NAMESPACE_FIELDS = np.dtype([
    ("claimed", "u8"), ("ready", "u8"), ("evicting", "u8"), ("pinned", "u8"), ("bytes", "u8"),
])
SURVEY_PIN_FIELDS = np.dtype([("handle", "u8"), ("pins", "u8", 2)])


# -- arguments ---------------------------------------------------------------------------------------

cdef object _zeros = np.zeros
cdef object _WORD = np.dtype(np.uint64)
cdef object _BYTE = np.dtype(np.uint8)


cdef class _Keys:
    """A sequence of engine keys in the core's form."""
    cdef Key* keys
    cdef uint32_t count

    def __cinit__(self, object keys, uint32_t namespace_id):
        cdef Py_ssize_t i, size, length
        cdef const uint8_t* data
        cdef PyObject** items
        keys = PySequence_Fast(keys, "keys are a sequence of bytes")
        items = PySequence_Fast_ITEMS(keys)  # borrowed; nothing below runs Python code before it fails
        size = PySequence_Fast_GET_SIZE(keys)
        if size >= 0x7FFFFFFF:
            raise ValueError(f"a batch holds at most 2^31 keys, got {size}")
        self.count = <uint32_t>size
        self.keys = <Key*>malloc((size if size > 0 else 1) * sizeof(Key))
        if self.keys == NULL:
            raise MemoryError()
        for i in range(size):
            if not PyBytes_Check(<object>items[i]):
                raise TypeError(
                    f"a key is bytes (block hash + 4 bytes of group), got {type(<object>items[i]).__name__}")
            length = PyBytes_GET_SIZE(<object>items[i]) - 4
            if length < 1 or length > 32:
                raise ValueError(f"a key has 1 to 32 bytes of hash and 4 of group, got {length + 4} in all")
            data = <const uint8_t*>PyBytes_AS_STRING(<object>items[i])
            if data[length] != 0 or data[length + 1] != 0:
                raise ValueError("the KV-cache group of a key must be below 65536")
            if length == 32:  # what engines send: a size known to the compiler is four moves, not a call
                memcpy(self.keys[i].words, data, 32)
            else:
                memset(self.keys[i].words, 0, 32)
                memcpy(self.keys[i].words, data, length)
            self.keys[i].identity = make_identity(
                namespace_id, <uint16_t>(data[length + 2] << 8 | data[length + 3]), <uint8_t>length)

    def __dealloc__(self):
        free(self.keys)


cdef const uint64_t[::1] _words(object array):
    return np.ascontiguousarray(array, dtype=np.uint64).reshape(-1)


cdef bytes _key_bytes(const uint64_t* words, uint64_t length):
    return PyBytes_FromStringAndSize(<const char*>words, <Py_ssize_t>min(length, <uint64_t>32))


cdef str _text(const char* field, uint64_t size):
    return (<bytes>field[:size]).split(b"\0", 1)[0].decode("utf-8", "replace")


# -- formatting and judging a header -----------------------------------------------------------------

cdef Geometry _plan(uint64_t segment_bytes, uint64_t block_bytes_min, uint64_t segment_count,
                    uint64_t spill_records, uint64_t remote_buckets, uint64_t reuse_registers) except *:
    cdef Geometry geometry
    if not plan_geometry(segment_bytes, block_bytes_min, segment_count, geometry, spill_records, remote_buckets,
                         reuse_registers):
        raise ValueError(
            f"no such region: segment_bytes={segment_bytes} and block_bytes_min={block_bytes_min} must be "
            f"multiples of 4096, the second not above the first, and {segment_count} segments of them "
            f"must not hold, with {spill_records} on SSD, more than {record_count_max} blocks: raise "
            f"block_bytes_min; there are at most 2^28 buckets of remote hints, asked were {remote_buckets}; "
            f"and a power of two of registers of reuse, up to {reuse_register_count_max}, or none: asked were {reuse_registers}")
    return geometry


def plan_region(*, segment_bytes, block_bytes_min, segments_per_arena, spill_records=0, remote_buckets=0,
                reuse_registers=0):
    cdef Geometry geometry = _plan(segment_bytes, block_bytes_min, sum(segments_per_arena), spill_records,
                                   remote_buckets, reuse_registers)
    return {
        "segment_count": geometry.segment_count,
        "records_per_segment": geometry.records_per_segment,
        "record_count": geometry.record_count,
        "bucket_count": geometry.bucket_count,
        "journal_entry_count": geometry.journal_entry_count,
        "control_bytes": geometry.control_bytes,
        "payload_bytes": geometry.payload_bytes,
        "spill_record_count": geometry.spill_record_count,
        "remote_bucket_count": geometry.remote_bucket_count,
        "reuse_register_count": geometry.reuse_register_count,
    }


def format_region(control, *, bytes region_id, segment_bytes, block_bytes_min, segments_per_arena,
                  arena_paths, numa_nodes, page_bytes, created_at_ns, spill_records=0,
                  remote_buckets=0, reuse_registers=0):
    cdef uint8_t[::1] bytes_ = control
    cdef View view
    cdef Header* header
    cdef bytes path
    cdef int i
    view.geometry = _plan(segment_bytes, block_bytes_min, sum(segments_per_arena), spill_records, remote_buckets,
                          reuse_registers)
    if <uint64_t>bytes_.shape[0] < view.geometry.control_bytes:
        raise ValueError(f"control region of {bytes_.shape[0]} bytes, {view.geometry.control_bytes} needed")
    if len(region_id) != 16:
        raise ValueError(f"region_id is 16 bytes, got {len(region_id)}")
    if not 1 <= len(arena_paths) <= arena_count_max or len({len(arena_paths), len(numa_nodes), len(segments_per_arena)}) != 1:
        raise ValueError(f"1 to {arena_count_max} arenas, each with a path, a node and a number of segments")
    view.control = &bytes_[0]
    view.payload = NULL
    header = &view.header()
    memcpy(header.region_id, PyBytes_AS_STRING(region_id), 16)
    header.created_at_ns = created_at_ns
    header.page_bytes = page_bytes
    header.arena_count = <uint32_t>len(arena_paths)
    for i in range(len(arena_paths)):
        path = os.fsencode(arena_paths[i])
        if not 1 <= len(path) <= 176:
            raise ValueError(f"an arena's path has 1 to 176 bytes, got {len(path)}: {path!r}")
        header.arenas[i].bytes = segments_per_arena[i] * segment_bytes
        header.arenas[i].numa_node = numa_nodes[i]
        header.arenas[i].path_bytes = <uint32_t>len(path)
        memcpy(header.arenas[i].path, PyBytes_AS_STRING(path), len(path))
    with nogil:
        write_format(view)
        set_ready(header[0])


cdef tuple _judge(const Header* header, uint64_t file_bytes, Geometry* geometry):
    cdef HeaderFault fault_ = judge_header(header[0], file_bytes, geometry[0])
    cdef int fault = <int>(<uint8_t*>&fault_)[0]
    if fault == 0:
        return 0, "ready"
    if fault == 1:
        return 1, "its creator has not finished, or died before it did"
    if fault == 2:
        return 2, f"not a PegaShm control region (magic 0x{header.magic:016x}, expected 0x{_MAGIC:016x})"
    if fault == 3:
        return 2, (f"has format {header.format_major}.{header.format_minor}, "
                   f"this build reads {FORMAT_MAJOR}.x")
    if fault == 4:
        return 2, (f"has layout signature 0x{header.layout_signature:016x}, this build's is "
                   f"0x{LAYOUT_SIGNATURE:016x}: written by a build with other struct sizes")
    if fault == 5:
        return 2, f"is truncated: {file_bytes} bytes, its header says {header.control_bytes}"
    return 2, "has a header that contradicts itself: it is damaged"


def check_header(control, file_bytes):
    cdef const uint8_t[::1] bytes_ = control
    cdef Geometry geometry
    if bytes_.shape[0] < <Py_ssize_t>sizeof(Header):
        return 1, "its creator has not finished, or died before it did"
    return _judge(<const Header*>&bytes_[0], file_bytes, &geometry)


cdef dict _header_dict(const Header* header):
    cdef int i
    return {
        "magic": header.magic,
        "format_major": header.format_major,
        "format_minor": header.format_minor,
        "header_bytes": header.header_bytes,
        "layout_signature": header.layout_signature,
        "region_id": (<bytes>(<const char*>header.region_id)[:16]),
        "created_at_ns": header.created_at_ns,
        "control_bytes": header.control_bytes,
        "payload_bytes": header.payload_bytes,
        "segment_bytes": header.segment_bytes,
        "block_bytes_min": header.block_bytes_min,
        "segment_count": header.segment_count,
        "records_per_segment": header.records_per_segment,
        "record_count": header.record_count,
        "arena_count": header.arena_count,
        "bucket_count": header.bucket_count,
        "journal_entry_count": header.journal_entry_count,
        "namespaces_offset": header.namespaces_offset,
        "clients_offset": header.clients_offset,
        "counter_labels_offset": header.counter_labels_offset,
        "counter_values_offset": header.counter_values_offset,
        "segments_offset": header.segments_offset,
        "free_bits_offset": header.free_bits_offset,
        "blocks_offset": header.blocks_offset,
        "touches_offset": header.touches_offset,
        "buckets_offset": header.buckets_offset,
        "journal_offset": header.journal_offset,
        "page_bytes": header.page_bytes,
        "sums_offset": header.sums_offset,
        "spill_offset": header.spill_offset,
        "spill_record_count": header.spill_record_count,
        "reuse_register_count": header.reuse_register_count,
        "remote_hosts_offset": header.remote_hosts_offset,
        "remote_offset": header.remote_offset,
        "remote_bucket_count": header.remote_bucket_count,
        "checksum": header.checksum,
        "segments_ready": load_acquire(header.segments_ready),
        "supervisor_pid": header.supervisor_pid,
        "supervisor_started_at_ns": header.supervisor_started_at_ns,
        "spill_usable": load_acquire(header.spill_usable),
        "remote_usable": load_acquire(header.remote_usable),
        "eviction": load_acquire(header.eviction),
        "span": load_acquire(header.span),
        "again_share": load_acquire(header.again_share),
        "access_clock": load_acquire(header.access_clock),
        "journal_head": load_acquire(header.journal_head),
        "freed_clock": load_acquire(header.freed_clock),
        "arenas": [
            {
                "bytes": header.arenas[i].bytes,
                "numa_node": header.arenas[i].numa_node,
                "path": os.fsdecode(<bytes>header.arenas[i].path[:min(header.arenas[i].path_bytes, 176)]),
            }
            for i in range(min(header.arena_count, arena_count_max))
        ],
        "transport_pid": header.transport_pid,
        "transport_started_at_ns": header.transport_started_at_ns,
        "transport_path": os.fsdecode(
            <bytes>header.transport_path[:min(header.transport_path_bytes, TRANSPORT_PATH_BYTES)]),
        "draining_since_ns": load_acquire(header.draining_since_ns),
    }


def draining_since(header):
    cdef uint64_t word = header["draining_since_ns"]
    return word & ~<uint64_t>0xFFFF if core_is_draining(word) else 0


def header_info(control):
    cdef const uint8_t[::1] bytes_ = control
    if bytes_.shape[0] < <Py_ssize_t>sizeof(Header):
        raise FormatError(f"a header has {sizeof(Header)} bytes, only {bytes_.shape[0]} are there")
    return _header_dict(<const Header*>&bytes_[0])


# -- a mapped region ---------------------------------------------------------------------------------

cdef class _PayloadView:
    """Buffer over payload bytes; keeps the mapping alive."""
    cdef object owner
    cdef void* address
    cdef Py_ssize_t size
    cdef int readonly

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, self.readonly, flags)


cdef class Region:
    cdef Mapping control_map
    cdef Mapping payload_map
    cdef View view
    cdef readonly bint writable
    cdef readonly bint closed
    cdef int users  # clients and payload views that hold addresses: the mapping outlives close() until they go
    cdef object disowned  # why this process may not use it, when it was inherited by fork
    cdef object __weakref__

    def __init__(self, int control_fd, arena_fds, *, bint writable=True):
        cdef int fds[16]
        cdef uint64_t sizes[16]
        cdef uint64_t file_bytes = os.fstat(control_fd).st_size
        cdef int i, error
        self.closed = True
        self.writable = writable
        if file_bytes < sizeof(Header):
            raise ArenaNotReadyError("the control region is empty: its creator has not finished")
        error = map_one(control_fd, file_bytes, writable, self.control_map)
        if error:
            raise ResourceError(f"cannot map the control region of {file_bytes} bytes: {os.strerror(error)}")
        self.closed = False
        self.view.control = self.control_map.address
        self.view.payload = NULL
        verdict, reason = _judge(<const Header*>self.view.control, file_bytes, &self.view.geometry)
        if verdict != 0:
            self.close()
            raise (ArenaNotReadyError if verdict == 1 else FormatError)(f"the control region {reason}")
        if not arena_fds:
            return
        try:
            self._check_arenas(arena_fds, sizes)
        except BaseException:
            self.close()
            raise
        for i in range(len(arena_fds)):
            fds[i] = arena_fds[i]
        error = map_together(fds, sizes, <uint32_t>len(arena_fds), writable, self.payload_map)
        if error:
            self.close()
            raise ResourceError(f"cannot map the payload arenas: {os.strerror(error)}")
        self.view.payload = self.payload_map.address

    cdef _check_arenas(self, object arena_fds, uint64_t* sizes):
        cdef Header* header = &self.view.header()
        cdef uint64_t total = 0
        if len(arena_fds) != header.arena_count or len(arena_fds) > arena_count_max:
            raise FormatError(f"the region has {header.arena_count} arenas, {len(arena_fds)} were opened")
        for i, fd in enumerate(arena_fds):
            sizes[<int>i] = header.arenas[<int>i].bytes
            total += sizes[<int>i]
            if <uint64_t>os.fstat(fd).st_size < sizes[<int>i]:
                raise FormatError(f"arena {i} has {os.fstat(fd).st_size} bytes, the header says {sizes[<int>i]}")
        if total != self.view.geometry.payload_bytes:
            raise FormatError("the arenas' sizes in the header changed while it was read")

    def close(self):
        self.closed = True
        if self.users == 0:
            self._unmap()

    def disown(self, str why):
        # Stays mapped: a view made before the fork may still be looked at, and what was mapped is gone at exec or exit.
        self.disowned = why
        self.closed = True
        self.users += 1

    cdef _unmap(self):
        unmap(self.control_map)
        unmap(self.payload_map)
        self.view.control = NULL
        self.view.payload = NULL

    def __dealloc__(self):
        unmap(self.control_map)
        unmap(self.payload_map)

    cdef View* mapped(self) except NULL:
        if self.closed:
            raise ValueError(self.disowned or "the region is closed")
        return &self.view

    cdef View* mapped_writable(self) except NULL:
        if not self.writable:
            raise ValueError("the region is mapped read-only")
        return self.mapped()

    @property
    def header(self):
        return _header_dict(&self.mapped().header())

    @property
    def payload_address(self):
        return <uintptr_t>self.mapped().payload

    @property
    def payload_bytes(self):
        return self.mapped().geometry.payload_bytes

    cdef uint8_t* payload_at(self, uint64_t offset, uint64_t nbytes) except NULL:
        cdef View* view = self.mapped()
        cdef uint64_t total = view.geometry.payload_bytes
        if view.payload == NULL:
            raise ValueError("the arenas are not mapped")
        if nbytes > total or offset > total - nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} lie outside the arenas of {total} bytes")
        return view.payload + offset

    def payload(self, uint64_t offset, uint64_t nbytes):
        cdef _PayloadView out = _PayloadView()
        out.address = self.payload_at(offset, nbytes)
        out.size = <Py_ssize_t>nbytes
        out.readonly = not self.writable
        out.owner = _MappingUser(self)
        return memoryview(out)

    # supervisor side

    def set_segments_ready(self, uint64_t count):
        cdef View* view = self.mapped_writable()
        if count > view.geometry.segment_count:
            raise ValueError(f"{count} segments ready of {view.geometry.segment_count}")
        if count > load_acquire(view.header().segments_ready):
            store_release(view.header().segments_ready, count)

    def set_eviction(self, str name):
        cdef View* view = self.mapped_writable()
        if name not in EVICTIONS:
            raise ValueError(f"eviction must be one of {', '.join(EVICTIONS)}, got {name!r}")
        core_set_eviction(view[0], <CEviction><int>EVICTIONS.index(name))

    def set_draining(self, uint64_t since_ns):
        cdef View* view = self.mapped_writable()
        store_release(view.header().draining_since_ns, (since_ns & ~<uint64_t>0xFFFF) | draining_mark if since_ns else 0)

    def set_supervisor(self, uint64_t pid, uint64_t started_at_ns):
        cdef View* view = self.mapped_writable()
        store_release(view.header().supervisor_pid, pid)
        store_release(view.header().supervisor_started_at_ns, started_at_ns)

    def set_transport(self, str path, uint64_t pid, uint64_t started_at_ns):
        cdef View* view = self.mapped_writable()
        cdef Header* header = &view.header()
        cdef bytes text = os.fsencode(path)
        if len(text) > TRANSPORT_PATH_BYTES:
            raise ValueError(f"a socket's path has at most {TRANSPORT_PATH_BYTES} bytes, got {len(text)}: {path}")
        header.transport_path_bytes = 0
        memcpy(header.transport_path, PyBytes_AS_STRING(text), len(text))
        header.transport_path_bytes = <uint32_t>len(text)
        header.transport_pid = pid
        header.transport_started_at_ns = started_at_ns

    def populate(self, uint64_t offset, uint64_t nbytes):
        cdef uint8_t* address = self.payload_at(offset, nbytes)
        cdef int error
        cdef object keep = _MappingUser(self)
        with nogil:
            error = populate_pages(address, nbytes)
        return error

    def lock(self, uint64_t offset, uint64_t nbytes):
        cdef uint8_t* address = self.payload_at(offset, nbytes)
        cdef int error
        cdef object keep = _MappingUser(self)
        with nogil:
            error = lock_pages(address, nbytes)
        return error

    def bind(self, uint64_t offset, uint64_t nbytes, uint32_t numa_node):
        return bind_pages(self.payload_at(offset, nbytes), nbytes, numa_node)

    def huge(self, uint64_t offset, uint64_t nbytes):
        return advise_huge(self.payload_at(offset, nbytes), nbytes)

    # registration

    def register_namespace(self, bytes fingerprint, *, str label, reserved_bytes=0, maximum_bytes=0,
                           now_ns, in_use=(), bytes facts=b""):
        cdef NamespaceRequest request
        cdef uint64_t facts_[6]
        cdef bytes label_ = label.encode()
        cdef uint32_t ids[128]
        cdef int i
        if len(fingerprint) != 32:
            raise ValueError(f"a fingerprint is 32 bytes, got {len(fingerprint)}")
        for i in range(min(len(in_use), 128)):
            ids[i] = in_use[i]
        request.fingerprint = <const uint8_t*>PyBytes_AS_STRING(fingerprint)
        request.label = label_
        request.label_bytes = len(label_)
        request.reserved_bytes = reserved_bytes
        request.maximum_bytes = maximum_bytes
        request.now_ns = now_ns
        request.in_use = ids
        request.in_use_count = min(len(in_use), 128)
        request.facts = NULL
        if facts:
            if len(facts) != sizeof(facts_):
                raise ValueError(f"facts are {sizeof(facts_)} bytes, got {len(facts)}")
            memcpy(facts_, PyBytes_AS_STRING(facts), sizeof(facts_))
            request.facts = facts_
        return c_register_namespace(self.mapped_writable()[0], request)

    def drop_reserve(self, uint32_t namespace_id):
        cdef View* view = self.mapped_writable()
        if is_live_namespace(view[0], namespace_id):
            c_drop_reserve(view.name_space(namespace_id & 0xFFFF))

    def attach_client(self, uint32_t slot, *, pid, started_at, now_ns, namespace_id, mode,
                      bytes engine_id, str label):
        cdef ClientRequest request
        cdef bytes label_ = label.encode()
        if slot >= client_count:
            raise ValueError(f"client slots are 0 to {client_count - 1}, got {slot}")
        request.pid = pid
        request.started_at = started_at
        request.now_ns = now_ns
        request.namespace_id = namespace_id
        request.mode = mode
        request.engine_id = engine_id
        request.engine_id_bytes = len(engine_id)
        request.label = label_
        request.label_bytes = len(label_)
        return c_attach_client(self.mapped_writable()[0], slot, request)

    def set_client_namespace(self, uint32_t slot, uint32_t namespace_id):
        if slot >= client_count:
            raise ValueError(f"client slots are 0 to {client_count - 1}, got {slot}")
        enter_namespace(self.mapped_writable()[0], slot, namespace_id)

    def client_incarnation(self, uint32_t slot):
        cdef uint64_t state
        if slot >= client_count:
            return 0
        state = load_acquire(self.mapped().client(slot).state)
        return client_incarnation(state) if client_attached(state) else 0

    def reap_client(self, uint32_t slot):
        cdef View* view = self.mapped_writable()
        cdef Repaired done
        cdef object keep = _MappingUser(self)
        if slot >= client_count:
            raise ValueError(f"client slots are 0 to {client_count - 1}, got {slot}")
        with nogil:
            done = c_reap_client(view[0], slot)
        return {"claims": done.claims, "evictions": done.evictions, "pins": done.pins,
                "segments": done.segments}

    def repair(self):
        cdef View* view = self.mapped_writable()
        cdef Repaired done
        cdef object keep = _MappingUser(self)
        with nogil:
            done = rebuild_hints(view[0])
        return {"free_bits": done.free_bits, "touches": done.touches}

    def count(self, str counter, uint64_t amount=1):
        cdef uint32_t index = _COUNTER_INDEX[counter]
        c_count(self.mapped_writable().counter_value(index).value, amount)

    def set_gauge(self, str counter, uint64_t value):
        cdef uint32_t index = _COUNTER_INDEX[counter]
        store_release(self.mapped_writable().counter_value(index).value, value)

    def count_asked(self, keys, uint32_t namespace_id, *, uint64_t at_s=0):
        cdef View* view = self.mapped_writable()
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t tick = reuse_tick_of(at_s) if at_s else reuse_tick_now()
        with nogil:
            c_count_asked(view[0], batch.keys, batch.count, tick)

    def count_served(self, uint64_t amount, *, uint64_t at_s=0):
        c_count_served(self.mapped_writable()[0], amount, reuse_tick_of(at_s) if at_s else reuse_tick_now())

    # reading

    def clients(self):
        cdef View* view = self.mapped()
        cdef ClientSlot* client
        cdef uint64_t state
        cdef uint32_t slot
        found = []
        for slot in range(client_count):
            client = &view.client(slot)
            state = load_acquire(client.state)
            if not client_attached(state):
                continue
            found.append({
                "slot": slot,
                "incarnation": client_incarnation(state),
                "pid": client.pid,
                "started_at": client.started_at,
                "attached_at_ns": client.attached_at_ns,
                "namespace_id": client.namespace_id,
                "mode": client.mode,
                "engine_id": _text(client.engine_id, 64),
                "label": _text(client.label, 64),
            })
        return found

    def namespaces(self, *, bint counted=True):
        cdef View* view = self.mapped()
        cdef NamespaceEntry* entry
        cdef uint64_t state
        cdef uint32_t slot
        per_id = {}
        if counted:
            ids, counts = np.unique(self.blocks()["namespace_id"], return_counts=True)
            per_id = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        found = []
        for slot in range(namespace_count):
            entry = &view.name_space(slot)
            state = load_acquire(entry.state)
            if not namespace_live(state):
                continue
            id_ = c_namespace_id(namespace_generation(state), slot)
            found.append({
                "id": id_,
                "fingerprint": <bytes>(<char*>entry.fingerprint)[:32],
                "label": _text(entry.label, 128),
                "reserved_bytes": entry.reserved_bytes,
                "maximum_bytes": entry.maximum_bytes,
                "resident_bytes": c_resident_bytes(entry[0]),
                "created_at_ns": entry.created_at_ns,
                "attached_at_ns": entry.attached_at_ns,
                "facts": <bytes>(<char*>entry.facts)[:48],
                "blocks": per_id.get(id_, 0),
            })
        return found

    def ghosts(self, keys, uint32_t namespace_id):
        cdef View* view = self.mapped()
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t i
        return [is_ghost(view[0], batch.keys[i]) for i in range(batch.count)]

    def segments(self):
        cdef View* view = self.mapped()
        cdef uint64_t state, stride
        cdef uint32_t index, i, capacity, first
        cdef int tallies[4]
        found = []
        for index in range(view.geometry.segment_count):
            state = load_acquire(view.segment(index).state)
            stride = segment_stride(state)
            capacity = segment_capacity(view.geometry, index, stride) if stride else 0
            first = view.first_record(index)
            memset(tallies, 0, sizeof(tallies))
            for i in range(capacity):
                tallies[load_acquire(view.block(first + i).state) & 3] += 1
            found.append({
                "index": index,
                "state": ("unassigned", "assigned", "changing", "damaged")[min(state & 0xFF, <uint64_t>3)],
                "owner": segment_owner(state),
                "stride_bytes": stride,
                "blocks": capacity,
                "free": tallies[0],
                "claimed": tallies[1],
                "ready": tallies[2],
                "evicting": tallies[3],
            })
        return found

    def blocks(self):
        cdef View* view = self.mapped()
        cdef uint32_t record, count = 0, size = view.geometry.record_count
        cdef uint64_t state
        out = np.zeros(size, dtype=BLOCK_FIELDS)
        cdef uint8_t[::1] raw = out.view(np.uint8)
        for record in range(size):
            state = load_acquire(view.block(record).state)
            if (state & 0xFF) == 0:
                continue
            _fill_row(view, record, state, <BlockRow*>&raw[count * sizeof(BlockRow)])
            count += 1
        return out[:count].copy()

    def describe(self, handles):
        cdef View* view = self.mapped()
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint64_t state
        cdef uint32_t i, record
        out = np.zeros(handles_.shape[0], dtype=BLOCK_FIELDS)
        cdef uint8_t[::1] raw = out.view(np.uint8)
        for i in range(<uint32_t>handles_.shape[0]):
            if not life_holds(view[0], handles_[i]):
                continue
            record = <uint32_t>(handles_[i] & (record_count_max - 1))
            state = load_acquire(view.block(record).state)
            if block_generation(state) == handles_[i] >> 24:
                _fill_row(view, record, state, <BlockRow*>&raw[i * sizeof(BlockRow)])
        return out

    def room(self):
        cdef View* view = self.mapped()
        cdef uint64_t state, stride
        cdef uint32_t index, capacity, unassigned = 0
        sizes = {}
        for index in range(view.segments_ready()):
            state = load_acquire(view.segment(index).state)
            stride = segment_stride(state)
            if (state & 0xFF) != 1 or stride == 0:
                unassigned += (state & 0xFF) == 0
                continue
            capacity = segment_capacity(view.geometry, index, stride)
            had, had_free = sizes.get(stride, (0, 0))
            sizes[stride] = (had + capacity, had_free + free_in_segment(view[0], index, capacity))
        return unassigned, [
            {"stride_bytes": stride_, "capacity": both[0], "free": both[1]} for stride_, both in sizes.items()]

    def spilled(self):
        cdef View* view = self.mapped()
        cdef uint32_t index, count = 0, size = view.geometry.spill_record_count
        cdef Spilled block
        out = np.zeros(size, dtype=SPILL_FIELDS)
        cdef uint8_t[::1] raw = out.view(np.uint8)
        for index in range(size):
            if not is_listed(view[0], index):
                continue
            read_spilled(view[0], index, block)
            _fill_spill_row(&block, <SpillRow*>&raw[count * sizeof(SpillRow)])
            count += 1
        return out[:count].copy()

    def remote_hosts(self):
        cdef View* view = self.mapped()
        cdef RemoteHost* host
        cdef uint32_t number
        cdef bint usable
        found = []
        if view.geometry.remote_bucket_count == 0:
            return found
        for number in range(remote_host_count):
            host = &view.remote_hosts().hosts[number]
            usable = host_usable(view[0], number)
            if not usable and host.heard_at_ns == 0:
                continue
            found.append({
                "number": number,
                "usable": usable,
                "host_id": (<bytes>(<const char*>host.host_id)[:16]),
                "incarnation": (<bytes>(<const char*>host.incarnation)[:16]),
                "address": _text(host.address, min(host.address_bytes, 56)),
                "sequence": host.sequence,
                "events": host.events,
                "hints": host.hints,
                "heard_at_ns": host.heard_at_ns,
            })
        return found

    def tally(self):
        cdef View* view = self.mapped()
        cdef uint64_t state
        cdef uint32_t record, index
        cdef uint64_t tallies[5]
        cdef uint64_t capacity = 0
        memset(tallies, 0, sizeof(tallies))
        for record in range(view.geometry.record_count):
            state = load_acquire(view.block(record).state) & 0xFF
            tallies[state if state < 4 else 4] += 1
        for index in range(view.geometry.segment_count):
            state = load_acquire(view.segment(index).state)
            if (state & 0xFF) in (1, 2) and segment_stride(state):
                capacity += segment_capacity(view.geometry, index, segment_stride(state))
        return {"free": tallies[0], "claimed": tallies[1], "ready": tallies[2], "evicting": tallies[3],
                "damaged": tallies[4], "record_count": view.geometry.record_count, "capacity": capacity}

    def why_missing(self, keys, uint32_t namespace_id):
        cdef View* view = self.mapped()
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t i
        return [WHY_NAMES[<int>why_missing(view[0], batch.keys[i])] for i in range(batch.count)]

    def survey(self, *, uint32_t pins_max=65536):
        cdef View* view = self.mapped()
        cdef uint32_t count = view.geometry.segment_count
        cdef Survey out
        cdef SurveyRoom room
        cdef object keep = _MappingUser(self)
        segments = np.zeros(count, dtype=SURVEY_SEGMENT_FIELDS)
        parts = np.zeros(count * survey_parts_max, dtype=SURVEY_PART_FIELDS)
        pins = np.zeros(pins_max + 1, dtype=SURVEY_PIN_FIELDS)
        clients = np.zeros(client_count, dtype=SURVEY_CLIENT_FIELDS)
        namespaces = np.zeros(namespace_count + 1, dtype=SURVEY_NAMESPACE_FIELDS)
        cdef uint8_t[::1] segments_ = segments.view(np.uint8)
        cdef uint8_t[::1] parts_ = parts.view(np.uint8)
        cdef uint8_t[::1] pins_ = pins.view(np.uint8)
        cdef uint8_t[::1] clients_ = clients.view(np.uint8)
        cdef uint8_t[::1] namespaces_ = namespaces.view(np.uint8)
        room.segments = <SurveySegment*>&segments_[0]
        room.parts = <SurveyPart*>&parts_[0]
        room.pins = <SurveyPin*>&pins_[0]
        room.pins_max = pins_max
        with nogil:
            survey_region(view[0], room, out)
        memcpy(&clients_[0], out.clients, sizeof(out.clients))
        memcpy(&namespaces_[0], out.namespaces, sizeof(out.namespaces))
        return {
            "tally": {"free": out.tally[0], "claimed": out.tally[1], "ready": out.tally[2],
                      "evicting": out.tally[3], "damaged": out.tally[4]},
            "capacity": out.capacity,
            "pinned": out.pinned,
            "pinned_bytes": out.pinned_bytes,
            "damaged": out.damaged,
            "summed": out.summed,
            "oldest_ready_ns": out.oldest_ready_ns,
            "segments": segments,
            "parts": parts[:out.part_count].copy(),
            "clients": clients,
            "namespaces": namespaces,
            "pins": pins[:out.pin_count].copy(),
        }

    def counters(self):
        cdef View* view = self.mapped()
        cdef CounterLabel* label
        cdef uint32_t index
        found = []
        for index in range(counter_count):
            label = &view.counter_label(index)
            if label.type not in (1, 2):
                continue
            key = _text(label.key, min(label.key_bytes, 56))
            found.append({"key": key, "type": "counter" if label.type == 1 else "gauge",
                          "label": key.replace("_", " "),
                          "value": load_acquire(view.counter_value(index).value)})
        return found

    def reuse(self, uint64_t seconds, *, uint64_t at_s=0):
        cdef View* view = self.mapped()
        cdef ReuseWindow window
        cdef uint32_t tick = reuse_tick_of(at_s) if at_s else reuse_tick_now()
        cdef uint32_t i, ticks
        ticks = <uint32_t>min(max(seconds // reuse_tick_seconds, <uint64_t>1), <uint64_t>0xFFFFFFFF)
        read_reuse(view[0], tick, ticks, window)
        return {"asked": window.asked, "served": window.served,
                "seconds": (tick - window.first_tick + 1) * reuse_tick_seconds if window.first_tick else 0,
                "ranks": [window.ranks[i] for i in range(reuse_rank_count + 1)]}

    def journal(self, uint64_t after, limit=1024):
        cdef View* view = self.mapped()
        cdef JournalEntry entry
        cdef uint64_t head = load_acquire(view.header().journal_head)
        cdef uint64_t size = view.geometry.journal_entry_count
        cdef uint64_t sequence = after
        found = []
        if head > size and sequence < head - size:
            sequence = head - size
        while sequence < head and len(found) < limit:
            sequence += 1
            if not read_event(view[0], sequence, entry):
                continue
            found.append({
                "sequence": sequence,
                "event": {1: "publish", 2: "evict", 3: "spill", 4: "forget"}.get(entry.what & 0xFF, "unknown"),
                "namespace_id": entry.what >> 32,
                "group": entry.what >> 16 & 0xFFFF,
                "key": _key_bytes(entry.key, entry.what >> 8 & 0xFF),
                "handle": entry.handle,
            })
        return sequence, found


cdef void _fill_row(View* view, uint32_t record, uint64_t state, BlockRow* row) noexcept:
    cdef Block* block = &view.block(record)
    row.record = record
    row.state = <uint8_t>state
    row.owner = <uint16_t>block_owner(state)
    row.generation = block_generation(state)
    memcpy(row.key, block.key, 32)
    row.key_bytes = <uint8_t>(block.identity >> 48)
    row.group = <uint16_t>(block.identity >> 32)
    row.namespace_id = <uint32_t>block.identity
    row.payload_offset = block.payload_offset
    row.payload_bytes = block.payload_bytes
    row.pins[0] = block.pins[0]
    row.pins[1] = block.pins[1]
    row.touched = load_acquire(view.touched(record))
    row.claimed_at_ns = block.claimed_at_ns
    row.published_at_ns = block.published_at_ns
    row.parts_done = <uint32_t>block.parts
    row.parts_failed = <uint32_t>(block.parts >> 32)
    row.sum_parts = <uint8_t>sum_part_count(block.sum_layout)
    row.damaged = c_is_damaged(block[0])


cdef void _fill_spill_row(const Spilled* block, SpillRow* row) noexcept:
    memcpy(row.key, block.key.words, 32)
    row.key_bytes = <uint8_t>(block.key.identity >> 48)
    row.group = <uint16_t>(block.key.identity >> 32)
    row.namespace_id = <uint32_t>block.key.identity
    row.file = <uint8_t>block.file
    row.file_offset = block.file_offset
    row.payload_bytes = block.payload_bytes
    row.checksum = block.checksum
    row.sum_layout = block.sum_layout
    row.published_at_ns = block.published_at_ns
    row.sequence = block.sequence


cdef class _MappingUser:
    """Holds a region mapped while somebody else's address points into it."""
    cdef Region region

    def __cinit__(self, Region region):
        self.region = region
        region.users += 1

    def __dealloc__(self):
        self.region.users -= 1
        if self.region.users == 0 and self.region.closed:
            self.region._unmap()


# -- an attached client ------------------------------------------------------------------------------

cdef class Client:
    cdef CClient* core
    cdef Region region
    cdef object user
    cdef readonly uint32_t slot
    cdef readonly uint64_t incarnation

    def __cinit__(self, Region region, uint32_t slot, uint64_t incarnation):
        if slot >= client_count:
            raise ValueError(f"client slots are 0 to {client_count - 1}, got {slot}")
        self.region = region
        self.core = new CClient(region.mapped_writable()[0], slot)
        if not self.core.valid():
            raise MemoryError("no memory for the private pin counts")
        self.user = _MappingUser(region)
        self.slot = slot
        self.incarnation = incarnation

    def __dealloc__(self):
        del self.core

    def retire(self):
        with nogil:  # another thread's call, which it waits for, may want the GIL back only afterwards
            self.core.retire()

    cdef _find(self, object keys, uint32_t namespace_id, cbool pin, cbool prefix, cbool counted):
        cdef _Keys batch = _Keys(keys, namespace_id)
        # Plain buffers, since a lookup of one key is common: memoryviews and keywords were half of what it costs.
        handles = _zeros(batch.count, _WORD)
        outcomes = _zeros(batch.count, _BYTE)
        cdef Py_buffer handles_
        cdef Py_buffer outcomes_
        cdef uint32_t judged = 0
        self.region.mapped()
        if batch.count:
            PyObject_GetBuffer(handles, &handles_, PyBUF_SIMPLE)
            PyObject_GetBuffer(outcomes, &outcomes_, PyBUF_SIMPLE)
            with nogil:
                judged = self.core.find(batch.keys, batch.count, pin, prefix, <uint64_t*>handles_.buf,
                                        <COutcome*>outcomes_.buf, counted)
            PyBuffer_Release(&outcomes_)
            PyBuffer_Release(&handles_)
        return (handles, outcomes) if judged == batch.count else (handles[:judged], outcomes[:judged])

    def find(self, keys, uint32_t namespace_id, *, bint pin=False, bint counted=True):
        return self._find(keys, namespace_id, pin, False, counted)

    def find_prefix(self, keys, uint32_t namespace_id, *, bint pin=False):
        return self._find(keys, namespace_id, pin, True, True)

    def pin(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        outcomes = np.zeros(count, dtype=np.uint8)
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if count:
            with nogil:
                self.core.pin(&handles_[0], count, <COutcome*>&outcomes_[0])
        return outcomes

    def unpin(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        self.region.mapped()
        if handles_.shape[0]:
            with nogil:
                self.core.unpin(&handles_[0], <uint32_t>handles_.shape[0])

    def locate(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        offsets = np.zeros(count, dtype=np.uint64)
        sizes = np.zeros(count, dtype=np.uint64)
        cdef uint64_t[::1] offsets_ = offsets
        cdef uint64_t[::1] sizes_ = sizes
        self.region.mapped()
        if count:
            with nogil:
                self.core.locate(&handles_[0], count, &offsets_[0], &sizes_[0])
        return offsets, sizes

    def claim(self, keys, uint32_t namespace_id, uint64_t payload_bytes):
        cdef _Keys batch = _Keys(keys, namespace_id)
        handles = np.zeros(batch.count, dtype=np.uint64)
        outcomes = np.zeros(batch.count, dtype=np.uint8)
        cdef uint64_t[::1] handles_ = handles
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if batch.count:
            with nogil:
                self.core.claim(batch.keys, batch.count, payload_bytes, &handles_[0],
                                <COutcome*>&outcomes_[0])
        return handles, outcomes

    def publish(self, handles, uint32_t parts_expected=0):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        outcomes = np.zeros(count, dtype=np.uint8)
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if count:
            with nogil:
                self.core.publish(&handles_[0], count, parts_expected, <COutcome*>&outcomes_[0])
        return outcomes

    def abandon(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        self.region.mapped()
        if handles_.shape[0]:
            with nogil:
                self.core.abandon(&handles_[0], <uint32_t>handles_.shape[0])

    def touch(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        self.region.mapped()
        if handles_.shape[0]:
            with nogil:
                self.core.touch(&handles_[0], <uint32_t>handles_.shape[0])

    def touch_keys(self, keys, uint32_t namespace_id):
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t touched
        self.region.mapped()
        with nogil:
            touched = self.core.touch_keys(batch.keys, batch.count)
        return touched

    def evict(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        outcomes = np.zeros(count, dtype=np.uint8)
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if count:
            with nogil:
                self.core.evict(&handles_[0], count, <COutcome*>&outcomes_[0])
        return outcomes

    def evict_lru(self, uint64_t payload_bytes, uint32_t count):
        cdef uint32_t evicted
        self.region.mapped()
        with nogil:
            evicted = self.core.evict_oldest(payload_bytes, count)
        return evicted


    def oldest(self, uint64_t payload_bytes, uint32_t count):
        handles = np.zeros(count, dtype=np.uint64)
        touches = np.zeros(count, dtype=np.uint64)
        cdef uint64_t[::1] handles_ = handles
        cdef uint64_t[::1] touches_ = touches
        cdef uint32_t found = 0
        self.region.mapped()
        if count:
            with nogil:
                found = self.core.oldest(payload_bytes, count, &handles_[0], &touches_[0])
        return handles[:found], touches[:found]

    def evict_untouched(self, handles, touches):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef const uint64_t[::1] touches_ = _words(touches)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        if touches_.shape[0] != handles_.shape[0]:
            raise ValueError(f"{handles_.shape[0]} handles, {touches_.shape[0]} touches")
        outcomes = np.zeros(count, dtype=np.uint8)
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if count:
            with nogil:
                self.core.evict_untouched(&handles_[0], &touches_[0], count, <COutcome*>&outcomes_[0])
        return outcomes


# -- the table of blocks on SSD ------------------------------------------------------------------------

cdef class SpillTable:
    cdef CSpillTable* core
    cdef Region region
    cdef object user

    def __cinit__(self, Region region):
        self.region = region
        self.core = new CSpillTable(region.mapped_writable()[0])
        self.user = _MappingUser(region)

    def __dealloc__(self):
        del self.core

    def __len__(self):
        self.region.mapped()
        return self.core.size()

    @property
    def capacity(self):
        return self.core.capacity()

    def clear(self):
        self.region.mapped()
        with nogil:
            self.core.clear()

    def set_usable(self, uint64_t files):
        self.region.mapped()
        self.core.set_usable(files)

    def store(self, rows):
        cdef const SpillRow* row
        cdef uint32_t i, index, stored = 0
        cdef Spilled block
        rows = np.ascontiguousarray(rows, dtype=SPILL_FIELDS)
        cdef uint32_t count = <uint32_t>rows.shape[0]
        kept = np.zeros(count, dtype=np.bool_)
        cdef uint8_t[::1] kept_ = kept.view(np.uint8)
        cdef const uint8_t[::1] raw = rows.view(np.uint8)
        self.region.mapped()
        if count:
            if int(rows["key_bytes"].min()) < 1 or int(rows["key_bytes"].max()) > 32:
                raise ValueError("a key has 1 to 32 bytes")
            if int(rows["file"].max()) >= spill_file_count:
                raise ValueError(f"files are 0 to {spill_file_count - 1}, got {rows['file'].max()}")
            with nogil:
                for i in range(count):
                    row = <const SpillRow*>&raw[i * sizeof(SpillRow)]
                    memcpy(block.key.words, row.key, 32)
                    block.key.identity = make_identity(row.namespace_id, row.group, row.key_bytes)
                    block.file = row.file
                    block.file_offset = row.file_offset
                    block.payload_bytes = row.payload_bytes
                    block.checksum = row.checksum
                    block.sum_layout = row.sum_layout
                    block.published_at_ns = row.published_at_ns
                    block.sequence = row.sequence
                    kept_[i] = self.core.store(block) != <uint32_t>0xFFFFFFFF
        return kept

    def find(self, keys, uint32_t namespace_id):
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t i
        cdef Spilled block
        out = np.zeros(batch.count, dtype=SPILL_FIELDS)
        cdef uint8_t[::1] raw = out.view(np.uint8)
        self.region.mapped()
        for i in range(batch.count):
            if self.core.find(batch.keys[i], block) == <uint32_t>0xFFFFFFFF:
                continue
            _fill_spill_row(&block, <SpillRow*>&raw[i * sizeof(SpillRow)])
        return out

    def forget(self, rows):
        cdef const SpillRow* row
        cdef Spilled block
        cdef uint32_t i, forgotten = 0
        rows = np.ascontiguousarray(rows, dtype=SPILL_FIELDS).reshape(-1)
        cdef const uint8_t[::1] raw = rows.view(np.uint8)
        self.region.mapped()
        for i in range(<uint32_t>rows.shape[0]):
            row = <const SpillRow*>&raw[i * sizeof(SpillRow)]
            memcpy(block.key.words, row.key, 32)
            block.key.identity = make_identity(row.namespace_id, row.group, row.key_bytes)
            block.file = row.file
            block.file_offset = row.file_offset
            block.sequence = row.sequence
            forgotten += self.core.forget(block)
        return forgotten

    def drop(self, uint32_t file, uint64_t first, uint64_t end):
        cdef uint32_t dropped
        self.region.mapped()
        with nogil:
            dropped = self.core.drop(file, first, end)
        return dropped

    def keep_log(self, uint32_t size):
        self.region.mapped()
        self.core.keep_log(size)

    def take_log(self):
        cdef uint32_t size = self.core.log_count(), count = 0
        cdef cbool lost = False
        ops = np.zeros(size, dtype=np.uint8)
        hashes = np.zeros(size, dtype=np.uint64)
        cdef uint8_t[::1] ops_ = ops
        cdef uint64_t[::1] hashes_ = hashes
        self.region.mapped()
        if size:
            with nogil:
                count = self.core.take_log(&ops_[0], &hashes_[0], size, lost)
        return ops[:count], hashes[:count], lost


# -- what other hosts hold, and what they are told of us -------------------------------------------------

cdef uint32_t _host_number(object host) except? 0xFFFFFFFF:
    if not 0 <= host < remote_host_count:
        raise ValueError(f"hosts are numbered 0 to {remote_host_count - 1}, got {host}")
    return <uint32_t>host


cdef class RemoteTable:
    cdef CRemoteTable* core
    cdef Region region
    cdef object user

    def __cinit__(self, Region region):
        self.region = region
        self.core = new CRemoteTable(region.mapped_writable()[0])
        self.user = _MappingUser(region)

    def __dealloc__(self):
        del self.core

    def __len__(self):
        self.region.mapped()
        return self.core.size()

    @property
    def count(self):
        return self.core.size()

    @property
    def capacity(self):
        return self.core.capacity()

    @property
    def displaced(self):
        return self.core.displaced()

    def hints(self, host):
        return self.core.hints(_host_number(host))

    def clear(self):
        self.region.mapped()
        with nogil:
            self.core.clear()

    def set_usable(self, host, bint usable):
        self.region.mapped()
        self.core.set_usable(_host_number(host), usable)

    def set_none_usable(self):
        self.region.mapped()
        self.core.set_none_usable()

    def add(self, host, hashes, uint32_t tier=1):
        cdef const uint64_t[::1] hashes_ = _words(hashes)
        cdef uint32_t number = _host_number(host)
        cdef uint64_t size = hashes_.shape[0], added = 0
        self.region.mapped()
        if not 1 <= tier <= 3:
            raise ValueError(f"a tier is 1 (memory), 2 (SSD) or 3 (both), got {tier}")
        if size:
            with nogil:
                added = self.core.add(number, &hashes_[0], size, tier)
        return added

    def remove(self, host, hashes, uint32_t tier=3):
        cdef const uint64_t[::1] hashes_ = _words(hashes)
        cdef uint32_t number = _host_number(host)
        cdef uint64_t size = hashes_.shape[0], removed = 0
        self.region.mapped()
        if not 1 <= tier <= 3:
            raise ValueError(f"a tier is 1 (memory), 2 (SSD) or 3 (both), got {tier}")
        if size:
            with nogil:
                removed = self.core.remove(number, &hashes_[0], size, tier)
        return removed

    def apply(self, host, ops, hashes):
        cdef const uint8_t[::1] ops_ = np.ascontiguousarray(ops, dtype=np.uint8).reshape(-1)
        cdef const uint64_t[::1] hashes_ = _words(hashes)
        cdef uint32_t number = _host_number(host)
        cdef uint64_t size = hashes_.shape[0]
        if ops_.shape[0] != hashes_.shape[0]:
            raise ValueError(f"{ops_.shape[0]} operations, {hashes_.shape[0]} hashes")
        self.region.mapped()
        if size:
            with nogil:
                self.core.apply(number, &ops_[0], &hashes_[0], size)

    def retire(self, host):
        self.region.mapped()
        self.core.retire(_host_number(host))

    def begin_anew(self, host):
        self.region.mapped()
        self.core.begin_anew(_host_number(host))

    def drop_retired(self):
        cdef uint64_t dropped
        self.region.mapped()
        with nogil:
            dropped = self.core.drop()
        return dropped

    def drop_host(self, host):
        self.retire(host)
        return self.drop_retired()

    def find(self, hashes):
        cdef const uint64_t[::1] hashes_ = _words(hashes)
        cdef uint64_t size = hashes_.shape[0]
        hosts = np.full((size, copies_max), 0xFFFF, dtype=np.uint16)
        tiers = np.zeros((size, copies_max), dtype=np.uint8)
        cdef uint16_t[:, ::1] hosts_ = hosts
        cdef uint8_t[:, ::1] tiers_ = tiers
        self.region.mapped()
        if size:
            with nogil:
                self.core.find(&hashes_[0], size, &hosts_[0, 0], &tiers_[0, 0])
        return hosts.view(np.int16), tiers

    def describe(self, host, *, bytes host_id, bytes incarnation, str address, uint64_t sequence,
                 uint64_t events, uint64_t heard_at_ns):
        cdef RemoteLabels labels
        cdef bytes text = address.encode()
        if len(host_id) != 16 or len(incarnation) != 16:
            raise ValueError(f"a host id and an incarnation have 16 bytes, got {len(host_id)} and {len(incarnation)}")
        labels.host_id = <const uint8_t*>PyBytes_AS_STRING(host_id)
        labels.incarnation = <const uint8_t*>PyBytes_AS_STRING(incarnation)
        labels.address = PyBytes_AS_STRING(text)
        labels.address_bytes = len(text)
        labels.sequence = sequence
        labels.events = events
        labels.heard_at_ns = heard_at_ns
        self.region.mapped()
        self.core.describe(_host_number(host), labels)


def remote_hashes(Region region, keys, namespace_id=None):
    cdef View* view = region.mapped()
    cdef const uint64_t[::1] handles
    cdef uint64_t[::1] out_
    cdef _Keys batch
    cdef uint64_t seed = 0, state
    cdef uint32_t i, record, id_, known = 0
    cdef bint live = False
    cdef Key key
    if namespace_id is not None:
        batch = _Keys(keys, namespace_id)
        if not seed_of(view[0], namespace_id, seed):
            raise ValueError(f"namespace {namespace_id:#x} is not registered in this arena")
        out = np.zeros(batch.count, dtype=np.uint64)
        out_ = out
        for i in range(batch.count):
            out_[i] = remote_hash(seed, batch.keys[i])
        return out
    handles = _words(keys)
    out = np.zeros(handles.shape[0], dtype=np.uint64)
    out_ = out
    for i in range(<uint32_t>handles.shape[0]):
        if not life_holds(view[0], handles[i]):
            continue
        record = <uint32_t>(handles[i] & (record_count_max - 1))
        key = read_key(view.block(record))
        id_ = <uint32_t>key.identity
        if not live or id_ != known:
            live = seed_of(view[0], id_, seed)
            known = id_
        if live and life_holds(view[0], handles[i]):
            out_[i] = remote_hash(seed, key)
    return out


def remote_hashes_of(bytes fingerprint, keys):
    cdef _Keys batch = _Keys(keys, 0)
    cdef uint64_t seed
    cdef uint64_t words[4]
    cdef uint32_t i
    if len(fingerprint) != 32:
        raise ValueError(f"a fingerprint is 32 bytes, got {len(fingerprint)}")
    memcpy(words, PyBytes_AS_STRING(fingerprint), 32)
    seed = remote_seed(words)
    out = np.zeros(batch.count, dtype=np.uint64)
    cdef uint64_t[::1] out_ = out
    for i in range(batch.count):
        out_[i] = remote_hash(seed, batch.keys[i])
    return out


def remote_events(Region region, uint64_t after, uint64_t settled, uint32_t limit):
    cdef View* view = region.mapped()
    cdef EventsRead read
    if limit < 1:
        raise ValueError("a limit is at least 1")
    ops = np.zeros(limit, dtype=np.uint8)
    hashes = np.zeros(limit, dtype=np.uint64)
    cdef uint8_t[::1] ops_ = ops
    cdef uint64_t[::1] hashes_ = hashes
    cdef object keep = _MappingUser(region)
    with nogil:
        read = read_events(view[0], after, settled, limit, &ops_[0], &hashes_[0])
    return read.last, read.overrun, read.torn, ops[:read.count], hashes[:read.count]


def remote_holdings(Region region, uint32_t first, uint32_t end):
    cdef View* view = region.mapped()
    cdef uint32_t total = view.geometry.record_count + view.geometry.spill_record_count
    cdef uint32_t last = min(end, total), count = 0
    cdef uint32_t size = last - first if last > first else 0
    hashes = np.zeros(size, dtype=np.uint64)
    tiers = np.zeros(size, dtype=np.uint8)
    cdef uint64_t[::1] hashes_ = hashes
    cdef uint8_t[::1] tiers_ = tiers
    cdef object keep = _MappingUser(region)
    if size:
        with nogil:
            count = read_holdings(view[0], first, last, &hashes_[0], &tiers_[0])
    return hashes[:count], tiers[:count]


# -- what one namespace has here, for who keeps a list of it in step ----------------------------------------

cdef list _engine_keys(const Key* keys, uint32_t count):
    """Keys as engines write them: hash, and four bytes of group, big-endian."""
    cdef uint32_t i, length
    cdef uint8_t data[36]
    out = []
    for i in range(count):
        length = min(<uint32_t>(keys[i].identity >> 48 & 0xFF), <uint32_t>32)
        memcpy(data, keys[i].words, length)
        data[length] = data[length + 1] = 0
        data[length + 2] = <uint8_t>(keys[i].identity >> 40)
        data[length + 3] = <uint8_t>(keys[i].identity >> 32)
        out.append(PyBytes_FromStringAndSize(<const char*>data, length + 4))
    return out


def residency_signs(Region region):
    cdef View* view = region.mapped()
    return (load_acquire(view.header().journal_head), load_acquire(view.header().spill_usable),
            load_acquire(view.header().transport_started_at_ns))


def residency(Region region, keys, uint32_t namespace_id):
    cdef _Keys batch = _Keys(keys, namespace_id)
    cdef View* view = region.mapped()
    cdef uint32_t i
    tiers = np.zeros(batch.count, dtype=np.uint8)
    cdef uint8_t[::1] tiers_ = tiers
    cdef object keep = _MappingUser(region)
    with nogil:
        for i in range(batch.count):
            tiers_[i] = c_residency(view[0], batch.keys[i])
    return tiers


def changed_keys(Region region, uint32_t namespace_id, uint64_t after, uint64_t settled, uint32_t limit):
    cdef View* view = region.mapped()
    cdef EventsRead read
    cdef object keep = _MappingUser(region)
    cdef Key* keys
    if limit < 1:
        raise ValueError("a limit is at least 1")
    keys = <Key*>malloc(limit * sizeof(Key))
    if keys == NULL:
        raise MemoryError()
    try:
        with nogil:
            read = read_changed(view[0], after, settled, limit, namespace_id, keys)
        return read.last, read.overrun, read.torn, _engine_keys(keys, read.count)
    finally:
        free(keys)


def resident_keys(Region region, uint32_t namespace_id, uint32_t first, uint32_t records_max, uint32_t keys_max):
    cdef View* view = region.mapped()
    cdef Residents found
    cdef object keep = _MappingUser(region)
    cdef Key* keys
    if keys_max < 1:
        raise ValueError("a limit is at least 1")
    keys = <Key*>malloc(keys_max * sizeof(Key))
    if keys == NULL:
        raise MemoryError()
    try:
        with nogil:
            found = read_residents(view[0], namespace_id, first, records_max, keys_max, keys)
        return found.next, _engine_keys(keys, found.count)
    finally:
        free(keys)


# -- copying -----------------------------------------------------------------------------------------

cdef uint64_t _forks = 0  # how many forks lie between the first process and this one


def _count_fork():
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


cdef class Copier:
    cdef CCopier* core
    cdef uint64_t forks

    def __cinit__(self, uint32_t threads=1):
        self.core = new CCopier(threads)
        self.forks = _forks

    def __dealloc__(self):
        self.close()

    def close(self):
        cdef CCopier* core = self.core
        self.core = NULL
        if self.forks != _forks:
            return  # its threads and its locks are the parent's: to end them here would be to wait for ever
        with nogil:
            del core

    def copy(self, destinations, sources, sizes, *, str method="auto"):
        cdef const uint64_t[::1] to = _words(destinations)
        cdef const uint64_t[::1] source = _words(sources)
        cdef const uint64_t[::1] nbytes = _words(sizes)
        cdef CopyBatch batch
        cdef uint8_t code
        cdef uint64_t total
        if self.core == NULL:
            raise ValueError("the copier is closed")
        if self.forks != _forks:
            raise ValueError("this copier's threads stayed in the process that forked this one: make another")
        if to.shape[0] != source.shape[0] or to.shape[0] != nbytes.shape[0]:
            raise ValueError(f"{to.shape[0]} destinations, {source.shape[0]} sources, {nbytes.shape[0]} sizes")
        if method not in _COPY_METHODS:
            raise ValueError(f"method must be one of {', '.join(_COPY_METHODS)}, got {method!r}")
        if to.shape[0] == 0:
            return 0
        code = _COPY_METHODS[method]
        batch.to = &to[0]
        batch.source = &source[0]
        batch.bytes = &nbytes[0]
        batch.count = to.shape[0]
        memcpy(&batch.method, &code, 1)
        with nogil:
            total = self.core.copy(batch)
        return total

    @staticmethod
    def methods():
        return list(_COPY_METHODS)


# -- what a process that copies for a client reports -----------------------------------------------------

def generations_hold(Region region, handles):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped()
    cdef Py_ssize_t i
    out = np.zeros(handles_.shape[0], dtype=np.bool_)
    cdef uint8_t[::1] out_ = out.view(np.uint8)
    for i in range(handles_.shape[0]):
        out_[i] = life_holds(view[0], handles_[i])
    return out


def part_done(Region region, handles, bint ok):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped_writable()
    cdef Py_ssize_t i
    for i in range(handles_.shape[0]):
        report_part(view[0], handles_[i], ok)


def parts_total(Region region, handles):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped()
    cdef Py_ssize_t i
    out = np.zeros(handles_.shape[0], dtype=np.uint32)
    cdef uint32_t[::1] out_ = out
    for i in range(handles_.shape[0]):
        out_[i] = parts_reported(view[0], handles_[i])
    return out


# -- checksums of payloads: kept here, computed and compared in payload_sums.py ---------------------------

def write_sums(Region region, handles, sums, *, uint32_t part, uint32_t part_count, uint64_t part_bytes):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef const uint64_t[::1] sums_ = _words(sums)
    cdef View* view = region.mapped_writable()
    cdef uint64_t layout
    cdef Py_ssize_t i
    if part_count < 1 or part_count > sum_count or part >= part_count:
        raise ValueError(f"part {part} of {part_count}: a block has checksums for 1 to {sum_count} parts")
    if part_bytes < 1 or part_bytes >> 48:
        raise ValueError(f"a part has 1 to 2^48 - 1 bytes, got {part_bytes}")
    if handles_.shape[0] != sums_.shape[0]:
        raise ValueError(f"{handles_.shape[0]} handles, {sums_.shape[0]} checksums")
    layout = make_sum_layout(part_bytes, part_count)
    out = np.zeros(handles_.shape[0], dtype=np.bool_)
    cdef uint8_t[::1] out_ = out.view(np.uint8)
    for i in range(handles_.shape[0]):
        out_[i] = write_sum(view[0], handles_[i], part, layout, sums_[i])
    return out


def read_sums(Region region, handles):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped()
    cdef SumsRead read
    cdef Py_ssize_t i, j
    cdef Py_ssize_t size = handles_.shape[0]
    sums = np.zeros((size, sum_count), dtype=np.uint64)
    part_bytes = np.zeros(size, dtype=np.uint64)
    part_counts = np.zeros(size, dtype=np.uint32)
    damaged = np.zeros(size, dtype=np.bool_)
    cdef uint64_t[:, ::1] sums_ = sums
    cdef uint64_t[::1] part_bytes_ = part_bytes
    cdef uint32_t[::1] part_counts_ = part_counts
    cdef uint8_t[::1] damaged_ = damaged.view(np.uint8)
    for i in range(size):
        read = c_read_sums(view[0], handles_[i])
        part_bytes_[i] = read.part_bytes
        part_counts_[i] = read.part_count
        damaged_[i] = read.damaged
        for j in range(sum_count):
            sums_[i, j] = read.sums[j]
    return sums, part_bytes, part_counts, damaged


def mark_damaged(Region region, handles):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped_writable()
    cdef Py_ssize_t i
    out = np.zeros(handles_.shape[0], dtype=np.bool_)
    cdef uint8_t[::1] out_ = out.view(np.uint8)
    for i in range(handles_.shape[0]):
        out_[i] = c_mark_damaged(view[0], handles_[i])
    return out


# -- invariants: judged in audit.hpp, undone in mend.hpp, worded in fsck.py ---------------------------------

FINDING_FIELDS = np.dtype([
    ("invariant", "u4"), ("slot", "u4"), ("where", "u8"), ("seen", "u8"), ("expected", "u8"),
])
_USES = ("free", "lost", "claimed", "claimed_dead", "ready", "ready_held", "unreachable", "duplicate",
         "evicting", "evicting_dead", "damaged")


cdef const uint8_t* _flags(bytes alive) except NULL:
    if len(alive) != client_count:
        raise ValueError(f"{client_count} flags, one a client slot, got {len(alive)}")
    return <const uint8_t*>PyBytes_AS_STRING(alive)


cdef class Audit:
    cdef CAudit* core
    cdef Region region
    cdef object user, room

    def __cinit__(self, Region region, bytes alive, *, cbool at_rest, uint64_t findings_max=1 << 16):
        cdef uint8_t[::1] room
        self.room = np.zeros(max(findings_max, 1), dtype=FINDING_FIELDS)
        room = self.room.view(np.uint8)
        self.region = region
        self.core = new CAudit(region.mapped()[0], _flags(alive), at_rest, <CFinding*>&room[0],
                               findings_max)
        self.user = _MappingUser(region)

    def __dealloc__(self):
        del self.core

    def segments(self, uint32_t first, uint32_t last):
        cdef uint32_t end = min(last, self.region.mapped().geometry.segment_count)
        with nogil:
            self.core.segments(first, end)

    def buckets(self, uint64_t first, uint64_t last):
        cdef uint64_t end = min(last, self.region.mapped().geometry.bucket_count)
        with nogil:
            self.core.buckets(first, end)

    def tables(self):
        self.region.mapped()
        with nogil:
            self.core.tables()

    @property
    def findings(self):
        return self.room[:self.core.listed()]

    @property
    def counts(self):
        cdef uint32_t number
        return {number: self.core.counts()[number] for number in range(invariant_count)
                if self.core.counts()[number]}

    @property
    def account(self):
        cdef CAccount account = self.core.account()
        return {
            "blocks": {use: account.blocks[i] for i, use in enumerate(_USES)},
            "bytes": {use: account.bytes[i] for i, use in enumerate(_USES)},
            "records_spare": account.records_spare,
            "records_stray": account.records_stray,
            "segment_tail_bytes": account.segment_tail_bytes,
            "unassigned_bytes": account.unassigned_bytes,
        }


def mend(Region region, findings, *, uint32_t slot, bytes alive, cbool at_rest):
    cdef View* view = region.mapped_writable()
    found = np.ascontiguousarray(findings, dtype=FINDING_FIELDS)
    done = np.zeros(len(found), dtype=np.bool_)
    if not len(found):
        return done
    cdef uint8_t[::1] raw = found.view(np.uint8)
    cdef uint8_t[::1] done_ = done.view(np.uint8)
    cdef CMender* mender = new CMender(view[0], slot, _flags(alive), at_rest)
    cdef Py_ssize_t i, size = len(found)
    cdef CFinding* all_ = <CFinding*>&raw[0]
    cdef object keep = _MappingUser(region)
    with nogil:
        for i in range(size):
            done_[i] = mender.mend(all_[i])
    del mender
    return done


# -- bytes between files and memory, for the spill files ---------------------------------------------------

cimport cython

cdef extern from "disk.hpp" namespace "pegashm" nogil:
    cdef struct CDiskTransfer "pegashm::DiskTransfer":
        const uint64_t* offsets
        const uint64_t* addresses
        const uint64_t* bytes
        int32_t* errors
        uint64_t count
        int fd
        cbool write

    cdef cppclass CDiskPool "pegashm::DiskPool":
        CDiskPool(uint32_t, uint64_t) except +
        uint32_t threads()
        void start(CDiskTransfer&)
        void wait(CDiskTransfer&, cbool)
        cbool finished(const CDiskTransfer&)
        uint64_t waiting_ns()
        cbool close(uint64_t)


# no_gc_clear: __dealloc__ needs the pool.
@cython.no_gc_clear
cdef class DiskTransfer:
    cdef CDiskTransfer core
    cdef DiskPool pool
    cdef object keep, _errors

    @property
    def finished(self):
        return self.pool.mine().finished(self.core)

    def wait(self, *, bint helping=False):
        cdef CDiskPool* pool = self.pool.mine()
        with nogil:
            pool.wait(self.core, helping)
        return self._errors

    def __dealloc__(self):
        # The threads still use the arrays: nobody may drop them before. (A forked child has no such threads.)
        if self.pool is not None and self.pool.process == os.getpid():
            with nogil:
                self.pool.core.wait(self.core, False)


cdef class DiskPool:
    cdef CDiskPool* core
    cdef readonly object process
    cdef bint closed

    def __cinit__(self, uint32_t threads=4, uint64_t piece_bytes=1 << 20):
        self.process = os.getpid()
        self.closed = False
        self.core = new CDiskPool(threads, piece_bytes)

    def __dealloc__(self):
        if self.core != NULL and self.process == os.getpid():
            del self.core

    cdef CDiskPool* mine(self) except NULL:
        if self.process != os.getpid():
            raise ValueError("this DiskPool was made by the parent process: its threads are not in a forked child")
        if self.closed:
            raise ValueError("this DiskPool is closed")
        return self.core

    @property
    def threads(self):
        return self.mine().threads()

    @property
    def waiting_seconds(self):
        return self.mine().waiting_ns() / 1e9

    def start(self, int fd, offsets, addresses, sizes, *, bint write):
        cdef CDiskPool* pool = self.mine()
        cdef DiskTransfer transfer = DiskTransfer.__new__(DiskTransfer)
        cdef const uint64_t[::1] offsets_ = _words(offsets)
        cdef const uint64_t[::1] addresses_ = _words(addresses)
        cdef const uint64_t[::1] sizes_ = _words(sizes)
        cdef Py_ssize_t count = offsets_.shape[0]
        cdef int32_t[::1] errors_
        if addresses_.shape[0] != count or sizes_.shape[0] != count:
            raise ValueError(f"{count} offsets, {addresses_.shape[0]} addresses, {sizes_.shape[0]} sizes")
        transfer._errors = np.zeros(count, dtype=np.int32)
        if count:
            errors_ = transfer._errors
            transfer.keep = (offsets_, addresses_, sizes_, errors_)
            transfer.core.offsets = &offsets_[0]
            transfer.core.addresses = &addresses_[0]
            transfer.core.bytes = &sizes_[0]
            transfer.core.errors = &errors_[0]
        transfer.core.count = <uint64_t>count
        transfer.core.fd = fd
        transfer.core.write = write
        transfer.pool = self
        pool.start(transfer.core)
        return transfer

    def transfer(self, int fd, offsets, addresses, sizes, *, bint write):
        return self.start(fd, offsets, addresses, sizes, write=write).wait(helping=True)

    def close(self, double patience_seconds=1.0):
        cdef uint64_t patience_ms = <uint64_t>(patience_seconds * 1000)
        cdef cbool ended
        if self.process != os.getpid():
            return True
        self.closed = True
        with nogil:
            ended = self.core.close(patience_ms)
        return ended
