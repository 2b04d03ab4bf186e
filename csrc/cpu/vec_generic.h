// W floats as the compiler's own vectors: the portable level, and a stand-in for wider vectors in tests.
//
// The vector types of this folder have one interface, that of `Scalar` in filter/arithmetic.h plus load, store,
// broadcast and round_to_bf16. All is inlined, so no code of a level is ever shared with another one.
#pragma once

#include <cstdint>
#include <cstring>

#define GREEDYNAS_VEC_INLINE inline __attribute__((always_inline))
// On loops over registers: left rolled, they would keep their vectors in memory.
#define GREEDYNAS_UNROLL _Pragma("GCC unroll 16")

namespace greedynas::cpu {

template <int W, int kRows = 3>
struct VecGeneric {
  // GCC drops the attribute of a dependent size in an alias declaration, so these are typedefs.
  typedef float Floats __attribute__((vector_size(W * sizeof(float))));
  typedef std::uint32_t Words __attribute__((vector_size(W * sizeof(float))));

  static constexpr int width = W;
  static constexpr int rows = kRows;  // of accumulators in a matrix product

  Floats v;

  GREEDYNAS_VEC_INLINE static VecGeneric set(float value) { return {Floats{} + value}; }
  GREEDYNAS_VEC_INLINE static VecGeneric broadcast(const float* p) { return set(*p); }
  GREEDYNAS_VEC_INLINE static VecGeneric load(const float* p) {
    VecGeneric result;
    __builtin_memcpy(&result.v, p, sizeof result.v);
    return result;
  }
  // For a value that several instructions use: otherwise compilers load it anew in each of them, and loads, not
  // multiplications, become the limit.
  GREEDYNAS_VEC_INLINE static VecGeneric load_to_register(const float* p) { return load(p); }
  GREEDYNAS_VEC_INLINE static VecGeneric broadcast_to_register(const float* p) { return broadcast(p); }
  GREEDYNAS_VEC_INLINE void store(float* p) const { __builtin_memcpy(p, &v, sizeof v); }

  GREEDYNAS_VEC_INLINE friend VecGeneric operator+(VecGeneric a, VecGeneric b) { return {a.v + b.v}; }
  GREEDYNAS_VEC_INLINE friend VecGeneric operator-(VecGeneric a, VecGeneric b) { return {a.v - b.v}; }
  GREEDYNAS_VEC_INLINE friend VecGeneric operator*(VecGeneric a, VecGeneric b) { return {a.v * b.v}; }
  GREEDYNAS_VEC_INLINE friend VecGeneric operator/(VecGeneric a, VecGeneric b) { return {a.v / b.v}; }
  GREEDYNAS_VEC_INLINE friend VecGeneric fma(VecGeneric a, VecGeneric b, VecGeneric c) {
#if defined(__FMA__) || defined(__aarch64__)
    float x[W], y[W], z[W];
    a.store(x);
    b.store(y);
    c.store(z);
    for (int i = 0; i < W; ++i) z[i] = __builtin_fmaf(x[i], y[i], z[i]);
    return load(z);
#else
    return {a.v * b.v + c.v};
#endif
  }
  GREEDYNAS_VEC_INLINE friend VecGeneric min(VecGeneric a, VecGeneric b) { return {a.v < b.v ? a.v : b.v}; }
  GREEDYNAS_VEC_INLINE friend VecGeneric max(VecGeneric a, VecGeneric b) { return {a.v > b.v ? a.v : b.v}; }
  GREEDYNAS_VEC_INLINE friend VecGeneric times_power_of_two(VecGeneric p, VecGeneric shifted) {
    return {reinterpret_cast<Floats>(reinterpret_cast<Words>(p.v) + (reinterpret_cast<Words>(shifted.v) << 23))};
  }
  GREEDYNAS_VEC_INLINE friend VecGeneric round_to_bf16(VecGeneric a) {
    const Words bits = reinterpret_cast<Words>(a.v);
    return {reinterpret_cast<Floats>((bits + 0x7FFFU + ((bits >> 16) & 1U)) & 0xFFFF0000U)};
  }
};

}  // namespace greedynas::cpu
