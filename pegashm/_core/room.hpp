// Where does a new block go? Free record, else unassigned segment, else somebody's oldest block.
//
// Runs in a client, under its lock. Every loop is bounded by the number of segments or candidates, and
// nothing waits: when all is pinned the answer is "no space", remembered for a few milliseconds so that
// a full arena costs an engine nothing.
#pragma once

#include "evict.hpp"

namespace pegashm {

// Private memory of where free records of a stride were last found.
struct FreeCursor {
  uint64_t stride = 0;
  uint64_t exhausted_at = ~uint64_t{0};  // freed_clock when the last full search found nothing
  uint32_t ready = 0;  // segments_ready at that search
  uint32_t segment = 0;
};

// What was gathered, and for whom; when it is worth looking again after all of it was in vain.
struct Victims {
  LruPolicy policy;
  uint64_t retry_at_ns = 0;
  uint32_t spared = 0;  // the namespace whose own blocks were left out, 0 none
};

class RoomFinder {
 public:
  RoomFinder(const View& view, uint32_t slot) noexcept : view_(view), slot_(slot) {}

  // A CLAIMED record for `stride`, its payload offset in `offset`; 0 with the reason in `outcome`.
  uint64_t take(uint64_t stride, uint32_t namespace_id, uint64_t& offset,
                Outcome& outcome) noexcept {
    if (at_quota(stride, namespace_id)) {
      const uint64_t handle = take_victim(anyone_, stride, namespace_id, namespace_id, offset);
      outcome = handle != 0 ? Outcome::ok : Outcome::quota;
      return handle;
    }
    uint64_t handle = take_free(stride, offset);
    // Below its reserve a namespace grows at others' cost: were its own oldest to go, noise would keep it small.
    if (handle == 0 && is_below_reserve(view_, namespace_id, stride)) {
      handle = take_victim(others_, stride, namespace_id, 0, offset);
    }
    if (handle == 0) handle = take_victim(anyone_, stride, namespace_id, 0, offset);
    outcome = handle != 0 ? Outcome::ok : Outcome::no_space;
    return handle;
  }

  // Something became evictable in this very process: do not wait before looking again.
  void look_again() noexcept { anyone_.retry_at_ns = others_.retry_at_ns = 0; }

  // The least recently used blocks of a stride, one by one: gather(), then next() until false.
  void gather(uint64_t stride) noexcept { anyone_.policy.gather(view_, stride, 0, for_nobody); }
  bool next(Candidate& out) noexcept { return anyone_.policy.next(view_, out); }

  // Evicts up to `wanted` least recently used blocks of a stride, but for those that reserves keep; returns how many.
  uint32_t evict_oldest(uint64_t stride, uint32_t wanted) noexcept {
    gather(stride);
    uint32_t evicted = 0;
    Candidate candidate;
    while (evicted < wanted && next(candidate)) {
      if (!may_evict_for(view_, view_.block(candidate.record), for_nobody)) continue;
      const uint64_t state = load_acquire(view_.block(candidate.record).state);
      const uint64_t handle = make_handle(candidate.record, block_generation(state));
      if (evict_block(view_, slot_, handle, for_nobody) == Outcome::ok) ++evicted;
    }
    return evicted;
  }

 private:
  static constexpr uint64_t retry_after_ns = 10'000'000;
  static constexpr uint32_t gathers_max = 4;

  bool at_quota(uint64_t stride, uint32_t namespace_id) const noexcept {
    const NamespaceEntry& entry = view_.name_space(namespace_slot(namespace_id));
    const uint64_t maximum = load_relaxed(entry.maximum_bytes);
    return maximum != 0 && resident_bytes(entry) + stride > maximum;
  }

  FreeCursor& cursor_of(uint64_t stride) noexcept {
    for (FreeCursor& cursor : cursors_) {
      if (cursor.stride == stride) return cursor;
    }
    FreeCursor& cursor = cursors_[next_cursor_++ % cursor_count];
    cursor = FreeCursor{};
    cursor.stride = stride;
    return cursor;
  }

  uint64_t take_free(uint64_t stride, uint64_t& offset) noexcept {
    FreeCursor& cursor = cursor_of(stride);
    const uint64_t freed = load_acquire(view_.header().freed_clock);
    const uint32_t ready = view_.segments_ready();
    if (cursor.exhausted_at == freed && cursor.ready == ready) return 0;
    for (uint32_t i = 0; i < ready; ++i) {
      const uint32_t segment = (cursor.segment + i) % ready;
      const uint64_t handle = take_free_in(segment, stride, offset);
      if (handle != 0) {
        cursor.segment = segment;
        return handle;
      }
    }
    const uint64_t handle = take_unassigned(stride, ready, offset);
    if (handle == 0) {
      cursor.exhausted_at = freed;
      cursor.ready = ready;
    }
    return handle;
  }

  uint64_t take_unassigned(uint64_t stride, uint32_t ready, uint64_t& offset) noexcept {
    for (uint32_t segment = 0; segment < ready; ++segment) {
      const uint64_t state = load_acquire(view_.segment(segment).state);
      if (segment_tag(state) != SegmentTag::unassigned) continue;
      if (!change_segment(view_, slot_, segment, stride, for_nobody)) continue;
      const uint64_t handle = take_free_in(segment, stride, offset);
      if (handle != 0) return handle;
    }
    return 0;
  }

