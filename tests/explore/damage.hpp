// Who meets a block that is marked as damaged, or its checksums? Scenarios.
//
// The helpers, and what must hold in the end, are in scenarios.hpp; explore.cpp runs them all.
#pragma once

#include "scenarios.hpp"

namespace explore {

inline std::vector<Scenario> damage_scenarios() {
  const auto damaged = [] {
    prepare_with_sums();
    mark_damaged(world.view, world.handles[0]);
  };
  return {
      {"mark_find",
       "mark as damaged, tell | when told: find+pin",
       {1},
       [] { prepare_full({A}); },
       {{"marker",
         [] {
           mark_damaged(world.view, world.handles[0]);
           store_release(world.extra[0], 1);
         }},
        {"reader",
         [] {
           if (load_acquire(world.extra[0]) == 1 && load_block(A))
             engine.fail("a marked block was pinned");
         }}},
       judge_marked},
      {"mark_late",
       "mark as damaged | evict, claim another key, publish",
       {1},
       [] { prepare_full({A}); },
       {{"marker", [] { mark_damaged(world.view, world.handles[0]); }},
        {"evictor",
         [] {
           if (evict(world.handles[0]) == Outcome::ok) store_block(B, small);
         }}},
       judge_marked},
      {"mark_replace",
       "find+pin+read+unpin | mark as damaged, claim the key again, publish",
       {1},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }},
        {"marker",
         [] {
           mark_damaged(world.view, world.handles[0]);
           store_block(A, small);
         }}},
       judge_marked},
      {"mark_claim",
       "two claims of the key of a damaged block, both published",
       {2},
       damaged,
       {{"claimer 0", [] { store_block(A, small); }}, {"claimer 1", [] { store_block(A, small); }}},
       [] {
         judge_duplicates();
         for (const uint32_t record : {0u, 1u}) {
           if (is_damaged(world.view.block(record)) && world.view.block(record).parts != 0) {
             engine.fail("record %u kept the mark of its former life", record);
           }
         }
       },
       1,
       2},
      {"publish_sums",
       "claim, two writers with checksums report, publish | find+pin, checksums, read",
       {1},
       [] {},
       {{"claimer",
         [] {
           Outcome outcome = Outcome::ok;
           const uint64_t handle = claim(A, small, outcome);
           store_release(world.extra[0], handle);  // a message to the worker
           write_part(handle, 0);
           publish(handle, 2);  // stays CLAIMED while the worker may still write
         }},
        {"worker",
         [] {
           const uint64_t handle = load_acquire(world.extra[0]);
           if (handle != 0) write_part(handle, 1);
         }},
        {"reader", [] { load_sums(A, 2); }}},
       [] {
         drop_claim(world.view, 0, world.lives.begin()->first, true);
         judge_world();
       },
       -1,
       -1},
      {"reuse_sums",
       "find+pin, checksums, read of either key | claim another key without any in its place",
       {1},
       prepare_with_sums,
       {{"reader",
         [] {
           load_sums(A, 2);
           load_sums(B, 0);
         }},
        {"claimer", [] { store_block(B, small); }}}},
  };
}

}  // namespace explore
