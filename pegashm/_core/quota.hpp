// Which namespace may have whose room? Bytes that a namespace holds, its reserve, and its share of a pass over many.
//
// A namespace's reserve is what evictions for the sake of others leave it. It holds exactly, with any number of
// evictors at once: who has made a block EVICTING takes its bytes from the namespace's count and looks at what is
// left in the same atomic step, and puts both back when that is below the reserve. (Looking first and counting
// later would let two of them take the last block each.) The count is a hint as long as somebody who died has
// not been reaped: it is then off by what that one had in hand, and what is off is one block a step.
// Called by clients, under whichever locks their callers hold; allocates nothing, waits for nobody.
#pragma once

#include "crash.hpp"
#include "states.hpp"
#include "view.hpp"

namespace pegashm {

// For whose sake a block is evicted: a namespace's id, or one of these.
inline constexpr uint32_t for_nobody = 0;  // room for whoever comes: every reserve holds
inline constexpr uint32_t at_will = ~uint32_t{0};  // this very block is meant: no reserve is asked

inline bool is_live_namespace(const View& view, uint32_t id) noexcept {
  const uint32_t slot = namespace_slot(id);
  if (slot >= namespace_count) return false;
  return load_acquire(view.name_space(slot).state) == namespace_state(true, id >> 16);
}

// Blocks of a namespace whose slot has been given to another are nobody's: counted for none.
inline void add_resident(const View& view, uint32_t namespace_id, uint64_t delta) noexcept {
  if (!is_live_namespace(view, namespace_id)) return;
  // SYNC none: relaxed, a hint that reaps recount.
  add_relaxed(view.name_space(namespace_slot(namespace_id)).resident_bytes, delta);
}

// Resident bytes with drift below zero (a process died between two counts) read as 0.
inline uint64_t resident_bytes(const NamespaceEntry& entry) noexcept {
  const uint64_t bytes = load_relaxed(entry.resident_bytes);
  return bytes >> 63 != 0 ? 0 : bytes;
}

inline uint64_t occupied_bytes(const View& view, const Block& block) noexcept {
  return stride_of(view.geometry, load_acquire(block.payload_bytes));
}

// Whether a namespace has less than its reserve, so that what it stores next takes others' room and not its own.
inline bool is_below_reserve(const View& view, uint32_t id, uint64_t bytes) noexcept {
  if (namespace_slot(id) >= namespace_count) return false;
  const NamespaceEntry& entry = view.name_space(namespace_slot(id));
  const uint64_t reserved = load_relaxed(entry.reserved_bytes);  // SYNC none: a guess
  return reserved != 0 && resident_bytes(entry) + bytes <= reserved && is_live_namespace(view, id);
}

// Whether it is worth trying to evict a block for another's sake. A guess: give_up_resident() decides.
inline bool may_evict_for(const View& view, const Block& block, uint32_t requester) noexcept {
  const uint32_t owner = identity_namespace(load_acquire(block.identity));
  if (requester == at_will || owner == requester || !is_live_namespace(view, owner)) return true;
  const NamespaceEntry& entry = view.name_space(namespace_slot(owner));
  const uint64_t reserved = load_relaxed(entry.reserved_bytes);
  return reserved == 0 || resident_bytes(entry) >= reserved + occupied_bytes(view, block);
}

// Takes an EVICTING block's bytes from its namespace's, for good. False, and nothing taken, when that would leave less
// than the reserve.
inline bool give_up_resident(const View& view, const Block& block, uint32_t requester) noexcept {
  const uint32_t owner = identity_namespace(load_acquire(block.identity));
  if (!is_live_namespace(view, owner)) return true;
  NamespaceEntry& entry = view.name_space(namespace_slot(owner));
  const uint64_t bytes = occupied_bytes(view, block);
  // SYNC reserve: relaxed, since all that matters is the order of the additions to this one word: of two evictors one sees
  // what the other has left. Pairs with itself.
  const uint64_t before = add_relaxed(entry.resident_bytes, ~bytes + 1);
  crash_point(CrashPoint::evict_uncounted);
  if (requester == at_will || owner == requester) return true;
  const uint64_t reserved = load_relaxed(entry.reserved_bytes);
  if (reserved == 0 || (before >> 63 == 0 && before >= reserved + bytes)) return true;
  add_relaxed(entry.resident_bytes, bytes);
  crash_point(CrashPoint::evict_counted_again);
  return false;
}

// What each namespace with a reserve can spare now, for one pass over many blocks: asked once, kept in private. Without
// it a pass that looks for the oldest blocks would find those that nobody may take, and nothing else.
class Reserves {
 public:
  // `spare_own`: what the requester has is to stay as well.
  Reserves(const View& view, uint32_t requester, bool spare_own = false) noexcept {
    if (requester == at_will) return;
    if (spare_own && namespace_slot(requester) < namespace_count) {
      ids_[namespace_slot(requester)] = requester;
      any_ = true;
    }
    for (uint32_t slot = 0; slot < namespace_count; ++slot) {
      const NamespaceEntry& entry = view.name_space(slot);
      const uint64_t reserved = load_relaxed(entry.reserved_bytes);  // SYNC none: a guess
      if (reserved == 0) continue;
      const uint64_t state = load_acquire(entry.state);
      const uint32_t id = namespace_id(namespace_generation(state), slot);
      if (!namespace_live(state) || id == requester) continue;
      const uint64_t resident = resident_bytes(entry);
      spare_[slot] = resident > reserved ? resident - reserved : 0;
      ids_[slot] = id;
      any_ = true;
    }
  }

  // Whether any namespace has one that counts: if none has, no block needs to be asked.
  bool any() const noexcept { return any_; }

  // Whether a block of this identity has to stay.
  bool keep(uint64_t identity, uint64_t bytes) const noexcept {
    const uint32_t id = identity_namespace(identity);
    const uint32_t slot = namespace_slot(id);
    return slot < namespace_count && ids_[slot] == id && id != 0 && spare_[slot] < bytes;
  }

  // The same; if it may go, it has.
  bool take(uint64_t identity, uint64_t bytes) noexcept {
    if (!any_) return true;
    if (keep(identity, bytes)) return false;
    const uint32_t slot = namespace_slot(identity_namespace(identity));
    if (slot < namespace_count && ids_[slot] == identity_namespace(identity)) spare_[slot] -= bytes;
    return true;
  }

 private:
  bool any_ = false;
  uint32_t ids_[namespace_count] = {};
  uint64_t spare_[namespace_count] = {};
};

}  // namespace pegashm
