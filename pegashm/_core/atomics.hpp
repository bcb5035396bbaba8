// How do two processes agree on a word? The only file that names a memory order.
//
// Every shared word is a plain uint64_t in a plain struct; it becomes atomic here, at the access. There
// are no standalone fences (thread sanitizers cannot see them). `seq_cst` is used where two sides each
// write one word and then read the other's (pin against evict, claim against segment change): one of the
// two must see the other, and acquire/release does not promise that.
#pragma once

#include <atomic>
#include <cstdint>

namespace pegashm {

static_assert(std::atomic_ref<uint64_t>::is_always_lock_free);  // or two processes would not agree

inline uint64_t load_relaxed(const uint64_t& word) noexcept {
  return std::atomic_ref<uint64_t>(const_cast<uint64_t&>(word)).load(std::memory_order_relaxed);
}
inline uint64_t load_acquire(const uint64_t& word) noexcept {
  return std::atomic_ref<uint64_t>(const_cast<uint64_t&>(word)).load(std::memory_order_acquire);
}
inline uint64_t load_seq(const uint64_t& word) noexcept {
  return std::atomic_ref<uint64_t>(const_cast<uint64_t&>(word)).load(std::memory_order_seq_cst);
}
inline void store_relaxed(uint64_t& word, uint64_t value) noexcept {
  std::atomic_ref<uint64_t>(word).store(value, std::memory_order_relaxed);
}
inline void store_release(uint64_t& word, uint64_t value) noexcept {
  std::atomic_ref<uint64_t>(word).store(value, std::memory_order_release);
}
inline bool cas_seq(uint64_t& word, uint64_t expected, uint64_t desired) noexcept {
  return std::atomic_ref<uint64_t>(word).compare_exchange_strong(expected, desired,
                                                                 std::memory_order_seq_cst);
}
inline uint64_t add_relaxed(uint64_t& word, uint64_t amount) noexcept {
  return std::atomic_ref<uint64_t>(word).fetch_add(amount, std::memory_order_relaxed);
}
inline uint64_t add_release(uint64_t& word, uint64_t amount) noexcept {
  return std::atomic_ref<uint64_t>(word).fetch_add(amount, std::memory_order_release);
}
inline uint64_t or_seq(uint64_t& word, uint64_t bits) noexcept {
  return std::atomic_ref<uint64_t>(word).fetch_or(bits, std::memory_order_seq_cst);
}
inline uint64_t and_seq(uint64_t& word, uint64_t bits) noexcept {
  return std::atomic_ref<uint64_t>(word).fetch_and(bits, std::memory_order_seq_cst);
}

}  // namespace pegashm
