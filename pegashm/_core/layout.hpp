// Where is each byte of the control region? The structs of FORMAT.md and the geometry of one region.
//
// Every struct here is shared between processes and between builds: fixed-width integers, offsets, no
// padding, no behaviour. Words that several processes write are touched only through atomics.hpp.
// Geometry is the private, checked copy of a header that all other code works from: nothing read from
// shared memory is used as a size or an offset without passing through it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

namespace pegashm {

inline constexpr uint64_t magic_ready = 0x314D485341474550;  // "PEGASHM1" read little-endian
inline constexpr uint16_t format_major = 2;
inline constexpr uint16_t format_minor = 1;

inline constexpr uint64_t cache_line_bytes = 64;
inline constexpr uint64_t page_bytes_small = 4096;
inline constexpr uint32_t arena_count_max = 16;
inline constexpr uint32_t namespace_count = 256;
inline constexpr uint32_t namespace_fact_words = 6;
inline constexpr uint32_t client_count = 128;
inline constexpr uint32_t counter_count = 256;
inline constexpr uint32_t record_count_max = 1u << 24;
inline constexpr uint32_t entries_per_bucket = 8;
inline constexpr uint32_t key_bytes_max = 32;
inline constexpr uint32_t key_words = key_bytes_max / 8;
inline constexpr uint32_t sum_count = 8;  // parts of a block that can have a checksum
inline constexpr uint32_t spill_file_count = 64;
inline constexpr uint64_t ghost_hash_version = 1;  // of ghost_of(): part of the format
inline constexpr uint64_t ghosts_a_record = 4;
inline constexpr uint64_t index_hash_version = 3;  // of buckets_of(): part of the format
inline constexpr uint64_t bucket_page = 64;  // buckets in a page of 4096 bytes: both of a key
inline constexpr uint64_t remote_hash_version = 1;  // of remote_hash(): hosts tell it to each other
inline constexpr uint32_t remote_host_count = 4096;  // a hint has 12 bits for it
inline constexpr uint64_t remote_bucket_count_max = uint64_t{1} << 28;
inline constexpr uint64_t remote_page_buckets = 64;  // in a page of 4096 bytes, both of a hash
inline constexpr uint64_t reuse_hash_version = 1;  // of reuse_hash(): part of the format
inline constexpr uint32_t reuse_tick_seconds = 15;
inline constexpr uint32_t reuse_tick_count = 24 * 3600 / reuse_tick_seconds;
inline constexpr uint32_t reuse_rank_count = 32;
inline constexpr uint64_t reuse_register_count_max = 1u << 18;

struct ArenaEntry {
  uint64_t bytes;
  int32_t numa_node;
  uint32_t path_bytes;
  char path[176];
};
static_assert(sizeof(ArenaEntry) == 192);

struct Header {
  uint64_t magic;
  uint16_t format_major;
  uint16_t format_minor;
  uint32_t header_bytes;
  uint64_t layout_signature;
  uint8_t region_id[16];
  uint64_t created_at_ns;
  uint64_t control_bytes;
  uint64_t payload_bytes;
  uint64_t segment_bytes;
  uint64_t block_bytes_min;
  uint32_t segment_count;
  uint32_t records_per_segment;
  uint32_t record_count;
  uint32_t arena_count;
  uint64_t bucket_count;
  uint64_t journal_entry_count;
  uint64_t namespaces_offset;
  uint64_t clients_offset;
  uint64_t counter_labels_offset;
  uint64_t counter_values_offset;
  uint64_t segments_offset;
  uint64_t free_bits_offset;
  uint64_t blocks_offset;
  uint64_t touches_offset;
  uint64_t buckets_offset;
  uint64_t journal_offset;
  uint64_t page_bytes;
  uint64_t sums_offset;
  uint64_t spill_offset;
  uint32_t spill_record_count;
  uint32_t reuse_register_count;
  uint64_t remote_hosts_offset;
  uint64_t remote_offset;
  uint64_t remote_bucket_count;
  uint64_t checksum;
  uint64_t segments_ready;
  uint64_t supervisor_pid;
  uint64_t supervisor_started_at_ns;
  uint64_t spill_usable;
  uint64_t remote_usable;
  uint64_t eviction;
  uint64_t span;
  uint64_t again_share;
  uint64_t access_clock;
  uint8_t reserved_328[56];
  uint64_t journal_head;
  uint8_t reserved_392[56];
  uint64_t freed_clock;
  uint8_t reserved_456[56];
  ArenaEntry arenas[arena_count_max];
  uint64_t transport_pid;
  uint64_t transport_started_at_ns;
  uint32_t transport_path_bytes;
  uint32_t reserved_3604;
  char transport_path[104];
  uint64_t draining_since_ns;
  uint8_t reserved_3720[376];
};
static_assert(sizeof(Header) == 4096 && std::has_unique_object_representations_v<Header>);
static_assert(offsetof(Header, region_id) == 24 && offsetof(Header, segment_count) == 80);
static_assert(offsetof(Header, namespaces_offset) == 112 && offsetof(Header, page_bytes) == 192);
static_assert(offsetof(Header, spill_offset) == 208 && offsetof(Header, checksum) == 248);
static_assert(offsetof(Header, remote_hosts_offset) == 224 &&
              offsetof(Header, remote_usable) == 288);
static_assert(offsetof(Header, reuse_register_count) == 220);
static_assert(offsetof(Header, eviction) == 296 && offsetof(Header, again_share) == 312);
static_assert(offsetof(Header, segments_ready) == 256 && offsetof(Header, access_clock) == 320);
static_assert(offsetof(Header, journal_head) == 384 && offsetof(Header, freed_clock) == 448);
static_assert(offsetof(Header, spill_usable) == 280 && offsetof(Header, arenas) == 512);
static_assert(offsetof(Header, transport_pid) == 3584 && offsetof(Header, transport_path) == 3608);
static_assert(offsetof(Header, draining_since_ns) == 3712);

struct NamespaceEntry {
  uint64_t state;  // generation:16 << 16 | tag:8
  uint8_t fingerprint[32];
  uint64_t reserved_bytes;
  uint64_t maximum_bytes;
  uint64_t resident_bytes;
  uint64_t created_at_ns;
  uint64_t attached_at_ns;
  uint64_t facts[namespace_fact_words];  // 24 digests of 16 bits
  char label[128];
};
static_assert(sizeof(NamespaceEntry) == 256 && offsetof(NamespaceEntry, label) == 128);
static_assert(offsetof(NamespaceEntry, facts) == 80);

struct ClientSlot {
  uint64_t state;  // incarnation:56 << 8 | tag:8
  uint64_t pid;
  uint64_t started_at;
  uint64_t attached_at_ns;
  uint32_t namespace_id;
  uint32_t mode;
  uint8_t reserved_40[24];
  char engine_id[64];
  char label[64];
};
static_assert(sizeof(ClientSlot) == 192 && offsetof(ClientSlot, engine_id) == 64);

struct CounterLabel {
  uint32_t type;  // 0 unused, 1 counter, 2 gauge
  uint32_t key_bytes;
  char key[56];
};
struct CounterValue {
  uint64_t value;
  uint8_t reserved_8[56];
};
static_assert(sizeof(CounterLabel) == 64 && sizeof(CounterValue) == cache_line_bytes);

struct Segment {
  uint64_t state;  // tag:8 | owner:8 << 8 | epoch:24 << 16 | stride_pages:24 << 40
  uint8_t reserved_8[56];
};
static_assert(sizeof(Segment) == cache_line_bytes);

struct Block {
  uint64_t state;  // tag:8 | owner:16 << 8 | generation:40 << 24
  uint64_t key[key_words];
  uint64_t identity;  // namespace_id:32 | group:16 << 32 | key_bytes:8 << 48
  uint64_t payload_offset;
  uint64_t payload_bytes;
  uint64_t pins[2];
  uint64_t parts;  // done:32 | failed:32 << 32
  uint64_t sum_layout;  // part_bytes:48 | part_count:8 << 48 | flags:8 << 56, 0 = no checksums
  uint64_t claimed_at_ns;
  uint64_t published_at_ns;
  uint8_t reserved_112[16];
};
static_assert(sizeof(Block) == 2 * cache_line_bytes && offsetof(Block, identity) == 40);
static_assert(offsetof(Block, pins) == 64 && offsetof(Block, published_at_ns) == 104);
static_assert(offsetof(Block, sum_layout) == 88);
static_assert(std::has_unique_object_representations_v<Block>);

// Checksums of one block's parts, in a table of their own: only who stores or verifies them comes here.
struct Sums {
  uint64_t parts[sum_count];  // XXH3-64, 0 = this part has none
};
static_assert(sizeof(Sums) == cache_line_bytes);

// A block on SSD, as the index sees it. Numbered from record_count on; the first line is all a lookup reads.
struct SpillRecord {
  uint64_t state;  // tag:8 (0 free, 1 stored) | file:8 << 8 | generation:40 << 24
  uint64_t key[key_words];
  uint64_t identity;
  uint64_t file_offset;
  uint64_t payload_bytes;
  uint64_t checksum;
  uint64_t sum_layout;
  uint64_t published_at_ns;
  uint64_t sequence;
  uint8_t reserved_96[32];
};
static_assert(sizeof(SpillRecord) == 2 * cache_line_bytes &&
              offsetof(SpillRecord, checksum) == cache_line_bytes);
static_assert(offsetof(SpillRecord, reserved_96) == 96);

struct Bucket {
  uint64_t entries[entries_per_bucket];  // record:24 | generation:16 << 24 | fingerprint:24 << 40
};
static_assert(sizeof(Bucket) == cache_line_bytes);

// What tools show of another host; labels all, written by the transport worker.
struct RemoteHost {
  uint8_t host_id[16];
  uint8_t incarnation[16];
  uint64_t sequence;  // of its stream, as far as it was heard
  uint64_t events;  // applied since it was found
  uint64_t hints;  // of it in the table
  uint64_t heard_at_ns;
  uint32_t address_bytes;
  uint32_t reserved_68;
  char address[56];
};
static_assert(sizeof(RemoteHost) == 2 * cache_line_bytes && offsetof(RemoteHost, address) == 72);

// Which of them lookups may count on: bit h of these words; then what tools show of each.
struct RemoteHosts {
  uint64_t usable[remote_host_count / 64];
  RemoteHost hosts[remote_host_count];
};
static_assert(sizeof(RemoteHosts) == 512 + 128 * remote_host_count);

// Hints of what they hold. Entry: host:12 | tiers:2 << 12 | fingerprint:50 << 14, 0 = empty.
struct RemoteBucket {
  uint64_t entries[entries_per_bucket];
};
static_assert(sizeof(RemoteBucket) == cache_line_bytes &&
              remote_page_buckets * sizeof(RemoteBucket) == page_bytes_small);

// What was asked for and what came of it, in one tick of time. Word: tick:32 << 32 | count:32.
struct ReuseTick {
  uint64_t asked;
  uint64_t served;
};
static_assert(sizeof(ReuseTick) == 16 && sizeof(ReuseTick) * reuse_tick_count % 64 == 0);

// When each rank of one register of a HyperLogLog was last met. Word: tick of rank 2 i + 1 | tick of 2 i + 2 << 32.
struct ReuseRegister {
  uint64_t met[reuse_rank_count / 2];
};
static_assert(sizeof(ReuseRegister) == 2 * cache_line_bytes);

struct JournalEntry {
  uint64_t sequence;
  uint64_t what;  // event:8 | key_bytes:8 << 8 | group:16 << 16 | namespace_id:32 << 32
  uint64_t handle;
  uint64_t reserved_24;
  uint64_t key[key_words];
};
static_assert(sizeof(JournalEntry) == 64);

// A key as the core compares it: hash bytes zero padded to words, and who it belongs to.
struct Key {
  uint64_t words[key_words];
  uint64_t identity;
};

constexpr uint64_t make_identity(uint32_t namespace_id, uint16_t group,
                                 uint8_t key_bytes) noexcept {
  return uint64_t{namespace_id} | uint64_t{group} << 32 | uint64_t{key_bytes} << 48;
}
constexpr uint32_t identity_namespace(uint64_t identity) noexcept {
  return static_cast<uint32_t>(identity);
}

// Whether an arena is being drained. Marked, so that a stray write there does not stop all stores.
inline constexpr uint64_t draining_mark = 0xD4A1;
constexpr bool is_draining(uint64_t since_ns) noexcept {
  return (since_ns & 0xFFFF) == draining_mark;
}

// A handle names one life of one record: generation:40 << 24 | record:24.
constexpr uint64_t make_handle(uint32_t record, uint64_t generation) noexcept {
  return generation << 24 | record;
}
constexpr uint32_t handle_record(uint64_t handle) noexcept {
  return static_cast<uint32_t>(handle & (record_count_max - 1));
}
constexpr uint64_t handle_generation(uint64_t handle) noexcept { return handle >> 24; }

constexpr uint64_t round_up(uint64_t value, uint64_t multiple) noexcept {
  return (value + multiple - 1) / multiple * multiple;
}

constexpr uint64_t mix(uint64_t hash, uint64_t value) noexcept {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15;
  return hash ^ hash >> 32;
}

// Hash of this build's sizes and offsets: two builds that differ in any cannot share a region.
constexpr uint64_t compute_layout_signature() noexcept {
  uint64_t hash = 0x5045474153484D31;
  for (const uint64_t value : {index_hash_version,
                               uint64_t{cache_line_bytes},
                               uint64_t{sizeof(Header)},
                               uint64_t{sizeof(ArenaEntry)},
                               uint64_t{sizeof(NamespaceEntry)},
                               uint64_t{namespace_count},
                               uint64_t{sizeof(ClientSlot)},
                               uint64_t{client_count},
                               uint64_t{sizeof(CounterLabel)},
                               uint64_t{counter_count},
                               uint64_t{sizeof(Segment)},
                               uint64_t{sizeof(Block)},
                               uint64_t{sizeof(Sums)},
                               uint64_t{sizeof(SpillRecord)},
                               uint64_t{sizeof(Bucket)},
                               remote_hash_version,
                               uint64_t{sizeof(RemoteHosts)},
                               uint64_t{sizeof(RemoteBucket)},
                               reuse_hash_version,
                               uint64_t{reuse_tick_seconds},
                               uint64_t{sizeof(ReuseTick) * reuse_tick_count},
                               uint64_t{sizeof(ReuseRegister)},
                               uint64_t{sizeof(JournalEntry)},
                               uint64_t{offsetof(Block, identity)},
                               uint64_t{offsetof(Block, pins)},
                               uint64_t{offsetof(Block, parts)},
                               uint64_t{offsetof(Block, sum_layout)},
                               uint64_t{offsetof(Header, sums_offset)},
                               uint64_t{offsetof(Header, spill_offset)},
                               uint64_t{offsetof(Header, remote_hosts_offset)},
                               uint64_t{offsetof(Header, checksum)},
                               uint64_t{offsetof(Header, segments_ready)},
                               uint64_t{offsetof(Header, spill_usable)},
                               uint64_t{offsetof(Header, remote_usable)},
                               uint64_t{offsetof(Header, reuse_register_count)},
                               ghost_hash_version,
                               ghosts_a_record,
                               uint64_t{offsetof(Header, eviction)},
                               uint64_t{offsetof(Header, access_clock)},
                               uint64_t{offsetof(Header, journal_head)},
                               uint64_t{offsetof(Header, freed_clock)},
                               uint64_t{offsetof(Header, arenas)},
                               uint64_t{offsetof(Header, transport_pid)},
                               uint64_t{offsetof(Header, transport_path)}}) {
    hash = mix(hash, value);
  }
  return hash;
}
inline constexpr uint64_t layout_signature = compute_layout_signature();

// Sizes, counts and offsets of one region: private to a process, consistent by construction.
struct Geometry {
  uint64_t segment_bytes;
  uint64_t block_bytes_min;
  uint64_t payload_bytes;
  uint64_t bucket_count;
  uint64_t journal_entry_count;
  uint64_t namespaces_offset;
  uint64_t clients_offset;
  uint64_t counter_labels_offset;
  uint64_t counter_values_offset;
  uint64_t segments_offset;
  uint64_t free_bits_offset;
  uint64_t blocks_offset;
  uint64_t touches_offset;
  uint64_t sums_offset;
  uint64_t buckets_offset;
  uint64_t journal_offset;
  uint64_t spill_offset;
  uint64_t remote_hosts_offset;
  uint64_t remote_offset;
  uint64_t remote_bucket_count;
  uint64_t reuse_offset;
  uint64_t ghosts_offset;
  uint64_t ghost_count;
  uint64_t control_bytes;
  uint32_t segment_count;
  uint32_t records_per_segment;
  uint32_t record_count;
  uint32_t spill_record_count;
  uint32_t reuse_register_count;
};

constexpr uint64_t power_of_two_at_least(uint64_t value) noexcept {
  uint64_t power = 1;
  while (power < value) power <<= 1;
  return power;
}

// Derives everything from six numbers. False when the format cannot hold such a region.
inline bool plan_geometry(uint64_t segment_bytes, uint64_t block_bytes_min, uint64_t segment_count,
                          Geometry& out, uint64_t spill_record_count = 0,
                          uint64_t remote_bucket_count = 0,
                          uint64_t reuse_register_count = 0) noexcept {
  constexpr uint64_t segment_bytes_max = uint64_t{1} << 36;  // stride_pages has 24 bits
  if (segment_bytes == 0 || segment_bytes % page_bytes_small != 0 ||
      segment_bytes > segment_bytes_max || block_bytes_min == 0 ||
      block_bytes_min % page_bytes_small != 0 || block_bytes_min > segment_bytes ||
      segment_count == 0 || segment_count > record_count_max / 64 ||
      remote_bucket_count > remote_bucket_count_max ||
      reuse_register_count > reuse_register_count_max ||
      (reuse_register_count & (reuse_register_count - 1)) != 0 || reuse_register_count == 1) {
    return false;
  }
  const uint64_t records_per_segment = round_up(segment_bytes / block_bytes_min, 64);
  const uint64_t record_count = records_per_segment * segment_count;
  if (records_per_segment > record_count_max || record_count > record_count_max ||
      spill_record_count > record_count_max - record_count) {
    return false;
  }

  out = Geometry{};
  out.segment_bytes = segment_bytes;
  out.block_bytes_min = block_bytes_min;
  out.segment_count = static_cast<uint32_t>(segment_count);
  out.records_per_segment = static_cast<uint32_t>(records_per_segment);
  out.record_count = static_cast<uint32_t>(record_count);
  out.spill_record_count = static_cast<uint32_t>(spill_record_count);
  out.reuse_register_count = static_cast<uint32_t>(reuse_register_count);
  out.payload_bytes = segment_bytes * segment_count;
  // Half full at most: with two choices of eight entries, overflow is then a matter of astronomy.
  out.bucket_count =
      power_of_two_at_least((record_count + spill_record_count) * 2 / entries_per_bucket);
  const uint64_t journal_wanted = power_of_two_at_least(record_count);
  out.journal_entry_count =
      journal_wanted<1024 ? 1024 : journal_wanted>(1u << 18) ? (1u << 18) : journal_wanted;

  uint64_t end = sizeof(Header);
  const auto place = [&end](uint64_t bytes) noexcept {
    const uint64_t start = end;
    end = round_up(start + bytes, page_bytes_small);
    return start;
  };
  out.namespaces_offset = place(sizeof(NamespaceEntry) * namespace_count);
  out.clients_offset = place(sizeof(ClientSlot) * client_count);
  out.counter_labels_offset = place(sizeof(CounterLabel) * counter_count);
  out.counter_values_offset = place(sizeof(CounterValue) * counter_count);
  out.segments_offset = place(sizeof(Segment) * segment_count);
  out.free_bits_offset = place(record_count / 8);
  out.blocks_offset = place(sizeof(Block) * record_count);
  out.touches_offset = place(8 * record_count);
  out.sums_offset = place(sizeof(Sums) * record_count);
  out.buckets_offset = place(sizeof(Bucket) * out.bucket_count);
  out.journal_offset = place(sizeof(JournalEntry) * out.journal_entry_count);
  out.spill_offset = place(sizeof(SpillRecord) * spill_record_count);
  out.remote_hosts_offset = place(remote_bucket_count == 0 ? 0 : sizeof(RemoteHosts));
  out.remote_bucket_count = round_up(remote_bucket_count, remote_page_buckets);
  out.remote_offset = place(sizeof(RemoteBucket) * out.remote_bucket_count);
  out.reuse_offset =
      place(reuse_register_count == 0 ? 0
                                      : sizeof(ReuseTick) * reuse_tick_count +
                                            sizeof(ReuseRegister) * reuse_register_count);
  out.ghost_count = ghosts_a_record * record_count;
  out.ghosts_offset = place(8 * out.ghost_count);
  out.control_bytes = end;
  return true;
}

}  // namespace pegashm
