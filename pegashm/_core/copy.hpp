// How do payload bytes move? Scatter/gather of byte runs between a process's own memory and the arena.
//
// Runs are cut into pieces and dealt to a fixed set of threads, the caller among them. Large pieces use
// streaming (non-temporal) stores: the destination is not read back soon, so pulling it through the cache
// first costs up to half of the bandwidth. The widest useful stores are chosen at run time, so one binary
// serves any x86-64, and other processors get memcpy. Kernel and thresholds were measured: bench/copy.py.
// Knows nothing of regions; the caller vouches for the addresses.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pegashm {

enum class CopyMethod : uint8_t { automatic = 0, memcpy = 1, streaming = 2, rep_movsb = 3 };

// From here on streaming was measured faster than memcpy, cold and hot; there is no upper limit.
inline constexpr uint64_t streaming_bytes_min = 4 * 1024;

// Fewer lines of 128 bytes do not make four parts.
inline constexpr uint64_t streaming_lines_min = 16;

inline void copy_memcpy(uint8_t* to, const uint8_t* from, uint64_t bytes) noexcept {
  std::memcpy(to, from, bytes);
}

#if defined(__x86_64__)

inline void copy_rep_movsb(uint8_t* to, const uint8_t* from, uint64_t bytes) noexcept {
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

// Bytes to copy so that `to` becomes a multiple of 64.
inline uint64_t bytes_to_align(const uint8_t* to, uint64_t bytes) noexcept {
  const uint64_t head = (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64;
  return head < bytes ? head : bytes;
}

// Both kernels copy four parts of a run side by side, 128 bytes in turn: four streams for the hardware
// prefetchers, so that some go on while one starts anew at a page. The parts are 128 bytes longer than a
// quarter (the last is shorter): with parts a multiple of 4 KiB apart, loads would wait for stores to the same
// place of another page. 64-byte stores were measured and are no faster. copy_fence() ends a run list.
struct Parts {
  uint64_t each;  // bytes of the first three, a multiple of 128
  uint64_t last;
};

// `lines` of 128 bytes, at least streaming_lines_min, so that no part is empty.
inline Parts parts_of(uint64_t lines) noexcept {
  const uint64_t each = lines / 4 + 1;
  return {each * 128, (lines - 3 * each) * 128};
}

__attribute__((target("avx2"))) inline void stream_line_avx2(uint8_t* to,
                                                             const uint8_t* from) noexcept {
  const auto* const source = reinterpret_cast<const __m256i*>(from);
  auto* const target = reinterpret_cast<__m256i*>(to);
  const __m256i a = _mm256_loadu_si256(source), b = _mm256_loadu_si256(source + 1);
  const __m256i c = _mm256_loadu_si256(source + 2), d = _mm256_loadu_si256(source + 3);
  _mm256_stream_si256(target, a);
  _mm256_stream_si256(target + 1, b);
  _mm256_stream_si256(target + 2, c);
  _mm256_stream_si256(target + 3, d);
}

__attribute__((target("avx2"))) inline void stream_avx2(uint8_t* to, const uint8_t* from,
                                                        Parts parts) noexcept {
  for (uint64_t i = 0; i < parts.last; i += 128) {
    for (uint64_t part = 0; part < 4; ++part) {
      stream_line_avx2(to + part * parts.each + i, from + part * parts.each + i);
    }
  }
  for (uint64_t part = 0; part < 3; ++part) {
    for (uint64_t i = parts.last; i < parts.each; i += 128) {
      stream_line_avx2(to + part * parts.each + i, from + part * parts.each + i);
    }
  }
}

inline void stream_line_sse2(uint8_t* to, const uint8_t* from) noexcept {
  const auto* const source = reinterpret_cast<const __m128i*>(from);
  auto* const target = reinterpret_cast<__m128i*>(to);
  for (int i = 0; i < 8; i += 4) {
    const __m128i a = _mm_loadu_si128(source + i), b = _mm_loadu_si128(source + i + 1);
    const __m128i c = _mm_loadu_si128(source + i + 2), d = _mm_loadu_si128(source + i + 3);
    _mm_stream_si128(target + i, a);
    _mm_stream_si128(target + i + 1, b);
    _mm_stream_si128(target + i + 2, c);
    _mm_stream_si128(target + i + 3, d);
  }
}

inline void stream_sse2(uint8_t* to, const uint8_t* from, Parts parts) noexcept {
  for (uint64_t i = 0; i < parts.last; i += 128) {
    for (uint64_t part = 0; part < 4; ++part) {
      stream_line_sse2(to + part * parts.each + i, from + part * parts.each + i);
    }
  }
  for (uint64_t part = 0; part < 3; ++part) {
    for (uint64_t i = parts.last; i < parts.each; i += 128) {
      stream_line_sse2(to + part * parts.each + i, from + part * parts.each + i);
    }
  }
}

using StreamFunction = void (*)(uint8_t*, const uint8_t*, Parts) noexcept;

inline StreamFunction widest_stream() noexcept {
  return __builtin_cpu_supports("avx2") ? stream_avx2 : stream_sse2;
}

inline void copy_streaming(uint8_t* to, const uint8_t* from, uint64_t bytes) noexcept {
  static const StreamFunction stream = widest_stream();
  const uint64_t head = bytes_to_align(to, bytes);
  const uint64_t lines = (bytes - head) / 128;
  if (lines < streaming_lines_min) return copy_memcpy(to, from, bytes);
  std::memcpy(to, from, head);
  stream(to + head, from + head, parts_of(lines));
  const uint64_t done = head + lines * 128;
  std::memcpy(to + done, from + done, bytes - done);
}

// Streaming stores are weakly ordered: nothing may report a copy before this.
inline void copy_fence() noexcept { _mm_sfence(); }

#else

inline void copy_streaming(uint8_t* to, const uint8_t* from, uint64_t bytes) noexcept {
  std::memcpy(to, from, bytes);
}
inline void copy_rep_movsb(uint8_t* to, const uint8_t* from, uint64_t bytes) noexcept {
  std::memcpy(to, from, bytes);
}
inline void copy_fence() noexcept {}

#endif

inline void copy_run(CopyMethod method, uint64_t to, uint64_t from, uint64_t bytes) noexcept {
  auto* const target = reinterpret_cast<uint8_t*>(to);
  const auto* const source = reinterpret_cast<const uint8_t*>(from);
  if (method == CopyMethod::automatic) {
    method = bytes >= streaming_bytes_min ? CopyMethod::streaming : CopyMethod::memcpy;
  }
  switch (method) {
    case CopyMethod::streaming:
      return copy_streaming(target, source, bytes);
    case CopyMethod::rep_movsb:
      return copy_rep_movsb(target, source, bytes);
    default:
      return copy_memcpy(target, source, bytes);
  }
}

struct CopyBatch {
  const uint64_t* to;
  const uint64_t* from;
  const uint64_t* bytes;
  uint64_t count;
  CopyMethod method;
};

// A fixed set of threads that share one batch at a time. Not for two callers at once: copy() is locked.
class Copier {
 public:
  static constexpr uint32_t threads_max = 64;

  // `threads` counts the caller. Threads that cannot be started are done without.
  explicit Copier(uint32_t threads) noexcept {
    const uint32_t wanted = std::clamp(threads, 1u, threads_max) - 1;
    for (; helpers_ < wanted; ++helpers_) {
      try {
        threads_[helpers_] = std::thread([this] { serve(); });
      } catch (...) {
        break;
      }
    }
  }
  ~Copier() {
    {
      const std::lock_guard guard(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (uint32_t i = 0; i < helpers_; ++i) threads_[i].join();
  }
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;

  uint64_t copy(const CopyBatch& batch) noexcept {
    const std::lock_guard one_at_a_time(callers_);
    uint64_t total = 0;
    for (uint64_t i = 0; i < batch.count; ++i) total += batch.bytes[i];
    // Waking a thread costs tens of microseconds: small batches are done before it would be awake.
    if (helpers_ == 0 || total < share_bytes_min) {
      for (uint64_t i = 0; i < batch.count; ++i) {
        copy_run(batch.method, batch.to[i], batch.from[i], batch.bytes[i]);
      }
      copy_fence();
      return total;
    }
    {
      const std::lock_guard guard(mutex_);
      batch_ = batch;
      next_run_.store(0);
      left_ = helpers_;
      ++round_;
    }
    wake_.notify_all();
    work(batch);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
    return total;
  }

 private:
  static constexpr uint64_t share_bytes_min = 4 * 1024 * 1024;
  static constexpr uint64_t piece_bytes = 256 * 1024;

  void serve() noexcept {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
      const CopyBatch batch = batch_;
      lock.unlock();
      work(batch);
      lock.lock();
      if (--left_ == 0) done_.notify_one();
    }
  }

  // Takes pieces until none is left. A piece is (run, part of it), numbered so that one counter deals all.
  void work(const CopyBatch& batch) noexcept {
    uint64_t run = 0, pieces_before = 0;
    for (;;) {
      const uint64_t piece = next_run_.fetch_add(1);
      for (; run < batch.count; ++run) {
        const uint64_t pieces =
            std::max<uint64_t>(1, (batch.bytes[run] + piece_bytes - 1) / piece_bytes);
        if (piece < pieces_before + pieces) break;
        pieces_before += pieces;
      }
      if (run == batch.count) break;
      const uint64_t offset = (piece - pieces_before) * piece_bytes;
      const uint64_t bytes = std::min(piece_bytes, batch.bytes[run] - offset);
      copy_run(batch.method, batch.to[run] + offset, batch.from[run] + offset, bytes);
    }
    copy_fence();
  }

  std::mutex callers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::atomic<uint64_t> next_run_{0};
  CopyBatch batch_{};
  uint64_t round_ = 0;
  uint32_t left_ = 0;
  uint32_t helpers_ = 0;
  bool stop_ = false;
  std::thread threads_[threads_max - 1];
};

}  // namespace pegashm
