// In which tiers is a block of one namespace, and which of its blocks changed? For who keeps a list of them in step.
//
// Called by engines that tell a router what they can load (KV events). The journal only says which keys to look at:
// what counts is how each stands when it is read, since events of two lives of a key may have been appended the wrong
// way round, and a dead process's are missing. Blocks being evicted count as there until their entry is erased: an
// eviction that puts its block back appends no event, one that goes on does so after it. Reads only, bounded, no locks.
#pragma once

#include "holdings.hpp"

namespace pegashm {

// Tiers of a key's block on this host, as bits (tier_memory, tier_ssd).
inline uint8_t residency(const View& view, const Key& key) noexcept {
  const Buckets buckets = buckets_of(view.geometry, key);
  uint32_t tiers = 0;
  for (uint32_t matches = matches_of(view, buckets); matches != 0; matches &= matches - 1) {
    const uint64_t entry = matching_entry(view, buckets, matches);
    if (entry_fingerprint(entry) != buckets.fingerprint) continue;
    const uint32_t record = entry_record(entry);
    if (record >= view.geometry.record_count) {
      if (is_spilled(view, entry, key)) tiers |= tier_ssd;
      continue;
    }
    const Block& block = view.block(record);
    const uint64_t state = load_acquire(block.state);
    const BlockTag tag = block_tag(state);
    if ((tag == BlockTag::ready || tag == BlockTag::evicting) &&
        (block_generation(state) & 0xFFFF) == entry_generation(entry) && same_key(block, key) &&
        block_generation(load_acquire(block.state)) == block_generation(state)) {
      tiers |= tier_memory;
    }
  }
  return static_cast<uint8_t>(tiers);
}

// Whether a key that was read from shared memory can be one of this namespace.
inline bool is_of(const Key& key, uint32_t namespace_id) noexcept {
  const uint64_t bytes = key.identity >> 48 & 0xFF;
  return identity_namespace(key.identity) == namespace_id && bytes >= 1 && bytes <= key_bytes_max;
}

// Keys of a namespace that events after `after` speak of, as read_events(): at most `limit` events are read.
inline EventsRead read_changed(const View& view, uint64_t after, uint64_t settled, uint32_t limit,
                               uint32_t namespace_id, Key* keys) noexcept {
  return read_journal(view, after, settled, limit, [&](const Key& key, uint64_t) noexcept {
    if (!is_of(key, namespace_id)) return false;
    *keys++ = key;
    return true;
  });
}

struct Residents {
  uint32_t next;  // the first record that was not looked at
  uint32_t count;  // keys written out
};

// Keys of a namespace in the records from `first` on, spill records behind the others: until `records_max` were looked
// at or `keys_max` found.
inline Residents read_residents(const View& view, uint32_t namespace_id, uint32_t first,
                                uint32_t records_max, uint32_t keys_max, Key* keys) noexcept {
  const Geometry& geometry = view.geometry;
  const uint32_t total = geometry.record_count + geometry.spill_record_count;
  Residents found{first, 0};
  for (uint32_t seen = 0; seen < records_max && found.next < total && found.count < keys_max;
       ++seen) {
    const uint32_t record = found.next++;
    Key key;
    if (record < geometry.record_count) {
      const Block& block = view.block(record);
      const uint64_t state = load_acquire(block.state);
      if (block_tag(state) != BlockTag::ready) continue;
      key = read_key(block);
      if (load_acquire(block.state) != state) continue;
    } else {
      const SpillRecord& spilled = view.spill(record - geometry.record_count);
      const uint64_t state = load_acquire(spilled.state);
      if (!spill_stored(state)) continue;
      for (uint32_t i = 0; i < key_words; ++i) key.words[i] = load_acquire(spilled.key[i]);
      key.identity = load_acquire(spilled.identity);
      if (load_acquire(spilled.state) != state) continue;
    }
    if (is_of(key, namespace_id)) keys[found.count++] = key;
  }
  return found;
}

}  // namespace pegashm
