// The matrix products of bf16 numbers by products of pairs, see cpu/pairs_avx512.h: twice as many in a step.
//
// A word of b holds two numbers of a column, from one step of the depth and the next. Where the depth is odd, products
// are those of gemm_bf16_block.h.
#pragma once

#include "blocks/cpu/gemm_bf16_block.h"

namespace greedynas::blocks {
namespace {

// Products of pairs of bf16 numbers. Pairs: as PairsAvx512, for vectors V.
template <class Vec, template <class> class Pairs>
struct GemmPairs {
  using V = Vec;
  using A = Bf16Bits;
  using Half = GemmPairs<typename GemmHalf<V>::type, Pairs>;
  static constexpr bool has_half = GemmHalf<V>::exists;

  GREEDYNAS_VEC_INLINE static V row(const Bf16Bits* p) {
    float word;
    __builtin_memcpy(&word, p, sizeof word);
    return V::broadcast_to_register(&word);
  }
  GREEDYNAS_VEC_INLINE static auto lower(V values) { return GemmHalf<V>::lower(values); }
  GREEDYNAS_VEC_INLINE static V multiply_add(V row, V columns, V sums) {
    return Pairs<V>::multiply_add(row, columns, sums);
  }
  GREEDYNAS_VEC_INLINE static V multiply_add(const Bf16Bits* p, V columns, V sums) {
    float word;
    __builtin_memcpy(&word, p, sizeof word);
    return Pairs<V>::multiply_add(V::broadcast(&word), columns, sums);
  }
  GREEDYNAS_VEC_INLINE static void store(Bf16Bits* p, V sums) { Pairs<V>::store_bf16(sums, p); }
  GREEDYNAS_VEC_INLINE static void store_first(Bf16Bits* p, V sums, int lanes) {
    Pairs<V>::store_first_bf16(sums, p, lanes);
  }
};

template <class V, template <class> class Pairs>
void gemm_pack_pairs(const float* b, std::int64_t row_stride, std::int64_t column_stride, int depth, int columns,
                     float* packed) {
  if (depth % 2 != 0) return gemm_pack_widened<V>(b, row_stride, column_stride, depth, columns, packed);
  gemm_for_panels<V>(columns, [&](int first, int width, int lanes, int) {
    const int there = width - V::width + lanes;
    const float* const from = b + first * column_stride;
    for (int k = 0; k < depth; k += 2) {
      const float* const one = from + k * row_stride;
      for (int n = 0; n < width; ++n) {
        const float* const p = one + n * column_stride;
        const std::uint32_t word = n < there ? bf16_of(p[0]) | std::uint32_t{bf16_of(p[row_stride])} << 16 : 0;
        __builtin_memcpy(packed + n, &word, sizeof word);
      }
      packed += width;
    }
  });
}

template <class V, template <class> class Pairs>
void gemm_multiply_pairs(GemmBf16Rows a, std::int64_t rows, int depth, const float* packed, int columns,
                         GemmBf16Rows init, Bf16Bits* c, std::int64_t c_stride, GemmAhead& ahead) {
  if (depth % 2 != 0) return gemm_multiply_widened<V>(a, rows, depth, packed, columns, init, c, c_stride, ahead);
  const std::int64_t steps = depth / 2;
  gemm_for_panels<V>(columns, [&](int first, int width, int lanes, int vectors) {
    gemm_panel_of<GemmPairs<V, Pairs>, Bf16Bits>(vectors,
                                                 {a.data, a.stride, 2, packed + steps * first, width, steps,
                                                  init.after(first), c + first, c_stride, lanes, &ahead},
                                                 rows);
  });
}

// Words [(rows + 1) / 2][width] of two rows each; after the last row come zeros.
template <class V, template <class> class Pairs>
void gemm_join_rows(GemmBf16Rows x, std::int64_t rows, int columns, std::int64_t width, float* words) {
  static constexpr Bf16Bits kZeros[V::width] = {};
  for (std::int64_t r = 0; r < rows; r += 2, words += width) {
    const Bf16Bits* const upper = x.data + r * x.stride;
    for (int i = 0; i < columns; i += V::width) {
      Pairs<V>::join(upper + i, r + 1 < rows ? upper + x.stride + i : kZeros, columns - i).store(words + i);
    }
  }
}

template <class V, template <class> class Pairs>
void gemm_accumulate_pairs(GemmBf16Rows g, GemmBf16Rows x, std::int64_t rows, int out, int in, float* c,
                           std::int64_t c_stride, float* memory, GemmAhead& ahead) {
  const std::int64_t g_width = static_cast<std::int64_t>(gemm_vectors<V>(out)) * V::width;
  const std::int64_t x_width = static_cast<std::int64_t>(gemm_vectors<V>(in)) * V::width;
  const std::int64_t steps = (rows + 1) / 2;
  float* const x_words = memory + steps * g_width;
  gemm_join_rows<V, Pairs>(g, rows, out, g_width, memory);
  gemm_join_rows<V, Pairs>(x, rows, in, x_width, x_words);
  gemm_for_panels<V>(in, [&](int first, int, int lanes, int vectors) {
    gemm_panel_of<GemmPairs<V, Pairs>, float>(vectors,
                                              {reinterpret_cast<const Bf16Bits*>(memory),
                                               2,
                                               2 * g_width,
                                               x_words + first,
                                               x_width,
                                               steps,
                                               {c + first, c_stride},
                                               c + first,
                                               c_stride,
                                               lanes,
                                               &ahead},
                                              out);
  });
}

template <class V, template <class> class Pairs>
constexpr GemmBf16Kernel gemm_pair_kernel_over(const char* name) {
  return {name, &gemm_pack_pairs<V, Pairs>, &gemm_multiply_pairs<V, Pairs>, &gemm_accumulate_pairs<V, Pairs>};
}

}  // namespace
}  // namespace greedynas::blocks
