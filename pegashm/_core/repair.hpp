// What did the dead leave, and how is it undone? Reaping a client, and rebuilding every hint.
//
// The caller holds the kernel locks that FORMAT.md names: they prove the death and keep two reapers
// apart. Everything is a CAS on a state word or the clearing of a bit, so it may be killed at any step and
// started again. Cost: one pass over the records.
#pragma once

#include "segments.hpp"

namespace pegashm {

struct Repaired {
  uint64_t claims = 0;
  uint64_t evictions = 0;
  uint64_t pins = 0;
  uint64_t segments = 0;
  uint64_t free_bits = 0;
  uint64_t touches = 0;
};

// Counts what every namespace really occupies. Exact when nobody claims or evicts meanwhile.
inline void recount_namespaces(const View& view) noexcept {
  uint64_t bytes[namespace_count] = {};
  for (uint32_t record = 0; record < view.geometry.record_count; ++record) {
    const Block& block = view.block(record);
    const BlockTag tag = block_tag(load_acquire(block.state));
    if (tag != BlockTag::claimed && tag != BlockTag::ready) continue;
    const uint32_t id = identity_namespace(load_acquire(block.identity));
    const uint32_t slot = namespace_slot(id);
    if (slot >= namespace_count ||
        namespace_generation(load_acquire(view.name_space(slot).state)) != id >> 16) {
      continue;
    }
    bytes[slot] += occupied_bytes(view, block);
  }
  for (uint32_t slot = 0; slot < namespace_count; ++slot) {
    store_release(view.name_space(slot).resident_bytes, bytes[slot]);
  }
}

// Undoes whatever `slot` was doing to one record.
inline void reap_record(const View& view, uint32_t slot, uint32_t record, Repaired& done) noexcept {
  Block& block = view.block(record);
  const uint64_t state = load_acquire(block.state);
  const uint64_t handle = make_handle(record, block_generation(state));
  if (block_owner(state) == slot && block_tag(state) == BlockTag::claimed) {
    if (drop_claim(view, slot, handle, false)) ++done.claims;
  } else if (block_owner(state) == slot && block_tag(state) == BlockTag::evicting) {
    erase_entry(view, buckets_of(view.geometry, read_key(block)), handle);
    if (release_record(view, record, state)) ++done.evictions;
  }
  if ((load_acquire(block.pins[slot / 64]) & pin_bit(slot)) != 0) {
    clear_pin(view, slot, record);
    ++done.pins;
  }
}

// Puts back a segment that `slot` was changing: nothing was claimed in it, its old blocks still stand.
inline void reap_segment(const View& view, uint32_t slot, uint32_t segment,
                         Repaired& done) noexcept {
  Segment& entry = view.segment(segment);
  const uint64_t state = load_acquire(entry.state);
  if (segment_tag(state) != SegmentTag::changing || segment_owner(state) != slot) return;
  const uint64_t stride = segment_stride(state);
  const SegmentTag before = stride == 0 ? SegmentTag::unassigned : SegmentTag::assigned;
  write_free_bits(view, segment,
                  stride == 0 ? 0 : segment_capacity(view.geometry, segment, stride));
  if (cas_seq(entry.state, state, segment_state(before, 0, segment_epoch(state) + 1, stride))) {
    ++done.segments;
  }
}

inline Repaired reap_client(const View& view, uint32_t slot) noexcept {
  Repaired done;
  for (uint32_t record = 0; record < view.geometry.record_count; ++record) {
    reap_record(view, slot, record, done);
  }
  for (uint32_t segment = 0; segment < view.geometry.segment_count; ++segment) {
    reap_segment(view, slot, segment, done);
  }
  recount_namespaces(view);
  ClientSlot& client = view.client(slot);
  const uint64_t state = load_acquire(client.state);
  if (client_attached(state)) {
    store_release(client.state, client_state(false, client_incarnation(state)));
    count(view, Counter::clients_reaped);
  }
  count(view, Counter::claims_reaped, done.claims);
  count(view, Counter::pins_reaped, done.pins);
  return done;
}

// Rebuilds all hints from the truth. Safe beside living clients; finds nothing the second time.
inline Repaired rebuild_hints(const View& view) noexcept {
  Repaired done;
  const Geometry& geometry = view.geometry;
  for (uint32_t segment = 0; segment < geometry.segment_count; ++segment) {
    const uint64_t state = load_acquire(view.segment(segment).state);
    if (segment_tag(state) != SegmentTag::assigned) continue;
    const uint32_t capacity = segment_capacity(geometry, segment, segment_stride(state));
    for (uint32_t i = 0; i < capacity; ++i) {
      const uint32_t record = view.first_record(segment) + i;
      const BlockTag tag = block_tag(load_acquire(view.block(record).state));
      const uint64_t bit = uint64_t{1} << (record % 64);
      if (tag == BlockTag::free && (load_acquire(view.free_bits(record)) & bit) == 0) {
        or_seq(view.free_bits(record), bit);
        ++done.free_bits;
      } else if (tag == BlockTag::ready && load_acquire(view.touched(record)) == 0) {
        store_release(view.touched(record), 1);
        ++done.touches;
      }
    }
  }
  if (done.free_bits != 0) add_release(view.header().freed_clock, 1);
  recount_namespaces(view);
  return done;
}

}  // namespace pegashm
