// Which entries of a bucket may be a key's? All eight compared at once, where the processor can.
//
// A hint for index.hpp: whoever follows it reads the entry again, with acquire. The vectors hold whole aligned
// words, each of which the processor reads at once; thread sanitizers cannot know that, and the explorer
// wants to see each load, so that both get the plain loop.
#pragma once

#include "atomics.hpp"

#if defined(__SSE2__) && !defined(PEGASHM_MODELLED) && !defined(__SANITIZE_THREAD__)
#define PEGASHM_MATCH_SSE2
#include <emmintrin.h>
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#undef PEGASHM_MATCH_SSE2
#endif
#endif
#endif

namespace pegashm {

// Bit i: the i-th word has `top` in its upper 24 bits.
inline uint32_t match_tops(const uint64_t (&line)[8], uint32_t top) noexcept {
  uint32_t matches = 0;
#if defined(PEGASHM_MATCH_SSE2)
  const __m128i wanted = _mm_set1_epi32(static_cast<int>(top));
  for (int i = 0; i < 8; i += 4) {
    const auto* const words = reinterpret_cast<const __m128i*>(line + i);
    const __m128 first = _mm_castsi128_ps(_mm_load_si128(words));
    const __m128 second = _mm_castsi128_ps(_mm_load_si128(words + 1));
    const __m128i upper = _mm_castps_si128(_mm_shuffle_ps(first, second, _MM_SHUFFLE(3, 1, 3, 1)));
    const __m128i equal = _mm_cmpeq_epi32(_mm_srli_epi32(upper, 8), wanted);
    matches |= static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(equal))) << i;
  }
#else
  for (int i = 0; i < 8; ++i) {
    matches |= (load_relaxed(line[i]) >> 40 == top ? 1u : 0u) << i;  // SYNC none: a hint
  }
#endif
  return matches;
}

}  // namespace pegashm
