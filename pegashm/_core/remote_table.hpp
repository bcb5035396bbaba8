// Which blocks do which other hosts hold? The table of hints that lookups read, and its one writer.
//
// All of it is a hint, kept in bounded memory: a hint that finds no place pushes out another. So the table needs no
// repair. Whoever holds the kernel lock of the transport worker writes it, and begins with clear(). A hint is one
// word, stored whole; a host's hints count only while its bit is on, so that a lost host is a miss at once and its
// hints are swept out later. A block that many hosts hold is listed for `copies_max` of them: one that all hold
// must not fill its two buckets. Death rows 44 and 45.
#pragma once

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "crash.hpp"
#include "remote.hpp"

namespace pegashm {

// What a host tells about a block. Numbers of FORMAT.md, "Messages of the directory".
enum class RemoteOp : uint8_t { publish = 1, evict = 2, spilled = 3, unspilled = 4 };

// What tools show of a host; labels all.
struct RemoteLabels {
  const uint8_t* host_id;  // 16 bytes each
  const uint8_t* incarnation;
  uint64_t sequence;
  uint64_t events;
  uint64_t heard_at_ns;
  const char* address;
  uint64_t address_bytes;
};

class RemoteTable {
 public:
  static constexpr uint32_t copies_max = 4;
  static constexpr uint16_t nobody = 0xFFFF;

  // Throws bad_alloc.
  explicit RemoteTable(const View& view)
      : view_(view), hints_(remote_host_count), retired_(remote_host_count) {}
  RemoteTable(const RemoteTable&) = delete;
  RemoteTable& operator=(const RemoteTable&) = delete;

  uint64_t capacity() const noexcept {
    return view_.geometry.remote_bucket_count * entries_per_bucket;
  }
  uint64_t size() const noexcept {
    const std::lock_guard guard(mutex_);
    return size_;
  }
  uint64_t displaced() const noexcept {
    const std::lock_guard guard(mutex_);
    return displaced_;
  }
  uint64_t hints(uint32_t host) const noexcept {
    const std::lock_guard guard(mutex_);
    return hints_[host];
  }

  // Forgets everything. First of all: what a former writer left is not believed.
  void clear() noexcept {
    const std::lock_guard guard(mutex_);
    size_ = displaced_ = 0;
    hints_.assign(remote_host_count, 0);
    retired_.assign(remote_host_count, 0);
    if (capacity() == 0) return;
    store_release(view_.header().remote_usable, 0);
    crash_point(CrashPoint::remote_unusable);
    for (uint64_t& word : view_.remote_hosts().usable) store_release(word, 0);
    crash_point(CrashPoint::remote_bits_cleared);
    for (uint32_t host = 0; host < remote_host_count; ++host) clear_labels(host);
    for (uint64_t bucket = 0; bucket < view_.geometry.remote_bucket_count; ++bucket) {
      for (uint64_t& word : view_.remote_bucket(bucket).entries) {
        if (load_relaxed(word) != 0) erase(word);  // SYNC none: ours alone to write
      }
    }
  }

  // Whether lookups may see this host's hints.
  void set_usable(uint32_t host, bool usable) noexcept {
    const std::lock_guard guard(mutex_);
    if (capacity() != 0) write_usable(host, usable);
  }
  // No host's.
  void set_none_usable() noexcept {
    const std::lock_guard guard(mutex_);
    if (capacity() == 0) return;
    store_release(view_.header().remote_usable, 0);
    crash_point(CrashPoint::remote_unusable);
    for (uint64_t& word : view_.remote_hosts().usable) store_release(word, 0);
    crash_point(CrashPoint::remote_bits_cleared);
  }

  // `host` has these blocks in `tier` (as well); how many hints are new.
  uint64_t add(uint32_t host, const uint64_t* hashes, uint64_t count, uint32_t tier) noexcept {
    return each(hashes, count, [&](uint64_t i, const RemoteBuckets& at) noexcept {
      (void)i;
      return put(host, at, tier);
    });
  }
  // `host` has them in `tier` no more; how many hints are gone.
  uint64_t remove(uint32_t host, const uint64_t* hashes, uint64_t count, uint32_t tier) noexcept {
    return each(hashes, count, [&](uint64_t i, const RemoteBuckets& at) noexcept {
      (void)i;
      return take(host, at, tier);
    });
  }
  // What a host told, in its order; an operation that is none is passed over.
  void apply(uint32_t host, const uint8_t* ops, const uint64_t* hashes, uint64_t count) noexcept {
    each(hashes, count, [&](uint64_t i, const RemoteBuckets& at) noexcept {
      switch (static_cast<RemoteOp>(ops[i])) {
        case RemoteOp::publish:
          return put(host, at, tier_memory);
        case RemoteOp::spilled:
          return put(host, at, tier_ssd);
        case RemoteOp::evict:
          return take(host, at, tier_memory);
        case RemoteOp::unspilled:
          return take(host, at, tier_ssd);
      }
      return false;
    });
  }

