// Are these still the bytes that were stored? Where a block's checksums are kept, and the mark of damage.
//
// The checksums themselves are computed and compared in Python (pegashm/payload_sums.py): the core only
// keeps them. Part i of a block covers payload bytes [i * part_bytes, (i + 1) * part_bytes); what lies
// behind the last part is padding that nobody reads. All of it is a hint: a wrong word costs a miss.
// Called by who copies into a claimed block, by who reads a pinned one, and by the claimer, who clears.
#pragma once

#include <algorithm>

#include "crash.hpp"
#include "states.hpp"
#include "view.hpp"

namespace pegashm {

// part_bytes:48 | part_count:8 << 48 | flags:8 << 56
inline constexpr uint64_t sum_flag_damaged = uint64_t{1} << 56;

constexpr uint64_t make_sum_layout(uint64_t part_bytes, uint32_t part_count) noexcept {
  return (part_bytes & ((uint64_t{1} << 48) - 1)) | uint64_t{part_count & 0xFF} << 48;
}
constexpr uint64_t sum_part_bytes(uint64_t layout) noexcept {
  return layout & ((uint64_t{1} << 48) - 1);
}
constexpr uint32_t sum_part_count(uint64_t layout) noexcept {
  return static_cast<uint32_t>(layout >> 48 & 0xFF);
}

// Whether parts of this kind fit into a payload.
constexpr bool sum_layout_fits(uint64_t part_bytes, uint32_t part_count,
                               uint64_t payload_bytes) noexcept {
  return part_count >= 1 && part_count <= sum_count && part_bytes >= 1 &&
         part_bytes <= payload_bytes / part_count;
}

inline bool is_damaged(const Block& block) noexcept {
  return (load_acquire(block.sum_layout) & sum_flag_damaged) != 0;
}

// Forgets the checksums of a former life. A record that had none costs no look at the table; the layout
// goes last, so that whoever dies in between leaves a record that is cleared again.
inline void clear_sums(const View& view, uint32_t record) noexcept {
  Block& block = view.block(record);
  if (load_acquire(block.sum_layout) == 0) return;
  for (uint64_t& part : view.sums(record).parts) store_release(part, 0);
  crash_point(CrashPoint::sums_cleared);
  store_release(block.sum_layout, 0);
}

// Keeps the checksum of one part of a claimed block. False when that life is over or there is no such part.
// Before report_part(), whose release makes it visible to the publisher.
inline bool write_sum(const View& view, uint64_t handle, uint32_t part, uint64_t layout,
                      uint64_t sum) noexcept {
  const uint32_t record = handle_record(handle);
  if (handle == 0 || record >= view.geometry.record_count) return false;
  Block& block = view.block(record);
  const uint64_t state = load_acquire(block.state);
  if (block_tag(state) != BlockTag::claimed ||
      block_generation(state) != handle_generation(handle) || part >= sum_part_count(layout) ||
      !sum_layout_fits(sum_part_bytes(layout), sum_part_count(layout),
                       load_acquire(block.payload_bytes))) {
    return false;
  }
  // The layout first: where there is none, there are no words of this life, whoever dies when.
  store_release(block.sum_layout, layout);
  crash_point(CrashPoint::sum_layout_written);
  store_release(view.sums(record).parts[part], sum);
  crash_point(CrashPoint::sum_written);
  return true;
}

// What is known of one block's checksums; all zero when it has none or the handle's life is over.
struct SumsRead {
  uint64_t part_bytes = 0;
  uint32_t part_count = 0;
  bool damaged = false;  // marked, or a layout that no writer writes, or words without one
  uint64_t sums[sum_count] = {};
};

inline SumsRead read_sums(const View& view, uint64_t handle) noexcept {
  SumsRead out;
  const uint32_t record = handle_record(handle);
  if (handle == 0 || record >= view.geometry.record_count) return out;
  const Block& block = view.block(record);
  // SYNC publish/find: acquire, so that the checksums are those that were written before READY.
  // EVICTING is no end of a life: an evictor that meets our pin puts READY back, and a block whose checksums
  // were not seen for that moment would be believed unverified (tests/explore: reuse_sums).
  const uint64_t state = load_acquire(block.state);
  if (block_generation(state) != handle_generation(handle) || block_tag(state) == BlockTag::free) {
    return out;
  }
  const uint64_t layout = load_acquire(block.sum_layout);
  const uint64_t part_bytes = sum_part_bytes(layout);
  const uint32_t part_count = sum_part_count(layout);
  const bool complete = block_tag(state) != BlockTag::claimed;
  uint64_t words[sum_count];
  for (uint32_t part = 0; part < sum_count; ++part) {
    words[part] = load_acquire(view.sums(record).parts[part]);
    // A word that the layout does not speak of, or the other way round: one of them was lost, and what it
    // covers would be believed unverified.
    if (part >= part_count ? words[part] != 0 : words[part] == 0 && complete) out.damaged = true;
  }
  if (layout == 0 || out.damaged) return out;
  if (layout >> 56 != 0 ||
      !sum_layout_fits(part_bytes, part_count, load_acquire(block.payload_bytes))) {
    out.damaged = true;
    return out;
  }
  out.part_bytes = part_bytes;
  out.part_count = part_count;
  std::copy(words, words + part_count, out.sums);
  return out;
}

// Marks a READY block, so that nobody pins it again. True for the one who did it first. A mark that comes
// too late and meets the record's next life costs that life's bytes a hit, no more.
inline bool mark_damaged(const View& view, uint64_t handle) noexcept {
  const uint32_t record = handle_record(handle);
  if (handle == 0 || record >= view.geometry.record_count) return false;
  Block& block = view.block(record);
  if (load_acquire(block.state) != block_state(BlockTag::ready, 0, handle_generation(handle))) {
    return false;
  }
  const uint64_t before = or_seq(block.sum_layout, sum_flag_damaged);
  crash_point(CrashPoint::damage_marked);
  return (before & sum_flag_damaged) == 0;
}

}  // namespace pegashm
