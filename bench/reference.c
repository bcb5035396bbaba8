// What can this machine do, whoever writes the code? The yardsticks of the benches, independent of the core.
//
// Compiled by bench/reference.py at run time into a temporary folder and called by ctypes; nothing of
// PegaShm is in here, so that a slow core cannot make its own limit look low. Copies: the best that a C
// library, the processor's string instruction and streaming stores (one, two or four streams a run) do on a list
// of runs. Lines: how fast independent random cache lines arrive. Disk: a few threads that call pread or pwrite for
// one block after the other. Times are taken inside, between two barriers, so that starting threads costs nothing.
// It checks nothing: the caller vouches for addresses.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { threads_max = 16, step_bytes = 128 };

typedef struct {
  uint64_t count;
  const uint64_t *destinations, *sources, *sizes;
} Runs;

typedef void (*CopyRuns)(Runs);

static void copy_memcpy(Runs runs) {
  for (uint64_t i = 0; i < runs.count; i++) {
    memcpy((void*)runs.destinations[i], (const void*)runs.sources[i], runs.sizes[i]);
  }
}

#if defined(__x86_64__)
#include <immintrin.h>

static void copy_rep_movsb(Runs runs) {
  for (uint64_t i = 0; i < runs.count; i++) {
    void* destination = (void*)runs.destinations[i];
    const void* source = (const void*)runs.sources[i];
    uint64_t size = runs.sizes[i];
    __asm__ volatile("rep movsb" : "+D"(destination), "+S"(source), "+c"(size)::"memory");
  }
}

__attribute__((target("avx2"))) static inline void stream_256(char* destination,
                                                              const char* source) {
  const __m256i a = _mm256_loadu_si256((const __m256i*)source);
  const __m256i b = _mm256_loadu_si256((const __m256i*)(source + 32));
  const __m256i c = _mm256_loadu_si256((const __m256i*)(source + 64));
  const __m256i d = _mm256_loadu_si256((const __m256i*)(source + 96));
  _mm256_stream_si256((__m256i*)destination, a);
  _mm256_stream_si256((__m256i*)(destination + 32), b);
  _mm256_stream_si256((__m256i*)(destination + 64), c);
  _mm256_stream_si256((__m256i*)(destination + 96), d);
}

__attribute__((target("avx512f"))) static inline void stream_512(char* destination,
                                                                 const char* source) {
  const __m512i a = _mm512_loadu_si512(source);
  const __m512i b = _mm512_loadu_si512(source + 64);
  _mm512_stream_si512((void*)destination, a);
  _mm512_stream_si512((void*)(destination + 64), b);
}

// Several streams a run, side by side: the hardware prefetcher then has the next page under way while another
// is copied. Sizes are multiples of streams * step_bytes, destinations of 64: true of all that is measured.
#define STREAMING(name, isa, streams, step)                                                    \
  __attribute__((target(isa))) static void name(Runs runs) {                                   \
    for (uint64_t i = 0; i < runs.count; i++) {                                                \
      char* destination = (char*)runs.destinations[i];                                         \
      const char* source = (const char*)runs.sources[i];                                       \
      const uint64_t part_bytes = runs.sizes[i] / (streams);                                   \
      for (uint64_t offset = 0; offset < part_bytes; offset += step_bytes) {                   \
        for (uint64_t part = 0; part < (streams); part++) {                                    \
          step(destination + part * part_bytes + offset, source + part * part_bytes + offset); \
        }                                                                                      \
      }                                                                                        \
    }                                                                                          \
    _mm_sfence();                                                                              \
  }
STREAMING(copy_avx2_1, "avx2", 1, stream_256)
STREAMING(copy_avx2_2, "avx2", 2, stream_256)
STREAMING(copy_avx2_4, "avx2", 4, stream_256)
STREAMING(copy_avx512_1, "avx512f", 1, stream_512)
STREAMING(copy_avx512_2, "avx512f", 2, stream_512)
STREAMING(copy_avx512_4, "avx512f", 4, stream_512)

static void prefetch(const void* address) { _mm_prefetch(address, _MM_HINT_T0); }
static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static int has_avx512(void) { return __builtin_cpu_supports("avx512f"); }
#else
static void prefetch(const void* address) { __builtin_prefetch(address); }
#endif

static int always(void) { return 1; }

// clang-format off: one a line
static const struct {
  const char* name;
  CopyRuns copy;
  int (*usable)(void);
} methods[] = {
    {"memcpy", copy_memcpy, always},
#if defined(__x86_64__)
    {"rep movsb", copy_rep_movsb, always},
    {"avx2 x1", copy_avx2_1, has_avx2},
    {"avx2 x2", copy_avx2_2, has_avx2},
    {"avx2 x4", copy_avx2_4, has_avx2},
    {"avx512 x1", copy_avx512_1, has_avx512},
    {"avx512 x2", copy_avx512_2, has_avx512},
    {"avx512 x4", copy_avx512_4, has_avx512},
#endif
};
// clang-format on

// Name of a method, "" where this processor lacks it, NULL after the last.
const char* reference_method(uint32_t method) {
  if (method >= sizeof methods / sizeof methods[0]) return 0;
  return methods[method].usable() ? methods[method].name : "";
}

