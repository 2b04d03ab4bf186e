// AMX tiles of 16 rows by 64 bytes. The tests have a plain twin of this interface.
//
// Written as assembly, because the compiler's intrinsics take tile numbers as text only, and GCC's do not say that they
// read and write memory.
#pragma once

#include <cstdint>

#include "cpu/pairs_avx512.h"

namespace greedynas::cpu {

struct TilesAmx {
  // Before and after a thread's work with tiles.
  static void configure() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = 64;
      config.rows[tile] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  static void release() { __asm__ volatile("tilerelease"); }

  template <int kTile>
  GREEDYNAS_VEC_INLINE static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  // 16 rows of 64 bytes, one after the other.
  template <int kTile>
  GREEDYNAS_VEC_INLINE static void load(const void* p) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(64L), "i"(kTile) : "memory");
  }
  template <int kTile>
  GREEDYNAS_VEC_INLINE static void store(float* p) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(64L), "i"(kTile) : "memory");
  }
  // sums [16, 16] float += a [16, 32] bf16 times b [32, 16] bf16, b as 16 rows of 16 pairs of consecutive k.
  template <int kSums, int kA, int kB>
  GREEDYNAS_VEC_INLINE static void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
  }
  // 16 numbers, rounded.
  template <class V>
  GREEDYNAS_VEC_INLINE static void store_bf16(V values, std::uint16_t* p) {
    PairsAvx512<V>::store_bf16(values, p);
  }
};

}  // namespace greedynas::cpu
