// Who may not lose this block? One bit a client in the record; the count behind a bit is private.
//
// A pin and an eviction meet on two words, state and pins. The reader sets its bit and then reads the
// state; the evictor sets the state and then reads the bits; all four are sequentially consistent, so at
// least one of them sees the other (Dekker's handshake).
#pragma once

#include "crash.hpp"
#include "states.hpp"
#include "view.hpp"

namespace pegashm {

inline uint64_t pin_bit(uint32_t slot) noexcept { return uint64_t{1} << (slot % 64); }

inline bool set_pin(const View& view, uint32_t slot, uint64_t handle) noexcept {
  Block& block = view.block(handle_record(handle));
  // SYNC pin/evict, reader's side: bit, then state. Pairs with begin_evict(). Death rows 7, 8.
  or_seq(block.pins[slot / 64], pin_bit(slot));
  crash_point(CrashPoint::pin_bit_set);
  const uint64_t state = load_seq(block.state);
  crash_point(CrashPoint::pin_checked);
  return block_tag(state) == BlockTag::ready &&
         block_generation(state) == handle_generation(handle);
}

inline void clear_pin(const View& view, uint32_t slot, uint32_t record) noexcept {
  and_seq(view.block(record).pins[slot / 64], ~pin_bit(slot));
  crash_point(CrashPoint::pin_bit_cleared);
}

inline bool is_pinned(const Block& block) noexcept {
  return (load_seq(block.pins[0]) | load_seq(block.pins[1])) != 0;
}

}  // namespace pegashm
