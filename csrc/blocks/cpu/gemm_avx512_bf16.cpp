#include "blocks/cpu/gemm_eight.h"
#include "blocks/cpu/gemm_pairs_block.h"
#include "cpu/pairs_avx512.h"

namespace greedynas::blocks {
namespace {

template <class V>
struct Pairs : cpu::PairsAvx512<V> {};

template <>
struct Pairs<Eight> {
  GREEDYNAS_VEC_INLINE static void store_bf16(Eight values, Bf16Bits* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(values.v)));
  }
  GREEDYNAS_VEC_INLINE static void store_first_bf16(Eight values, Bf16Bits* p, int count) {
    _mm_mask_storeu_epi16(p, Eight::first(count), reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(values.v)));
  }
  GREEDYNAS_VEC_INLINE static Eight multiply_add(Eight a, Eight b, Eight sums) {
    return {_mm256_dpbf16_ps(sums.v, reinterpret_cast<__m256bh>(a.v), reinterpret_cast<__m256bh>(b.v))};
  }
};

}  // namespace

const GemmBf16Kernel kGemmBf16Avx512Bf16 = gemm_pair_kernel_over<cpu::VecAvx512<false>, Pairs>("avx512_bf16");

}  // namespace greedynas::blocks
