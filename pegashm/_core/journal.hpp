// What changed, in order? A ring of events for directories of other hosts, for engines that tell routers what they
// can load (residency.hpp) and for `pegashm-dump --follow`.
//
// publish and evict: a block is in memory now, or no more; spill and forget: it is on SSD now, or no more.
// A hint: events of a process killed between its state change and its append are missing, and a writer
// stopped for a whole turn of the ring can garble one entry. Readers check what they act on.
#pragma once

#include "crash.hpp"
#include "view.hpp"

namespace pegashm {

enum class Event : uint8_t { publish = 1, evict = 2, spill = 3, forget = 4 };

inline void append(const View& view, Event event, const Key& key, uint64_t handle) noexcept {
  const uint64_t sequence = add_relaxed(view.header().journal_head, 1) + 1;
  crash_point(CrashPoint::journal_advanced);
  JournalEntry& entry = view.journal(sequence);
  // SYNC journal: the entry is closed (0) before and opened (sequence) after its fields; every field is
  // released, so that a reader who saw a new field also sees the closing. Pairs with read_event().
  store_release(entry.sequence, 0);
  crash_point(CrashPoint::journal_closed);
  store_release(entry.what, uint64_t{static_cast<uint8_t>(event)} |
                                (key.identity >> 48 & 0xFF) << 8 |
                                (key.identity >> 32 & 0xFFFF) << 16 | key.identity << 32);
  store_release(entry.handle, handle);
  crash_point(CrashPoint::journal_half_written);
  for (uint32_t i = 0; i < key_words; ++i) store_release(entry.key[i], key.words[i]);
  crash_point(CrashPoint::journal_fields_written);
  store_release(entry.sequence, sequence);
  crash_point(CrashPoint::journal_opened);
}

// False when that event is not there (being written, or overwritten).
inline bool read_event(const View& view, uint64_t sequence, JournalEntry& out) noexcept {
  JournalEntry& entry = view.journal(sequence);
  out.sequence = load_acquire(entry.sequence);
  out.what = load_acquire(entry.what);
  out.handle = load_acquire(entry.handle);
  for (uint32_t i = 0; i < key_words; ++i) out.key[i] = load_acquire(entry.key[i]);
  return out.sequence == sequence && load_acquire(entry.sequence) == sequence;
}

}  // namespace pegashm
