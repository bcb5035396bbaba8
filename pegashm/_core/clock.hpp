// What time is it? One clock of the kernel, in nanoseconds.
//
// Called wherever a time is written into the region or compared with one: CLOCK_REALTIME is the same in all containers.
// Reads no shared memory.
#pragma once

#include <cstdint>
#include <ctime>

namespace pegashm {

inline uint64_t clock_ns(clockid_t clock) noexcept {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace pegashm
