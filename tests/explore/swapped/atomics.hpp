// What the core includes instead of its atomics.hpp when it is explored: the same functions, each a step.
//
// tests/explore/build.py checks that this file defines exactly the functions of the real one, with the same
// parameters (a place in the source is added, for the trace) and the memory order that the name says.
#pragma once

#include <cstdint>

#include "planted.hpp"

#define PEGASHM_MODELLED  // match.hpp: each load by itself

namespace pegashm {

using explore::engine;
using explore::Order;
using explore::Site;

inline uint64_t load_relaxed(const uint64_t& word, Site site = Site::current()) noexcept {
  return engine.load(word, Order::relaxed, "load_relaxed", site);
}
inline uint64_t load_acquire(const uint64_t& word, Site site = Site::current()) noexcept {
  return engine.load(word, Order::acquire, "load_acquire", site);
}
inline uint64_t load_seq(const uint64_t& word, Site site = Site::current()) noexcept {
  return engine.load(word, Order::seq, "load_seq", site);
}
inline void store_relaxed(uint64_t& word, uint64_t value, Site site = Site::current()) noexcept {
  engine.store(word, value, Order::relaxed, "store_relaxed", site);
}
inline void store_release(uint64_t& word, uint64_t value, Site site = Site::current()) noexcept {
  engine.store(word, value, Order::release, "store_release", site);
}
inline bool cas_seq(uint64_t& word, uint64_t expected, uint64_t desired,
                    Site site = Site::current()) noexcept {
  return engine.compare_exchange(word, expected, desired, Order::seq, "cas_seq", site);
}
inline uint64_t add_relaxed(uint64_t& word, uint64_t amount, Site site = Site::current()) noexcept {
  return engine.modify(
      word, [amount](uint64_t old) { return old + amount; }, Order::relaxed, "add_relaxed", site);
}
inline uint64_t add_release(uint64_t& word, uint64_t amount, Site site = Site::current()) noexcept {
  return engine.modify(
      word, [amount](uint64_t old) { return old + amount; }, Order::release, "add_release", site);
}
inline uint64_t or_seq(uint64_t& word, uint64_t bits, Site site = Site::current()) noexcept {
  return engine.modify(
      word, [bits](uint64_t old) { return old | bits; }, Order::seq, "or_seq", site);
}
inline uint64_t and_seq(uint64_t& word, uint64_t bits, Site site = Site::current()) noexcept {
  return engine.modify(
      word, [bits](uint64_t old) { return old & bits; }, Order::seq, "and_seq", site);
}

}  // namespace pegashm
