// Sixteen floats: AVX-512 F, BW and DQ. See vec_generic.h for the interface.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/vec_generic.h"

namespace greedynas::cpu {

// kApproximate: for the bf16 mode of the filter, which promises no equal bits (filter/arithmetic.h).
template <bool kApproximate>
struct VecAvx512 {
  static constexpr bool approximate = kApproximate;
  static constexpr int width = 16;
  static constexpr int rows = 6;  // 24 accumulators of four gates, four weights and a broadcast, of 32 registers

  __m512 v;

  GREEDYNAS_VEC_INLINE static VecAvx512 set(float value) { return {_mm512_set1_ps(value)}; }
  GREEDYNAS_VEC_INLINE static VecAvx512 broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
  GREEDYNAS_VEC_INLINE static VecAvx512 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  GREEDYNAS_VEC_INLINE static VecAvx512 load_to_register(const float* p) {
    VecAvx512 result = load(p);
    __asm__("" : "+v"(result.v));
    return result;
  }
  GREEDYNAS_VEC_INLINE static VecAvx512 broadcast_to_register(const float* p) {
    VecAvx512 result = broadcast(p);
    __asm__("" : "+v"(result.v));
    return result;
  }
  GREEDYNAS_VEC_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  // Past the caches, to an aligned address; what follows `end_streams` comes after it for other threads too.
  GREEDYNAS_VEC_INLINE void stream(float* p) const { _mm512_stream_ps(p, v); }
  GREEDYNAS_VEC_INLINE static void end_streams() { _mm_sfence(); }

  // The first `count` numbers, at most all; the other lanes are zero.
  GREEDYNAS_VEC_INLINE static VecAvx512 load_first(const float* p, int count) {
    return {_mm512_maskz_loadu_ps(first(count), p)};
  }
  GREEDYNAS_VEC_INLINE void store_first(float* p, int count) const { _mm512_mask_storeu_ps(p, first(count), v); }
  GREEDYNAS_VEC_INLINE static __mmask16 first(int count) { return static_cast<__mmask16>((1U << count) - 1); }

  // bf16 numbers, and the upper halves of floats that are bf16 numbers: GCC would convert by halves of a vector.
  GREEDYNAS_VEC_INLINE static VecAvx512 load_bf16(const std::uint16_t* p) {
    return of_upper_halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  GREEDYNAS_VEC_INLINE void store_upper_halves(std::uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(upper_halves()));
  }
  GREEDYNAS_VEC_INLINE static VecAvx512 load_first(const std::uint16_t* p, int count) {
    return of_upper_halves(_mm512_castsi512_si256(_mm512_maskz_loadu_epi16(first(count), p)));
  }
  GREEDYNAS_VEC_INLINE void store_first(std::uint16_t* p, int count) const {
    _mm512_mask_storeu_epi16(p, first(count), upper_halves());
  }
  GREEDYNAS_VEC_INLINE static VecAvx512 of_upper_halves(__m256i halves) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
  }
  GREEDYNAS_VEC_INLINE __m512i upper_halves() const {
    const __m512i odd = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0x1F001D, 0x1B0019, 0x170015, 0x130011, 0xF000D,
                                         0xB0009, 0x70005, 0x30001);
    return _mm512_permutexvar_epi16(odd, _mm512_castps_si512(v));
  }

  GREEDYNAS_VEC_INLINE friend VecAvx512 operator+(VecAvx512 a, VecAvx512 b) { return {_mm512_add_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx512 operator-(VecAvx512 a, VecAvx512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx512 operator*(VecAvx512 a, VecAvx512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx512 operator/(VecAvx512 a, VecAvx512 b) { return {_mm512_div_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx512 fma(VecAvx512 a, VecAvx512 b, VecAvx512 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  GREEDYNAS_VEC_INLINE friend VecAvx512 min(VecAvx512 a, VecAvx512 b) { return {_mm512_min_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx512 max(VecAvx512 a, VecAvx512 b) { return {_mm512_max_ps(a.v, b.v)}; }
  GREEDYNAS_VEC_INLINE friend VecAvx512 times_power_of_two(VecAvx512 p, VecAvx512 shifted) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), exponent))};
  }
  // x, but within +-limit.
  GREEDYNAS_VEC_INLINE friend VecAvx512 clamped(VecAvx512 x, VecAvx512 limit) {
    constexpr int kSmallerSize = 0b0010;  // with the sign of x
    return {_mm512_range_ps(x.v, limit.v, kSmallerSize)};
  }
  // x times 2 to the n, which are integers.
  GREEDYNAS_VEC_INLINE friend VecAvx512 scaled(VecAvx512 x, VecAvx512 n) { return {_mm512_scalef_ps(x.v, n.v)}; }
  // For tables, filter/tanh_table.h: numbers[i] for the lowest 5 bits i of an index, |x| but at most `limit`, and
  // `size` with the sign of x.
  GREEDYNAS_VEC_INLINE friend VecAvx512 look_up(const float (&numbers)[32], VecAvx512 index) {
    return {
        _mm512_permutex2var_ps(_mm512_load_ps(numbers), _mm512_castps_si512(index.v), _mm512_load_ps(numbers + 16))};
  }
  GREEDYNAS_VEC_INLINE friend VecAvx512 size_within(VecAvx512 x, float limit) {
    constexpr int kSmallerSizeWithoutSign = 0b1010;
    return {_mm512_range_ps(x.v, _mm512_set1_ps(limit), kSmallerSizeWithoutSign)};
  }
  GREEDYNAS_VEC_INLINE friend VecAvx512 with_sign_of(VecAvx512 x, VecAvx512 size) {
    constexpr int kFirstAndSecondOrThird = 0xEA;
    return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(x.v), _mm512_set1_epi32(INT32_MIN),
                                                          _mm512_castps_si512(size.v), kFirstAndSecondOrThird))};
  }
  GREEDYNAS_VEC_INLINE friend VecAvx512 round_to_bf16(VecAvx512 a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    return {_mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xFFFF0000U))))};
  }
};

}  // namespace greedynas::cpu
