// What can a batched call answer for one block? Plain bytes, the same in C++, Python and the metrics.
#pragma once

#include <cstdint>

namespace pegashm {

enum class Outcome : uint8_t {
  ok = 0,
  missing = 1,  // no such block, or the handle's generation is over
  pending = 2,  // another client has claimed the key and not published it yet
  exists = 3,  // a READY block with this key is there already
  no_space = 4,  // nothing free and nothing evictable
  quota = 5,  // the namespace is at its maximum and none of its own is evictable
  too_large = 6,  // no segment can hold such a payload
  index_full = 7,  // both candidate buckets are full of live entries
  pinned = 8,  // somebody holds a pin
  incomplete = 9,  // fewer parts written than expected, or a part failed
  spilled = 10,  // not READY in memory (it may be claimed), but on SSD: ask the transport worker
  remote = 11,  // neither, but another host has it, as far as we know: ask the transport worker
  draining = 12,  // the arena is being emptied: nothing is stored
};

// How a header reads: open now, try again, or give up.
enum class Open : uint8_t { ready = 0, not_yet = 1, never = 2 };

}  // namespace pegashm
