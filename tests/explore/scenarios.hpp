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
// A slot that is attached, as its owner left it.
inline void prepare_attached(uint32_t slot) {
  attach_client(world.view, slot, {1, 1, 1, world.name_space, 0, "", 0, "", 0});
}
// Reaped once, the dead are undone: a second reap and a repair find nothing.
inline void judge_reaped() {
  judge_world();
  if (engine.failed()) return;
  const Repaired again = rebuild_hints(world.view);
  if (again.free_bits + again.touches != 0) engine.fail("LOST: a repair after the reap still finds something");
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
    if (evict_block(world.view, setup_slot, found.handle) != Outcome::ok) return engine.fail("a duplicate stays");
    ++gone;
    judge_world();
  }
  if (gone > 2) engine.fail("%u records of one key", gone);
}
// A block marked as damaged, in time or too late, gives way to whoever claims its key.
inline void judge_marked() {
  judge_world();
  for (uint32_t record = 0; record < world.view.geometry.record_count && !engine.failed(); ++record) {
    const Block& block = world.view.block(record);
    if (block_tag(load_acquire(block.state)) != BlockTag::ready || !is_damaged(block)) continue;
    const Key key = read_key(block);
    Client late(world.view, setup_slot);
    uint64_t handle = 0;
    Outcome outcome = Outcome::ok;
    late.find(&key, 1, true, false, &handle, &outcome);
    if (outcome == Outcome::ok) engine.fail("record %u is marked as damaged, and was pinned", record);
    late.claim(&key, 1, small, &handle, &outcome);
    if (outcome != Outcome::ok) engine.fail("LOST: record %u is marked as damaged and does not give way", record);
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

// -- readers, evictors, claimers ------------------------------------------------------------------------
inline std::vector<Scenario> living_scenarios() {
  return {
      {"find_evict", "find+pin+read+unpin | evict", {1}, [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }}, {"evictor", [] { evict(world.handles[0]); }}}},
      {"find_reclaim", "find+pin+read+unpin | evict, claim another key, publish", {1}, [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }},
        {"evictor", [] { if (evict(world.handles[0]) == Outcome::ok) store_block(B, small); }}}},
      {"find_replace", "find+pin+read+unpin | claim in a full arena (evict_and_claim), publish", {1},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }}, {"claimer", [] { store_block(B, small); }}}},
      {"find_new", "find+pin+read of the new key | evict, claim it, publish", {1}, [] { prepare_full({A}); },
       {{"reader", [] { load_block(B); }},
        {"evictor", [] { if (evict(world.handles[0]) == Outcome::ok) store_block(B, small); }}}},
      {"find_handle", "find without pin | evict, claim its twin, publish", {1}, [] { prepare_full({A}); },
       {{"reader", [] { find_block(A); find_block(B); }},
        {"evictor", [] { if (evict(world.handles[0]) == Outcome::ok) store_block(B, small); }}}},
      {"two_readers_evict", "two readers | evict, claim another key", {1}, [] { prepare_full({A}); },
       {{"reader 0", [] { load_block(A); }},
        {"reader 1", [] { load_block(A); }},
        {"evictor", [] { if (evict(world.handles[0]) == Outcome::ok) store_block(C, small); }}},
       judge_world, 2, 4},
      {"publish_find", "claim, two writers report, publish | find+pin+read", {1}, [] {},
       {{"claimer",
         [] {
           Outcome outcome = Outcome::ok;
           const uint64_t handle = claim(A, small, outcome);
           store_relaxed(world.extra[0], handle);  // a message to the worker; orders nothing
           engine.plain_store(payload_word(0), content(A, 0));
           report_part(world.view, handle, true);
           if (publish(handle, 2) != Outcome::ok) mine().abandon(&handle, 1);
         }},
        {"worker",
         [] {
           const uint64_t handle = load_relaxed(world.extra[0]);
           if (handle == 0) return;
           engine.plain_store(payload_word(small - 8), content(A, 1));
           report_part(world.view, handle, true);
         }},
        {"reader", [] { load_block(A); }}},
       judge_world, 3, 5},
      {"two_evictors", "evict | evict of one block", {1}, [] { prepare_full({A}); },
       {{"evictor 0", [] { world.extra[0] = 0; store_relaxed(world.extra[0], evict(world.handles[0]) == Outcome::ok); }},
        {"evictor 1", [] { store_relaxed(world.extra[1], evict(world.handles[0]) == Outcome::ok); }}},
       [] {
         judge_world();
         if (load_relaxed(world.extra[0]) + load_relaxed(world.extra[1]) != 1) {
           engine.fail("one block was evicted %llu times",
                       static_cast<unsigned long long>(load_relaxed(world.extra[0]) + load_relaxed(world.extra[1])));
         }
       }},
      {"two_evictors_pin", "evict | evict | find+pin+read+unpin", {1}, [] { prepare_full({A}); },
       {{"evictor 0", [] { evict(world.handles[0]); }},
        {"evictor 1", [] { evict(world.handles[0]); }},
        {"reader", [] { load_block(A); }}},
       judge_world, 3, -1},
      {"two_claims_full", "two claims of two keys in a full arena of one block", {1}, [] { prepare_full({A}); },
       {{"claimer 0", [] { store_block(B, small); }}, {"claimer 1", [] { store_block(C, small); }}}},
      {"two_claims_free", "two claims of two keys, two free records", {2}, [] {},
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(C, small); }}},
       judge_world, 3, -1},
      {"same_key", "two claims of one key, both written and published", {2}, [] {},
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(A, small); }}},
       judge_duplicates, 2, 4},
      {"same_key_once", "as before: is only one record READY?", {2}, [] {},
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(A, small); }}},
       [] {
         for (const uint32_t record : {0u, 1u}) {
           if (block_tag(load_acquire(world.view.block(record).state)) != BlockTag::ready) return;
         }
         engine.fail("two READY records of one key");
       },
       2, 2, "who claims a key looks before, not at the end: drift, I21 in FORMAT.md"},
      {"same_key_find", "two claims of one key | find+pin+read", {2}, [] {},
       {{"claimer 0", [] { store_block(A, small); }},
        {"claimer 1", [] { store_block(A, small); }},
        {"reader", [] { load_block(A); }}},
       judge_world, 1, 2},
      {"twin_keys", "two claims of keys with one fingerprint | find of the first", {2}, [] {},
       {{"claimer 0", [] { store_block(A, small); }},
        {"claimer 1", [] { store_block(B, small); }},
        {"reader", [] { load_block(A); }}},
       judge_world, 1, 2},
      {"free_bit", "give a claim back | try to claim the record", {1}, [] { prepare_full({A}); evict(world.handles[0]); },
       {{"owner",
         [] {
           const uint64_t handle = begin_claim(world.view, 0, 0);
           if (handle != 0) release_record(world.view, 0, block_state(BlockTag::claimed, 0, handle_generation(handle)));
         }},
        {"other",
         [] {
           const uint64_t handle = begin_claim(world.view, 1, 0);
           if (handle != 0) release_record(world.view, 0, block_state(BlockTag::claimed, 1, handle_generation(handle)));
         }}}},
      {"free_bit_three", "as before, three at once", {1}, [] { prepare_full({A}); evict(world.handles[0]); },
       {{"owner", [] { if (const uint64_t h = begin_claim(world.view, 0, 0)) release_record(world.view, 0, block_state(BlockTag::claimed, 0, handle_generation(h))); }},
        {"other", [] { if (const uint64_t h = begin_claim(world.view, 1, 0)) release_record(world.view, 0, block_state(BlockTag::claimed, 1, handle_generation(h))); }},
        {"third", [] { if (const uint64_t h = begin_claim(world.view, 2, 0)) release_record(world.view, 0, block_state(BlockTag::claimed, 2, handle_generation(h))); }}}},
      {"abandon_claim", "abandon | claim of another key", {1}, [] {},
       {{"owner",
         [] {
           Outcome outcome = Outcome::ok;
           const uint64_t handle = claim(A, small, outcome);
           if (handle == 0) return;
           write_payload(handle, A);
           mine().abandon(&handle, 1);
         }},
        {"other", [] { store_block(C, small); }}}},
      {"touch_evict", "touch | evict, claim another key", {1}, [] { prepare_full({A}); },
       {{"toucher", [] { mine().touch(&world.handles[0], 1); }},
        {"evictor", [] { if (evict(world.handles[0]) == Outcome::ok) store_block(C, small); }}}},
  };
}

