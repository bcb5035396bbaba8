// How long may a block stay? By recency and frequency in one number, whose balance is learned from what came back.
//
// A use at time t (of the access clock) adds 1 to a block's worth, which halves every span: worth = 2^((due - t) /
// span). So `due` is all there is to know of a block, it fits the record's touch word, and the order of eviction is the order of
// `due`, as with LRU. A short span is LRU, a long one is LFU: LRFU (Lee, Choi, Kim, Noh, Min, Cho, Kim, IEEE
// Transactions on Computers 2001). An evicted block leaves its `due` in a table of ghosts, and goes on from there when it is stored
// again. Ghosts also teach the span, as they teach ARC (Megiddo, Modha, FAST 2003): one that was used only once says
// that new blocks leave too early, so a shorter span; one used more often asks for a longer one.
//
// All of it are hints: touch words, ghosts and the header's two words may hold anything at any time, and lost
// updates are lost. Called by clients when they publish, touch and evict. `Eviction::lru` asks for none of it.
// Measured in bench/replay.py; bench/policies/adaptive.py is the same as a simulator.
#pragma once

#include <algorithm>
#include <cmath>

#include "crash.hpp"
#include "view.hpp"

namespace pegashm {

// The header's `eviction`; who finds another value takes it for lru.
enum class Eviction : uint64_t { lru = 0, adaptive = 1 };

inline Eviction eviction_of(const View& view) noexcept {
  // SYNC none: a setting, which may be seen late.
  return load_relaxed(view.header().eviction) == static_cast<uint64_t>(Eviction::adaptive)
             ? Eviction::adaptive
             : Eviction::lru;
}

// A touch word: due, a multiple of 4, and two flags.
inline constexpr uint64_t touch_step = 4;
inline constexpr uint64_t touch_again = 1;  // used by more than the request that stored it
inline constexpr uint64_t touch_counted = 2;  // the use of a request that has not ended yet
inline constexpr uint64_t touch_flags = touch_step - 1;
// What the clock advances by when a block is used: once when a request begins to use it, once when it ends.
inline constexpr uint64_t use_ticks = 2 * touch_step;

// No due is further ahead of the clock: what a block can be worth, and what a damaged word may claim.
inline uint64_t due_ahead_max(const Geometry& geometry) noexcept {
  return uint64_t{geometry.record_count} << 10;
}

// How far touches may be ahead of the clock now.
inline uint64_t ahead_now(const View& view) noexcept {
  return eviction_of(view) == Eviction::adaptive ? due_ahead_max(view.geometry) : 0;
}

// From now on. Called by the supervisor alone. Back to lru, the clock first goes ahead of all that is due: the words
// of both ways compare, and what is used from then on is the most recent.
inline void set_eviction(const View& view, Eviction eviction) noexcept {
  if (eviction == Eviction::lru) {
    add_relaxed(view.header().access_clock, ahead_now(view));  // SYNC none: only has to grow
    crash_point(CrashPoint::clock_put_ahead);
  }
  store_release(view.header().eviction, static_cast<uint64_t>(eviction));
}

// In the header: the span as a share of the blocks there is room for, and the share of evicted blocks that had been used again.
inline constexpr uint64_t span_one = uint64_t{1} << 40;
inline constexpr uint64_t span_least = span_one / 4;
inline constexpr uint64_t span_most = span_one * 6;
inline constexpr uint64_t again_one = uint64_t{1} << 32;

inline uint64_t span_share(const View& view) noexcept {
  const uint64_t share = load_relaxed(view.header().span);  // SYNC none: a hint
  return share == 0 ? span_one : std::clamp(share, span_least, span_most);
}

inline uint64_t again_share(const View& view) noexcept {
  const uint64_t share = load_relaxed(view.header().again_share);  // SYNC none: a hint
  return share == 0 ? again_one / 2 : std::min(share, again_one);
}

// A ghost: fingerprint:16 << 48 | again:1 << 47 | due / 4; 0 = none.
inline constexpr uint64_t ghost_due_mask = (uint64_t{1} << 47) - 1;
// A ghost that no block left: its store was refused for want of room.
constexpr bool is_refusal(uint64_t ghost) noexcept { return (ghost & ghost_due_mask) == 0; }

struct GhostPlace {
  uint64_t index;
  uint64_t fingerprint;
};

inline GhostPlace ghost_of(const View& view, const Key& key) noexcept {
  uint64_t hash = mix(0xC2B2AE3D27D4EB4F, key.identity);
  for (const uint64_t word : key.words) hash = mix(hash, word);
  hash = mix(hash, 0x165667B19E3779F9);
  return {mix(hash, 0x27D4EB2F165667C5) % view.geometry.ghost_count, hash >> 48};
}

// Whether a block of this key was evicted, as far as ghosts tell: by chance one in 65536 is another's, and each is overwritten in time.
inline bool is_ghost(const View& view, const Key& key) noexcept {
  const GhostPlace place = ghost_of(view, key);
  const uint64_t ghost = load_relaxed(view.ghost(place.index));  // SYNC none: a hint
  return ghost != 0 && ghost >> 48 == place.fingerprint;
}

// The uses of one batch: what the touch words of its blocks become. `after` of a chain's blocks, tail to head, sees to
// it that none is due before one that needs it.
class Uses {
 public:
  explicit Uses(const View& view) noexcept
      : view_(view),
        share_(static_cast<double>(span_share(view)) / static_cast<double>(span_one)) {}

