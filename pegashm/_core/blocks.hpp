// How does a record change hands? The transitions of one block record, each a CAS on its state word.
//
//   FREE -> CLAIMED(owner) -> READY -> EVICTING(owner) -> FREE (generation + 1)
//
// Called by clients for their own claims and evictions, and by reapers for those of dead clients. Every
// function works on one record, checks what it finds, and is safe to repeat. FORMAT.md, "Who dies where",
// has the row of each step.
#pragma once

#include "adaptive.hpp"
#include "clock.hpp"
#include "counters.hpp"
#include "crash.hpp"
#include "index.hpp"
#include "journal.hpp"
#include "pins.hpp"
#include "quota.hpp"
#include "sums.hpp"

namespace pegashm {

// FREE -> CLAIMED. 0 when it is not free, or somebody else was quicker. Death row 1.
inline uint64_t begin_claim(const View& view, uint32_t slot, uint32_t record) noexcept {
  Block& block = view.block(record);
  const uint64_t bit = uint64_t{1} << (record % 64);
  const uint64_t state = load_acquire(block.state);
  if (block_tag(state) != BlockTag::free) {
    and_seq(view.free_bits(record), ~bit);
    crash_point(CrashPoint::claim_stale_bit_cleared);
    // SYNC free bit: cleared, then the state is read again; release_record() stores the state, then sets
    // the bit. So a record that became free meanwhile does not lose its bit.
    if (block_tag(load_seq(block.state)) == BlockTag::free) or_seq(view.free_bits(record), bit);
    return 0;
  }
  const uint64_t generation = block_generation(state);
  if (!cas_seq(block.state, state, block_state(BlockTag::claimed, slot, generation))) return 0;
  crash_point(CrashPoint::claim_record_claimed);
  and_seq(view.free_bits(record), ~bit);
  crash_point(CrashPoint::claim_free_bit_cleared);
  return make_handle(record, generation);
}

// Writes what the block will hold and makes it findable (as pending). Death rows 2, 3.
inline bool fill_claim(const View& view, uint64_t handle, const Key& key, const Buckets& buckets,
                       uint64_t payload_offset, uint64_t payload_bytes, uint64_t now_ns) noexcept {
  Block& block = view.block(handle_record(handle));
  store_release(view.touched(handle_record(handle)), 0);
  store_release(block.parts, 0);
  clear_sums(view, handle_record(handle));
  store_release(block.claimed_at_ns, now_ns);
  store_release(block.published_at_ns, 0);
  crash_point(CrashPoint::fill_touch_cleared);
  store_release(block.payload_offset, payload_offset);
  crash_point(CrashPoint::fill_offset_written);
  store_release(block.payload_bytes, payload_bytes);
  crash_point(CrashPoint::fill_bytes_written);
  write_key(block, key);
  crash_point(CrashPoint::fill_identity_written);
  return insert_entry(view, buckets, handle);
}

// Owner's state -> FREE of the next life. Death row 12: the free bit may be missing until a repair.
inline bool release_record(const View& view, uint32_t record, uint64_t state) noexcept {
  Block& block = view.block(record);
  store_release(view.touched(record), 0);
  crash_point(CrashPoint::release_touch_cleared);
  const uint64_t next = next_generation(block_generation(state));
  if (!cas_seq(block.state, state, block_state(BlockTag::free, 0, next))) return false;
  crash_point(CrashPoint::release_record_freed);
  or_seq(view.free_bits(record), uint64_t{1} << (record % 64));
  crash_point(CrashPoint::release_free_bit_set);
  add_release(view.header().freed_clock, 1);
  crash_point(CrashPoint::release_clock_advanced);
  return true;
}

// CLAIMED by `slot` -> FREE, with its traces in the index and the namespace's bytes undone.
inline bool drop_claim(const View& view, uint32_t slot, uint64_t handle, bool counted) noexcept {
  const uint32_t record = handle_record(handle);
  Block& block = view.block(record);
  const uint64_t state = load_acquire(block.state);
  if (state != block_state(BlockTag::claimed, slot, handle_generation(handle))) return false;
  const Key key = read_key(block);
  erase_entry(view, buckets_of(view.geometry, key), handle);
  crash_point(CrashPoint::drop_entry_erased);
  const uint64_t bytes = occupied_bytes(view, block);
  if (!release_record(view, record, state)) return false;
  if (counted) add_resident(view, identity_namespace(key.identity), ~bytes + 1);
  crash_point(CrashPoint::drop_uncounted);
  return true;
}

// CLAIMED by `slot` -> READY. Death rows 5, 6.
inline bool publish_claim(const View& view, uint32_t slot, uint64_t handle, uint64_t touch,
                          uint64_t now_ns) noexcept {
  const uint32_t record = handle_record(handle);
  Block& block = view.block(record);
  const uint64_t generation = handle_generation(handle);
  const uint64_t claimed = block_state(BlockTag::claimed, slot, generation);
  if (load_acquire(block.state) != claimed) return false;
  const Key key = read_key(block);
  store_release(block.published_at_ns, now_ns);
  crash_point(CrashPoint::publish_time_written);
  store_release(view.touched(record), touch);
  crash_point(CrashPoint::publish_touch_written);
  // SYNC publish/find: key and payload become visible before READY. Pairs with find_in_bucket().
  if (!cas_seq(block.state, claimed, block_state(BlockTag::ready, 0, generation))) return false;
  crash_point(CrashPoint::publish_record_ready);
  append(view, Event::publish, key, handle);
  return true;
}

// READY -> EVICTING(slot), unless somebody has pinned it, or its namespace's reserve is above the requester's wish
// (`quota`). Death rows 9, 10.
inline Outcome begin_evict(const View& view, uint32_t slot, uint64_t handle,
                           uint32_t requester = at_will) noexcept {
  Block& block = view.block(handle_record(handle));
  const uint64_t generation = handle_generation(handle);
  const uint64_t ready = block_state(BlockTag::ready, 0, generation);
  if (load_acquire(block.state) != ready) return Outcome::missing;
  if (is_pinned(block)) return Outcome::pinned;
  const uint64_t evicting = block_state(BlockTag::evicting, slot, generation);
  crash_point(CrashPoint::evict_looked);
  // SYNC pin/evict, evictor's side: state, then bits. Pairs with set_pin().
  if (!cas_seq(block.state, ready, evicting)) return Outcome::missing;
  crash_point(CrashPoint::evict_record_evicting);
  if (is_pinned(block)) {
    cas_seq(block.state, evicting, ready);
    crash_point(CrashPoint::evict_put_back);
    return Outcome::pinned;
  }
  if (!give_up_resident(view, block, requester)) {
    cas_seq(block.state, evicting, ready);
    crash_point(CrashPoint::evict_put_back);
    count(view, Counter::evictions_reserved);
    return Outcome::quota;
  }
  return Outcome::ok;
}

// Undoes an evicted block's traces; the record stays EVICTING(slot). Death row 11.
inline void unlink_evicted(const View& view, uint64_t handle) noexcept {
  const Block& block = view.block(handle_record(handle));
  const Key key = read_key(block);
  erase_entry(view, buckets_of(view.geometry, key), handle);
  crash_point(CrashPoint::evict_entry_erased);
  // SYNC none: a hint; and an acquire here would hide from thread sanitizers what a publish fails to release.
  leave_ghost(view, key, load_relaxed(view.touched(handle_record(handle))));
  append(view, Event::evict, key, handle);
  count(view, Counter::evictions);
  count_residence(view, load_acquire(block.published_at_ns), clock_ns(CLOCK_REALTIME_COARSE));
}

// READY -> FREE.
inline Outcome evict_block(const View& view, uint32_t slot, uint64_t handle,
                           uint32_t requester = at_will) noexcept {
  const Outcome outcome = begin_evict(view, slot, handle, requester);
  if (outcome != Outcome::ok) return outcome;
  unlink_evicted(view, handle);
  release_record(view, handle_record(handle),
                 block_state(BlockTag::evicting, slot, handle_generation(handle)));
  return Outcome::ok;
}

// READY -> CLAIMED(slot) of the next life: an eviction whose room the evictor keeps.
// Returns the new handle, 0 with the reason in `outcome`.
inline uint64_t evict_and_claim(const View& view, uint32_t slot, uint64_t handle,
                                uint32_t requester, Outcome& outcome) noexcept {
  outcome = begin_evict(view, slot, handle, requester);
  if (outcome != Outcome::ok) return 0;
  unlink_evicted(view, handle);
  const uint32_t record = handle_record(handle);
  const uint64_t generation = next_generation(handle_generation(handle));
  if (!cas_seq(view.block(record).state,
               block_state(BlockTag::evicting, slot, handle_generation(handle)),
               block_state(BlockTag::claimed, slot, generation))) {
    outcome = Outcome::missing;
    return 0;
  }
  crash_point(CrashPoint::evict_record_kept);
  return make_handle(record, generation);
}

}  // namespace pegashm