// -- blocks marked as damaged, checksums ------------------------------------------------------------------
inline std::vector<Scenario> damage_scenarios() {
  const auto damaged = [] { prepare_with_sums(); mark_damaged(world.view, world.handles[0]); };
  return {
      {"mark_find", "mark as damaged, tell | when told: find+pin", {1}, [] { prepare_full({A}); },
       {{"marker", [] { mark_damaged(world.view, world.handles[0]); store_release(world.extra[0], 1); }},
        {"reader",
         [] { if (load_acquire(world.extra[0]) == 1 && load_block(A)) engine.fail("a marked block was pinned"); }}},
       judge_marked},
      {"mark_late", "mark as damaged | evict, claim another key, publish", {1}, [] { prepare_full({A}); },
       {{"marker", [] { mark_damaged(world.view, world.handles[0]); }},
        {"evictor", [] { if (evict(world.handles[0]) == Outcome::ok) store_block(B, small); }}},
       judge_marked},
      {"mark_replace", "find+pin+read+unpin | mark as damaged, claim the key again, publish", {1},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }},
        {"marker", [] { mark_damaged(world.view, world.handles[0]); store_block(A, small); }}},
       judge_marked},
      {"mark_claim", "two claims of the key of a damaged block, both published", {2}, damaged,
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(A, small); }}},
       [] {
         judge_duplicates();
         for (const uint32_t record : {0u, 1u}) {
           if (is_damaged(world.view.block(record)) && world.view.block(record).parts != 0) {
             engine.fail("record %u kept the mark of its former life", record);
           }
         }
       },
       2, 3},
      {"publish_sums", "claim, two writers with checksums report, publish | find+pin, checksums, read", {1}, [] {},
       {{"claimer",
         [] {
           Outcome outcome = Outcome::ok;
           const uint64_t handle = claim(A, small, outcome);
           store_relaxed(world.extra[0], handle);  // a message to the worker; orders nothing
           write_part(handle, 0);
           publish(handle, 2);  // stays CLAIMED while the worker may still write
         }},
        {"worker",
         [] {
           const uint64_t handle = load_relaxed(world.extra[0]);
           if (handle != 0) write_part(handle, 1);
         }},
        {"reader", [] { load_sums(A, 2); }}},
       [] {
         drop_claim(world.view, 0, world.lives.begin()->first, true);
         judge_world();
       },
       2, 4},
      {"reuse_sums", "find+pin, checksums, read of either key | claim another key without any in its place", {1},
       prepare_with_sums,
       {{"reader", [] { load_sums(A, 2); load_sums(B, 0); }}, {"claimer", [] { store_block(B, small); }}}},
  };
}

