// On what is the core fuzzed? A small region in memory of exactly its size, and states to start from.
//
// The region and the payload are heap allocations of exactly the bytes the geometry names, and what the tables
// leave unused of their last page is poisoned: under the address sanitizer a step beyond the region, the
// payload or (where there is padding) a table is found. Four states are built once through the core itself,
// as engines would: fresh, busy (two strides, namespaces, pins, claims and an eviction left midway, a segment
// half re-assigned), busy and gone on from there (with blocks on SSD and of other hosts, and adaptive eviction), and
// full. A run starts by copying one of them: some 20 us.
#pragma once

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "client.hpp"
#include "header.hpp"
#include "holdings.hpp"
#include "registry.hpp"
#include "remote_table.hpp"
#include "repair.hpp"
#include "reuse.hpp"
#include "spill.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define PEGASHM_FUZZ_POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PEGASHM_FUZZ_POISON 1
#endif
#endif
#ifdef PEGASHM_FUZZ_POISON
#include <sanitizer/asan_interface.h>
#endif

namespace fuzz {

using namespace pegashm;

inline constexpr uint64_t segment_bytes = 64 * 1024;
inline constexpr uint32_t segment_count = 3;
inline constexpr uint64_t sizes[] = {4096, 12288, 5000, 65536};  // asked for: strides 4, 12, 8, 64 KiB
inline constexpr uint32_t slots[] = {0, 5, 127};  // clients of the busy states
inline constexpr uint32_t key_count = 48;

// A worker's tables, as small as they can be and still be pages of their own.
inline constexpr uint32_t spill_records = 64;
inline constexpr uint32_t remote_buckets = 64;
inline constexpr uint32_t reuse_registers = 16;
inline constexpr uint32_t table_count = 17;

struct Table {
  const char* name;
  uint64_t offset;
  uint64_t bytes;  // without padding
  uint64_t step;  // bytes from one of its items to the next
};

// What is in a region, in the order of FORMAT.md; the header first.
inline std::array<Table, table_count> tables_of(const Geometry& g) {
  return {{
      {"header", 0, sizeof(Header), 8},
      {"namespaces", g.namespaces_offset, sizeof(NamespaceEntry) * namespace_count,
       sizeof(NamespaceEntry)},
      {"clients", g.clients_offset, sizeof(ClientSlot) * client_count, sizeof(ClientSlot)},
      {"counter_labels", g.counter_labels_offset, sizeof(CounterLabel) * counter_count,
       sizeof(CounterLabel)},
      {"counter_values", g.counter_values_offset, sizeof(CounterValue) * counter_count,
       sizeof(CounterValue)},
      {"segments", g.segments_offset, sizeof(Segment) * g.segment_count, sizeof(Segment)},
      {"free_bits", g.free_bits_offset, g.record_count / 8, 8},
      {"blocks", g.blocks_offset, sizeof(Block) * g.record_count, sizeof(Block)},
      {"touches", g.touches_offset, uint64_t{8} * g.record_count, 8},
      {"buckets", g.buckets_offset, sizeof(Bucket) * g.bucket_count, 8},
      {"journal", g.journal_offset, sizeof(JournalEntry) * g.journal_entry_count,
       sizeof(JournalEntry)},
      {"sums", g.sums_offset, sizeof(Sums) * g.record_count, sizeof(Sums)},
      {"spill", g.spill_offset, sizeof(SpillRecord) * g.spill_record_count, sizeof(SpillRecord)},
      {"remote_hosts", g.remote_hosts_offset, sizeof(RemoteHosts), 8},
      {"remote", g.remote_offset, sizeof(RemoteBucket) * g.remote_bucket_count, 8},
      {"reuse", g.reuse_offset,
       sizeof(ReuseTick) * reuse_tick_count + sizeof(ReuseRegister) * g.reuse_register_count, 8},
      {"ghosts", g.ghosts_offset, 8 * g.ghost_count, 8},
  }};
}

inline Key make_key(uint32_t number, uint32_t namespace_id) {
  Key key{};
  key.words[0] = (number + 1) * 0x9E3779B97F4A7C15;
  key.words[1] = number;
  key.words[3] = number % 3;
  key.identity = make_identity(namespace_id, static_cast<uint16_t>(number % 2), 32);
  return key;
}

class Place {
 public:
  Place() {
    if (!plan_geometry(segment_bytes, page_bytes_small, segment_count, geometry_, spill_records,
                       remote_buckets, reuse_registers)) {
      std::abort();
    }
    tables_ = tables_of(geometry_);
    control_ = static_cast<uint8_t*>(std::aligned_alloc(4096, geometry_.control_bytes));
    payload_ = static_cast<uint8_t*>(std::aligned_alloc(4096, geometry_.payload_bytes));
    std::memset(control_, 0, geometry_.control_bytes);
    std::memset(payload_, 0, geometry_.payload_bytes);
    build();
    poison_padding();
  }
  ~Place() {
    std::free(control_);
    std::free(payload_);
  }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  static constexpr uint32_t states = 4;
  const Geometry& geometry() const { return geometry_; }
  const std::array<Table, table_count>& tables() const { return tables_; }
  uint8_t* control() const { return control_; }
  uint8_t* payload() const { return payload_; }
  const uint8_t* image(uint32_t state) const { return images_[state].data(); }
  const std::vector<uint32_t>& namespaces() const { return namespaces_; }

