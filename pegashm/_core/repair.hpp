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
  crash_point(CrashPoint::rebuild_namespaces_counted);
}

// Finishes or undoes an eviction whose evictor died. It may have died before it looked at the pins again,
// and then somebody may rightly hold one: such a block goes back to READY, with what was undone of it done
// again. No pin is set rightly after EVICTING was stored, so pins seen by a dead evictor are seen here too.
inline bool end_eviction(const View& view, uint32_t record, uint64_t state) noexcept {
  Block& block = view.block(record);
  const uint64_t handle = make_handle(record, block_generation(state));
  const Buckets buckets = buckets_of(view.geometry, read_key(block));
  if (!is_pinned(block)) {
    erase_entry(view, buckets, handle);
    crash_point(CrashPoint::reap_entry_erased);
    return release_record(view, record, state);
  }
  insert_entry(view, buckets, handle);
  crash_point(CrashPoint::reap_entry_restored);
  cas_seq(block.state, state, block_state(BlockTag::ready, 0, block_generation(state)));
  crash_point(CrashPoint::reap_record_put_back);
  return true;
}

// Undoes whatever `slot` was doing to one record.
inline void reap_record(const View& view, uint32_t slot, uint32_t record, Repaired& done) noexcept {
  Block& block = view.block(record);
  if ((load_acquire(block.pins[slot / 64]) & pin_bit(slot)) != 0) {
    clear_pin(view, slot, record);
    ++done.pins;
  }
  const uint64_t state = load_acquire(block.state);
  const uint64_t handle = make_handle(record, block_generation(state));
  if (block_owner(state) == slot && block_tag(state) == BlockTag::claimed) {
    if (drop_claim(view, slot, handle, false)) ++done.claims;
  } else if (block_owner(state) == slot && block_tag(state) == BlockTag::evicting) {
    if (end_eviction(view, record, state)) ++done.evictions;
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
    crash_point(CrashPoint::reap_segment_put_back);
    ++done.segments;
  }
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
      // SYNC touch/state: the touch first. A touch is written once and never again, so if the record is FREE
      // after it was read, the CAS below cannot take the touch of a later life (tests/explore: rebuild_claims).
      const uint64_t touch = load_acquire(view.touched(record));
      const BlockTag tag = block_tag(load_seq(view.block(record).state));
      const uint64_t bit = uint64_t{1} << (record % 64);
      if (tag == BlockTag::free && touch != 0 && cas_seq(view.touched(record), touch, 0)) {
        ++done.touches;  // or its segment would look used, and never be given to another size
      }
      if (tag == BlockTag::free && (load_acquire(view.free_bits(record)) & bit) == 0) {
        or_seq(view.free_bits(record), bit);
        crash_point(CrashPoint::rebuild_free_bit_set);
        ++done.free_bits;
      } else if (tag == BlockTag::ready && load_acquire(view.touched(record)) == 0) {
        store_release(view.touched(record), 1);
        crash_point(CrashPoint::rebuild_touch_written);
        ++done.touches;
      }
    }
  }
  // Always: somebody may have died between a free bit and the clock, and who then found nothing free would
  // never look again.
  add_release(view.header().freed_clock, 1);
  crash_point(CrashPoint::rebuild_clock_advanced);
  recount_namespaces(view);
  return done;
}

inline Repaired reap_client(const View& view, uint32_t slot) noexcept {
  Repaired done;
  for (uint32_t record = 0; record < view.geometry.record_count; ++record) {
    reap_record(view, slot, record, done);
  }
  for (uint32_t segment = 0; segment < view.geometry.segment_count; ++segment) {
    reap_segment(view, slot, segment, done);
  }
  // The dead may have freed a record and not said so: nobody else would find it before a supervisor starts.
  rebuild_hints(view);
  ClientSlot& client = view.client(slot);
  const uint64_t state = load_acquire(client.state);
  if (client_attached(state)) {
    store_release(client.state, client_state(false, client_incarnation(state)));
    crash_point(CrashPoint::reap_client_freed);
    count(view, Counter::clients_reaped);
  }
  count(view, Counter::claims_reaped, done.claims);
  count(view, Counter::pins_reaped, done.pins);
  return done;
}

}  // namespace pegashm