  // Its hints count no more, and may be overwritten. Its number is free again after drop().
  void retire(uint32_t host) noexcept {
    const std::lock_guard guard(mutex_);
    if (capacity() == 0) return;
    write_usable(host, false);
    clear_labels(host);
    retired_[host] = 1;
  }
  // They may be overwritten, but count until drop(): it is about to tell all that it holds.
  void begin_anew(uint32_t host) noexcept {
    const std::lock_guard guard(mutex_);
    if (hints_[host] != 0) retired_[host] = 1;
  }
  // Takes out all hints of hosts retired, or beginning anew, in one pass; how many. Others go on between parts of it.
  uint64_t drop() noexcept {
    constexpr uint64_t step = 1 << 14;
    std::unique_lock guard(mutex_);
    uint32_t left = 0;
    bool chosen[remote_host_count];
    for (uint32_t host = 0; host < remote_host_count; ++host) {
      chosen[host] = retired_[host] != 0;
      left += chosen[host] ? 1u : 0u;
    }
    uint64_t dropped = 0;
    if (left == 0) return 0;
    for (uint64_t first = 0; first < view_.geometry.remote_bucket_count; first += step) {
      const uint64_t end = std::min(first + step, view_.geometry.remote_bucket_count);
      for (uint64_t bucket = first; bucket < end; ++bucket) {
        for (uint64_t& word : view_.remote_bucket(bucket).entries) {
          const uint64_t entry = load_relaxed(word);  // SYNC none: ours alone to write
          if (entry == 0 || !chosen[remote_entry_host(entry)]) continue;
          forget(entry);
          erase(word);
          ++dropped;
        }
      }
      guard.unlock();
      guard.lock();
    }
    for (uint32_t host = 0; host < remote_host_count; ++host) {
      if (!chosen[host]) continue;
      hints_[host] = 0;  // also what damage had taken out
      retired_[host] = 0;
    }
    return dropped;
  }

  // Up to `copies_max` hosts in use for each hash, and in which tiers they have it; the rest `nobody`.
  void find(const uint64_t* hashes, uint64_t count, uint16_t* hosts,
            uint8_t* tiers) const noexcept {
    for (uint64_t i = 0; i < count * copies_max; ++i) {
      hosts[i] = nobody;
      tiers[i] = 0;
    }
    if (capacity() == 0) return;
    for (uint64_t i = 0; i < count; ++i) {
      const RemoteBuckets buckets = remote_buckets_of(view_.geometry, hashes[i]);
      uint32_t found = 0;
      for (const uint64_t bucket : {buckets.first, buckets.second}) {
        for (const uint64_t& word : view_.remote_bucket(bucket).entries) {
          const uint64_t entry = load_relaxed(word);  // SYNC none: one word, whole in itself
          if (found == copies_max || remote_entry_fingerprint(entry) != buckets.fingerprint ||
              remote_entry_tier(entry) == 0 || !host_usable(view_, remote_entry_host(entry))) {
            continue;
          }
          hosts[i * copies_max + found] = static_cast<uint16_t>(remote_entry_host(entry));
          tiers[i * copies_max + found++] = static_cast<uint8_t>(remote_entry_tier(entry));
        }
      }
    }
  }

  // Writes what tools show of a host, with how many hints of it there are.
  void describe(uint32_t host, const RemoteLabels& labels) noexcept {
    const std::lock_guard guard(mutex_);
    if (capacity() == 0) return;
    RemoteHost& record = view_.remote_hosts().hosts[host];
    const uint64_t bytes = std::min(labels.address_bytes, uint64_t{sizeof record.address});
    std::memcpy(record.host_id, labels.host_id, sizeof record.host_id);
    std::memcpy(record.incarnation, labels.incarnation, sizeof record.incarnation);
    record.address_bytes = static_cast<uint32_t>(bytes);
    std::memset(record.address, 0, sizeof record.address);
    std::memcpy(record.address, labels.address, bytes);
    store_relaxed(record.sequence, labels.sequence);  // SYNC none: labels
    store_relaxed(record.events, labels.events);
    store_relaxed(record.hints, hints_[host]);
    store_relaxed(record.heard_at_ns, labels.heard_at_ns);
    crash_point(CrashPoint::remote_labels_written);
  }

 private:
  // In lots under the lock, and in them in parts whose buckets are all on their way before the first is looked at.
  template <typename Act>
  uint64_t each(const uint64_t* hashes, uint64_t count, const Act& act) noexcept {
    constexpr uint64_t ahead = 16, lot = 1024;
    uint64_t changed = 0;
    if (capacity() == 0) return 0;
    for (uint64_t base = 0; base < count; base += lot) {
      const std::lock_guard guard(mutex_);
      const uint64_t end = std::min(base + lot, count);
      for (uint64_t first = base; first < end; first += ahead) {
        RemoteBuckets at[ahead];
        const uint64_t last = std::min(first + ahead, end);
        for (uint64_t i = first; i < last; ++i) {
          at[i - first] = remote_buckets_of(view_.geometry, hashes[i]);
        }
        for (uint64_t i = first; i < last; ++i) prefetch_remote(view_, at[i - first]);
        for (uint64_t i = first; i < last; ++i) changed += act(i, at[i - first]) ? 1u : 0u;
      }
    }
    return changed;
  }

