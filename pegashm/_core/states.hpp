// What do the truth words say? Packing of the state words of records, segments, clients and namespaces.
//
// Pure functions on values; nothing here reads shared memory.
#pragma once

#include <cstdint>

#include "layout.hpp"

namespace pegashm {

// -- block records: tag:8 | owner:16 << 8 | generation:40 << 24 -------------------------------------
enum class BlockTag : uint8_t { free = 0, claimed = 1, ready = 2, evicting = 3 };

inline constexpr uint64_t generation_mask = (uint64_t{1} << 40) - 1;

constexpr uint64_t block_state(BlockTag tag, uint32_t owner, uint64_t generation) noexcept {
  return uint64_t{static_cast<uint8_t>(tag)} | uint64_t{owner & 0xFFFF} << 8 |
         (generation & generation_mask) << 24;
}
constexpr BlockTag block_tag(uint64_t state) noexcept {
  return static_cast<BlockTag>(static_cast<uint8_t>(state));
}
constexpr uint32_t block_owner(uint64_t state) noexcept {
  return static_cast<uint32_t>(state >> 8 & 0xFFFF);
}
constexpr uint64_t block_generation(uint64_t state) noexcept { return state >> 24; }
// Generations run from 1; after 2^40 lives of one record they start again, skipping 0.
constexpr uint64_t next_generation(uint64_t generation) noexcept {
  const uint64_t next = (generation + 1) & generation_mask;
  return next == 0 ? 1 : next;
}

// -- spill records: tag:8 (0 free, 1 stored) | file:8 << 8 | generation:40 << 24 ---------------------
constexpr uint64_t spill_state(bool stored, uint32_t file, uint64_t generation) noexcept {
  return uint64_t{stored ? 1u : 0u} | uint64_t{file & 0xFF} << 8 |
         (generation & generation_mask) << 24;
}
constexpr bool spill_stored(uint64_t state) noexcept { return (state & 0xFF) == 1; }
constexpr uint32_t spill_file(uint64_t state) noexcept {
  return static_cast<uint32_t>(state >> 8 & 0xFF);
}

// -- segments: tag:8 | owner:8 << 8 | epoch:24 << 16 | stride_pages:24 << 40 ------------------------
enum class SegmentTag : uint8_t { unassigned = 0, assigned = 1, changing = 2 };

constexpr uint64_t segment_state(SegmentTag tag, uint32_t owner, uint64_t epoch,
                                 uint64_t stride) noexcept {
  return uint64_t{static_cast<uint8_t>(tag)} | uint64_t{owner & 0xFF} << 8 |
         (epoch & 0xFFFFFF) << 16 | (stride / page_bytes_small) << 40;
}
constexpr SegmentTag segment_tag(uint64_t state) noexcept {
  return static_cast<SegmentTag>(static_cast<uint8_t>(state));
}
constexpr uint32_t segment_owner(uint64_t state) noexcept {
  return static_cast<uint32_t>(state >> 8 & 0xFF);
}
constexpr uint64_t segment_epoch(uint64_t state) noexcept { return state >> 16 & 0xFFFFFF; }
constexpr uint64_t segment_stride(uint64_t state) noexcept {
  return (state >> 40) * page_bytes_small;
}
constexpr bool segment_serves(uint64_t state, uint64_t stride) noexcept {
  return segment_tag(state) == SegmentTag::assigned && segment_stride(state) == stride;
}

// -- clients: incarnation:56 << 8 | tag:8 ------------------------------------------------------------
constexpr uint64_t client_state(bool attached, uint64_t incarnation) noexcept {
  return (attached ? 1u : 0u) | incarnation << 8;
}
constexpr bool client_attached(uint64_t state) noexcept { return (state & 0xFF) == 1; }
constexpr uint64_t client_incarnation(uint64_t state) noexcept { return state >> 8; }

// -- namespaces: generation:16 << 16 | tag:8 -----------------------------------------------------------
constexpr uint64_t namespace_state(bool live, uint64_t generation) noexcept {
  return (live ? 1u : 0u) | (generation & 0xFFFF) << 16;
}
constexpr bool namespace_live(uint64_t state) noexcept { return (state & 0xFF) == 1; }
constexpr uint64_t namespace_generation(uint64_t state) noexcept { return state >> 16 & 0xFFFF; }

constexpr uint32_t namespace_slot(uint32_t id) noexcept { return id & 0xFFFF; }
constexpr uint32_t namespace_id(uint64_t generation, uint32_t slot) noexcept {
  return static_cast<uint32_t>(generation & 0xFFFF) << 16 | slot;
}

}  // namespace pegashm
