// Who else repairs, attaches or writes events meanwhile? Scenarios.
//
// The helpers, and what must hold in the end, are in scenarios.hpp; explore.cpp runs them all.
#pragma once

#include "scenarios.hpp"

namespace explore {

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
      {"two_reapers",
       "two reapers of one dead client, kept apart by the slot's lock",
       {2},
       prepare_dead,
       {{"reaper 0",
         [] {
           if (try_lock(3)) {
             reap_client(world.view, 3);
             unlock(3);
           }
         }},
        {"reaper 1",
         [] {
           if (try_lock(3)) {
             reap_client(world.view, 3);
             unlock(3);
           }
         }}},
       judge_reaped},
      {"two_reapers_no_lock",
       "two reapers of one dead client, without the lock",
       {2},
       prepare_dead,
       {{"reaper 0", [] { reap_client(world.view, 3); }},
        {"reaper 1", [] { reap_client(world.view, 3); }}},
       judge_reaped,
       -1,
       -1},
      {"reap_attach",
       "reap, attach to the slot, claim | another reaper; with the lock",
       {2},
       prepare_dead,
       {{"successor",
         [] {
           if (try_lock(3)) {
             reap_client(world.view, 3);
             claim_as_three();
           }
         }},
        {"reaper",
         [] {
           if (try_lock(3)) {
             reap_client(world.view, 3);
             unlock(3);
           }
         }}},
       [] {
         if (load_relaxed(world.extra[3]) == 0 ||
             client_attached(load_acquire(world.view.client(3).state)))
           judge_reaped();
       }},
      {"reap_attach_no_lock",
       "as before, without the lock",
       {2},
       prepare_dead,
       {{"successor",
         [] {
           reap_client(world.view, 3);
           claim_as_three();
         }},
        {"reaper", [] { reap_client(world.view, 3); }}},
       judge_reaped,
       -1,
       -1,
       "a late reaper takes the successor for the dead: the slot's lock is needed"},
      {"reap_living",
       "reap | find+pin+read | claim another key, all in one arena",
       {2},
       prepare_dead,
       {{"reaper", [] { reap_client(world.view, 3); }},
        {"reader", [] { load_block(C); }},
        {"claimer", [] { store_block(B, small); }}},
       judge_world,
       1,
       2},
      {"rebuild_living",
       "rebuild all hints | evict, claim another key, publish",
       {1},
       [] { prepare_full({A}); },
       {{"supervisor", [] { rebuild_hints(world.view); }},
        {"evictor",
         [] {
           if (evict(world.handles[0]) == Outcome::ok) store_block(B, small);
         }}}},
      {"rebuild_claims",
       "rebuild all hints | claim and give back | claim",
       {1},
       prepare_empty,
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
       judge_world,
       1,
       2},
      {"attach_two",
       "two attaches over one slot table, slot 0 left by a dead client",
       {1},
       [] {
         prepare_attached(0);
         prepare_full({A});
         set_pin(world.view, 0, world.handles[0]);
       },
       {{"client 0", attach_somewhere}, {"client 1", attach_somewhere}},
       [] {
         judge_world();
         const uint64_t first = load_relaxed(world.extra[4]), second = load_relaxed(world.extra[5]);
         if (first == second || first * second != 2)
           engine.fail("two clients attached to one slot");
         for (uint32_t slot = 0; slot < 2; ++slot) {
           if (!client_attached(load_acquire(world.view.client(slot).state)))
             engine.fail("slot %u is not attached", slot);
         }
       }},
      {"journal_two",
       "append | append | read both",
       {1, 2, true},
       [] {},
       {{"writer 0", [] { journal_event(1); }},
        {"writer 1", [] { journal_event(2); }},
        {"reader",
         [] {
           read_journal(1);
           read_journal(2);
         }}},
       [] {
         JournalEntry entry{};
         if (!read_event(world.view, 1, entry) || !read_event(world.view, 2, entry))
           engine.fail("an event is lost");
       },
       1,
       2},
      {"journal_lap",
       "append twice over an older event in a ring of one | read the middle one",
       {1, 1, true},
       [] { journal_event(1); },
       {{"writer",
         [] {
           journal_event(2);
           journal_event(3);
         }},
        {"reader", [] { read_journal(2); }}},
       [] {}},
      {"journal_lapped_writer",
       "two writers a whole turn of the ring apart | read",
       {1, 1, true},
       [] {},
       {{"writer 0", [] { journal_event(1); }},
        {"writer 1", [] { journal_event(2); }},
        {"reader",
         [] {
           read_journal(1);
           read_journal(2);
         }}},
       [] {},
       3,
       3,
       "a writer stopped for a whole turn garbles one entry: journal.hpp says so, readers check"},
  };
}

}  // namespace explore
