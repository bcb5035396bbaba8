// Which blocks lie on SSD? The table that makes them visible to every lookup, and its one writer.
//
// A table of hints: the file describes itself, and a payload read from it is verified before anybody uses
// it. So the table needs no repair. Whoever holds the kernel lock of the transport worker writes it, and
// begins with clear(); engines only read it, in find_key(). A record is written while it is free, then its
// state is stored, then its index entry; taking it out goes the other way round. Death rows 40 to 42.
#pragma once

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "crash.hpp"
#include "index.hpp"
#include "journal.hpp"
#include "remote_table.hpp"

namespace pegashm {

// What is stored of one block on SSD.
struct Spilled {
  Key key;
  uint32_t file;
  uint64_t file_offset;
  uint64_t payload_bytes;
  uint64_t checksum;
  uint64_t sum_layout;
  uint64_t published_at_ns;
  uint64_t sequence;
};

inline Key spill_key(const SpillRecord& record) noexcept {
  Key key;
  for (uint32_t i = 0; i < key_words; ++i) key.words[i] = load_acquire(record.key[i]);
  key.identity = load_acquire(record.identity);
  return key;
}

inline bool is_listed(const View& view, uint32_t index) noexcept {
  return spill_stored(load_acquire(view.spill(index).state));
}

inline void read_spilled(const View& view, uint32_t index, Spilled& out) noexcept {
  const SpillRecord& record = view.spill(index);
  out.key = spill_key(record);
  out.file = spill_file(load_acquire(record.state));
  out.file_offset = load_acquire(record.file_offset);
  out.payload_bytes = load_acquire(record.payload_bytes);
  out.checksum = load_acquire(record.checksum);
  out.sum_layout = load_acquire(record.sum_layout);
  out.published_at_ns = load_acquire(record.published_at_ns);
  out.sequence = load_acquire(record.sequence);
}

class SpillTable {
 public:
  static constexpr uint32_t none = ~uint32_t{0};

  // Throws bad_alloc.
  explicit SpillTable(const View& view)
      : view_(view),
        links_(view.geometry.spill_record_count),
        free_(view.geometry.spill_record_count) {}
  SpillTable(const SpillTable&) = delete;
  SpillTable& operator=(const SpillTable&) = delete;

  uint32_t capacity() const noexcept { return view_.geometry.spill_record_count; }
  uint32_t size() const noexcept {
    const std::lock_guard guard(mutex_);
    return capacity() - free_count_;
  }

  // Forgets everything. First of all: what a former writer left is not believed.
  void clear() noexcept {
    const std::lock_guard guard(mutex_);
    store_release(view_.header().spill_usable, 0);
    crash_point(CrashPoint::spill_unusable);
    store_release(seen_, uint64_t{0});
    free_count_ = 0;
    newest_.clear();
    links_.assign(capacity(), Links{});
    for (uint32_t index = capacity(); index-- > 0;) {
      if (spill_stored(load_acquire(view_.spill(index).state))) take_out(index);
      free_[free_count_++] = index;
    }
  }

  // Which files' records count: bit f for file f.
  void set_usable(uint64_t files) noexcept {
    store_release(seen_, load_acquire(seen_) | files);
    store_release(view_.header().spill_usable, files);
    crash_point(CrashPoint::spill_usable_written);
  }

  // Makes a block on SSD findable; an older one of the same key gives way. The record's index, or `none`
  // when the table or both buckets are full.
  uint32_t store(const Spilled& block) noexcept {
    const std::lock_guard guard(mutex_);
    const Buckets buckets = buckets_of(view_.geometry, block.key);
    const uint32_t older = look_up(block.key, buckets);
    if (older != none) give_back(older);
    if (free_count_ == 0) return none;
    const uint32_t index = free_[free_count_ - 1];
    SpillRecord& record = view_.spill(index);
    // Bounded for the sake of who reads a damaged word: a generation of 0 names no life.
    const uint64_t generation = next_generation(block_generation(load_acquire(record.state)));
    for (uint32_t i = 0; i < key_words; ++i) store_release(record.key[i], block.key.words[i]);
    store_release(record.identity, block.key.identity);
    crash_point(CrashPoint::spill_key_written);
    store_release(record.file_offset, block.file_offset);
    store_release(record.payload_bytes, block.payload_bytes);
    store_release(record.checksum, block.checksum);
    store_release(record.sum_layout, block.sum_layout);
    store_release(record.published_at_ns, block.published_at_ns);
    store_release(record.sequence, block.sequence);
    crash_point(CrashPoint::spill_fields_written);
    // SYNC spill/find: release, after all that a reader compares. Pairs with is_spilled().
    store_release(record.state, spill_state(true, block.file, generation));
    crash_point(CrashPoint::spill_record_stored);
    if (!insert_entry(view_, buckets, handle_of(index, generation))) {
      store_release(record.state, spill_state(false, 0, generation));
      return none;
    }
    crash_point(CrashPoint::spill_entry_inserted);
    tell(Event::spill, block.key, block.file, handle_of(index, generation));
    log(RemoteOp::spilled, block.key);
    link(index, place_of(block.file, block.file_offset));
    --free_count_;
    return index;
  }

