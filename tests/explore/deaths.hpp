// Who dies in the middle, and who reaps? Scenarios: one actor may be killed at any write.
//
// The helpers, and what must hold in the end, are in scenarios.hpp; explore.cpp runs them all.
#pragma once

#include "scenarios.hpp"

namespace explore {

inline std::vector<Scenario> death_scenarios() {
  const auto attached = [] {
    for (uint32_t slot = 0; slot < 3; ++slot) prepare_attached(slot);
  };
  const auto reaper = [] { reap_when_gone(0); };
  return {
      {"publish_reap",
       "claim, write, publish, killed anywhere | reap",
       {1},
       attached,
       {{"owner", [] { store_block(A, small); }, true}, {"reaper", reaper}},
       judge_reaped},
      {"publish_reap_find",
       "claim, write, publish, killed anywhere | reap | find+pin+read",
       {1},
       attached,
       {{"owner", [] { store_block(A, small); }, true},
        {"reaper", reaper},
        {"reader", [] { load_block(A); }}},
       judge_reaped,
       -1,
       -1},
      {"publish_reap_claim",
       "claim, write, publish, killed anywhere | reap, then claim in its place",
       {1},
       attached,
       {{"owner", [] { store_block(A, small); }, true},
        {"reaper",
         [] {
           reap_when_gone(0);
           store_block(B, small);
         }}},
       judge_reaped},
      {"evict_reap",
       "evict, killed anywhere | reap",
       {1},
       [attached] {
         attached();
         prepare_full({A});
       },
       {{"evictor", [] { evict(world.handles[0]); }, true}, {"reaper", reaper}},
       judge_reaped},
      {"evict_reap_find",
       "evict, killed anywhere | reap, claim its twin | find+pin+read",
       {1},
       [attached] {
         attached();
         prepare_full({A});
       },
       {{"evictor", [] { evict(world.handles[0]); }, true},
        {"reaper",
         [] {
           reap_when_gone(0);
           store_block(B, small);
         }},
        {"reader", [] { load_block(A); }}},
       judge_reaped,
       2,
       -1},
      {"replace_reap",
       "claim in a full arena, killed anywhere | reap",
       {1},
       [attached] {
         attached();
         prepare_full({A});
       },
       {{"claimer", [] { store_block(B, small); }, true}, {"reaper", reaper}},
       judge_reaped},
      {"pin_reap",
       "find+pin+read, killed anywhere | reap, then evict and claim",
       {1},
       [attached] {
         attached();
         prepare_full({A});
       },
       {{"reader", [] { load_block(A); }, true},
        {"reaper",
         [] {
           reap_when_gone(0);
           if (evict(world.handles[0]) == Outcome::ok) store_block(B, small);
         }}},
       judge_reaped},
      {"change_reap",
       "segment to another stride, killed anywhere | reap, claim",
       {2},
       [attached] {
         attached();
         prepare_full({A});
       },
       {{"changer",
         [] {
           if (change_segment(world.view, 0, 0, big, 0)) store_block(C, big);
         },
         true},
        {"reaper",
         [] {
           reap_when_gone(0);
           store_block(B, small);
         }}},
       judge_reaped},
      {"change_reap_find",
       "segment to another stride, killed anywhere | reap | find+pin+read",
       {2},
       [attached] {
         attached();
         prepare_full({A});
       },
       {{"changer", [] { change_segment(world.view, 0, 0, big, 0); }, true},
        {"reaper", reaper},
        {"reader", [] { load_block(A); }}},
       judge_reaped,
       -1,
       -1},
      {"worker_outlives",
       "scheduler killed | its worker still writes | reap when both are gone, claim",
       {1},
       attached,
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
        {"reaper",
         [] {
           engine.await_gone(1);
           reap_when_gone(0);
           store_block(B, small);
         }}},
       judge_reaped,
       -1,
       -1},
      {"worker_forgotten",
       "as before, but the reaper does not wait for the worker",
       {1},
       attached,
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
        {"reaper",
         [] {
           reap_when_gone(0);
           store_block(B, small);
         }}},
       judge_reaped,
       2,
       2,
       "a worker may write after its scheduler died: the second kernel lock is needed"},
  };
}

}  // namespace explore