typedef struct {
  uint32_t method;
  Runs runs;
  pthread_barrier_t* barrier;
} Share;

static void* copy_share(void* argument) {
  const Share* share = argument;
  pthread_barrier_wait(share->barrier);
  methods[share->method].copy(share->runs);
  pthread_barrier_wait(share->barrier);
  return 0;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

// Copies all runs with that many threads (the caller is one); seconds, or -1 when a thread did not start.
double reference_copy(uint32_t method, uint32_t threads, uint64_t count,
                      const uint64_t* destinations, const uint64_t* sources,
                      const uint64_t* sizes) {
  pthread_t ids[threads_max];
  Share shares[threads_max];
  pthread_barrier_t barrier;
  if (threads == 0 || threads > threads_max) return -1;
  pthread_barrier_init(&barrier, 0, threads);
  for (uint32_t i = 0; i < threads; i++) {
    const uint64_t from = count * i / threads, to = count * (i + 1) / threads;
    shares[i] =
        (Share){method, {to - from, destinations + from, sources + from, sizes + from}, &barrier};
  }
  for (uint32_t i = 1; i < threads; i++) {
    if (pthread_create(&ids[i], 0, copy_share, &shares[i]) != 0) return -1;
  }
  pthread_barrier_wait(&barrier);
  const double start = now();
  methods[method].copy(shares[0].runs);
  pthread_barrier_wait(&barrier);
  const double seconds = now() - start;
  for (uint32_t i = 1; i < threads; i++) pthread_join(ids[i], 0);
  pthread_barrier_destroy(&barrier);
  return seconds;
}

typedef struct {
  int fd, write;
  uint64_t count;
  const uint64_t *offsets, *addresses, *sizes;
  uint64_t next;
  int failed;
  pthread_barrier_t* barrier;
} Blocks;

static void move_blocks(Blocks* blocks) {
  for (;;) {
    const uint64_t i = __atomic_fetch_add(&blocks->next, 1, __ATOMIC_RELAXED);
    if (i >= blocks->count) return;
    char* const address = (char*)(uintptr_t)blocks->addresses[i];
    const size_t size = blocks->sizes[i];
    const off_t offset = (off_t)blocks->offsets[i];
    const ssize_t moved = blocks->write ? pwrite(blocks->fd, address, size, offset)
                                        : pread(blocks->fd, address, size, offset);
    if (moved != (ssize_t)size) __atomic_store_n(&blocks->failed, 1, __ATOMIC_RELAXED);
  }
}

static void* disk_share(void* argument) {
  Blocks* const blocks = argument;
  pthread_barrier_wait(blocks->barrier);
  move_blocks(blocks);
  pthread_barrier_wait(blocks->barrier);
  return 0;
}

// Reads (or writes) whole blocks of a file with that many threads; seconds, or -1 when a thread did not start or a call
// moved less than its block.
double reference_disk(int fd, int write, uint32_t threads, uint64_t count, const uint64_t* offsets,
                      const uint64_t* addresses, const uint64_t* sizes) {
  pthread_t ids[threads_max];
  pthread_barrier_t barrier;
  if (threads == 0 || threads > threads_max) return -1;
  pthread_barrier_init(&barrier, 0, threads);
  Blocks blocks = {fd, write, count, offsets, addresses, sizes, 0, 0, &barrier};
  for (uint32_t i = 1; i < threads; i++) {
    if (pthread_create(&ids[i], 0, disk_share, &blocks) != 0) return -1;
  }
  pthread_barrier_wait(&barrier);
  const double start = now();
  move_blocks(&blocks);
  pthread_barrier_wait(&barrier);
  const double seconds = now() - start;
  for (uint32_t i = 1; i < threads; i++) pthread_join(ids[i], 0);
  pthread_barrier_destroy(&barrier);
  return blocks.failed ? -1 : seconds;
}

// Seconds to read one word of a line of `first` and of a line of `second` for each i, all independent and
// asked for in groups ahead of use: the least that a lookup of `count` keys in tables of that size costs.
double reference_lines(uint64_t count, const char* first, const uint64_t* first_offsets,
                       const char* second, const uint64_t* second_offsets, uint64_t* sum) {
  enum { group = 32 };
  const double start = now();
  uint64_t total = 0;
  for (uint64_t from = 0; from < count; from += group) {
    const uint64_t to = from + group < count ? from + group : count;
    for (uint64_t i = from; i < to; i++) {
      prefetch(first + first_offsets[i]);
      prefetch(second + second_offsets[i]);
    }
    for (uint64_t i = from; i < to; i++) {
      uint64_t a, b;
      memcpy(&a, first + first_offsets[i], sizeof a);
      memcpy(&b, second + second_offsets[i], sizeof b);
      total += a ^ b;
    }
  }
  *sum = total;
  return now() - start;
}

// Reads every line of a buffer, so that nothing else is left in the caches.
uint64_t reference_walk(const char* buffer, uint64_t bytes) {
  uint64_t total = 0;
  for (uint64_t offset = 0; offset < bytes; offset += 64) {
    uint64_t word;
    memcpy(&word, buffer + offset, sizeof word);
    total += word;
  }
  return total;
}
