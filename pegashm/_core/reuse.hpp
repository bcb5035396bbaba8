// How much of what requests ask for has been asked for before? Counts of the last 24 hours, for any window in them.
//
// With N blocks asked for in a window, U of them different, no cache can answer more than (N - U) / N without
// knowing them from before: the reuse ceiling. N is counted by ticks of 15 seconds. U is a HyperLogLog (Flajolet,
// Fusy, Gandouet, Meunier, "HyperLogLog: the analysis of a near-optimal cardinality estimation algorithm", 2007) made to
// slide: each register keeps, for each rank, the tick in which a key last met it, and not the largest rank alone. A window's
// register is the largest rank met within it. So nothing is ever cleared, rotated or merged; each word stands for
// itself, and who dies anywhere has counted a part. (Chabchoub, Hébrail, "Sliding HyperLogLog", 2010, keep a list of the ranks
// that may still become the largest instead: smaller, but no single store.)
// Called by clients for each request once, and by tools, which turn a histogram of ranks into a number
// (reuse.py). All of it is a hint, and decides nothing.
#pragma once

#include <algorithm>
#include <bit>
#include <ctime>

#include "crash.hpp"
#include "view.hpp"

namespace pegashm {

// Of realtime, which is the same in all containers. Fits 32 bits for two thousand years.
constexpr uint32_t reuse_tick_of(uint64_t seconds) noexcept {
  return static_cast<uint32_t>(seconds / reuse_tick_seconds);
}

inline uint32_t reuse_tick_now() noexcept {
  timespec now{};
  clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return reuse_tick_of(static_cast<uint64_t>(now.tv_sec));
}

// Part of the format: reuse_hash_version. The end is the finaliser of MurmurHash3 (Appleby, public domain): all 64 bits
// must depend on all, since the first choose the register and the rest the rank.
inline uint64_t reuse_hash(const Key& key) noexcept {
  uint64_t hash = mix(0x9FB21C651E98DF25, key.identity);
  for (const uint64_t word : key.words) hash = mix(hash, word);
  hash = (hash ^ hash >> 33) * 0xFF51AFD7ED558CCD;
  hash = (hash ^ hash >> 33) * 0xC4CEB9FE1A85EC53;
  return hash ^ hash >> 33;
}

struct ReusePlace {
  uint64_t* word;
  uint32_t shift;  // which half
};

inline ReusePlace reuse_place(const View& view, const Key& key) noexcept {
  const uint64_t hash = reuse_hash(key);
  const int bits = std::countr_zero(view.geometry.reuse_register_count);
  const uint32_t rank =  // 0 for rank 1
      std::min(static_cast<uint32_t>(std::countl_zero(hash << bits)), reuse_rank_count - 1);
  ReuseRegister& entry = view.reuse_register(static_cast<uint32_t>(hash >> (64 - bits)));
  return {&entry.met[rank / 2], rank % 2 * 32};
}

// Who loses the race a few times running leaves it: another has just met the other rank of this word.
inline void meet_rank(const ReusePlace& place, uint32_t tick) noexcept {
  constexpr uint32_t attempts = 4;
  for (uint32_t attempt = 0; attempt < attempts; ++attempt) {
    const uint64_t before = load_relaxed(*place.word);  // SYNC none: each word stands for itself
    if (static_cast<uint32_t>(before >> place.shift) == tick) return;
    const uint64_t kept = before & ~(uint64_t{0xFFFFFFFF} << place.shift);
    if (cas_seq(*place.word, before, kept | uint64_t{tick} << place.shift)) break;
  }
  crash_point(CrashPoint::reuse_rank_met);
}

// Adds to one tick's count; a count of another turn of the ring is replaced, in the same step.
inline void add_to_tick(uint64_t& word, uint32_t tick, uint64_t amount) noexcept {
  constexpr uint32_t attempts = 64;
  constexpr uint64_t most = 0xFFFFFFFF;
  for (uint32_t attempt = 0; attempt < attempts; ++attempt) {
    const uint64_t before = load_relaxed(word);  // SYNC none
    const uint64_t counted = before >> 32 == tick ? before & most : 0;
    const uint64_t count = std::min(most, counted + std::min(most, amount));
    if (cas_seq(word, before, uint64_t{tick} << 32 | count)) break;
  }
  crash_point(CrashPoint::reuse_tick_counted);
}

// What one request asks for, once, whatever comes of it.
inline void count_asked(const View& view, const Key* keys, uint32_t size, uint32_t tick) noexcept {
  if (view.geometry.reuse_register_count == 0 || size == 0) return;
  add_to_tick(view.reuse_tick(tick % reuse_tick_count).asked, tick, size);
  constexpr uint32_t lot_keys = 16;
  ReusePlace places[lot_keys];
  for (uint32_t base = 0; base < size; base += lot_keys) {
    const uint32_t lot = std::min(lot_keys, size - base);
    for (uint32_t i = 0; i < lot; ++i) {
      places[i] = reuse_place(view, keys[base + i]);
      __builtin_prefetch(places[i].word, 1);
    }
    for (uint32_t i = 0; i < lot; ++i) meet_rank(places[i], tick);
  }
}

// How many blocks of what was asked for came from the cache.
inline void count_served(const View& view, uint64_t amount, uint32_t tick) noexcept {
  if (view.geometry.reuse_register_count == 0 || amount == 0) return;
  add_to_tick(view.reuse_tick(tick % reuse_tick_count).served, tick, amount);
}

struct ReuseWindow {
  uint64_t asked = 0;
  uint64_t served = 0;
  uint32_t first_tick = 0;  // the earliest in the window that counted anything; 0 none
  uint32_t ranks[reuse_rank_count + 1] = {};  // registers by the largest rank met, 0 none
};

// Whether a word's tick lies among the `ticks` up to `now`. One that lies ahead (the clock was put back) does not.
constexpr bool within(uint32_t tick, uint32_t now, uint32_t ticks) noexcept {
  return tick != 0 && now - tick < ticks;
}

inline void read_reuse(const View& view, uint32_t now, uint32_t ticks, ReuseWindow& out) noexcept {
  out = ReuseWindow{};
  if (view.geometry.reuse_register_count == 0) return;
  ticks = std::min(ticks, reuse_tick_count);
  const auto add = [&](uint32_t index, uint64_t word, uint64_t& sum) noexcept {
    const uint32_t tick = static_cast<uint32_t>(word >> 32);
    if (tick % reuse_tick_count != index || !within(tick, now, ticks)) return;
    sum += word & 0xFFFFFFFF;
    if (out.first_tick == 0 || now - tick > now - out.first_tick) out.first_tick = tick;
  };
  for (uint32_t index = 0; index < reuse_tick_count; ++index) {
    const ReuseTick& entry = view.reuse_tick(index);
    add(index, load_relaxed(entry.asked), out.asked);  // SYNC none
    add(index, load_relaxed(entry.served), out.served);
  }
  for (uint32_t index = 0; index < view.geometry.reuse_register_count; ++index) {
    const ReuseRegister& entry = view.reuse_register(index);
    uint32_t largest = 0;
    for (uint32_t rank = reuse_rank_count; rank > 0 && largest == 0; --rank) {
      const uint64_t word = load_relaxed(entry.met[(rank - 1) / 2]);  // SYNC none
      const uint32_t tick = static_cast<uint32_t>(word >> ((rank - 1) % 2 * 32));
      if (within(tick, now, ticks)) largest = rank;
    }
    ++out.ranks[largest];
  }
}

// Whether a word says something that no counting before `now` could have written. The words: two a tick, then those of
// the registers.
inline uint64_t reuse_word_count(const View& view) noexcept {
  return view.geometry.reuse_register_count == 0
             ? 0
             : uint64_t{2} * reuse_tick_count +
                   uint64_t{reuse_rank_count / 2} * view.geometry.reuse_register_count;
}
inline uint64_t& reuse_word(const View& view, uint64_t number) noexcept {
  return view.at<uint64_t>(view.geometry.reuse_offset, number);
}
inline bool is_possible_reuse(uint64_t number, uint64_t word, uint32_t now) noexcept {
  const uint32_t high = static_cast<uint32_t>(word >> 32);
  const uint32_t low = static_cast<uint32_t>(word);
  if (number >= uint64_t{2} * reuse_tick_count) return high <= now && low <= now;
  return word == 0 || (high <= now && high % reuse_tick_count == number / 2);
}

}  // namespace pegashm
