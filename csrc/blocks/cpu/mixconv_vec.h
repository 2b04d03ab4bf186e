// What mixconv needs of a vector type besides its common interface: bf16 in memory, parts of a vector, comparisons.
// Written over the compiler's own vectors, which all vector types contain; GCC converts those of 512 bits by halves, so
// AVX-512 has its own conversions.
#pragma once

#include <cstdint>

#include "cpu/vec_generic.h"
#ifdef __AVX512BW__
#include "cpu/vec_avx512.h"
#endif

namespace greedynas::blocks {

template <class V>
inline constexpr bool kMixconvAvx512Vector = false;
#ifdef __AVX512BW__
template <bool kFast>
inline constexpr bool kMixconvAvx512Vector<cpu::VecAvx512<kFast>> = true;
#endif

template <class V>
struct MixconvLanes {
  typedef std::uint16_t Halves __attribute__((vector_size(V::width * sizeof(std::uint16_t))));
  typedef std::uint32_t Words __attribute__((vector_size(V::width * sizeof(std::uint32_t))));
};

template <class V>
GREEDYNAS_VEC_INLINE V load_elements(const float* p) {
  return V::load(p);
}
template <class V>
GREEDYNAS_VEC_INLINE V load_elements(const std::uint16_t* p) {
#ifdef __AVX512BW__
  if constexpr (kMixconvAvx512Vector<V>) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
  } else
#endif
  {
    using Lanes = MixconvLanes<V>;
    typename Lanes::Halves halves;
    __builtin_memcpy(&halves, p, sizeof halves);
    const typename Lanes::Words words = __builtin_convertvector(halves, typename Lanes::Words) << 16;
    V result;
    __builtin_memcpy(&result.v, &words, sizeof words);
    return result;
  }
}

// The value that a store keeps.
template <class V>
GREEDYNAS_VEC_INLINE V as_stored(V value, const float*) {
  return value;
}
template <class V>
GREEDYNAS_VEC_INLINE V as_stored(V value, const std::uint16_t*) {
  return round_to_bf16(value);
}

// Of values that `as_stored` gave.
template <class V>
GREEDYNAS_VEC_INLINE void store_elements(float* p, V value) {
  value.store(p);
}
template <class V>
GREEDYNAS_VEC_INLINE void store_elements(std::uint16_t* p, V value) {
#ifdef __AVX512BW__
  if constexpr (kMixconvAvx512Vector<V>) {
    const __m512i upper = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0x1F001D, 0x1B0019, 0x170015, 0x130011, 0xF000D,
                                           0xB0009, 0x70005, 0x30001);  // the odd halves
    const __m512i halves = _mm512_permutexvar_epi16(upper, _mm512_castps_si512(value.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(halves));
  } else
#endif
  {
    using Lanes = MixconvLanes<V>;
    typename Lanes::Words words;
    __builtin_memcpy(&words, &value.v, sizeof words);
    const auto halves = __builtin_convertvector(words >> 16, typename Lanes::Halves);
    __builtin_memcpy(p, &halves, sizeof halves);
  }
}

// The first `count` elements, at most V::width; the other lanes are zero.
template <class V, class E>
GREEDYNAS_VEC_INLINE V load_first(const E* p, int count) {
  E buffer[V::width] = {};
  for (int i = 0; i < count; ++i) buffer[i] = p[i];
  return load_elements<V>(buffer);
}
template <class V, class E>
GREEDYNAS_VEC_INLINE void store_first(E* p, V value, int count) {
  E buffer[V::width];
  store_elements(buffer, value);
  const E* from = buffer;
  if (V::width > 8 && (count & 8) != 0) {
    __builtin_memcpy(p, from, 8 * sizeof(E));
    p += 8;
    from += 8;
  }
  if (V::width > 4 && (count & 4) != 0) {
    __builtin_memcpy(p, from, 4 * sizeof(E));
    p += 4;
    from += 4;
  }
  if ((count & 2) != 0) {
    __builtin_memcpy(p, from, 2 * sizeof(E));
    p += 2;
    from += 2;
  }
  if ((count & 1) != 0) *p = *from;
}

// Lane by lane a > b ? yes : no.
template <class V>
GREEDYNAS_VEC_INLINE V where_greater(V a, V b, V yes, V no) {
  return {a.v > b.v ? yes.v : no.v};
}

}  // namespace greedynas::blocks