  // One more use at `now` of a block that was due at `due`.
  uint64_t used(uint64_t due, uint64_t now, uint64_t stride) const noexcept {
    const double span = share_ * static_cast<double>(blocks(stride) * use_ticks);
    due = std::min(due, now + due_ahead_max(view_.geometry));
    const double exponent =
        (due < now ? -static_cast<double>(now - due) : static_cast<double>(due - now)) / span;
    if (exponent < -40) return now;
    if (exponent > 40) return due;
    return now + (static_cast<uint64_t>(span * std::log2(1 + std::exp2(exponent))) & ~touch_flags);
  }

  // The word of a block that is there: `ended` by the end of a request, otherwise by its beginning to use it.
  uint64_t again(uint64_t word, uint64_t now, uint64_t stride, bool ended) noexcept {
    const uint64_t due = word & ~touch_flags;
    uint64_t flags = word & touch_again;
    uint64_t next = std::max(std::min(due, now + due_ahead_max(view_.geometry)), now);
    if ((word & touch_counted) == 0) {
      flags |= touch_again;
      next = used(due, now, stride);
    }
    if (!ended) flags |= touch_counted;
    after_ = std::max(next, after_ == 0 ? 0 : after_ + touch_step);
    return after_ | flags;
  }

  // The word of a block that is stored; its ghost, if it left one, is used up and heard.
  uint64_t stored(const Key& key, uint64_t now, uint64_t stride) noexcept {
    const GhostPlace place = ghost_of(view_, key);
    uint64_t& word = view_.ghost(place.index);
    const uint64_t ghost = load_relaxed(word);  // SYNC none: a hint, whole in one word
    if (ghost == 0 || ghost >> 48 != place.fingerprint) return now | touch_counted;
    store_relaxed(word, 0);
    crash_point(CrashPoint::ghost_taken);
    if (is_refusal(ghost)) return now | touch_counted;
    const uint64_t due = (ghost & ghost_due_mask) * touch_step;
    const uint64_t age_max = 16 * blocks(stride) * use_ticks;
    if (due < now && now - due > age_max) return now | touch_counted;
    learn((ghost >> 47 & 1) != 0, blocks(stride));
    return used(due, now, stride) | touch_again | touch_counted;
  }

 private:
  uint64_t blocks(uint64_t stride) const noexcept {
    return std::max<uint64_t>(view_.geometry.payload_bytes / std::max(stride, page_bytes_small), 1);
  }

  // Two blocks of span more or less a ghost, and the more, the rarer its kind is among those evicted.
  void learn(bool was_used_again, uint64_t capacity) const noexcept {
    const uint64_t often = std::max<uint64_t>(again_share(view_), 1);
    const uint64_t once = std::max<uint64_t>(again_one - std::min(often, again_one), 1);
    const uint64_t rarity = was_used_again ? once / often : often / once;
    const uint64_t step = 2 * span_one / capacity * std::clamp<uint64_t>(rarity, 1, 64);
    const uint64_t share = span_share(view_);
    const uint64_t next = was_used_again ? share + step : share - std::min(share, step);
    store_relaxed(view_.header().span, std::clamp(next, span_least, span_most));
    crash_point(CrashPoint::span_written);
  }

  const View& view_;
  const double share_;
  uint64_t after_ = 0;
};

// What is left of a block that is being evicted. `touch`: its word until now.
inline void leave_ghost(const View& view, const Key& key, uint64_t touch) noexcept {
  if (touch == 0 || eviction_of(view) != Eviction::adaptive) return;
  const bool again = (touch & touch_again) != 0;
  const GhostPlace place = ghost_of(view, key);
  const uint64_t due = std::max<uint64_t>(touch / touch_step & ghost_due_mask, 1);
  store_relaxed(view.ghost(place.index), place.fingerprint << 48 | uint64_t{again} << 47 | due);
  crash_point(CrashPoint::ghost_left);
  const uint64_t share = again_share(view);
  const uint64_t next = share - share / 1024 + (again ? again_one / 1024 : 0);
  store_relaxed(view.header().again_share, std::max<uint64_t>(next, 1));
  crash_point(CrashPoint::again_share_written);
}

// What is left of a block that was not stored, since everything was in use. Only where no ghost stands: they teach.
inline void leave_refusal(const View& view, const Key& key) noexcept {
  if (eviction_of(view) != Eviction::adaptive) return;
  const GhostPlace place = ghost_of(view, key);
  uint64_t& word = view.ghost(place.index);
  if (!is_refusal(load_relaxed(word))) return;  // SYNC none: a hint, whole in one word
  store_relaxed(word, std::max<uint64_t>(place.fingerprint, 1) << 48);
  crash_point(CrashPoint::ghost_left);
}

// What the ghosts know of a block that is not there.
enum class Trace : uint8_t { none = 0, evicted = 1, refused = 2 };

inline Trace trace_of(const View& view, const Key& key) noexcept {
  const GhostPlace place = ghost_of(view, key);
  const uint64_t ghost = load_relaxed(view.ghost(place.index));  // SYNC none: a hint
  if (ghost == 0) return Trace::none;
  if (!is_refusal(ghost)) return ghost >> 48 == place.fingerprint ? Trace::evicted : Trace::none;
  return ghost >> 48 == std::max<uint64_t>(place.fingerprint, 1) ? Trace::refused : Trace::none;
}

}  // namespace pegashm
