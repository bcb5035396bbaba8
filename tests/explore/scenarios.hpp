// Which operations meet, and what must hold whatever the order? The scenarios, each a handful of actors.
//
// An actor is a client of its own slot (its number) and runs the core's own code; it fails at once when it
// sees something wrong (a wrong byte, an unordered payload access, a living claim taken away). judge_world()
// looks at what is left: nothing held, lost, or unfindable.
#pragma once

#include "world.hpp"

namespace explore {

struct Scenario {
  const char* name;
  const char* meets;  // for the table
  Shape shape;
  std::function<void()> prepare;
  std::vector<Actor> actors;
  std::function<void()> judge = judge_world;
  int preemptions_short = -1;
  int preemptions_long = -1;
  const char* must_fail = nullptr;  // shown to be unsafe on purpose: why
};

inline void prepare_full(std::initializer_list<uint64_t> keys) {
  uint32_t count = 0;
  for (const uint64_t number : keys) world.handles[count++] = store_block(number, small);
}
// A segment that has its stride already: what it costs to give it one is another scenario (two_changers).
inline void prepare_empty() {
  prepare_full({A});
  evict(world.handles[0]);
}
// A slot that is attached, as its owner left it.
inline void prepare_attached(uint32_t slot) {
  attach_client(world.view, slot, {1, 1, 1, world.name_space, 0, "", 0, "", 0});
}
// Two blocks, of a namespace for which the bytes of one are reserved.
inline void prepare_reserved() {
  prepare_full({A, C});
  world.view.name_space(namespace_slot(world.name_space)).reserved_bytes = small;
}
inline void evict_for_another(uint64_t handle) {
  evict_block(world.view, static_cast<uint32_t>(engine.self()), handle, for_nobody);
}
// What was first went, what was second stayed, and the namespace's bytes are those of what stayed.
inline void judge_reserved() {
  judge_world();
  if (engine.failed()) return;
  uint64_t left = 0;
  for (uint32_t record = 0; record < world.view.geometry.record_count; ++record) {
    const Block& block = world.view.block(record);
    if (block_tag(load_acquire(block.state)) == BlockTag::ready) {
      left += occupied_bytes(world.view, block);
    }
  }
  const NamespaceEntry& entry = world.view.name_space(namespace_slot(world.name_space));
  if (left != small || resident_bytes(entry) != left) {
    engine.fail("%llu bytes are left of %llu reserved, and %llu are counted",
                static_cast<unsigned long long>(left), static_cast<unsigned long long>(small),
                static_cast<unsigned long long>(resident_bytes(entry)));
  }
}
// Reaped once, the dead are undone: a second reap and a repair find nothing.
inline void judge_reaped() {
  judge_world();
  if (engine.failed()) return;
  const Repaired again = rebuild_hints(world.view);
  if (again.free_bits + again.touches != 0)
    engine.fail("LOST: a repair after the reap still finds something");
}
inline void reap_when_gone(uint32_t slot) {
  engine.await_gone(slot);
  reap_client(world.view, slot);
}
// The kernel's lock on a slot: taken without waiting.
inline bool try_lock(uint32_t slot) { return cas_seq(world.extra[slot], 0, 1); }
inline void unlock(uint32_t slot) { cas_seq(world.extra[slot], 1, 0); }

// Duplicates of one key that two claimed at once go one by one, and each is found until it goes.
inline void judge_duplicates() {
  judge_world();
  const Key key = key_of(A);
  const Buckets buckets = buckets_of(world.view.geometry, key);
  uint32_t gone = 0;
  for (Found found = find_key(world.view, key, buckets); found.ready && !engine.failed();
       found = find_key(world.view, key, buckets)) {
    if (evict_block(world.view, setup_slot, found.handle) != Outcome::ok)
      return engine.fail("a duplicate stays");
    ++gone;
    judge_world();
  }
  if (gone > 2) engine.fail("%u records of one key", gone);
}
// A block marked as damaged, in time or too late, gives way to whoever claims its key.
inline void judge_marked() {
  judge_world();
  for (uint32_t record = 0; record < world.view.geometry.record_count && !engine.failed();
       ++record) {
    const Block& block = world.view.block(record);
    if (block_tag(load_acquire(block.state)) != BlockTag::ready || !is_damaged(block)) continue;
    const Key key = read_key(block);
    Client late(world.view, setup_slot);
    uint64_t handle = 0;
    Outcome outcome = Outcome::ok;
    late.find(&key, 1, true, false, &handle, &outcome);
    if (outcome == Outcome::ok)
      engine.fail("record %u is marked as damaged, and was pinned", record);
    late.claim(&key, 1, small, &handle, &outcome);
    if (outcome != Outcome::ok)
      engine.fail("LOST: record %u is marked as damaged and does not give way", record);
    late.abandon(&handle, 1);
  }
}
constexpr uint64_t sum_of(uint32_t part) { return 700 + part; }
inline void write_part(uint64_t handle, uint32_t part) {
  engine.plain_store(payload_word(part == 0 ? 0 : small - 8), content(A, part));
  if (!write_sum(world.view, handle, part, make_sum_layout(small / 2, 2), sum_of(part))) {
    engine.fail("the checksum of a part of a claimed block was refused");
  }
  report_part(world.view, handle, true);
}
inline void prepare_with_sums() {
  Outcome outcome = Outcome::ok;
  world.handles[0] = claim(A, small, outcome);
  for (const uint32_t part : {0u, 1u}) write_part(world.handles[0], part);
  publish(world.handles[0], 2);
}
// A hit on a block, and what its checksums say: those of its own life, all of them or none.
inline void load_sums(uint64_t number, uint32_t parts) {
  const Key key = key_of(number);
  uint64_t handle = 0;
  Outcome outcome = Outcome::ok;
  mine().find(&key, 1, true, false, &handle, &outcome);
  if (outcome != Outcome::ok) return;
  const SumsRead read = read_sums(world.view, handle);
  if (read.damaged || read.part_count != parts) {
    engine.fail("a pinned block has checksums of %u parts, expected %u", read.part_count, parts);
  }
  for (uint32_t part = 0; part < parts; ++part) {
    if (read.sums[part] != sum_of(part)) engine.fail("WRONG SUM of part %u", part);
  }
  check_payload(handle, number);
  mine().unpin(&handle, 1);
}

inline void journal_event(uint64_t number) {
  Key key{};
  for (uint64_t& word : key.words) word = number;
  key.identity = make_identity(world.name_space, static_cast<uint16_t>(number), 32);
  append(world.view, Event::publish, key, make_handle(static_cast<uint32_t>(number), number));
}
inline void read_journal(uint64_t sequence) {
  JournalEntry entry{};
  if (!read_event(world.view, sequence, entry)) return;
  const uint64_t number = entry.key[0];
  bool whole = number != 0 && entry.handle == make_handle(static_cast<uint32_t>(number), number) &&
               (entry.what >> 16 & 0xFFFF) == number;
  for (const uint64_t word : entry.key) whole = whole && word == number;
  if (!whole) engine.fail("the journal gave an event put together from two");
}
inline void attach_somewhere() {
  for (uint32_t slot = 0; slot < 2; ++slot) {
    if (!try_lock(slot)) continue;
    if (client_attached(load_acquire(world.view.client(slot).state))) reap_client(world.view, slot);
    attach_client(world.view, slot, {1, 1, 1, world.name_space, 0, "", 0, "", 0});
    world.extra[4 + engine.self()] = 0;
    store_relaxed(world.extra[4 + engine.self()], slot + 1);
    return;
  }
  engine.fail("no slot is left for an attach");
}

}  // namespace explore
