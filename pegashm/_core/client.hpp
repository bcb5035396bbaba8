// What can an attached process do with the cache? The batched operations of one index owner.
//
// Called from the binding without the GIL, by any thread of the process that owns the slot; a private
// mutex orders them, since pin counts and cursors are private state. No other process ever waits for it.
// Nothing here allocates after construction, throws, or loops without a bound.
#pragma once

#include <cstdlib>
#include <mutex>

#include "lookup.hpp"
#include "reuse.hpp"
#include "room.hpp"

namespace pegashm {

class Client {
 public:
  Client(const View& view, uint32_t slot) noexcept
      : view_(view),
        slot_(slot),
        // calloc: untouched pages cost nothing, so attaching stays O(1) in the pool's size.
        pin_counts_(
            static_cast<uint32_t*>(std::calloc(view.geometry.record_count, sizeof(uint32_t)))),
        room_(view_, slot) {}
  ~Client() { std::free(pin_counts_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool valid() const noexcept { return pin_counts_ != nullptr; }

  // Waits for the call in hand of another thread; from then on none changes anything. Before our own process
  // reaps the slot: its next client would inherit a pin set later, and a claim in hand would be written into a
  // record that is somebody else's by then.
  void retire() noexcept {
    const std::lock_guard guard(mutex_);
    retired_ = true;
  }

  // Finds `keys`; with `prefix` stops after the first that nobody has: neither ok nor spilled nor remote.
  // Returns how many were judged.
  // `counted`: as lookups of this host's engines; not those that other hosts have us make.
  uint32_t find(const Key* keys, uint32_t size, bool pin, bool prefix, uint64_t* handles,
                Outcome* outcomes, bool counted = true) noexcept {
    const std::lock_guard guard(mutex_);
    Tally tally;
    Lookahead ahead(view_, keys, size, pin);
    bool ended = false;
    for (uint32_t number = 0; !ended; ++number) {
      const uint32_t count = ahead.turn_to(number);
      if (count == 0) break;
      for (uint32_t i = 0; i < count && !ended; ++i) {
        const Found found = ahead.find(i);
        Outcome outcome = found.handle == 0 ? Outcome::missing
                          : found.ready     ? Outcome::ok
                                            : Outcome::pending;
        if (outcome == Outcome::ok && pin && !add_pin(found.handle)) outcome = Outcome::missing;
        // On its way into memory (or stored anew) while it is on SSD: whoever asks the worker waits for it.
        if (outcome != Outcome::ok && found.spilled) outcome = Outcome::spilled;
        if (outcome != Outcome::ok && outcome != Outcome::spilled && ahead.is_remote(i)) {
          outcome = Outcome::remote;
        }
        handles[tally.judged] = outcome == Outcome::ok ? found.handle : 0;
        outcomes[tally.judged] = outcome;
        tally.add(outcome);
        ended = prefix && outcome != Outcome::ok && outcome != Outcome::spilled &&
                outcome != Outcome::remote;
      }
    }
    if (counted) count_find(tally);
    return tally.judged;
  }

  void pin(const uint64_t* handles, uint32_t size, Outcome* outcomes) noexcept {
    const std::lock_guard guard(mutex_);
    for (uint32_t i = 0; i < size; ++i) {
      outcomes[i] = ours(handles[i]) && add_pin(handles[i]) ? Outcome::ok : Outcome::missing;
    }
  }

  void unpin(const uint64_t* handles, uint32_t size) noexcept {
    const std::lock_guard guard(mutex_);
    for (uint32_t i = 0; i < size; ++i) {
      if (ours(handles[i])) drop_pin(handle_record(handles[i]));
    }
    room_.look_again();
  }

  // Where blocks that this client has pinned or claimed lie; 0, 0 for any other.
  void locate(const uint64_t* handles, uint32_t size, uint64_t* offsets, uint64_t* bytes) noexcept {
    for (uint32_t i = 0; i < size; ++i) {
      offsets[i] = bytes[i] = 0;
      if (!known(handles[i])) continue;
      const Block& block = view_.block(handle_record(handles[i]));
      const uint64_t state = load_acquire(block.state);
      if (block_generation(state) != handle_generation(handles[i]) ||
          block_tag(state) == BlockTag::free) {
        continue;
      }
      const uint64_t offset = load_acquire(block.payload_offset);
      const uint64_t length = load_acquire(block.payload_bytes);
      const uint64_t total = view_.geometry.payload_bytes;
      if (offset % page_bytes_small != 0 || length > total || offset > total - length ||
          length > view_.geometry.segment_bytes) {
        continue;  // damaged: as good as gone
      }
      offsets[i] = offset;
      bytes[i] = length;
    }
  }

  void claim(const Key* keys, uint32_t size, uint64_t payload_bytes, uint64_t* handles,
             Outcome* outcomes) noexcept {
    const std::lock_guard guard(mutex_);
    // SYNC none: a setting. Claims of a moment ago may still be published; who drains waits for them.
    if (is_draining(load_relaxed(view_.header().draining_since_ns))) {
      for (uint32_t i = 0; i < size; ++i) {
        handles[i] = 0;
        outcomes[i] = Outcome::draining;
      }
      count(view_, Counter::claims_draining, size);
      return;
    }
    const uint64_t stride = stride_of(view_.geometry, payload_bytes);
    const uint64_t now = clock_ns(CLOCK_REALTIME);
    uint64_t tallies[10] = {};
    for (uint32_t i = 0; i < size; ++i) {
      handles[i] = 0;
      outcomes[i] = stride == 0 ? Outcome::too_large
                                : claim_one(keys[i], stride, payload_bytes, now, handles[i]);
      if (outcomes[i] == Outcome::no_space || outcomes[i] == Outcome::quota) {
        leave_refusal(view_, keys[i]);
      }
      ++tallies[static_cast<uint8_t>(outcomes[i])];
    }
    const auto tally = [&tallies](Outcome outcome) noexcept {
      return tallies[static_cast<uint8_t>(outcome)];
    };
    count(view_, Counter::claims, tally(Outcome::ok));
    count(view_, Counter::claims_existing, tally(Outcome::exists) + tally(Outcome::pending));
    count(view_, Counter::claims_no_space, tally(Outcome::no_space));
    count(view_, Counter::claims_quota, tally(Outcome::quota));
    count(view_, Counter::claims_other, tally(Outcome::too_large) + tally(Outcome::index_full));
  }

  void publish(const uint64_t* handles, uint32_t size, uint32_t parts_expected,
               Outcome* outcomes) noexcept {
    const std::lock_guard guard(mutex_);
    const uint64_t now = clock_ns(CLOCK_REALTIME);
    Toucher toucher(*this, size);
    uint64_t published = 0, incomplete = 0, bytes = 0;
    for (uint32_t i = 0; i < size; ++i) {
      outcomes[i] = Outcome::missing;
      if (!ours(handles[i])) continue;
      const Block& block = view_.block(handle_record(handles[i]));
      if (load_acquire(block.state) !=
          block_state(BlockTag::claimed, slot_, handle_generation(handles[i]))) {
        continue;
      }
      outcomes[i] = judge_parts(block, parts_expected);
      if (outcomes[i] == Outcome::incomplete) {
        incomplete += drop_claim(view_, slot_, handles[i], true) ? 1u : 0u;
      }
      if (outcomes[i] != Outcome::ok) continue;
      const uint64_t length = load_acquire(block.payload_bytes);
      // The first of a batch is the head of its chain: the most recent.
      const uint64_t touch = toucher.stored(block, size - i);
      if (publish_claim(view_, slot_, handles[i], touch, now)) {
        ++published;
        bytes += length;
      } else {
        outcomes[i] = Outcome::missing;
      }
    }
    count(view_, Counter::publishes, published);
    count(view_, Counter::publishes_incomplete, incomplete);
    count(view_, Counter::bytes_stored, bytes);
  }

  void abandon(const uint64_t* handles, uint32_t size) noexcept {
    const std::lock_guard guard(mutex_);
    uint64_t dropped = 0;
    for (uint32_t i = 0; i < size; ++i) {
      if (ours(handles[i]) && drop_claim(view_, slot_, handles[i], true)) ++dropped;
    }
    count(view_, Counter::abandons, dropped);
  }

  void touch(const uint64_t* handles, uint32_t size) noexcept {
    Toucher toucher(*this, size);
    for (uint32_t i = 0; i < size; ++i) {
      if (!known(handles[i])) continue;
      const uint32_t record = handle_record(handles[i]);
      const uint64_t ready = block_state(BlockTag::ready, 0, handle_generation(handles[i]));
      if (load_acquire(view_.block(record).state) == ready) {
        store_release(view_.touched(record), toucher.again(record, 1 + i, false));
        crash_point(CrashPoint::touch_written);
      }
    }
  }

  // What a request used, at its end, tail to head, for who has only the keys: those that are READY. Counts no
  // lookups; returns how many.
  uint32_t touch_keys(const Key* keys, uint32_t size) noexcept {
    Toucher toucher(*this, size);
    uint32_t touched = 0;
    for (uint32_t i = 0; i < size; ++i) {
      const Found found = find_key(view_, keys[i], buckets_of(view_.geometry, keys[i]));
      if (!found.ready) continue;
      const uint32_t record = handle_record(found.handle);
      store_release(view_.touched(record), toucher.again(record, 1 + i, true));
      crash_point(CrashPoint::touch_written);
      ++touched;
    }
    return touched;
  }

  void evict(const uint64_t* handles, uint32_t size, Outcome* outcomes) noexcept {
    const std::lock_guard guard(mutex_);
    for (uint32_t i = 0; i < size; ++i) {
      outcomes[i] = ours(handles[i]) ? evict_block(view_, slot_, handles[i]) : Outcome::missing;
    }
  }

  uint32_t evict_oldest(uint64_t payload_bytes, uint32_t wanted) noexcept {
    const std::lock_guard guard(mutex_);
    const uint64_t stride = stride_of(view_.geometry, payload_bytes);
    return stride == 0 || retired_ ? 0 : room_.evict_oldest(stride, wanted);
  }

  // The least recently used blocks of a size class, oldest first, pinned: for who wants to do something with
  // them before they go. Not those that reserves keep. Returns how many.
  uint32_t oldest(uint64_t payload_bytes, uint32_t wanted, uint64_t* handles,
                  uint64_t* touches) noexcept {
    const std::lock_guard guard(mutex_);
    const uint64_t stride = stride_of(view_.geometry, payload_bytes);
    if (stride == 0) return 0;
    uint32_t found = 0;
    Candidate candidate;
    room_.gather(stride);
    Reserves reserves(view_, for_nobody);
    while (found < wanted && room_.next(candidate)) {
      const Block& block = view_.block(candidate.record);
      const uint64_t state = load_acquire(block.state);
      const uint64_t identity = load_acquire(block.identity);
      const uint64_t handle = make_handle(candidate.record, block_generation(state));
      if (block_tag(state) != BlockTag::ready || is_pinned(block) ||
          reserves.keep(identity, stride) || !add_pin(handle)) {
        continue;
      }
      reserves.take(identity, stride);
      handles[found] = handle;
      touches[found++] = candidate.touch;
    }
    return found;
  }

  // Drops our pins on what oldest() gave, and evicts what nobody has used since. `quota`: a reserve keeps it.
  void evict_untouched(const uint64_t* handles, const uint64_t* touches, uint32_t size,
                       Outcome* outcomes) noexcept {
    const std::lock_guard guard(mutex_);
    for (uint32_t i = 0; i < size; ++i) {
      outcomes[i] = Outcome::missing;
      if (!ours(handles[i])) continue;
      drop_pin(handle_record(handles[i]));
      outcomes[i] = load_acquire(view_.touched(handle_record(handles[i]))) == touches[i]
                        ? evict_block(view_, slot_, handles[i], for_nobody)
                        : Outcome::pinned;
    }
    room_.look_again();
  }

 private:
  struct Tally {
    uint32_t judged = 0, hits = 0, pending = 0, spilled = 0, remote = 0;
    void add(Outcome outcome) noexcept {
      ++judged;
      hits += outcome == Outcome::ok ? 1u : 0u;
      pending += outcome == Outcome::pending ? 1u : 0u;
      spilled += outcome == Outcome::spilled ? 1u : 0u;
      remote += outcome == Outcome::remote ? 1u : 0u;
    }
  };

  bool known(uint64_t handle) const noexcept {
    return handle != 0 && handle_record(handle) < view_.geometry.record_count;
  }

  // Under the mutex: whether we may change what the handle names.
  bool ours(uint64_t handle) const noexcept { return !retired_ && known(handle); }

  bool add_pin(uint64_t handle) noexcept {
    if (retired_) return false;
    const uint32_t record = handle_record(handle);
    // A block marked as damaged is nobody's hit; its mark lies in the line that the pin has just touched.
    if (set_pin(view_, slot_, handle) && !is_damaged(view_.block(record))) {
      ++pin_counts_[record];
      return true;
    }
    if (pin_counts_[record] == 0) clear_pin(view_, slot_, record);
    return false;
  }

  void drop_pin(uint32_t record) noexcept {
    if (pin_counts_[record] == 0 || --pin_counts_[record] != 0) return;
    clear_pin(view_, slot_, record);
  }

  uint64_t advance_clock(uint64_t amount) noexcept {
    // SYNC none: only has to grow.
    const uint64_t before = add_relaxed(view_.header().access_clock, amount);
    crash_point(CrashPoint::clock_advanced);
    return before;
  }

  // The touch words of a batch, by the arena's way to evict. `place`: 1 to the batch's size, the higher the later.
  class Toucher {
   public:
    Toucher(Client& client, uint32_t size) noexcept
        : view_(client.view_),
          adaptive_(eviction_of(client.view_) == Eviction::adaptive),
          uses_(client.view_) {
      const uint64_t before = client.advance_clock(size * (adaptive_ ? touch_step : 1));
      clock_ = adaptive_ ? round_up(before, touch_step) : before;
    }
    uint64_t stored(const Block& block, uint32_t place) noexcept {
      if (!adaptive_) return clock_ + place;
      return uses_.stored(read_key(block), at(place), occupied_bytes(view_, block));
    }
    uint64_t again(uint32_t record, uint32_t place, bool ended) noexcept {
      if (!adaptive_) return clock_ + place;
      // SYNC none: two uses at once may count as one.
      return uses_.again(load_relaxed(view_.touched(record)), at(place),
                         occupied_bytes(view_, view_.block(record)), ended);
    }

   private:
    uint64_t at(uint32_t place) const noexcept { return clock_ + place * touch_step; }

    const View& view_;
    const bool adaptive_;
    Uses uses_;
    uint64_t clock_ = 0;
  };

  void count_find(const Tally& tally) noexcept {
    count(view_, Counter::lookups, tally.judged);
    count(view_, Counter::hits, tally.hits);
    count(view_, Counter::misses, tally.judged - tally.hits);
    count(view_, Counter::misses_pending, tally.pending);
    count(view_, Counter::misses_spilled, tally.spilled);
    count(view_, Counter::misses_remote, tally.remote);
  }

  // Whether all writers of a claimed block have copied their part. Pending: one may still be writing, so
  // the claim must stay.
  static Outcome judge_parts(const Block& block, uint32_t expected) noexcept {
    if (expected == 0) return Outcome::ok;
    // SYNC parts/publish: acquire, so that what the writers copied before they reported is visible
    // before READY is. Pairs with report_part().
    const uint64_t parts = load_acquire(block.parts);
    const uint32_t done = static_cast<uint32_t>(parts);
    const uint32_t failed = static_cast<uint32_t>(parts >> 32);
    if (done == expected && failed == 0) return Outcome::ok;
    return done + failed < expected ? Outcome::pending : Outcome::incomplete;
  }

  Outcome claim_one(const Key& key, uint64_t stride, uint64_t payload_bytes, uint64_t now,
                    uint64_t& handle) noexcept {
    const uint32_t namespace_ = identity_namespace(key.identity);
    if (retired_ || namespace_slot(namespace_) >= namespace_count) return Outcome::missing;
    const Buckets buckets = buckets_of(view_.geometry, key);
    const Found found = find_key(view_, key, buckets);
    if (found.handle != 0) {
      if (!found.ready) return Outcome::pending;
      // A damaged block gives way to its successor, unless somebody still holds it.
      if (!is_damaged(view_.block(handle_record(found.handle))) ||
          evict_block(view_, slot_, found.handle) != Outcome::ok) {
        return Outcome::exists;
      }
    }

    uint64_t offset = 0;
    Outcome outcome = Outcome::ok;
    handle = room_.take(stride, namespace_, offset, outcome);
    if (handle == 0) return outcome;
    const bool listed = fill_claim(view_, handle, key, buckets, offset, payload_bytes, now);
    crash_point(CrashPoint::index_entry_inserted);
    add_resident(view_, namespace_, stride);
    crash_point(CrashPoint::claim_counted);
    if (listed) return Outcome::ok;
    drop_claim(view_, slot_, handle, true);
    handle = 0;
    return Outcome::index_full;
  }

  const View view_;
  const uint32_t slot_;
  uint32_t* const pin_counts_;
  std::mutex mutex_;
  bool retired_ = false;
  RoomFinder room_;
};

// -- what a process that copies for a client reports; it owns no slot ----------------------------------

inline bool life_holds(const View& view, uint64_t handle) noexcept {
  const uint32_t record = handle_record(handle);
  if (handle == 0 || record >= view.geometry.record_count) return false;
  const uint64_t state = load_seq(view.block(record).state);
  return block_generation(state) == handle_generation(handle) &&
         (block_tag(state) == BlockTag::ready || block_tag(state) == BlockTag::claimed);
}

inline void report_part(const View& view, uint64_t handle, bool ok) noexcept {
  if (!life_holds(view, handle)) return;
  // SYNC parts/publish: release, so that the copy is visible to who sees the count. Death row 4.
  add_release(view.block(handle_record(handle)).parts, ok ? 1 : uint64_t{1} << 32);
  crash_point(CrashPoint::part_reported);
}

inline uint32_t parts_reported(const View& view, uint64_t handle) noexcept {
  if (!life_holds(view, handle)) return 0;
  const uint64_t parts = load_acquire(view.block(handle_record(handle)).parts);
  return static_cast<uint32_t>(parts) + static_cast<uint32_t>(parts >> 32);
}

}  // namespace pegashm