  // From now on each change is kept for take_log(), up to `size` of them. Throws bad_alloc.
  void keep_log(uint32_t size) {
    const std::lock_guard guard(mutex_);
    log_ops_.resize(size);
    log_hashes_.resize(size);
    log_count_ = 0;
    log_lost_ = false;
  }
  // The oldest changes that were not taken yet, as other hosts are told, at most `room`. `lost`: there were more
  // than are kept.
  uint32_t take_log(uint8_t* ops, uint64_t* hashes, uint32_t room, bool& lost) noexcept {
    const std::lock_guard guard(mutex_);
    const uint32_t count = std::min(log_count_, room);
    std::copy_n(log_ops_.data(), count, ops);
    std::copy_n(log_hashes_.data(), count, hashes);
    lost = log_lost_;
    std::copy(log_ops_.begin() + count, log_ops_.begin() + log_count_, log_ops_.begin());
    std::copy(log_hashes_.begin() + count, log_hashes_.begin() + log_count_, log_hashes_.begin());
    log_count_ -= count;
    log_lost_ = false;
    return count;
  }
  uint32_t log_count() const noexcept {
    const std::lock_guard guard(mutex_);
    return log_count_;
  }

  // The index of a key's record, with what it says in `out`; `none` when there is none.
  uint32_t find(const Key& key, Spilled& out) const noexcept {
    const std::lock_guard guard(mutex_);
    const uint32_t index = look_up(key, buckets_of(view_.geometry, key));
    if (index == none) return none;
    read_spilled(view_, index, out);
    return index;
  }

  // Takes a key's record out if it still says that the block lies there. True when it did.
  bool forget(const Spilled& block) noexcept {
    const std::lock_guard guard(mutex_);
    const uint32_t index = look_up(block.key, buckets_of(view_.geometry, block.key));
    if (index == none) return false;
    Spilled present;
    read_spilled(view_, index, present);
    if (present.file != block.file || present.file_offset != block.file_offset ||
        present.sequence != block.sequence) {
      return false;
    }
    give_back(index);
    return true;
  }

  // Takes out all records of a file in [first, end); how many. By the places of the stretch or, when there are fewer,
  // by the places where records lie: so what this costs never depends on how long a stretch is asked for.
  uint32_t drop(uint32_t file, uint64_t first, uint64_t end) noexcept {
    const std::lock_guard guard(mutex_);
    if (first >= end) return 0;
    uint32_t dropped = 0;
    const uint64_t begin = place_of(file, first), last = place_of(file, end - 1);
    if (last - begin < newest_.size()) {
      for (uint64_t place = begin; place <= last; ++place) {
        const auto found = newest_.find(place);
        if (found != newest_.end()) dropped += drop_chain(found->second, first, end);
      }
      return dropped;
    }
    for (auto each = newest_.begin(); each != newest_.end();) {
      const auto [place, newest] = *each++;  // its element goes with its last record
      if (begin <= place && place <= last) dropped += drop_chain(newest, first, end);
    }
    return dropped;
  }

 private:
  void log(RemoteOp op, const Key& key) noexcept {
    if (log_ops_.empty()) return;
    uint64_t hash = 0;
    if (log_count_ == log_ops_.size()) {
      log_lost_ = true;
    } else if (RemoteSeeds(view_).hash(key, hash)) {
      log_ops_[log_count_] = static_cast<uint8_t>(op);
      log_hashes_[log_count_++] = hash;
    }
  }