// -- segments ---------------------------------------------------------------------------------------------
inline std::vector<Scenario> segment_scenarios() {
  const auto change = [] {
    if (change_segment(world.view, engine.self(), 0, big, 0)) store_block(C, big);
  };
  return {
      {"change_find", "find+pin+read+unpin | segment to another stride, claim in it", {2},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }}, {"changer", change}}},
      {"change_claim", "claim, write, publish | segment to another stride, claim in it", {2},
       [] { prepare_full({A}); evict(world.handles[0]); },
       {{"claimer", [] { store_block(B, small); }}, {"changer", change}}},
      {"change_claim_second", "two claims (both records) | segment to another stride", {2},
       [] { prepare_full({A}); evict(world.handles[0]); },
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(B, small); }}, {"changer", change}},
       judge_world, 1, 2},
      {"two_changers", "two give one segment to two strides, each claims", {2}, [] {},
       {{"changer 0", [] { store_block(A, small); }}, {"changer 1", [] { store_block(C, big); }}}},
      {"change_evict", "evict | segment to another stride, claim in it", {2}, [] { prepare_full({A, B}); },
       {{"evictor", [] { evict(world.handles[1]); }}, {"changer", change}}},
      {"change_find_claim", "find+pin+read | claim | segment to another stride", {2}, [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }}, {"claimer", [] { store_block(B, small); }}, {"changer", change}},
       judge_world, 1, 2},
  };
}

