// Why is a block not there? What the arena knows about a key that a lookup did not find.
//
// Asked about one key a request at most, after its lookups: a lookup itself pays nothing for it. Every answer is a
// hint: ghosts are overwritten by later ones, and what is there now may not have been a moment ago. Reads only.
#pragma once

#include "adaptive.hpp"
#include "index.hpp"
#include "quota.hpp"
#include "sums.hpp"

namespace pegashm {

enum class Why : uint8_t {
  never_stored = 0,  // no trace of it
  evicted = 1,
  other_namespace = 2,  // there, but of bytes that are not interchangeable with the asker's
  not_yet = 3,  // claimed, not published
  refused = 4,  // a store of it found no room
  damaged = 5,
  present = 6,  // it is in memory after all
  spilled = 7,  // it is on SSD
};

inline Why why_missing(const View& view, const Key& key) noexcept {
  const Found found = find_key(view, key, buckets_of(view.geometry, key));
  if (found.handle != 0) {
    if (!found.ready) return Why::not_yet;
    return is_damaged(view.block(handle_record(found.handle))) ? Why::damaged : Why::present;
  }
  if (found.spilled) return Why::spilled;
  const Trace trace = trace_of(view, key);
  if (trace == Trace::evicted) return Why::evicted;
  const uint32_t own = identity_namespace(key.identity);
  for (uint32_t slot = 0; slot < namespace_count; ++slot) {
    const uint64_t state = load_acquire(view.name_space(slot).state);
    const uint32_t id = namespace_id(namespace_generation(state), slot);
    if (!namespace_live(state) || id == own) continue;
    Key theirs = key;
    theirs.identity = (key.identity & ~uint64_t{0xFFFFFFFF}) | id;
    const Found other = find_key(view, theirs, buckets_of(view.geometry, theirs));
    if (other.handle != 0 || other.spilled) return Why::other_namespace;
  }
  return trace == Trace::refused ? Why::refused : Why::never_stored;
}

}  // namespace pegashm