  // Makes the region what it was in one of the states. The payload is left as it is.
  void restore(uint32_t state) const {
    if (loose_) {
      std::memcpy(control_, images_[state].data(), geometry_.control_bytes);
      poison_padding();
      loose_ = false;
    }
    for (const Table& table : tables_) {
      std::memcpy(control_ + table.offset, images_[state].data() + table.offset, table.bytes);
    }
  }
  View view() const { return {control_, payload_, geometry_}; }

  // Until the next restore(): the region is used as one of other sizes, whose padding lies elsewhere.
  void loosen() const {
    loose_ = true;
#ifdef PEGASHM_FUZZ_POISON
    __asan_unpoison_memory_region(control_, geometry_.control_bytes);
#endif
  }

 private:
  void build() {
    const View view = this->view();
    format(view);
    Header& header = view.header();
    header.created_at_ns = 1;
    header.page_bytes = page_bytes_small;
    header.arena_count = 1;
    header.arenas[0].bytes = geometry_.payload_bytes;
    header.arenas[0].numa_node = -1;
    std::strcpy(header.arenas[0].path, "/dev/shm/fuzz");
    header.arenas[0].path_bytes = 13;
    set_ready(header);
    store_release(header.segments_ready, segment_count);
    keep(0);
    make_busy(view);
    keep(1);
    go_on(view);
    keep(2);
    fill(view);
    keep(3);
  }
  void keep(uint32_t state) {
    images_[state].assign(control_, control_ + geometry_.control_bytes);
  }

  static uint64_t claim(Client& client, uint32_t number, uint32_t id, uint64_t bytes) {
    const Key key = make_key(number, id);
    uint64_t handle = 0;
    Outcome outcome = Outcome::missing;
    client.claim(&key, 1, bytes, &handle, &outcome);
    return handle;
  }
  static uint64_t store(Client& client, const View& view, uint32_t number, uint32_t id,
                        uint64_t bytes) {
    const uint64_t handle = claim(client, number, id, bytes);
    if (handle == 0) return 0;
    write_sum(view, handle, 0, make_sum_layout(bytes / 2, 2), number + 1);
    write_sum(view, handle, 1, make_sum_layout(bytes / 2, 2), number + 2);
    report_part(view, handle, true);
    Outcome outcome = Outcome::missing;
    client.publish(&handle, 1, 1, &outcome);
    return outcome == Outcome::ok ? handle : 0;
  }

