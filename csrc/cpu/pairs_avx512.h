// Products of pairs of bf16 numbers: AVX512-BF16. The tests have a plain twin of this interface.
#pragma once

#include "cpu/vec_avx512.h"

namespace greedynas::cpu {

template <class V>
struct PairsAvx512 {
  // 16 numbers, rounded to bf16: 8 words.
  GREEDYNAS_VEC_INLINE static void store_bf16(V values, void* words) {
    _mm256_storeu_si256(static_cast<__m256i*>(words), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values.v)));
  }
  // The first `count` of these.
  GREEDYNAS_VEC_INLINE static void store_first_bf16(V values, void* words, int count) {
    _mm256_mask_storeu_epi16(words, V::first(count), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values.v)));
  }
  // The first `count` of 16 words, with numbers of a in the lower halves and of b in the upper ones; the others are
  // zero.
  GREEDYNAS_VEC_INLINE static V join(const std::uint16_t* a, const std::uint16_t* b, int count) {
    const __m512i in_turn =
        _mm512_set_epi32(0x1F000F, 0x1E000E, 0x1D000D, 0x1C000C, 0x1B000B, 0x1A000A, 0x190009, 0x180008, 0x170007,
                         0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    __m256i low, high;
    if (count >= V::width) {
      low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
      high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    } else {
      low = _mm256_maskz_loadu_epi16(V::first(count), a);
      high = _mm256_maskz_loadu_epi16(V::first(count), b);
    }
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(in_turn, both))};
  }
  // sums [16] += both products of the pairs in a [16] and b [16].
  GREEDYNAS_VEC_INLINE static V multiply_add(V a, V b, V sums) {
    return {_mm512_dpbf16_ps(sums.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};

}  // namespace greedynas::cpu
