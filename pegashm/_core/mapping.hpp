// Where is the region in this process? Mapping control and arenas, and what the supervisor does to pages.
//
// All arenas are mapped into one reserved address range, so that one base address and one offset reach any
// block. Mapping costs the same whatever the size: no page is touched. Functions return an errno, 0 for ok.
#pragma once

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace pegashm {

struct Mapping {
  uint8_t* address = nullptr;
  uint64_t bytes = 0;
  uint8_t* range = nullptr;  // what was reserved, alignment slack included
  uint64_t range_bytes = 0;
};

inline constexpr uint64_t mapping_alignment = uint64_t{1} << 30;  // 1 GiB pages fit anywhere

inline int protection(bool writable) noexcept {
  return writable ? PROT_READ | PROT_WRITE : PROT_READ;
}

inline int map_one(int fd, uint64_t bytes, bool writable, Mapping& out) noexcept {
  void* const address = mmap(nullptr, bytes, protection(writable), MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return errno;
  out = {static_cast<uint8_t*>(address), bytes, static_cast<uint8_t*>(address), bytes};
  return 0;
}

inline void unmap(Mapping& mapping) noexcept {
  if (mapping.range != nullptr) munmap(mapping.range, mapping.range_bytes);
  mapping = Mapping{};
}

inline int map_together(const int* fds, const uint64_t* sizes, uint32_t count, bool writable,
                        Mapping& out) noexcept {
  uint64_t total = 0;
  for (uint32_t i = 0; i < count; ++i) total += sizes[i];
  const uint64_t range_bytes = total + mapping_alignment;
  void* const range =
      mmap(nullptr, range_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return errno;
  const uint64_t start = reinterpret_cast<uintptr_t>(range);
  const uint64_t aligned = (start + mapping_alignment - 1) / mapping_alignment * mapping_alignment;
  out = {reinterpret_cast<uint8_t*>(aligned), total, static_cast<uint8_t*>(range), range_bytes};
  uint8_t* next = out.address;
  for (uint32_t i = 0; i < count; ++i) {
    if (mmap(next, sizes[i], protection(writable), MAP_SHARED | MAP_FIXED, fds[i], 0) ==
        MAP_FAILED) {
      const int error = errno;
      unmap(out);
      return error;
    }
    next += sizes[i];
  }
  return 0;
}

inline int populate_pages(uint8_t* address, uint64_t bytes) noexcept {
  constexpr int populate_write = 23;  // MADV_POPULATE_WRITE, Linux 5.14
  if (madvise(address, bytes, populate_write) == 0) return 0;
  if (errno != EINVAL) return errno;
  const long page =
      sysconf(_SC_PAGESIZE);  // an older kernel: touch each page, keeping what is there
  for (uint64_t offset = 0; offset < bytes; offset += static_cast<uint64_t>(page)) {
    __atomic_fetch_or(address + offset, uint8_t{0}, __ATOMIC_RELAXED);
  }
  return 0;
}

inline int lock_pages(uint8_t* address, uint64_t bytes) noexcept {
  return mlock(address, bytes) == 0 ? 0 : errno;
}

inline int advise_huge(uint8_t* address, uint64_t bytes) noexcept {
  return madvise(address, bytes, MADV_HUGEPAGE) == 0 ? 0 : errno;
}

inline int bind_pages(uint8_t* address, uint64_t bytes, uint32_t node) noexcept {
  constexpr unsigned long policy_bind = 2;  // MPOL_BIND
  constexpr uint32_t bits = 8 * sizeof(unsigned long);
  unsigned long mask[16] = {};
  if (node >= 16 * bits) return EINVAL;
  mask[node / bits] = 1ul << (node % bits);
  return syscall(SYS_mbind, address, bytes, policy_bind, mask, 16 * bits, 0ul) == 0 ? 0 : errno;
}

}  // namespace pegashm
