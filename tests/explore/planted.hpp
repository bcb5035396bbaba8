// Which mistake does the core make on purpose in this run? Its number, and what only such mistakes do.
//
// build.py writes `explore::planted == N ? mistake : core` into its copy of the core, for each entry of
// mutants.py; explore.cpp sets the number from its arguments. 0 is the core as it stands.
#pragma once

#include "engine.hpp"

namespace explore {

inline int planted = 0;

inline uint64_t or_relaxed(uint64_t& word, uint64_t bits, Site site = Site::current()) {
  return engine.modify(
      word, [bits](uint64_t old) { return old | bits; }, Order::relaxed, "or_relaxed", site);
}
inline bool cas_relaxed(uint64_t& word, uint64_t expected, uint64_t desired,
                        Site site = Site::current()) {
  return engine.compare_exchange(word, expected, desired, Order::relaxed, "cas_relaxed", site);
}

}  // namespace explore
