// Do other hosts hold the block of a key? How a lookup reads the hints that the directory keeps.
//
// A table of its own beside the index: a hint is one word, so that it is whole or not there, and names a host by
// its number, the tiers in which that host has the block, and 50 bits of the key's remote hash. That hash is made
// of the namespace's fingerprint instead of its id, so that it is the same on every host. Whoever believes a hint
// asks the host it names, which compares the whole key: a false or stale one costs a fetch that fails.
// Read by every lookup of a key that is on this host in no tier, while the summary word says that some host can be
// asked; written by the transport worker alone (remote_table.hpp).
#pragma once

#include "states.hpp"
#include "view.hpp"

namespace pegashm {

// Tiers of a hint, as bits.
inline constexpr uint32_t tier_memory = 1;
inline constexpr uint32_t tier_ssd = 2;
inline constexpr uint32_t tier_any = tier_memory | tier_ssd;

struct RemoteBuckets {
  uint64_t first;
  uint64_t second;
  uint64_t fingerprint;  // 50 bits
};

constexpr uint64_t remote_entry(uint32_t host, uint32_t tier, uint64_t fingerprint) noexcept {
  return uint64_t{host & (remote_host_count - 1)} | uint64_t{tier & tier_any} << 12 |
         fingerprint << 14;
}
constexpr uint32_t remote_entry_host(uint64_t entry) noexcept {
  return static_cast<uint32_t>(entry & (remote_host_count - 1));
}
constexpr uint32_t remote_entry_tier(uint64_t entry) noexcept {
  return static_cast<uint32_t>(entry >> 12 & tier_any);
}
constexpr uint64_t remote_entry_fingerprint(uint64_t entry) noexcept { return entry >> 14; }

// Part of what hosts tell each other: remote_hash_version.
inline uint64_t remote_seed(const uint64_t (&fingerprint)[4]) noexcept {
  uint64_t seed = 0x8EBC6AF09C88C6E3;
  for (const uint64_t word : fingerprint) seed = mix(seed, word);
  return seed;
}

inline uint64_t remote_hash(uint64_t seed, const Key& key) noexcept {
  uint64_t hash = mix(seed, key.identity >> 32);  // group and length; the namespace is in the seed
  for (const uint64_t word : key.words) hash = mix(hash, word);
  // As in buckets_of(): one round carries the last word's high bits to no low ones.
  return mix(mix(hash, 0xD6E8FEB86659FD93), 0xA0761D6478BD642F);
}

// Both buckets lie in one page of memory: in a table of gigabytes a second page would be a second walk of the page
// tables, which costs more than the line. Pages are not as many as a power of two: one is found by multiplication.
inline RemoteBuckets remote_buckets_of(const Geometry& geometry, uint64_t hash) noexcept {
  const uint64_t spread = mix(hash, 0xE7037ED1A0B428DB);
  const uint64_t pages = geometry.remote_bucket_count / remote_page_buckets;
  const uint64_t page = ((spread >> 32) * pages >> 32) * remote_page_buckets;
  const uint64_t first = spread % remote_page_buckets;
  uint64_t second = spread / remote_page_buckets % remote_page_buckets;
  if (second == first) second = (first + 1) % remote_page_buckets;
  return {page + first, page + second, hash >> 14};
}

// Of several keys in one tight loop, and not one by one between other work: a prefetch waits for the walk of the page
// tables, and only walks that are close to each other in the instruction stream overlap.
inline void prefetch_remote(const View& view, const RemoteBuckets& buckets) noexcept {
  __builtin_prefetch(&view.remote_bucket(buckets.first));
  __builtin_prefetch(&view.remote_bucket(buckets.second));
}

// Which of the words of bits have one on: what the header's `remote_usable` says, so that lookups ask one word.
inline uint64_t remote_summary(const View& view) noexcept {
  uint64_t summary = 0;
  for (uint32_t i = 0; i < remote_host_count / 64; ++i) {
    if (load_acquire(view.remote_hosts().usable[i]) != 0) summary |= uint64_t{1} << i;
  }
  return summary;
}

inline bool host_usable(const View& view, uint32_t host) noexcept {
  // SYNC none: a bit that is seen late costs a fetch that fails, or a hit.
  return (load_relaxed(view.remote_hosts().usable[host / 64]) >> (host % 64) & 1) != 0;
}

// Whether a host that can be asked has such a block, as far as we were told.
inline bool is_remote(const View& view, const RemoteBuckets& buckets) noexcept {
  for (const uint64_t bucket : {buckets.first, buckets.second}) {
    for (const uint64_t& word : view.remote_bucket(bucket).entries) {
      const uint64_t entry = load_relaxed(word);  // SYNC none: one word, whole in itself
      if (remote_entry_fingerprint(entry) == buckets.fingerprint && remote_entry_tier(entry) != 0 &&
          host_usable(view, remote_entry_host(entry))) {
        return true;
      }
    }
  }
  return false;
}

// The seed of a namespace, while it lives.
inline bool seed_of(const View& view, uint32_t id, uint64_t& seed) noexcept {
  const uint32_t slot = namespace_slot(id);
  if (slot >= namespace_count) return false;
  const NamespaceEntry& entry = view.name_space(slot);
  const uint64_t live = namespace_state(true, id >> 16);
  // SYNC namespace: the acquire load of a live state makes the fingerprint visible; looked at again, since the
  // slot may get its next namespace meanwhile. Pairs with register_namespace().
  if (load_acquire(entry.state) != live) return false;
  uint64_t fingerprint[4];
  for (uint32_t i = 0; i < 4; ++i) {
    fingerprint[i] = load_acquire(reinterpret_cast<const uint64_t*>(entry.fingerprint)[i]);
  }
  seed = remote_seed(fingerprint);
  return load_acquire(entry.state) == live;
}

// Seeds already looked up, for who goes through keys of one namespace, or of a few in turn.
class RemoteSeeds {
 public:
  explicit RemoteSeeds(const View& view) noexcept : view_(view) {}

  // The remote hash of a key; false when its namespace is no more.
  bool hash(const Key& key, uint64_t& out) noexcept {
    const uint32_t id = identity_namespace(key.identity);
    if (!known_ || id != id_) {
      id_ = id;
      known_ = true;
      live_ = seed_of(view_, id, seed_);
    }
    if (live_) out = remote_hash(seed_, key);
    return live_;
  }

 private:
  const View& view_;
  uint64_t seed_ = 0;
  uint32_t id_ = 0;
  bool known_ = false;
  bool live_ = false;
};

// One batch's lookups among the hints: whether there are any to look at is asked once.
class RemoteLookup {
 public:
  explicit RemoteLookup(const View& view) noexcept
      : view_(view),
        seeds_(view),
        on_(view.geometry.remote_bucket_count != 0 &&
            load_relaxed(view.header().remote_usable) != 0) {}  // SYNC none: as host_usable()

  bool on() const noexcept { return on_; }

  // Where to look; false: there is nothing to look at. Loads nothing: see prefetch_remote().
  bool begin(const Key& key, RemoteBuckets& buckets) noexcept {
    uint64_t hash = 0;
    if (!seeds_.hash(key, hash)) return false;
    buckets = remote_buckets_of(view_.geometry, hash);
    return true;
  }

 private:
  const View& view_;
  RemoteSeeds seeds_;
  const bool on_;
};

}  // namespace pegashm
