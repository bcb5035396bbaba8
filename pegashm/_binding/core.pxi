# What the binding uses of `_core`, header by header.

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