// -- deaths -----------------------------------------------------------------------------------------------
inline std::vector<Scenario> death_scenarios() {
  const auto attached = [] { for (uint32_t slot = 0; slot < 3; ++slot) prepare_attached(slot); };
  const auto reaper = [] { reap_when_gone(0); };
  return {
      {"publish_reap", "claim, write, publish, killed anywhere | reap", {1}, attached,
       {{"owner", [] { store_block(A, small); }, true}, {"reaper", reaper}}, judge_reaped},
      {"publish_reap_find", "claim, write, publish, killed anywhere | reap | find+pin+read", {1}, attached,
       {{"owner", [] { store_block(A, small); }, true}, {"reaper", reaper}, {"reader", [] { load_block(A); }}},
       judge_reaped, 1, 2},
      {"publish_reap_claim", "claim, write, publish, killed anywhere | reap, then claim in its place", {1}, attached,
       {{"owner", [] { store_block(A, small); }, true},
        {"reaper", [] { reap_when_gone(0); store_block(B, small); }}}, judge_reaped},
      {"evict_reap", "evict, killed anywhere | reap", {1}, [attached] { attached(); prepare_full({A}); },
       {{"evictor", [] { evict(world.handles[0]); }, true}, {"reaper", reaper}}, judge_reaped},
      {"evict_reap_find", "evict, killed anywhere | reap, claim its twin | find+pin+read", {1},
       [attached] { attached(); prepare_full({A}); },
       {{"evictor", [] { evict(world.handles[0]); }, true},
        {"reaper", [] { reap_when_gone(0); store_block(B, small); }},
        {"reader", [] { load_block(A); }}},
       judge_reaped, 2, 3},
      {"replace_reap", "claim in a full arena, killed anywhere | reap", {1}, [attached] { attached(); prepare_full({A}); },
       {{"claimer", [] { store_block(B, small); }, true}, {"reaper", reaper}}, judge_reaped},
      {"pin_reap", "find+pin+read, killed anywhere | reap, then evict and claim", {1},
       [attached] { attached(); prepare_full({A}); },
       {{"reader", [] { load_block(A); }, true},
        {"reaper", [] { reap_when_gone(0); if (evict(world.handles[0]) == Outcome::ok) store_block(B, small); }}},
       judge_reaped},
      {"change_reap", "segment to another stride, killed anywhere | reap, claim", {2},
       [attached] { attached(); prepare_full({A}); },
       {{"changer", [] { if (change_segment(world.view, 0, 0, big, 0)) store_block(C, big); }, true},
        {"reaper", [] { reap_when_gone(0); store_block(B, small); }}},
       judge_reaped},
      {"change_reap_find", "segment to another stride, killed anywhere | reap | find+pin+read", {2},
       [attached] { attached(); prepare_full({A}); },
       {{"changer", [] { change_segment(world.view, 0, 0, big, 0); }, true},
        {"reaper", reaper},
        {"reader", [] { load_block(A); }}},
       judge_reaped, 2, 3},
      {"worker_outlives", "scheduler killed | its worker still writes | reap when both are gone, claim", {1}, attached,
       {{"scheduler",
         [] {
           Outcome outcome = Outcome::ok;
           store_relaxed(world.extra[0], claim(A, small, outcome));
         },
         true},
        {"worker",
         [] {
           const uint64_t handle = load_relaxed(world.extra[0]);
           if (handle == 0) return;
           engine.plain_store(payload_word(0), content(A, 0));
           engine.plain_store(payload_word(small - 8), content(A, 1));
           report_part(world.view, handle, true);
         }},
        {"reaper", [] { engine.await_gone(1); reap_when_gone(0); store_block(B, small); }}},
       judge_reaped, 2, 4},
      {"worker_forgotten", "as before, but the reaper does not wait for the worker", {1}, attached,
       {{"scheduler",
         [] {
           Outcome outcome = Outcome::ok;
           store_relaxed(world.extra[0], claim(A, small, outcome));
         },
         true},
        {"worker",
         [] {
           const uint64_t handle = load_relaxed(world.extra[0]);
           if (handle == 0) return;
           engine.plain_store(payload_word(0), content(A, 0));
           engine.plain_store(payload_word(small - 8), content(A, 1));
           report_part(world.view, handle, true);
         }},
        {"reaper", [] { reap_when_gone(0); store_block(B, small); }}},
       judge_reaped, 2, 4, "a worker may write after its scheduler died: the second kernel lock is needed"},
  };
}

// -- several reapers, repairs beside the living, attaches, the journal -------------------------------------------------------------
inline void prepare_dead() {  // slot 3 died with a claim, an eviction and a pin
  prepare_attached(3);
  prepare_full({A, C});
  set_pin(world.view, 3, world.handles[1]);
  begin_evict(world.view, 3, world.handles[0]);
}
inline void claim_as_three() {  // a new client in the slot of the dead one
  attach_client(world.view, 3, {1, 1, 1, world.name_space, 0, "", 0, "", 0});
  const uint64_t handle = begin_claim(world.view, 3, 0);
  if (handle == 0) return;
  world.lives[handle] = B;
  engine.keep(handle);
  const Key key = key_of(B);
  fill_claim(world.view, handle, key, buckets_of(world.view.geometry, key), 0, small, 1);
  engine.plain_store(payload_word(0), content(B, 0));
  engine.plain_store(payload_word(small - 8), content(B, 1));
  if (!publish_claim(world.view, 3, handle, 7, 1)) engine.fail("a living claim was taken away");
}

