// What do the scenarios play in? One tiny region of the real layout, a few keys, and what must hold of it.
//
// The tables keep their places (layout.hpp plans them); only the counts are smaller: one segment of one to
// three records, two buckets, a journal of a few entries. Ghosts (which key a life of a record was claimed
// for) are known to the judge alone. The payload is plain memory, two words of each block being modelled:
// the first and the last, so that blocks of different strides that overlap meet in one of them.
#pragma once

#include <cstdlib>
#include <map>
#include <optional>
#include <string>

#include "client.hpp"
#include "header.hpp"
#include "registry.hpp"
#include "repair.hpp"

namespace explore {

using namespace pegashm;

inline constexpr uint64_t small = 4096;
inline constexpr uint64_t big = 8192;
inline constexpr uint32_t setup_slot = 9;  // of the client that fills the region beforehand

struct Shape {
  uint32_t records = 1;
  uint64_t journal_entries = 2;
  bool journal = false;  // somebody reads it
  bool quotas = false;  // the bytes of namespaces decide something
};

struct World {
  View view;
  uint64_t* extra = nullptr;  // words outside the region: kernel locks, variables of litmus tests
  std::optional<Client> clients[threads_max];
  std::optional<Client> setup;
  uint32_t name_space = 0;
  std::map<uint64_t, uint64_t> lives;  // handle -> key number, of this execution
  std::map<uint64_t, uint64_t> lives_before;  // of the setup
  uint64_t handles[threads_max] = {};  // what the setup made
  bool may_lose = false;  // this scenario leaves a death unrepaired
};
inline World world;

// -- keys ------------------------------------------------------------------------------------------------
inline Key key_of(uint64_t number) {
  Key key{};
  key.words[0] = number;
  key.words[1] = ~number;
  key.identity = make_identity(world.name_space, 0, 16);
  return key;
}

// Two keys of one fingerprint: only the whole key tells them apart.
inline std::pair<uint64_t, uint64_t> find_twins() {
  std::map<uint64_t, uint64_t> seen;
  for (uint64_t number = 1;; ++number) {
    const auto [at, fresh] =
        seen.emplace(buckets_of(world.view.geometry, key_of(number)).fingerprint, number);
    if (!fresh) return {at->second, number};
  }
}
inline uint64_t A, B;  // twins
inline constexpr uint64_t C = 1'000'003;

constexpr uint64_t content(uint64_t number, uint32_t part) { return number * 10 + part + 1; }

// -- memory ----------------------------------------------------------------------------------------------
std::string describe(uintptr_t address);
std::string decode(uintptr_t address, uint64_t value);

inline constexpr size_t extra_words = 16;
inline constexpr size_t payload_bytes = 4 * big;

inline void build_world(const Shape& shape) {
  static uint8_t* memory = nullptr;
  world.view.geometry = Geometry{};
  if (!plan_geometry(big, small, 1, world.view.geometry)) std::exit(2);
  const size_t bytes = world.view.geometry.control_bytes + payload_bytes + extra_words * 8;
  if (memory == nullptr)
    memory = static_cast<uint8_t*>(std::aligned_alloc(4096, round_up(bytes, 4096)));
  std::memset(memory, 0, bytes);
  Geometry& geometry = world.view.geometry;
  geometry.segment_bytes = shape.records * small;
  geometry.payload_bytes = geometry.segment_bytes;
  geometry.records_per_segment = geometry.record_count = shape.records;
  geometry.bucket_count = 2;
  geometry.journal_entry_count = shape.journal_entries;
  world.view.control = memory;
  world.view.payload = memory + geometry.control_bytes;
  world.extra = reinterpret_cast<uint64_t*>(world.view.payload + payload_bytes);
  engine.phase = Phase::setup;
  engine.adopt(memory, bytes, describe, decode);
  format(world.view);
  world.view.header().segments_ready = 1;
  const uint8_t fingerprint[32] = {1};
  world.name_space =
      register_namespace(world.view, {fingerprint, "explored", 8, 0, 0, 1, nullptr, 0});
  if (A == 0) std::tie(A, B) = find_twins();
  // Counters and the bytes of namespaces without limits decide nothing.
  engine.leave_out(&world.view.counter_value(0), sizeof(CounterValue) * counter_count);
  for (uint32_t slot = 0; slot < namespace_count && !shape.quotas; ++slot) {
    engine.leave_out(&world.view.name_space(slot).resident_bytes, 8);
  }
  for (uint32_t record = 0; record < shape.records; ++record) {
    const Block& block = world.view.block(record);
    engine.leave_out(&block.key[2], 16);  // 0 in every key here
    engine.leave_out(&block.claimed_at_ns, 16);  // for people
  }
  if (!shape.journal) {
    engine.leave_out(&world.view.header().journal_head, 8);
    engine.leave_out(&world.view.journal(0), sizeof(JournalEntry) * shape.journal_entries);
  }
  world.lives.clear();
  world.lives_before.clear();
  world.setup.emplace(world.view, setup_slot);
  for (auto& client : world.clients) client.reset();
  for (uint64_t& handle : world.handles) handle = 0;
}

// Before each execution: private objects as they are after an attach.
inline void refresh_world() {
  for (uint32_t slot = 0; slot < threads_max; ++slot) world.clients[slot].emplace(world.view, slot);
  world.lives = world.lives_before;
}

// -- what actors do --------------------------------------------------------------------------------------
inline Client& mine() {
  return engine.phase == Phase::setup ? *world.setup : *world.clients[engine.self()];
}
inline uint64_t& payload_word(uint64_t offset) {
  return *reinterpret_cast<uint64_t*>(world.view.payload + offset);
}

inline uint64_t claim(uint64_t number, uint64_t bytes, Outcome& outcome) {
  const Key key = key_of(number);
  uint64_t handle = 0;
  mine().claim(&key, 1, bytes, &handle, &outcome);
  if (handle != 0)
    (engine.phase == Phase::setup ? world.lives_before : world.lives)[handle] = number;
  engine.keep(handle);
  engine.keep(number);
  return handle;
}
inline void write_payload(uint64_t handle, uint64_t number) {
  uint64_t offset = 0, bytes = 0;
  mine().locate(&handle, 1, &offset, &bytes);
  if (bytes == 0) return engine.fail("a claimed block cannot be located");
  engine.plain_store(payload_word(offset), content(number, 0));
  engine.plain_store(payload_word(offset + bytes - 8), content(number, 1));
}
inline Outcome publish(uint64_t handle, uint32_t parts = 1) {
  Outcome outcome = Outcome::ok;
  mine().publish(&handle, 1, parts, &outcome);
  return outcome;
}
// Claim, copy, report, publish. Returns the handle when all of it went well.
inline uint64_t store_block(uint64_t number, uint64_t bytes) {
  Outcome outcome = Outcome::ok;
  const uint64_t handle = claim(number, bytes, outcome);
  if (handle == 0) return 0;
  write_payload(handle, number);
  report_part(world.view, handle, true);
  if (publish(handle) != Outcome::ok) {
    engine.fail("the owner of a living claim could not publish it");
  }
  return handle;
}
inline void check_payload(uint64_t handle, uint64_t number) {
  uint64_t offset = 0, bytes = 0;
  mine().locate(&handle, 1, &offset, &bytes);
  if (bytes == 0) return engine.fail("a pinned block cannot be located");
  for (const uint32_t part : {0u, 1u}) {
    const uint64_t value = engine.plain_load(payload_word(part == 0 ? offset : offset + bytes - 8));
    if (value != content(number, part)) {
      engine.fail("WRONG BYTE: a pinned block of key %llu reads %llu, expected %llu",
                  static_cast<unsigned long long>(number), static_cast<unsigned long long>(value),
                  static_cast<unsigned long long>(content(number, part)));
    }
  }
}
// Find with a pin, read, unpin: what an engine does with a hit.
inline bool load_block(uint64_t number) {
  const Key key = key_of(number);
  uint64_t handle = 0;
  Outcome outcome = Outcome::ok;
  mine().find(&key, 1, true, false, &handle, &outcome);
  if (outcome != Outcome::ok) return false;
  check_payload(handle, number);
  mine().unpin(&handle, 1);
  return true;
}
// Find without a pin: the life it names must have been claimed for that key.
inline uint64_t find_block(uint64_t number) {
  const Key key = key_of(number);
  uint64_t handle = 0;
  Outcome outcome = Outcome::ok;
  mine().find(&key, 1, false, false, &handle, &outcome);
  if (outcome != Outcome::ok) return 0;
  const auto life = world.lives.find(handle);
  if (life == world.lives.end() || life->second != number) {
    engine.fail("find(%llu) names a life that was never of that key",
                static_cast<unsigned long long>(number));
  }
  return handle;
}
inline Outcome evict(uint64_t handle) {
  Outcome outcome = Outcome::ok;
  mine().evict(&handle, 1, &outcome);
  return outcome;
}

// -- what must hold when all is quiet ----------------------------------------------------------------------
inline void judge_record(uint32_t record) {
  const View& view = world.view;
  const Block& block = view.block(record);
  const uint64_t state = load_acquire(block.state);
  const uint64_t segment = load_acquire(view.segment(0).state);
  const uint32_t capacity = segment_capacity(view.geometry, 0, segment_stride(segment));
  if ((load_acquire(block.pins[0]) | load_acquire(block.pins[1])) != 0) {
    engine.fail("record %u: a pin is left that nobody holds", record);
  }
  switch (block_tag(state)) {
    case BlockTag::free:
      if (record < capacity && (load_acquire(view.free_bits(record)) >> record & 1) == 0) {
        engine.fail("LOST: record %u is FREE and its free bit is not set", record);
      }
      return;
    case BlockTag::claimed:
    case BlockTag::evicting:
      return engine.fail("LOST: record %u is held by nobody", record);
    case BlockTag::ready:
      break;
  }
  if (record >= capacity) engine.fail("record %u is READY beyond its segment's capacity", record);
  if (load_acquire(view.touched(record)) == 0) {
    engine.fail("LOST: record %u is READY and never a candidate for eviction", record);
  }
  const uint64_t handle = make_handle(record, block_generation(state));
  const auto life = world.lives.find(handle);
  if (life == world.lives.end())
    return engine.fail("record %u: READY in a life nobody claimed", record);
  const Key key = key_of(life->second);
  if (!same_key(block, key)) return engine.fail("record %u: READY under another key", record);
  const uint64_t offset = load_acquire(block.payload_offset);
  const uint64_t bytes = load_acquire(block.payload_bytes);
  if (offset != block_offset(view.geometry, 0, segment_stride(segment), record) ||
      bytes > segment_stride(segment)) {
    return engine.fail("record %u: READY at a place of another stride", record);
  }
  for (const uint32_t part : {0u, 1u}) {
    if (engine.plain_load(payload_word(part == 0 ? offset : offset + bytes - 8)) !=
        content(life->second, part)) {
      return engine.fail("WRONG BYTE in record %u at the end", record);
    }
  }
  if (!find_key(view, key, buckets_of(view.geometry, key)).ready) {
    engine.fail("record %u: READY and no lookup finds its key", record);
  }
}

inline void judge_world() {
  for (uint32_t record = 0; record < world.view.geometry.record_count && !engine.failed();
       ++record) {
    judge_record(record);
  }
  if (segment_tag(load_acquire(world.view.segment(0).state)) == SegmentTag::changing) {
    engine.fail("LOST: the segment is changing for ever");
  }
}

// -- names, for the trace ------------------------------------------------------------------------------------
inline bool within(uintptr_t address, const void* from, size_t bytes, size_t& at) {
  at = address - reinterpret_cast<uintptr_t>(from);
  return address >= reinterpret_cast<uintptr_t>(from) && at < bytes;
}
inline std::string indexed(const char* table, size_t at, size_t size, const char* field) {
  return std::string(table) + "[" + std::to_string(at / size) + "]" + field;
}

inline std::string describe(uintptr_t address) {
  const View& view = world.view;
  const Geometry& geometry = view.geometry;
  size_t at = 0;
  if (within(address, &view.block(0), sizeof(Block) * geometry.record_count, at)) {
    static const char* const fields[16] = {".state",      ".key[0]",       ".key[1]", ".key[2]",
                                           ".key[3]",     ".identity",     ".offset", ".bytes",
                                           ".pins[0]",    ".pins[1]",      ".parts",  ".sum_layout",
                                           ".claimed_at", ".published_at", ".112",    ".120"};
    return indexed("block", at, sizeof(Block), fields[at % sizeof(Block) / 8]);
  }
  if (within(address, &view.bucket(0), sizeof(Bucket) * geometry.bucket_count, at)) {
    return indexed("bucket", at, sizeof(Bucket), "") + ".entry[" +
           std::to_string(at % sizeof(Bucket) / 8) + "]";
  }
  if (within(address, &view.segment(0), sizeof(Segment), at)) return "segment[0].state";
  if (within(address, &view.free_bits(0), 8, at)) return "free_bits[0]";
  if (within(address, &view.touched(0), 8 * geometry.record_count, at))
    return indexed("touched", at, 8, "");
  if (within(address, &view.client(0), sizeof(ClientSlot) * client_count, at)) {
    return indexed("client", at, sizeof(ClientSlot), ".state");
  }
  if (within(address, &view.journal(0), sizeof(JournalEntry) * geometry.journal_entry_count, at)) {
    static const char* const fields[8] = {".sequence", ".what",   ".handle", ".24",
                                          ".key[0]",   ".key[1]", ".key[2]", ".key[3]"};
    return indexed("journal", at, sizeof(JournalEntry), fields[at % sizeof(JournalEntry) / 8]);
  }
  if (within(address, &view.header().journal_head, 8, at)) return "journal_head";
  if (within(address, &view.header().freed_clock, 8, at)) return "freed_clock";
  if (within(address, &view.header().access_clock, 8, at)) return "access_clock";
  if (within(address, view.payload, payload_bytes, at)) return "payload@" + std::to_string(at);
  if (within(address, world.extra, extra_words * 8, at)) return indexed("word", at, 8, "");
  return "control@" + std::to_string(address - reinterpret_cast<uintptr_t>(view.control));
}

inline std::string decode(uintptr_t address, uint64_t value) {
  const std::string name = describe(address);
  if (name.rfind("block", 0) == 0 && name.ends_with(".state")) {
    static const char* const tags[4] = {"FREE", "CLAIMED", "READY", "EVICTING"};
    return std::string(tags[value & 3]) + "(" + std::to_string(block_owner(value)) + ") g" +
           std::to_string(block_generation(value));
  }
  if (name.rfind("bucket", 0) == 0 && value != 0) {
    return "record " + std::to_string(entry_record(value)) + " g" +
           std::to_string(entry_generation(value));
  }
  if (name == "segment[0].state") {
    static const char* const tags[4] = {"UNASSIGNED", "ASSIGNED", "CHANGING", "?"};
    return std::string(tags[value & 3]) + " " + std::to_string(segment_stride(value)) + " e" +
           std::to_string(segment_epoch(value));
  }
  char text[24];
  std::snprintf(text, sizeof text, value > 1'000'000 ? "0x%llx" : "%llu",
                static_cast<unsigned long long>(value));
  return text;
}

}  // namespace explore
