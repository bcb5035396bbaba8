// How does a batch of lookups keep many cache lines under way at once?
//
// Keys go in lots through three steps: hash them and ask for their buckets; read the buckets and ask for the records
// that they name; judge. Each step of a lot runs while the lines of the next lots are on their way. Asking is
// done for a whole lot in one tight loop: a prefetch waits for the walk of the page tables, and only walks that
// are close to each other in the instruction stream overlap. Prefetched lines are hints: nothing is concluded
// before find_among() has read them in its own order.
// After "group prefetching": Chen, Ailamaki, Gibbons, Mowry, "Improving Hash Join Performance through
// Prefetching" (2004). Used by Client::find() alone.
#pragma once

#include "index.hpp"
#include "remote.hpp"

namespace pegashm {

class Lookahead {
 public:
  static constexpr uint32_t lot_keys = 16;

  Lookahead(const View& view, const Key* keys, uint32_t size, bool pin) noexcept
      : view_(view), keys_(keys), size_(size), pin_(pin), remote_(view) {
    hash(0);
    hash(1);
    list(0);
  }

  // How many keys are in this lot; 0: there are no more. To be called for each lot in turn, before its keys are found.
  uint32_t turn_to(uint32_t number) noexcept {
    hash(number + 2);
    list(number + 1);
    base_ = number * lot_keys;
    current_ = &lot(number);
    return current_->count;
  }

  // The i-th key of this lot.
  Found find(uint32_t i) const noexcept {
    return find_among(view_, keys_[base_ + i], current_->buckets[i], current_->matches[i]);
  }
  // Whether another host that can be asked has it.
  bool is_remote(uint32_t i) noexcept {
    return remote_.on() &&
           (current_->hinted[i] || remote_.begin(keys_[base_ + i], current_->hints[i])) &&
           pegashm::is_remote(view_, current_->hints[i]);
  }

 private:
  struct Lot {
    uint32_t count;
    Buckets buckets[lot_keys];
    uint32_t matches[lot_keys];  // entries that may be it
    bool hinted[lot_keys];
    RemoteBuckets hints[lot_keys];  // of those
  };

  Lot& lot(uint32_t number) noexcept { return lots_[number % 3]; }

  void hash(uint32_t number) noexcept {
    Lot& lot = this->lot(number);
    const uint32_t base = number * lot_keys;
    lot.count = base < size_ ? std::min(lot_keys, size_ - base) : 0;
    for (uint32_t i = 0; i < lot.count; ++i) {
      lot.buckets[i] = buckets_of(view_.geometry, keys_[base + i]);
    }
    for (uint32_t i = 0; i < lot.count; ++i) prefetch_buckets(view_, lot.buckets[i]);
  }

  void list(uint32_t number) noexcept {
    Lot& lot = this->lot(number);
    for (uint32_t i = 0; i < lot.count; ++i) lot.matches[i] = matches_of(view_, lot.buckets[i]);
    for (uint32_t i = 0; i < lot.count; ++i) {
      if (lot.matches[i] == 0) continue;
      const void* const record = matching_record(view_, lot.buckets[i], lot.matches[i]);
      if (record == nullptr) continue;
      __builtin_prefetch(record);
      if (pin_) __builtin_prefetch(static_cast<const uint8_t*>(record) + cache_line_bytes, 1);
    }
    if (!remote_.on()) return;
    for (uint32_t i = 0; i < lot.count; ++i) {
      lot.hinted[i] =
          lot.matches[i] == 0 && remote_.begin(keys_[number * lot_keys + i], lot.hints[i]);
    }
    for (uint32_t i = 0; i < lot.count; ++i) {
      if (lot.hinted[i]) prefetch_remote(view_, lot.hints[i]);
    }
  }

  const View& view_;
  const Key* const keys_;
  const uint32_t size_;
  const bool pin_;
  RemoteLookup remote_;
  Lot lots_[3];
  Lot* current_ = nullptr;
  uint32_t base_ = 0;
};

}  // namespace pegashm
