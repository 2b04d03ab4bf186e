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
  // sums [16] += both products of the pairs in a [16] and b [16].
  GREEDYNAS_VEC_INLINE static V multiply_add(V a, V b, V sums) {
    return {_mm512_dpbf16_ps(sums.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};

}  // namespace greedynas::cpu
