// Who reads while others evict and claim? Scenarios of living clients on records of one size.
//
// The helpers, and what must hold in the end, are in scenarios.hpp; explore.cpp runs them all.
#pragma once

#include "scenarios.hpp"

namespace explore {

inline std::vector<Scenario> living_scenarios() {
  return {
      {"find_evict",
       "find+pin+read+unpin | evict",
       {1},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }}, {"evictor", [] { evict(world.handles[0]); }}}},
      {"find_reclaim",
       "find+pin+read+unpin | evict, claim another key, publish",
       {1},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }},
        {"evictor",
         [] {
           if (evict(world.handles[0]) == Outcome::ok) store_block(B, small);
         }}}},
      {"find_replace",
       "find+pin+read+unpin | claim in a full arena (evict_and_claim), publish",
       {1},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }}, {"claimer", [] { store_block(B, small); }}}},
      {"find_new",
       "find+pin+read of the new key | evict, claim it, publish",
       {1},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(B); }},
        {"evictor",
         [] {
           if (evict(world.handles[0]) == Outcome::ok) store_block(B, small);
         }}}},
      {"find_handle",
       "find without pin | evict, claim its twin, publish",
       {1},
       [] { prepare_full({A}); },
       {{"reader",
         [] {
           find_block(A);
           find_block(B);
         }},
        {"evictor",
         [] {
           if (evict(world.handles[0]) == Outcome::ok) store_block(B, small);
         }}}},
      {"two_readers_evict",
       "two readers | evict, claim another key",
       {1},
       [] { prepare_full({A}); },
       {{"reader 0", [] { load_block(A); }},
        {"reader 1", [] { load_block(A); }},
        {"evictor",
         [] {
           if (evict(world.handles[0]) == Outcome::ok) store_block(C, small);
         }}},
       judge_world},
      {"publish_find",
       "claim, two writers report, publish | find+pin+read",
       {1},
       [] {},
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
       judge_world},
      {"two_evictors",
       "evict | evict of one block",
       {1},
       [] { prepare_full({A}); },
       {{"evictor 0",
         [] {
           world.extra[0] = 0;
           store_relaxed(world.extra[0], evict(world.handles[0]) == Outcome::ok);
         }},
        {"evictor 1",
         [] { store_relaxed(world.extra[1], evict(world.handles[0]) == Outcome::ok); }}},
       [] {
         judge_world();
         if (load_relaxed(world.extra[0]) + load_relaxed(world.extra[1]) != 1) {
           engine.fail("one block was evicted %llu times",
                       static_cast<unsigned long long>(load_relaxed(world.extra[0]) +
                                                       load_relaxed(world.extra[1])));
         }
       }},
      {"two_evictors_pin",
       "evict | evict | find+pin+read+unpin",
       {1},
       [] { prepare_full({A}); },
       {{"evictor 0", [] { evict(world.handles[0]); }},
        {"evictor 1", [] { evict(world.handles[0]); }},
        {"reader", [] { load_block(A); }}},
       judge_world},
      {"two_claims_full",
       "two claims of two keys in a full arena of one block",
       {1},
       [] { prepare_full({A}); },
       {{"claimer 0", [] { store_block(B, small); }},
        {"claimer 1", [] { store_block(C, small); }}}},
      {"two_claims_free",
       "two claims of two keys, two free records",
       {2},
       prepare_empty,
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(C, small); }}},
       judge_world,
       2,
       3},
      {"same_key",
       "two claims of one key, both written and published",
       {2},
       prepare_empty,
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(A, small); }}},
       judge_duplicates,
       2,
       3},
      {"same_key_once",
       "as before: is only one record READY?",
       {2},
       prepare_empty,
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(A, small); }}},
       [] {
         for (const uint32_t record : {0u, 1u}) {
           if (block_tag(load_acquire(world.view.block(record).state)) != BlockTag::ready) return;
         }
         engine.fail("two READY records of one key");
       },
       2,
       2,
       "who claims a key looks before, not at the end: drift, I21 in FORMAT.md"},
      {"same_key_find",
       "two claims of one key | find+pin+read",
       {2},
       prepare_empty,
       {{"claimer 0", [] { store_block(A, small); }},
        {"claimer 1", [] { store_block(A, small); }},
        {"reader", [] { load_block(A); }}},
       judge_world,
       1,
       2},
      {"twin_keys",
       "two claims of keys with one fingerprint | find of the first",
       {2},
       prepare_empty,
       {{"claimer 0", [] { store_block(A, small); }},
        {"claimer 1", [] { store_block(B, small); }},
        {"reader", [] { load_block(A); }}},
       judge_world,
       1,
       2},
      {"free_bit",
       "give a claim back | try to claim the record",
       {1},
       prepare_empty,
       {{"owner",
         [] {
           const uint64_t handle = begin_claim(world.view, 0, 0);
           if (handle != 0)
             release_record(world.view, 0,
                            block_state(BlockTag::claimed, 0, handle_generation(handle)));
         }},
        {"other",
         [] {
           const uint64_t handle = begin_claim(world.view, 1, 0);
           if (handle != 0)
             release_record(world.view, 0,
                            block_state(BlockTag::claimed, 1, handle_generation(handle)));
         }}}},
      {"free_bit_three",
       "as before, three at once",
       {1},
       prepare_empty,
       {{"owner",
         [] {
           if (const uint64_t h = begin_claim(world.view, 0, 0))
             release_record(world.view, 0, block_state(BlockTag::claimed, 0, handle_generation(h)));
         }},
        {"other",
         [] {
           if (const uint64_t h = begin_claim(world.view, 1, 0))
             release_record(world.view, 0, block_state(BlockTag::claimed, 1, handle_generation(h)));
         }},
        {"third",
         [] {
           if (const uint64_t h = begin_claim(world.view, 2, 0))
             release_record(world.view, 0, block_state(BlockTag::claimed, 2, handle_generation(h)));
         }}}},
      {"abandon_claim",
       "abandon | claim of another key",
       {1},
       prepare_empty,
       {{"owner",
         [] {
           Outcome outcome = Outcome::ok;
           const uint64_t handle = claim(A, small, outcome);
           if (handle == 0) return;
           write_payload(handle, A);
           mine().abandon(&handle, 1);
         }},
        {"other", [] { store_block(C, small); }}}},
      {"reserve_two",
       "evict | evict of two blocks for others, with the bytes of one reserved",
       {2, 2, false, true},
       prepare_reserved,
       {{"evictor 0", [] { evict_for_another(world.handles[0]); }},
        {"evictor 1", [] { evict_for_another(world.handles[1]); }}},
       judge_reserved},
      {"touch_evict",
       "touch | evict, claim another key",
       {1},
       [] { prepare_full({A}); },
       {{"toucher", [] { mine().touch(&world.handles[0], 1); }},
        {"evictor",
         [] {
           if (evict(world.handles[0]) == Outcome::ok) store_block(C, small);
         }}}},
  };
}

}  // namespace explore
