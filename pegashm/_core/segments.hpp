// Which size of block does a segment hold, and how does that change?
//
// A segment is assigned to one stride. To change it, a client takes the segment word (CHANGING), makes
// sure that every record is FREE (evicting what may be evicted), writes the free bits of the new stride
// and stores the new assignment. A claimer takes its record first and then re-reads the segment word; the
// changer stores the word first and then reads the records: one of the two sees the other. FORMAT.md,
// death rows 13 to 16.
#pragma once

#include "blocks.hpp"

namespace pegashm {

// Says "worth trying" of the first `capacity` records and of no other. begin_claim() corrects the bits of
// records that are not free after all; the reverse mistake would hide memory until the next repair.
inline void write_free_bits(const View& view, uint32_t segment, uint32_t capacity) noexcept {
  const uint32_t first = view.first_record(segment);
  for (uint32_t base = 0; base < view.geometry.records_per_segment; base += 64) {
    const uint32_t left = base < capacity ? capacity - base : 0;
    store_release(view.free_bits(first + base),
                  left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1);
    crash_point(CrashPoint::segment_free_bits_written);
  }
}

// Evicts all of a segment's blocks. False as soon as one may not go.
inline bool drain_segment(const View& view, uint32_t slot, uint32_t segment,
                          uint32_t requester) noexcept {
  const uint32_t first = view.first_record(segment);
  const uint32_t size = view.geometry.records_per_segment;
  Reserves reserves(view, requester);
  for (uint32_t i = 0; i < size; ++i) {  // look before evicting anything
    const Block& block = view.block(first + i);
    const BlockTag tag = block_tag(load_seq(block.state));
    if (tag == BlockTag::free) continue;
    if (tag != BlockTag::ready || is_pinned(block) ||
        !reserves.take(load_acquire(block.identity), occupied_bytes(view, block))) {
      return false;
    }
  }
  for (uint32_t i = 0; i < size; ++i) {
    const uint64_t state = load_seq(view.block(first + i).state);
    if (block_tag(state) == BlockTag::free) continue;
    if (block_tag(state) != BlockTag::ready ||
        evict_block(view, slot, make_handle(first + i, block_generation(state)), requester) !=
            Outcome::ok) {
      return false;
    }
    crash_point(CrashPoint::segment_block_evicted);
  }
  return true;
}

// Gives a segment to `stride`, emptying it first. False when it is in use or somebody was quicker.
inline bool change_segment(const View& view, uint32_t slot, uint32_t segment, uint64_t stride,
                           uint32_t requester) noexcept {
  Segment& entry = view.segment(segment);
  const uint64_t before = load_acquire(entry.state);
  const uint32_t capacity = segment_capacity(view.geometry, segment, stride);
  if (segment_tag(before) == SegmentTag::changing || capacity == 0) return false;
  const uint64_t epoch = segment_epoch(before) + 1;
  const uint64_t changing =
      segment_state(SegmentTag::changing, slot, epoch, segment_stride(before));
  // SYNC claim/change, changer's side: segment word, then records. Pairs with segment_still().
  if (!cas_seq(entry.state, before, changing)) return false;
  crash_point(CrashPoint::segment_changing);
  if (!drain_segment(view, slot, segment, requester)) {
    crash_point(CrashPoint::segment_drain_refused);
    cas_seq(entry.state, changing, before);
    crash_point(CrashPoint::segment_put_back);
    return false;
  }
  write_free_bits(view, segment, capacity);
  if (!cas_seq(entry.state, changing, segment_state(SegmentTag::assigned, 0, epoch, stride))) {
    return false;
  }
  crash_point(CrashPoint::segment_assigned);
  count(view, Counter::segments_changed);
  return true;
}

// SYNC claim/change, claimer's side: the record is ours, is the segment still what it was?
inline bool segment_still(const View& view, uint32_t segment, uint64_t state) noexcept {
  return load_seq(view.segment(segment).state) == state;
}

// Free bits of the first `capacity` records of a segment: about how many can be claimed at once.
inline uint32_t free_in_segment(const View& view, uint32_t segment, uint32_t capacity) noexcept {
  uint32_t free = 0;
  for (uint32_t base = 0; base < capacity; base += 64) {
    const uint64_t bits = load_acquire(view.free_bits(view.first_record(segment) + base));
    free += static_cast<uint32_t>(__builtin_popcountll(bits));
  }
  return free;
}

}  // namespace pegashm
