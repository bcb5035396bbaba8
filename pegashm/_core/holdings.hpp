// What does this host hold, as others are told? The journal and the records, as operations on remote hashes.
//
// Called by the directory's publisher in the transport worker. An event of the journal only says that something
// happened to a key; what is told is how it stands when it is read, since events of two lives of a key may have
// been appended the wrong way round. Reads only.
#pragma once

#include "index.hpp"
#include "journal.hpp"
#include "remote_table.hpp"

namespace pegashm {

struct EventsRead {
  uint64_t last;  // sequence up to which the journal has been read
  uint64_t overrun;  // events that were overwritten before we came
  uint64_t torn;  // events that nobody finished writing
  uint32_t count;  // operations written out
};

// Events after `after`, at most `limit` of them, each given to `use(key, event)`, which says whether it counts. One that
// cannot be read may be half written: it is waited for, by stopping before it, unless it is not above `settled`, a head
// of the journal that was seen long enough ago.
template <typename Use>
inline EventsRead read_journal(const View& view, uint64_t after, uint64_t settled, uint32_t limit,
                               Use use) noexcept {
  EventsRead read{after, 0, 0, 0};
  const uint64_t head = load_acquire(view.header().journal_head);
  const uint64_t size = view.geometry.journal_entry_count;
  if (head < after || head - after > uint64_t{1} << 62) return {head, 0, 0, 0};
  if (head - after > size) {
    read.last = head - size;
    read.overrun = read.last - after;
  }
  for (uint32_t seen = 0; seen < limit && read.last < head; ++seen) {
    JournalEntry event;
    if (!read_event(view, read.last + 1, event)) {
      const uint64_t now = load_acquire(view.header().journal_head);
      const bool overwritten = now - read.last > size;
      if (!overwritten && read.last + 1 > settled) break;
      ++(overwritten ? read.overrun : read.torn);
      ++read.last;
      continue;
    }
    ++read.last;
    Key key;
    for (uint32_t i = 0; i < key_words; ++i) key.words[i] = event.key[i];
    key.identity = make_identity(static_cast<uint32_t>(event.what >> 32),
                                 static_cast<uint16_t>(event.what >> 16),
                                 static_cast<uint8_t>(event.what >> 8));
    if (use(key, event.what & 0xFF)) ++read.count;
  }
  return read;
}

// What the events say to other hosts; of what is on SSD they hear by the log of the spill table.
inline EventsRead read_events(const View& view, uint64_t after, uint64_t settled, uint32_t limit,
                              uint8_t* ops, uint64_t* hashes) noexcept {
  RemoteSeeds seeds(view);
  uint32_t count = 0;
  return read_journal(view, after, settled, limit, [&](const Key& key, uint64_t event) noexcept {
    if (event != static_cast<uint64_t>(Event::publish) &&
        event != static_cast<uint64_t>(Event::evict)) {
      return false;
    }
    if (!seeds.hash(key, hashes[count])) return false;
    const Found found = find_key(view, key, buckets_of(view.geometry, key));
    ops[count++] = static_cast<uint8_t>(found.ready ? RemoteOp::publish : RemoteOp::evict);
    return true;
  });
}

// Blocks of the records [first, end) that can be read: in memory, and from record_count on those on SSD. How many;
// there is room for `end - first`.
inline uint32_t read_holdings(const View& view, uint32_t first, uint32_t end, uint64_t* hashes,
                              uint8_t* tiers) noexcept {
  RemoteSeeds seeds(view);
  const Geometry& geometry = view.geometry;
  uint32_t count = 0;
  for (uint32_t record = first; record < end; ++record) {
    if (record < geometry.record_count) {
      const Block& block = view.block(record);
      const uint64_t state = load_acquire(block.state);
      if (block_tag(state) != BlockTag::ready) continue;
      const Key key = read_key(block);
      if (load_acquire(block.state) != state || !seeds.hash(key, hashes[count])) continue;
      tiers[count++] = tier_memory;
    } else if (record - geometry.record_count < geometry.spill_record_count) {
      const SpillRecord& spilled = view.spill(record - geometry.record_count);
      const uint64_t state = load_acquire(spilled.state);
      if (!spill_stored(state) || spill_file(state) >= spill_file_count ||
          (load_relaxed(view.header().spill_usable) >> spill_file(state) & 1) == 0) {  // SYNC none
        continue;
      }
      Key key;
      for (uint32_t i = 0; i < key_words; ++i) key.words[i] = load_acquire(spilled.key[i]);
      key.identity = load_acquire(spilled.identity);
      if (load_acquire(spilled.state) != state || !seeds.hash(key, hashes[count])) continue;
      tiers[count++] = tier_ssd;
    }
  }
  return count;
}

}  // namespace pegashm
