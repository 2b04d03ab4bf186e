#include "blocks/cpu/gemm_block.h"
#include "cpu/vec_avx512.h"

namespace greedynas::blocks {
namespace {

using Vec = cpu::VecAvx512<false>;

// Zen 4 multiplies 8 numbers in half the time of 16. Elsewhere it is one multiplication either way.
struct Eight {
  static constexpr int width = 8;

  __m256 v;

  GREEDYNAS_VEC_INLINE static Eight set(float value) { return {_mm256_set1_ps(value)}; }
  GREEDYNAS_VEC_INLINE static Eight broadcast(const float* p) { return set(*p); }
  GREEDYNAS_VEC_INLINE static Eight load(const float* p) { return {_mm256_loadu_ps(p)}; }
  GREEDYNAS_VEC_INLINE static Eight load_to_register(const float* p) {
    Eight result = load(p);
    __asm__("" : "+v"(result.v));
    return result;
  }
  GREEDYNAS_VEC_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  GREEDYNAS_VEC_INLINE static Eight load_first(const float* p, int count) {
    return {_mm256_maskz_loadu_ps(first(count), p)};
  }
  GREEDYNAS_VEC_INLINE void store_first(float* p, int count) const { _mm256_mask_storeu_ps(p, first(count), v); }
  GREEDYNAS_VEC_INLINE static __mmask8 first(int count) { return static_cast<__mmask8>((1U << count) - 1); }
  GREEDYNAS_VEC_INLINE friend Eight fma(Eight a, Eight b, Eight c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
};

template <>
struct GemmHalf<Vec> {
  using type = Eight;
  static constexpr bool exists = true;
  GREEDYNAS_VEC_INLINE static Eight lower(Vec whole) { return {_mm512_castps512_ps256(whole.v)}; }
};

}  // namespace

const GemmKernel kGemmAvx512 = gemm_kernel_over<Vec>("avx512");

}  // namespace greedynas::blocks