  // Whoever follows the journal sees `spill_usable` change, and then looks at all of it: so the many records of a file that
  // is being opened are no events. Those of a file that has been in use are, also while it is out of use: it may be in
  // use again before the follower looks, who then sees no change.
  void tell(Event event, const Key& key, uint32_t file, uint64_t handle) noexcept {
    if (file >= spill_file_count || (load_acquire(seen_) >> file & 1) == 0) return;
    append(view_, event, key, handle);
  }

  uint64_t handle_of(uint32_t index, uint64_t generation) const noexcept {
    return make_handle(view_.geometry.record_count + index, generation);
  }

  // As is_spilled(), but of files that are out of use as well: they are the writer's to keep.
  uint32_t look_up(const Key& key, const Buckets& buckets) const noexcept {
    for (const uint64_t bucket : {buckets.first, buckets.second}) {
      for (uint64_t& word : view_.bucket(bucket).entries) {
        const uint64_t entry = load_acquire(word);
        if (entry_fingerprint(entry) != buckets.fingerprint) continue;
        const SpillRecord* const record = named_spill(view_, entry);
        if (record == nullptr) continue;
        const uint64_t state = load_acquire(record->state);
        if (!spill_stored(state) || (block_generation(state) & 0xFFFF) != entry_generation(entry)) {
          continue;
        }
        const Key there = spill_key(*record);
        if (std::memcmp(&there, &key, sizeof key) == 0) {
          return entry_record(entry) - view_.geometry.record_count;
        }
      }
    }
    return none;
  }

  // The state goes first: from then on no lookup believes the entry.
  void take_out(uint32_t index) noexcept {
    SpillRecord& record = view_.spill(index);
    const uint64_t state = load_acquire(record.state);
    const uint64_t generation = block_generation(state);
    const Buckets buckets = buckets_of(view_.geometry, spill_key(record));
    store_release(record.state, spill_state(false, 0, generation));
    crash_point(CrashPoint::spill_record_freed);
    const Key key = spill_key(record);
    erase_entry(view_, buckets, handle_of(index, generation));
    crash_point(CrashPoint::spill_entry_erased);
    tell(Event::forget, key, spill_file(state), handle_of(index, generation));
    log(RemoteOp::unspilled, key);
  }
  void give_back(uint32_t index) noexcept {
    take_out(index);
    if (!links_[index].ours)
      return;  // damage made it look stored: it is among the free ones already
    unlink(index);
    free_[free_count_++] = index;
  }

  // Of the records of one place, from the newest on, those in [first, end).
  uint32_t drop_chain(uint32_t index, uint64_t first, uint64_t end) noexcept {
    uint32_t dropped = 0;
    while (index != none) {
      const uint32_t older = links_[index].older;
      const uint64_t offset = load_acquire(view_.spill(index).file_offset);
      if (offset >= first && offset < end) {
        give_back(index);
        ++dropped;
      }
      index = older;
    }
    return dropped;
  }

  // -- which records lie where: private, so that a region of a file is dropped without a pass over all -----
  struct Links {
    uint64_t place = 0;
    uint32_t newer = none;
    uint32_t older = none;
    bool ours = false;  // stored by this writer, not free
  };

  // A stretch of 64 MiB of one file.
  static uint64_t place_of(uint32_t file, uint64_t offset) noexcept {
    return uint64_t{file} << 48 | offset >> 26;
  }
  void link(uint32_t index, uint64_t place) {
    const auto [at, is_first] = newest_.emplace(place, none);
    links_[index] = {place, none, at->second, true};
    if (!is_first) links_[at->second].newer = index;
    at->second = index;
  }
  void unlink(uint32_t index) {
    const Links links = links_[index];
    links_[index].ours = false;
    if (links.older != none) links_[links.older].newer = links.newer;
    if (links.newer != none) {
      links_[links.newer].older = links.older;
    } else if (links.older != none) {
      newest_[links.place] = links.older;
    } else {
      newest_.erase(links.place);
    }
  }

  const View view_;
  std::vector<Links> links_;
  std::vector<uint32_t> free_;
  uint32_t free_count_ = 0;
  std::unordered_map<uint64_t, uint32_t> newest_;  // by place, the record stored last
  std::vector<uint8_t> log_ops_;
  std::vector<uint64_t> log_hashes_;
  uint32_t log_count_ = 0;
  bool log_lost_ = false;
  uint64_t seen_ = 0;  // files that have been in use since clear(); set without the mutex
  mutable std::mutex mutex_;
};

}  // namespace pegashm