inline std::vector<Scenario> table_scenarios() {
  return {
      {"two_reapers", "two reapers of one dead client, kept apart by the slot's lock", {2}, prepare_dead,
       {{"reaper 0", [] { if (try_lock(3)) { reap_client(world.view, 3); unlock(3); } }},
        {"reaper 1", [] { if (try_lock(3)) { reap_client(world.view, 3); unlock(3); } }}},
       judge_reaped},
      {"two_reapers_no_lock", "two reapers of one dead client, without the lock", {2}, prepare_dead,
       {{"reaper 0", [] { reap_client(world.view, 3); }}, {"reaper 1", [] { reap_client(world.view, 3); }}},
       judge_reaped, 4, -1},
      {"reap_attach", "reap, attach to the slot, claim | another reaper; with the lock", {2}, prepare_dead,
       {{"successor", [] { if (try_lock(3)) { reap_client(world.view, 3); claim_as_three(); } }},
        {"reaper", [] { if (try_lock(3)) { reap_client(world.view, 3); unlock(3); } }}},
       [] { if (load_relaxed(world.extra[3]) == 0 || client_attached(load_acquire(world.view.client(3).state))) judge_reaped(); }},
      {"reap_attach_no_lock", "as before, without the lock", {2}, prepare_dead,
       {{"successor", [] { reap_client(world.view, 3); claim_as_three(); }},
        {"reaper", [] { reap_client(world.view, 3); }}},
       judge_reaped, -1, -1, "a late reaper takes the successor for the dead: the slot's lock is needed"},
      {"reap_living", "reap | find+pin+read | claim another key, all in one arena", {2}, prepare_dead,
       {{"reaper", [] { reap_client(world.view, 3); }},
        {"reader", [] { load_block(C); }},
        {"claimer", [] { store_block(B, small); }}},
       judge_world, 1, 2},
      {"rebuild_living", "rebuild all hints | evict, claim another key, publish", {1}, [] { prepare_full({A}); },
       {{"supervisor", [] { rebuild_hints(world.view); }},
        {"evictor", [] { if (evict(world.handles[0]) == Outcome::ok) store_block(B, small); }}}},
      {"rebuild_claims", "rebuild all hints | claim and give back | claim", {1}, [] {},
       {{"supervisor", [] { rebuild_hints(world.view); }},
        {"owner",
         [] {
           Outcome outcome = Outcome::ok;
           const uint64_t handle = claim(A, small, outcome);
           if (handle == 0) return;
           write_payload(handle, A);
           mine().abandon(&handle, 1);
         }},
        {"other", [] { store_block(C, small); }}},
       judge_world, 2, 3},
      {"attach_two", "two attaches over one slot table, slot 0 left by a dead client", {1},
       [] { prepare_attached(0); prepare_full({A}); set_pin(world.view, 0, world.handles[0]); },
       {{"client 0", attach_somewhere}, {"client 1", attach_somewhere}},
       [] {
         judge_world();
         const uint64_t first = load_relaxed(world.extra[4]), second = load_relaxed(world.extra[5]);
         if (first == second || first * second != 2) engine.fail("two clients attached to one slot");
         for (uint32_t slot = 0; slot < 2; ++slot) {
           if (!client_attached(load_acquire(world.view.client(slot).state))) engine.fail("slot %u is not attached", slot);
         }
       }},
      {"journal_two", "append | append | read both", {1, 2, true}, [] {},
       {{"writer 0", [] { journal_event(1); }},
        {"writer 1", [] { journal_event(2); }},
        {"reader", [] { read_journal(1); read_journal(2); }}},
       [] {
         JournalEntry entry{};
         if (!read_event(world.view, 1, entry) || !read_event(world.view, 2, entry)) engine.fail("an event is lost");
       },
       2, -1},
      {"journal_lap", "append twice over an older event in a ring of one | read the middle one", {1, 1, true},
       [] { journal_event(1); },
       {{"writer", [] { journal_event(2); journal_event(3); }},
        {"reader", [] { read_journal(2); }}},
       [] {}, 2, 4},
      {"journal_lapped_writer", "two writers a whole turn of the ring apart | read", {1, 1, true}, [] {},
       {{"writer 0", [] { journal_event(1); }},
        {"writer 1", [] { journal_event(2); }},
        {"reader", [] { read_journal(1); read_journal(2); }}},
       [] {}, 3, 3, "a writer stopped for a whole turn garbles one entry: journal.hpp says so, readers check"},
  };
}

}  // namespace explore
