// Which block goes first? The one with the smallest word in `touches`: the least recently used, by the access clock, or
// the one that is due first (adaptive.hpp), depending on who writes those words how.
//
// The order lives in one word a record, so it survives any death and needs no list to repair. A client
// gathers the oldest candidates in one sequential pass over the touches (8 bytes a record) and works
// through them; a candidate touched since is passed over. The pass also finds the most idle segment of
// another size, so that memory moves to the size that uses it in the same order.
// This is the seam for other policies: gather() chooses, nothing else knows how.
#pragma once

#include <algorithm>

#include "segments.hpp"

namespace pegashm {

struct Candidate {
  uint64_t touch;
  uint32_t record;
};

class LruPolicy {
 public:
  // How many a pass gathers: many in a large arena, whose pass is long; few in a small one, where sorting them is what costs.
  static constexpr uint32_t candidates_min = 512;
  static constexpr uint32_t candidates_max = 4096;
  static constexpr uint32_t idle_segments_max = 8;

  // What the gathered candidates are for; another stride or filter asks for another pass.
  bool serves(uint64_t stride, uint32_t only_namespace) const noexcept {
    return stride == stride_ && only_namespace == only_namespace_;
  }

  // The next candidate, oldest first; false when there is none left.
  bool next(const View& view, Candidate& out) noexcept {
    while (taken_ < count_) {
      out = candidates_[taken_++];
      if (load_acquire(view.touched(out.record)) == out.touch) return true;
      outpaced_ = true;
    }
    return false;
  }
  // Whether others used or evicted something gathered here before we came to it: there may be more to gather.
  bool outpaced() const noexcept { return outpaced_; }
  // What was gathered no longer says what is oldest: the next who needs room gathers anew.
  void forget() noexcept { stride_ = 0; }
  uint64_t oldest() const noexcept { return count_ == 0 ? ~uint64_t{0} : candidates_[0].touch; }
  uint32_t idle_count() const noexcept { return idle_count_; }
  Candidate idle(uint32_t index) const noexcept { return idle_[index]; }  // record: segment number

  // One pass over all touches. `only_namespace` 0: any, but for what the reserves of others than `requester` keep, and with
  // `spare_own` for what is the requester's.
  void gather(const View& view, uint64_t stride, uint32_t only_namespace, uint32_t requester,
              bool spare_own = false) noexcept {
    const Reserves reserves(view, only_namespace == 0 ? requester : at_will, spare_own);
    stride_ = stride;
    only_namespace_ = only_namespace;
    count_ = taken_ = idle_count_ = 0;
    wanted_ = std::clamp(view.geometry.record_count / 64, candidates_min, candidates_max);
    outpaced_ = false;
    const uint32_t ready = view.segments_ready();
    for (uint32_t segment = 0; segment < ready; ++segment) {
      const uint64_t state = load_acquire(view.segment(segment).state);
      if (segment_serves(state, stride)) {
        gather_blocks(view, segment, segment_capacity(view.geometry, segment, stride), reserves);
      } else if (segment_tag(state) == SegmentTag::assigned && only_namespace == 0) {
        gather_idle(view, segment, segment_stride(state), reserves);
      }
    }
    std::sort_heap(candidates_, candidates_ + count_, older);
    leave_some_ahead(view);
    std::sort(idle_, idle_ + idle_count_, older);
  }

 private:
  static bool older(const Candidate& a, const Candidate& b) noexcept { return a.touch < b.touch; }

  // With adaptive eviction blocks may be due ahead of the clock, and what is stored from now on is due before
  // them: so only a few of those are worked through before another pass.
  void leave_some_ahead(const View& view) noexcept {
    const uint64_t clock = load_relaxed(view.header().access_clock);  // SYNC none: a guess will do
    const uint32_t some = std::clamp<uint32_t>(view.geometry.record_count / 64, 16, wanted_);
    uint32_t behind = 0;
    while (behind < count_ && candidates_[behind].touch <= clock) ++behind;
    count_ = std::min(count_, behind + some);
  }

  // Keeps the `max` smallest of what it is offered, as a max-heap.
  static void offer(Candidate* heap, uint32_t& count, uint32_t max, Candidate candidate) noexcept {
    if (count == max) {
      if (candidate.touch >= heap[0].touch) return;
      std::pop_heap(heap, heap + count, older);
      heap[count - 1] = candidate;
    } else {
      heap[count++] = candidate;
    }
    std::push_heap(heap, heap + count, older);
  }

  void gather_blocks(const View& view, uint32_t segment, uint32_t capacity,
                     const Reserves& reserves) noexcept {
    const uint32_t first = view.first_record(segment);
    for (uint32_t record = first; record < first + capacity; ++record) {
      const uint64_t touch =
          load_relaxed(view.touched(record));  // SYNC none: a guess, checked later
      if (touch == 0 || (count_ == wanted_ && touch >= candidates_[0].touch)) continue;
      if (only_namespace_ != 0 &&
          identity_namespace(load_acquire(view.block(record).identity)) != only_namespace_) {
        continue;
      }
      if (reserves.any() && reserves.keep(load_acquire(view.block(record).identity), stride_)) {
        continue;
      }
      offer(candidates_, count_, wanted_, {touch, record});
    }
  }

  void gather_idle(const View& view, uint32_t segment, uint64_t stride,
                   const Reserves& reserves) noexcept {
    uint64_t newest = 0;
    const uint32_t first = view.first_record(segment);
    const uint32_t capacity = segment_capacity(view.geometry, segment, stride);
    for (uint32_t record = first; record < first + capacity; ++record) {
      const uint64_t touch = load_relaxed(view.touched(record));
      if (reserves.any() && touch != 0 &&
          reserves.keep(load_acquire(view.block(record).identity), stride)) {
        return;
      }
      newest = std::max(newest, touch);
    }
    offer(idle_, idle_count_, idle_segments_max, {newest, segment});
  }

  uint64_t stride_ = 0;
  uint32_t only_namespace_ = 0;
  uint32_t wanted_ = candidates_min;
  uint32_t count_ = 0;
  uint32_t taken_ = 0;
  uint32_t idle_count_ = 0;
  bool outpaced_ = false;
  Candidate candidates_[candidates_max];
  Candidate idle_[idle_segments_max];
};

}  // namespace pegashm
