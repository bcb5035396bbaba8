// Which block goes first? The eviction policy: least recently used, by the access clock in `touches`.
//
// The order lives in one word a record, so it survives any death and needs no list to repair. A client
// gathers the oldest candidates in one sequential pass over the touches (8 bytes a record) and works
// through them; a candidate touched since is passed over. The pass also finds the most idle segment of
// another size, so that memory moves to the size that uses it in the same LRU order.
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
  static constexpr uint32_t candidates_max = 512;
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
    }
    return false;
  }
  // What was gathered no longer says what is oldest: the next who needs room gathers anew.
  void forget() noexcept { stride_ = 0; }
  uint64_t oldest() const noexcept { return count_ == 0 ? ~uint64_t{0} : candidates_[0].touch; }
  uint32_t idle_count() const noexcept { return idle_count_; }
  Candidate idle(uint32_t index) const noexcept { return idle_[index]; }  // record: segment number

  // One pass over all touches. `only_namespace` 0: any.
  void gather(const View& view, uint64_t stride, uint32_t only_namespace) noexcept {
    stride_ = stride;
    only_namespace_ = only_namespace;
    count_ = taken_ = idle_count_ = 0;
    const uint32_t ready = view.segments_ready();
    for (uint32_t segment = 0; segment < ready; ++segment) {
      const uint64_t state = load_acquire(view.segment(segment).state);
      if (segment_serves(state, stride)) {
        gather_blocks(view, segment, segment_capacity(view.geometry, segment, stride));
      } else if (segment_tag(state) == SegmentTag::assigned && only_namespace == 0) {
        gather_idle(view, segment, segment_stride(state));
      }
    }
    std::sort_heap(candidates_, candidates_ + count_, older);
    std::sort(idle_, idle_ + idle_count_, older);
  }

 private:
  static bool older(const Candidate& a, const Candidate& b) noexcept { return a.touch < b.touch; }

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

  void gather_blocks(const View& view, uint32_t segment, uint32_t capacity) noexcept {
    const uint32_t first = view.first_record(segment);
    for (uint32_t record = first; record < first + capacity; ++record) {
      const uint64_t touch =
          load_relaxed(view.touched(record));  // SYNC none: a guess, checked later
      if (touch == 0 || (count_ == candidates_max && touch >= candidates_[0].touch)) continue;
      if (only_namespace_ != 0 &&
          identity_namespace(load_acquire(view.block(record).identity)) != only_namespace_) {
        continue;
      }
      offer(candidates_, count_, candidates_max, {touch, record});
    }
  }

  void gather_idle(const View& view, uint32_t segment, uint64_t stride) noexcept {
    uint64_t newest = 0;
    const uint32_t first = view.first_record(segment);
    const uint32_t capacity = segment_capacity(view.geometry, segment, stride);
    for (uint32_t record = first; record < first + capacity; ++record) {
      newest = std::max(newest, load_relaxed(view.touched(record)));
    }
    offer(idle_, idle_count_, idle_segments_max, {newest, segment});
  }

  uint64_t stride_ = 0;
  uint32_t only_namespace_ = 0;
  uint32_t count_ = 0;
  uint32_t taken_ = 0;
  uint32_t idle_count_ = 0;
  Candidate candidates_[candidates_max];
  Candidate idle_[idle_segments_max];
};

}  // namespace pegashm
