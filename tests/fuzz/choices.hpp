// How does a string of bytes become damage and work? Every decision of a fuzzing run is read from its input.
//
// So a run is its input: libFuzzer can grow and cut it, a crash can be saved and made smaller, and the same
// bytes do the same again. What is missing at the end reads as 0, which every decision takes as its mildest.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fuzz {

class Choices {
 public:
  Choices(const uint8_t* data, size_t size) noexcept : next_(data), end_(data + size) {}

  bool left() const noexcept { return next_ != end_; }
  uint8_t byte() noexcept { return left() ? *next_++ : 0; }
  uint64_t word() noexcept {
    uint64_t word = 0;
    for (uint32_t i = 0; i < 8; ++i) word |= uint64_t{byte()} << (8 * i);
    return word;
  }
  // A number in [0, count), from as few bytes as it takes.
  uint32_t below(uint32_t count) noexcept {
    uint32_t value = byte();
    if (count > 1u << 8) value |= uint32_t{byte()} << 8;
    if (count > 1u << 16) value |= uint32_t{byte()} << 16;
    return count == 0 ? 0 : value % count;
  }
  bool chance(uint32_t in) noexcept { return below(in) == 1 % in; }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
};

}  // namespace fuzz
