// Who uses a segment while another gives it to another size? Scenarios.
//
// The helpers, and what must hold in the end, are in scenarios.hpp; explore.cpp runs them all.
#pragma once

#include "scenarios.hpp"

namespace explore {

inline std::vector<Scenario> segment_scenarios() {
  const auto change = [] {
    if (change_segment(world.view, engine.self(), 0, big, 0)) store_block(C, big);
  };
  return {
      {"change_find",
       "find+pin+read+unpin | segment to another stride, claim in it",
       {2},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }}, {"changer", change}}},
      {"change_claim",
       "claim, write, publish | segment to another stride, claim in it",
       {2},
       prepare_empty,
       {{"claimer", [] { store_block(B, small); }}, {"changer", change}},
       judge_world,
       2,
       4},
      {"change_claim_second",
       "two claims (both records) | segment to another stride",
       {2},
       prepare_empty,
       {{"claimer 0", [] { store_block(A, small); }},
        {"claimer 1", [] { store_block(B, small); }},
        {"changer", change}},
       judge_world,
       0,
       1},
      {"two_changers",
       "two give one segment to two strides, each claims",
       {2},
       [] {},
       {{"changer 0", [] { store_block(A, small); }}, {"changer 1", [] { store_block(C, big); }}},
       judge_world,
       2,
       4},
      {"change_evict",
       "evict | segment to another stride, claim in it",
       {2},
       [] { prepare_full({A, B}); },
       {{"evictor", [] { evict(world.handles[1]); }}, {"changer", change}}},
      {"change_find_claim",
       "find+pin+read | claim | segment to another stride",
       {2},
       [] { prepare_full({A}); },
       {{"reader", [] { load_block(A); }},
        {"claimer", [] { store_block(B, small); }},
        {"changer", change}},
       judge_world,
       0,
       1},
  };
}

}  // namespace explore
