// The tensor-core instruction m16n8k16 on bfloat16 with float32 sums, and the fast exponential and reciprocal.
//
// Which lane holds what (PTX ISA, "Matrix fragments for mma.m16n8k16"), with row = lane / 4 and pair = 2 * (lane % 4):
//   A [16 x 16]  word 0: row,     k = pair, pair + 1      B [16 x 8]  word 0: k = pair, pair + 1,     column = row
//                word 1: row + 8, k = pair, pair + 1                  word 1: k = pair + 8, pair + 9, column = row
//                word 2: row,     k = pair + 8, pair + 9  D [16 x 8]  0, 1: row,     columns pair, pair + 1
//                word 3: row + 8, k = pair + 8, pair + 9              2, 3: row + 8, columns pair, pair + 1
// The lower half of a word is the first of its two values.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/platform.h"
#include "filter/arithmetic.h"

namespace greedynas::filter::cuda {

namespace device = greedynas::cuda;

struct FragmentA {
  std::uint32_t words[4];
};

// Two float32 rounded to bfloat16 (to nearest, ties to even) in one word.
__device__ __forceinline__ std::uint32_t bf16_pair(float first, float second) {
#ifdef GREEDYNAS_EMULATE_CUDA
  return (bits_of(round_to_bf16(first)) >> 16) | (bits_of(round_to_bf16(second)) & 0xFFFF0000U);
#else
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
#endif
}

// The fragment of the 16 x 16 values from `tile` on, row-major in shared memory; rows start at multiples of 16 bytes,
// `stride` values apart. The whole warp calls it.
__device__ __forceinline__ FragmentA load_fragment_a(const std::uint16_t* tile, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  FragmentA a;
#ifdef GREEDYNAS_EMULATE_CUDA
  for (int word = 0; word < 4; ++word) {
    const int row = lane / 4 + word % 2 * 8;
    std::memcpy(&a.words[word], tile + row * stride + word / 2 * 8 + lane % 4 * 2, sizeof(std::uint32_t));
  }
#else
  // Lanes 0-7 give the rows of the first 8 x 8 block, 8-15 of the one below, 16-31 of the two to the right.
  const std::uint16_t* const row = tile + lane % 16 * stride + lane / 16 * 8;
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.words[0]), "=r"(a.words[1]), "=r"(a.words[2]), "=r"(a.words[3])
               : "r"(address)
               : "memory");
#endif
  return a;
}

#ifdef GREEDYNAS_EMULATE_CUDA

struct Fragments {
  FragmentA a;
  std::uint32_t b[2];
};

inline float bf16_at(std::uint32_t word, int half) { return float_of(half == 0 ? word << 16 : word & 0xFFFF0000U); }

// The products of the calling lane's four sums, from all lanes' fragments.
inline float4 products_of(const Fragments* const* lanes) {
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  float sums[4] = {};
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2;
      const std::uint32_t a = lanes[row % 8 * 4 + owner]->a.words[row / 8 + k / 8 * 2];
      const std::uint32_t b = lanes[column * 4 + owner]->b[k / 8];
      sums[i] += bf16_at(a, k % 2) * bf16_at(b, k % 2);
    }
  }
  return make_float4(sums[0], sums[1], sums[2], sums[3]);
}

#endif

// d += a * b; the whole warp calls it.
__device__ __forceinline__ void multiply_add(float (&d)[4], const FragmentA& a, std::uint32_t b0, std::uint32_t b1) {
#ifdef GREEDYNAS_EMULATE_CUDA
  const float4 products = emulation::with_warp<Fragments, float4>(Fragments{a, {b0, b1}}, products_of);
  d[0] += products.x, d[1] += products.y, d[2] += products.z, d[3] += products.w;
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b0), "r"(b1));
#endif
}

// exp(x) for x clamped to [-28, 28], relative error about 2e-6 at the ends: one instruction of the special-function
// unit.
__device__ __forceinline__ float fast_exp(float x) {
  const float t = fminf(fmaxf(x, -28.0F), 28.0F) * 1.44269504F;
#ifdef GREEDYNAS_EMULATE_CUDA
  return std::exp2(t);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(t));
  return y;
#endif
}

// 1 / x for positive normal x, within two units in the last place.
__device__ __forceinline__ float fast_reciprocal(float x) {
#ifdef GREEDYNAS_EMULATE_CUDA
  return 1.0F / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// lstm_cell of filter/arithmetic.h with those two: the same formula, about 1e-6 from it, which is far below what
// rounding to bfloat16 costs, at a fraction of the instructions. The first step is that with a cell state of zero.
struct FastState {
  float cell, hidden;
};

__device__ __forceinline__ FastState fast_cell(float zi, float zf, float zg, float zo, float cell) {
  const float i = 1.0F + fast_exp(-zi);
  const float f = 1.0F + fast_exp(-zf);
  const float g = fast_exp(-2.0F * zg);
  const float ig = i * (1.0F + g);
  const float next = fmaf(cell, ig, (1.0F - g) * f) * fast_reciprocal(ig * f);
  const float o = 1.0F + fast_exp(-zo);
  const float d = fast_exp(-2.0F * next);
  return {next, (1.0F - d) * fast_reciprocal(o * (1.0F + d))};
}

}  // namespace greedynas::filter::cuda