  uint64_t take_free_in(uint32_t segment, uint64_t stride, uint64_t& offset) noexcept {
    const uint64_t state = load_acquire(view_.segment(segment).state);
    if (!segment_serves(state, stride)) return 0;
    const uint32_t capacity = segment_capacity(view_.geometry, segment, stride);
    const uint32_t first = view_.first_record(segment);
    for (uint32_t base = 0; base < capacity; base += 64) {
      uint64_t bits = load_acquire(view_.free_bits(first + base));
      while (bits != 0) {
        const uint32_t index = base + static_cast<uint32_t>(__builtin_ctzll(bits));
        bits &= bits - 1;
        if (index >= capacity) break;
        const uint64_t handle = begin_claim(view_, slot_, first + index);
        if (handle == 0) continue;
        if (settle(segment, state, stride, handle, offset)) return handle;
        return 0;  // the segment is changing hands
      }
    }
    return 0;
  }

  // Keeps a record just taken if its segment is still ours to use, gives it back otherwise.
  bool settle(uint32_t segment, uint64_t state, uint64_t stride, uint64_t handle,
              uint64_t& offset) noexcept {
    const uint32_t record = handle_record(handle);
    if (!segment_still(view_, segment, state)) {
      release_record(view_, record,
                     block_state(BlockTag::claimed, slot_, handle_generation(handle)));
      return false;
    }
    offset = block_offset(view_.geometry, segment, stride, record - view_.first_record(segment));
    return true;
  }

  uint64_t take_victim(Victims& victims, uint64_t stride, uint32_t requester,
                       uint32_t only_namespace, uint64_t& offset) noexcept {
    const uint32_t spared = &victims == &others_ ? requester : 0;
    if (victims.policy.serves(stride, only_namespace) && victims.spared == spared) {
      const uint64_t handle = take_gathered(victims.policy, stride, requester, offset);
      if (handle != 0) return handle;
      if (clock_ns(CLOCK_MONOTONIC_COARSE) < victims.retry_at_ns) return 0;
    }
    victims.spared = spared;
    // Many who store at once gather the same blocks, and the slowest of them finds all of them gone.
    for (uint32_t i = 0; i < gathers_max; ++i) {
      victims.policy.gather(view_, stride, only_namespace, requester, spared != 0);
      uint64_t handle = take_idle_segment(victims.policy, stride, requester, offset);
      if (handle == 0) handle = take_gathered(victims.policy, stride, requester, offset);
      victims.retry_at_ns = 0;
      if (handle != 0) return handle;
      if (!victims.policy.outpaced()) break;
    }
    victims.retry_at_ns = clock_ns(CLOCK_MONOTONIC_COARSE) + retry_after_ns;
    return 0;
  }

  // Moves the most idle segment of another size here, if all of it is older than our own oldest block.
  uint64_t take_idle_segment(LruPolicy& policy, uint64_t stride, uint32_t requester,
                             uint64_t& offset) noexcept {
    for (uint32_t i = 0; i < policy.idle_count(); ++i) {
      const Candidate idle = policy.idle(i);
      if (idle.touch >= policy.oldest()) return 0;
      if (!change_segment(view_, slot_, idle.record, stride, requester)) continue;
      const uint64_t handle = take_free_in(idle.record, stride, offset);
      if (handle != 0) {
        cursor_of(stride).exhausted_at = ~uint64_t{0};
        policy.forget();  // another segment may be as idle: it goes before any block gathered now
        return handle;
      }
    }
    return 0;
  }

  uint64_t take_gathered(LruPolicy& policy, uint64_t stride, uint32_t requester,
                         uint64_t& offset) noexcept {
    Candidate candidate;
    while (policy.next(view_, candidate)) {
      const uint32_t segment = view_.segment_of(candidate.record);
      const uint64_t segment_word = load_acquire(view_.segment(segment).state);
      const uint32_t index = candidate.record - view_.first_record(segment);
      if (!segment_serves(segment_word, stride) ||
          index >= segment_capacity(view_.geometry, segment, stride) ||
          !may_evict_for(view_, view_.block(candidate.record), requester)) {
        continue;
      }
      const uint64_t state = load_acquire(view_.block(candidate.record).state);
      Outcome outcome = Outcome::ok;
      const uint64_t handle = evict_and_claim(
          view_, slot_, make_handle(candidate.record, block_generation(state)), requester, outcome);
      if (outcome == Outcome::pinned) count(view_, Counter::evictions_pinned);
      if (handle != 0 && settle(segment, segment_word, stride, handle, offset)) return handle;
    }
    return 0;
  }

  static constexpr uint32_t cursor_count = 8;

  const View& view_;
  uint32_t slot_;
  uint32_t next_cursor_ = 0;
  FreeCursor cursors_[cursor_count];
  Victims anyone_;
  Victims others_;  // for who is below its reserve
};

}  // namespace pegashm
