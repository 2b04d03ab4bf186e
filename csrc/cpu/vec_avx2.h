// Eight floats: AVX2 and FMA. See vec_generic.h for the interface.
#pragma once

#include <immintrin.h>

#include "cpu/vec_generic.h"

namespace greedynas::cpu {

struct VecAvx2 {
  static constexpr int width = 8;
  static constexpr int rows = 3;  // 12 accumulators of four gates, a weight and three broadcasts: all 16 registers

  __m256 v;

  GREEDYNAS_VEC_INLINE static VecAvx2 set(float value) { return {_mm256_set1_ps(value)}; }
  GREEDYNAS_VEC_INLINE static VecAvx2 broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
  GREEDYNAS_VEC_INLINE static VecAvx2 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  GREEDYNAS_VEC_INLINE static VecAvx2 load_to_register(const float* p) {
    VecAvx2 result = load(p);
    __asm__("" : "+x"(result.v));
    return result;
  }
  GREEDYNAS_VEC_INLINE static VecAvx2 broadcast_to_register(const float* p) {
    VecAvx2 result = broadcast(p);
    __asm__("" : "+x"(result.v));
    return result;
  }
  GREEDYNAS_VEC_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  // Past the caches, to an aligned address; what follows `end_streams` comes after it for other threads too.
  GREEDYNAS_VEC_INLINE void stream(float* p) const { _mm256_stream_ps(p, v); }
  GREEDYNAS_VEC_INLINE static void end_streams() { _mm_sfence(); }

  GREEDYNAS_VEC_INLINE friend VecAvx2 operator+(VecAvx2 a, VecAvx2 b) { return {_mm256_add_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx2 operator-(VecAvx2 a, VecAvx2 b) { return {_mm256_sub_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx2 operator*(VecAvx2 a, VecAvx2 b) { return {_mm256_mul_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx2 operator/(VecAvx2 a, VecAvx2 b) { return {_mm256_div_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx2 fma(VecAvx2 a, VecAvx2 b, VecAvx2 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx2 min(VecAvx2 a, VecAvx2 b) { return {_mm256_min_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx2 max(VecAvx2 a, VecAvx2 b) { return {_mm256_max_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx2 times_power_of_two(VecAvx2 p, VecAvx2 shifted) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p.v), exponent))};
  }
  GREEDYNAS_VEC_INLINE friend VecAvx2 round_to_bf16(VecAvx2 a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    return {_mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(static_cast<int>(0xFFFF0000U))))};
  }
};

}  // namespace greedynas::cpu
