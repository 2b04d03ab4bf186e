// What the normalisation kernels need of a vector type beyond cpu/vec_*.h: selection, and float32 or bf16 in memory.
#pragma once

#include <cstdint>

#include "cpu/vec_generic.h"
#ifdef __AVX2__
#include "cpu/vec_avx2.h"
#endif
#ifdef __AVX512F__
#include "cpu/vec_avx512.h"
#endif

namespace greedynas::norm {

struct Bf16 {
  std::uint16_t bits;
};

// GCC drops the attribute of a dependent size in an alias declaration.
template <int W>
struct Halves {
  typedef std::uint16_t Type __attribute__((vector_size(W * sizeof(std::uint16_t))));
};

template <class V>
GREEDYNAS_VEC_INLINE V load_as(const float* p) {
  return V::load(p);
}
template <class V>
GREEDYNAS_VEC_INLINE void store_as(V v, float* p) {
  v.store(p);
}

// a > b ? yes : no, in each lane; `no` where a or b is not a number.
template <int W>
GREEDYNAS_VEC_INLINE cpu::VecGeneric<W> where_greater(cpu::VecGeneric<W> a, cpu::VecGeneric<W> b,
                                                      cpu::VecGeneric<W> yes, cpu::VecGeneric<W> no) {
  return {a.v > b.v ? yes.v : no.v};
}

// bf16 to nearest, ties to even; not-a-number stays that.
template <class V>
struct Bf16Memory {
  using Words = typename V::Words;
  using Half = typename Halves<V::width>::Type;

  GREEDYNAS_VEC_INLINE static V load(const Bf16* p) {
    Half half;
    __builtin_memcpy(&half, p, sizeof half);
    return {reinterpret_cast<typename V::Floats>(__builtin_convertvector(half, Words) << 16)};
  }
  GREEDYNAS_VEC_INLINE static void store(V a, Bf16* p) {
    const Words rounded = reinterpret_cast<Words>(round_to_bf16(a).v) >> 16;
    const Words kept = a.v == a.v ? rounded : Words{} + 0x7FC0U;
    const Half half = __builtin_convertvector(kept, Half);
    __builtin_memcpy(p, &half, sizeof half);
  }
};

#ifdef __AVX2__
GREEDYNAS_VEC_INLINE cpu::VecAvx2 where_greater(cpu::VecAvx2 a, cpu::VecAvx2 b, cpu::VecAvx2 yes, cpu::VecAvx2 no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}

template <>
struct Bf16Memory<cpu::VecAvx2> {
  GREEDYNAS_VEC_INLINE static cpu::VecAvx2 load(const Bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  GREEDYNAS_VEC_INLINE static __m128i narrowed(cpu::VecAvx2 a) {
    const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
    const __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
    const __m256i kept = _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(round_to_bf16(a).v, quiet, nan)), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
  }
  GREEDYNAS_VEC_INLINE static void store(cpu::VecAvx2 a, Bf16* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(a));
  }
};
#endif

#ifdef __AVX512F__
template <bool kFast>
GREEDYNAS_VEC_INLINE cpu::VecAvx512<kFast> where_greater(cpu::VecAvx512<kFast> a, cpu::VecAvx512<kFast> b,
                                                         cpu::VecAvx512<kFast> yes, cpu::VecAvx512<kFast> no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}

template <bool kFast>
struct Bf16Memory<cpu::VecAvx512<kFast>> {
  GREEDYNAS_VEC_INLINE static cpu::VecAvx512<kFast> load(const Bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  GREEDYNAS_VEC_INLINE static __m256i narrowed(cpu::VecAvx512<kFast> a) {
#ifdef __AVX512BF16__
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));  // subnormal numbers become zero
#else
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_castps_si512(round_to_bf16(a).v);
    const __m512i kept = _mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7FC00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
  }
  GREEDYNAS_VEC_INLINE static void store(cpu::VecAvx512<kFast> a, Bf16* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(a));
  }
};
#endif

template <class V>
GREEDYNAS_VEC_INLINE V load_as(const Bf16* p) {
  return Bf16Memory<V>::load(p);
}
template <class V>
GREEDYNAS_VEC_INLINE void store_as(V v, Bf16* p) {
  Bf16Memory<V>::store(v, p);
}

// Writing past the caches, to addresses aligned to the vector in memory. Saves reading what is overwritten, and keeps
// in the caches what will be read again.
template <class V>
constexpr bool can_stream() {
  return requires(V v, float* p) { v.stream(p); };
}
template <class V>
GREEDYNAS_VEC_INLINE void stream_as(V v, float* p) {
  v.stream(p);
}
#ifdef __AVX2__
GREEDYNAS_VEC_INLINE void stream_as(cpu::VecAvx2 v, Bf16* p) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), Bf16Memory<cpu::VecAvx2>::narrowed(v));
}
#endif
#ifdef __AVX512F__
GREEDYNAS_VEC_INLINE void stream_as(cpu::VecAvx512<false> v, Bf16* p) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), Bf16Memory<cpu::VecAvx512<false>>::narrowed(v));
}
#endif

}  // namespace greedynas::norm