  void make_busy(const View& view) {
    uint8_t fingerprint[32] = {};
    for (uint32_t i = 0; i < 3; ++i) {
      fingerprint[0] = static_cast<uint8_t>(i + 1);
      namespaces_.push_back(register_namespace(
          view, {fingerprint, "fuzz", 4, i == 1 ? 16384u : 0u, i == 2 ? 49152u : 0u, 7, nullptr, 0}));
    }
    for (const uint32_t slot : slots) {
      attach_client(view, slot, {slot + 100, 1, 7, namespaces_[slot % 3], 0, "e", 1, "fuzz", 4});
    }
    Client first(view, slots[0]), second(view, slots[1]), third(view, slots[2]);
    uint64_t last = 0, pinned = 0;
    for (uint32_t number = 0; number < 12; ++number) {
      last = store(first, view, number, namespaces_[number % 3], sizes[number % 2]);
      if (number == 4) pinned = last;
    }
    Outcome outcome = Outcome::missing;
    second.pin(&pinned, 1, &outcome);
    claim(first, 20, namespaces_[0], 4096);  // claimed, nothing written
    const uint64_t written = claim(second, 21, namespaces_[1], 12288);
    report_part(view, written, true);  // written, not published
    begin_evict(view, slots[2], last);  // an eviction left midway
    const uint64_t state = load_acquire(view.segment(segment_count - 1).state);
    if (segment_tag(state) == SegmentTag::unassigned) {  // a re-assignment left midway
      cas_seq(view.segment(segment_count - 1).state, state,
              segment_state(SegmentTag::changing, slots[2], segment_epoch(state) + 1, 0));
    }
  }
  void go_on(const View& view) {
    reap_client(view, slots[2]);
    attach_client(view, slots[2], {500, 2, 8, namespaces_[1], 0, "f", 1, "again", 5});
    Client first(view, slots[0]), third(view, slots[2]);
    first.evict_oldest(4096, 3);
    for (uint32_t number = 24; number < 32; ++number) {
      store(third, view, number, namespaces_[number % 2], sizes[(number + 1) % 2]);
    }
    change_segment(view, slots[0], 1, 8192, namespaces_[0]);
    go_on_elsewhere(view);
  }
  // What a worker has written: blocks on SSD, some of them in memory too, and what other hosts hold; what requests
  // asked for; and from here on the adaptive way to evict, with its ghosts.
  void go_on_elsewhere(const View& view) {
    SpillTable spill(view);
    spill.set_usable(3);
    RemoteTable remote(view);
    Key keys[16];
    for (uint32_t number = 0; number < 32; ++number) {
      Spilled block{};
      block.key = make_key(20 + number, namespaces_[number % 2]);
      block.file = number % 3;
      block.file_offset = 4096 * (number + 2);
      block.payload_bytes = 4096;
      block.sequence = 1 + number / 8;
      block.checksum = number;
      spill.store(block);
      keys[number % 16] = block.key;
      const uint64_t hash = mix(number, 1);
      remote.add(number % 5, &hash, 1, 1 + number % 3);
    }
    for (uint32_t host = 0; host < 4; ++host) remote.set_usable(host, true);
    count_asked(view, keys, 16, 1000);
    count_served(view, 3, 1000);
    set_eviction(view, Eviction::adaptive);
  }
  void fill(const View& view) {
    Client third(view, slots[2]);
    for (uint32_t number = 0; number < key_count; ++number) {
      store(third, view, number, namespaces_[number % 2], 4096);
    }
  }
  void poison_padding() const {
#ifdef PEGASHM_FUZZ_POISON
    for (const Table& table : tables_) {
      const uint64_t end = table.offset + table.bytes;
      __asan_poison_memory_region(control_ + end, round_up(end, page_bytes_small) - end);
    }
#endif
  }

  Geometry geometry_{};
  std::array<Table, table_count> tables_{};
  mutable bool loose_ = false;
  uint8_t* control_ = nullptr;
  uint8_t* payload_ = nullptr;
  std::vector<uint8_t> images_[states];
  std::vector<uint32_t> namespaces_;
};

}  // namespace fuzz
