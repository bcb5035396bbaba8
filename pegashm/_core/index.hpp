// Where is the block of a key? Two candidate buckets of one cache line each, in one page of memory; no relocation,
// no tombstones.
//
// Blocks in memory and on SSD are listed alike (record numbers from record_count on are spill records), so
// that one lookup sees both tiers.
// An entry is a hint: the record's state, generation and whole key decide. So a lookup costs at most two
// buckets plus the records whose fingerprint matches, whatever the fill. Any process may overwrite an
// entry whose record has moved on; entries carry 16 bits of the generation, so that an old entry and a
// new one of the same record differ and cannot be mistaken in a CAS.
// Two-choice buckets: Azar, Broder, Karlin, Upfal, "Balanced Allocations" (1994).
#pragma once

#include <bit>

#include "crash.hpp"
#include "match.hpp"
#include "states.hpp"
#include "status.hpp"
#include "view.hpp"

namespace pegashm {

struct Buckets {
  uint64_t first;
  uint64_t second;
  uint64_t fingerprint;  // 24 bits, never 0
};

inline Buckets buckets_of(const Geometry& geometry, const Key& key) noexcept {
  // Keys are hashes already; identity is not, and short hashes leave words zero.
  uint64_t hash = mix(0x2545F4914F6CDD1D, key.identity);
  for (const uint64_t word : key.words) hash = mix(hash, word);
  // Twice more, since one round carries the last word's high bits to no low ones: keys that differ there
  // alone (counters) would all have the same first bucket.
  const uint64_t other = mix(hash, 0xD6E8FEB86659FD93);
  const uint64_t another = mix(other, 0xA0761D6478BD642F);
  const uint64_t mask = geometry.bucket_count - 1;
  const uint64_t in_page = std::min(mask, bucket_page - 1);
  const uint64_t fingerprint = other >> 40;
  const uint64_t first = another & mask;
  // Both lie in one page: a second one would be a second walk of the page tables, which costs more than the line.
  uint64_t second = (first & ~in_page) | (other & in_page);
  if (second == first) second ^= 1 & mask;
  return {first, second, fingerprint == 0 ? 1 : fingerprint};
}

constexpr uint64_t make_entry(uint32_t record, uint64_t generation, uint64_t fingerprint) noexcept {
  return uint64_t{record} | (generation & 0xFFFF) << 24 | fingerprint << 40;
}
constexpr uint32_t entry_record(uint64_t entry) noexcept {
  return static_cast<uint32_t>(entry & (record_count_max - 1));
}
constexpr uint64_t entry_generation(uint64_t entry) noexcept { return entry >> 24 & 0xFFFF; }
constexpr uint64_t entry_fingerprint(uint64_t entry) noexcept { return entry >> 40; }

inline bool same_key(const Block& block, const Key& key) noexcept {
  // SYNC key/state: acquire, so that who reads a word of a later life also sees that life's state.
  // Pairs with write_key().
  for (uint32_t i = 0; i < key_words; ++i) {
    if (load_acquire(block.key[i]) != key.words[i]) return false;
  }
  return load_acquire(block.identity) == key.identity;
}

inline void write_key(Block& block, const Key& key) noexcept {
  for (uint32_t i = 0; i < key_words; ++i) store_release(block.key[i], key.words[i]);
  crash_point(CrashPoint::fill_key_written);
  store_release(block.identity, key.identity);
}

inline Key read_key(const Block& block) noexcept {
  Key key;
  for (uint32_t i = 0; i < key_words; ++i) key.words[i] = load_acquire(block.key[i]);
  key.identity = load_acquire(block.identity);
  return key;
}

struct Found {
  uint64_t handle = 0;  // of a READY or CLAIMED record
  bool ready = false;
  bool spilled = false;  // on SSD, in a file that is in use
};

// The spill record that an entry names; null when it names a block in memory, or nothing.
inline SpillRecord* named_spill(const View& view, uint64_t entry) noexcept {
  const uint32_t record = entry_record(entry);
  const Geometry& geometry = view.geometry;
  if (record < geometry.record_count ||
      record - geometry.record_count >= geometry.spill_record_count) {
    return nullptr;
  }
  return &view.spill(record - geometry.record_count);
}

// SYNC spill/find: the acquire load of the state makes its record's key visible; it is read again after
// the key. Pairs with SpillTable::store().
inline bool is_spilled(const View& view, uint64_t entry, const Key& key) noexcept {
  const SpillRecord* const record = named_spill(view, entry);
  if (record == nullptr) return false;
  const uint64_t state = load_acquire(record->state);
  if (!spill_stored(state) || (block_generation(state) & 0xFFFF) != entry_generation(entry) ||
      spill_file(state) >= spill_file_count ||
      (load_relaxed(view.header().spill_usable) >> spill_file(state) & 1) == 0) {  // SYNC none
    return false;
  }
  for (uint32_t i = 0; i < key_words; ++i) {
    if (load_acquire(record->key[i]) != key.words[i]) return false;
  }
  return load_acquire(record->identity) == key.identity && load_acquire(record->state) == state;
}

// The entries with the fingerprint, as bits: the second bucket's follow the first's.
inline uint32_t matches_of(const View& view, const Buckets& buckets) noexcept {
  const auto top = static_cast<uint32_t>(buckets.fingerprint);
  return match_tops(view.bucket(buckets.first).entries, top) |
         match_tops(view.bucket(buckets.second).entries, top) << entries_per_bucket;
}

inline uint64_t matching_entry(const View& view, const Buckets& buckets,
                               uint32_t matches) noexcept {
  const auto at = static_cast<uint32_t>(std::countr_zero(matches));
  // Without a branch, since which of the two it is cannot be guessed.
  const uint64_t other = uint64_t{0} - (at / entries_per_bucket);
  const uint64_t bucket = buckets.first ^ ((buckets.first ^ buckets.second) & other);
  return load_acquire(view.bucket(bucket).entries[at % entries_per_bucket]);
}

// SYNC publish/find: the acquire load of READY makes the claimer's key and payload visible.
// Pairs with publish().
inline Found find_among(const View& view, const Key& key, const Buckets& buckets,
                        uint32_t matches) noexcept {
  Found found;
  for (; matches != 0; matches &= matches - 1) {
    const uint64_t entry = matching_entry(view, buckets, matches);
    if (entry_fingerprint(entry) != buckets.fingerprint) continue;
    const uint32_t record = entry_record(entry);
    if (record >= view.geometry.record_count) {
      found.spilled = found.spilled || is_spilled(view, entry, key);
      continue;
    }
    const Block& block = view.block(record);
    const uint64_t state = load_acquire(block.state);
    const BlockTag tag = block_tag(state);
    if ((tag != BlockTag::ready && tag != BlockTag::claimed) ||
        (block_generation(state) & 0xFFFF) != entry_generation(entry) || !same_key(block, key) ||
        load_acquire(block.state) != state) {
      continue;
    }
    found.handle = make_handle(record, block_generation(state));
    found.ready = tag == BlockTag::ready;
    if (found.ready) break;
  }
  return found;
}

inline Found find_key(const View& view, const Key& key, const Buckets& buckets) noexcept {
  return find_among(view, key, buckets, matches_of(view, buckets));
}

inline void prefetch_buckets(const View& view, const Buckets& buckets) noexcept {
  __builtin_prefetch(&view.bucket(buckets.first));
  __builtin_prefetch(&view.bucket(buckets.second));
}

// The record that the first match names, a block's or one on SSD; null: it names nothing any more.
inline const void* matching_record(const View& view, const Buckets& buckets,
                                   uint32_t matches) noexcept {
  const uint64_t entry = matching_entry(view, buckets, matches);
  const uint32_t record = entry_record(entry);
  return record < view.geometry.record_count ? static_cast<const void*>(&view.block(record))
                                             : named_spill(view, entry);
}

// Whether an entry's record has moved on, so that the entry may be overwritten.
inline bool is_stale(const View& view, uint64_t entry) noexcept {
  const uint32_t record = entry_record(entry);
  if (record >= view.geometry.record_count) {
    const SpillRecord* const spilled = named_spill(view, entry);
    if (spilled == nullptr) return true;
    const uint64_t state = load_acquire(spilled->state);
    return !spill_stored(state) || (block_generation(state) & 0xFFFF) != entry_generation(entry);
  }
  const uint64_t state = load_acquire(view.block(record).state);
  return block_tag(state) == BlockTag::free ||
         (block_generation(state) & 0xFFFF) != entry_generation(entry);
}

inline bool insert_in_bucket(const View& view, uint64_t bucket, uint64_t entry,
                             bool over_stale) noexcept {
  for (uint64_t& word : view.bucket(bucket).entries) {
    const uint64_t present = load_acquire(word);
    if (present == entry) return true;
    if (present == 0 || (over_stale && is_stale(view, present))) {
      if (cas_seq(word, present, entry)) return true;
    }
  }
  return false;
}

inline uint32_t empty_entries(const View& view, uint64_t bucket) noexcept {
  uint32_t empty = 0;
  for (uint64_t& word : view.bucket(bucket).entries) {
    empty += load_relaxed(word) == 0 ? 1u : 0u;  // SYNC none: balances load, decides nothing
  }
  return empty;
}

// False when both buckets are full of entries that live.
inline bool insert_entry(const View& view, const Buckets& buckets, uint64_t handle) noexcept {
  const uint64_t entry =
      make_entry(handle_record(handle), handle_generation(handle), buckets.fingerprint);
  const bool second_emptier =
      empty_entries(view, buckets.second) > empty_entries(view, buckets.first);
  const uint64_t order[2] = {second_emptier ? buckets.second : buckets.first,
                             second_emptier ? buckets.first : buckets.second};
  for (const bool over_stale : {false, true}) {
    for (const uint64_t bucket : order) {
      if (insert_in_bucket(view, bucket, entry, over_stale)) return true;
    }
  }
  return false;
}

inline void erase_entry(const View& view, const Buckets& buckets, uint64_t handle) noexcept {
  const uint64_t entry =
      make_entry(handle_record(handle), handle_generation(handle), buckets.fingerprint);
  for (const uint64_t bucket : {buckets.first, buckets.second}) {
    for (uint64_t& word : view.bucket(bucket).entries) {
      if (load_acquire(word) == entry) cas_seq(word, entry, 0);
    }
  }
}

}  // namespace pegashm