  bool put(uint32_t host, const RemoteBuckets& at, uint32_t tier) noexcept {
    uint64_t* copies[2 * entries_per_bucket];
    uint64_t* empty[2] = {nullptr, nullptr};
    uint32_t room[2] = {0, 0};
    uint64_t* worthless = nullptr;
    uint32_t copy_count = 0;
    const uint64_t buckets[2] = {at.first, at.second};
    for (uint32_t b = 0; b < 2; ++b) {
      for (uint64_t& word : view_.remote_bucket(buckets[b]).entries) {
        const uint64_t entry = load_relaxed(word);  // SYNC none: ours alone to write
        const uint32_t there = remote_entry_host(entry);
        if (entry == 0) {
          empty[b] = &word;
          ++room[b];
        } else if (retired_[there] != 0 || remote_entry_tier(entry) == 0) {
          worthless = &word;
        } else if (remote_entry_fingerprint(entry) == at.fingerprint) {
          if (there == host) {
            const uint64_t wider =
                remote_entry(host, remote_entry_tier(entry) | tier, at.fingerprint);
            if (wider != entry) write(word, wider);
            return false;
          }
          copies[copy_count++] = &word;
        }
      }
    }
    uint64_t* place = room[1] > room[0] ? empty[1] : empty[0];
    if (copy_count >= copies_max) {
      place = copies[turn() % copy_count];
    } else if (place == nullptr) {
      place = worthless;
    }
    if (place == nullptr) {
      const uint32_t chance = turn() % (2 * entries_per_bucket);
      place = &view_.remote_bucket(buckets[chance & 1]).entries[chance / 2];
      ++displaced_;
    }
    if (load_relaxed(*place) != 0) forget(load_relaxed(*place));  // SYNC none: ours alone to write
    write(*place, remote_entry(host, tier, at.fingerprint));
    ++hints_[host];
    ++size_;
    return true;
  }

  bool take(uint32_t host, const RemoteBuckets& at, uint32_t tier) noexcept {
    for (const uint64_t bucket : {at.first, at.second}) {
      for (uint64_t& word : view_.remote_bucket(bucket).entries) {
        const uint64_t entry = load_relaxed(word);  // SYNC none: ours alone to write
        if (remote_entry_fingerprint(entry) != at.fingerprint || entry == 0 ||
            remote_entry_host(entry) != host) {
          continue;
        }
        const uint32_t left = remote_entry_tier(entry) & ~tier;
        if (left != 0) {
          write(word, remote_entry(host, left, at.fingerprint));
          return false;
        }
        forget(entry);
        erase(word);
        return true;
      }
    }
    return false;
  }

  void write(uint64_t& word, uint64_t entry) noexcept {
    store_release(word, entry);
    crash_point(CrashPoint::remote_hint_written);
  }
  void erase(uint64_t& word) noexcept {
    store_release(word, 0);
    crash_point(CrashPoint::remote_hint_erased);
  }
  // Private accounts of a hint that goes; damage may have brought in one that was never counted.
  void forget(uint64_t entry) noexcept {
    uint32_t& hints = hints_[remote_entry_host(entry)];
    if (hints != 0) --hints;
    if (size_ != 0) --size_;
  }

  void clear_labels(uint32_t host) noexcept {
    RemoteHost& record = view_.remote_hosts().hosts[host];
    const RemoteHost blank{};
    if (std::memcmp(&record, &blank, sizeof blank) != 0) record = blank;
  }

  void write_usable(uint32_t host, bool usable) noexcept {
    uint64_t& word = view_.remote_hosts().usable[host / 64];
    const uint64_t bit = uint64_t{1} << (host % 64);
    const uint64_t now = load_relaxed(word);  // SYNC none: ours alone to write
    store_release(word, usable ? now | bit : now & ~bit);
    crash_point(CrashPoint::remote_bit_written);
    store_release(view_.header().remote_usable, remote_summary(view_));
    crash_point(CrashPoint::remote_summary_written);
  }

  // Which of several is as good as any other: cheap, and not the same each time.
  uint32_t turn() noexcept {
    turn_ = mix(turn_, 0x9E6C63D0876A9A35) + 1;
    return static_cast<uint32_t>(turn_ >> 33);
  }

  const View view_;
  std::vector<uint32_t> hints_;  // by host
  std::vector<uint8_t> retired_;
  uint64_t size_ = 0;
  uint64_t displaced_ = 0;
  uint64_t turn_ = 0;
  mutable std::mutex mutex_;
};

}  // namespace pegashm
