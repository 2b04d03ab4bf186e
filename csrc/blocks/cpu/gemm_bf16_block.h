// The matrix products of bf16 numbers with sums in float32, in the tiles of gemm_block.h.
//
// Numbers of b become floats before they are multiplied, once for many uses, and those of a when they are. Products
// are then exact, so that these are the results of float32 products of rounded numbers.
#pragma once

#include "blocks/cpu/gemm_block.h"

namespace greedynas::blocks {
namespace {

// Products of bf16 numbers of a with floats. Without halves of vectors, which only Zen 4 gains from: there
// these products are for odd depths alone.
template <class Vec>
struct GemmWidened {
  using V = Vec;
  using A = Bf16Bits;
  using Half = GemmWidened;
  static constexpr bool has_half = false;

  GREEDYNAS_VEC_INLINE static V row(const Bf16Bits* p) { return V::set(number_of(*p)); }
  GREEDYNAS_VEC_INLINE static V multiply_add(V row, V columns, V sums) { return fma(row, columns, sums); }
  GREEDYNAS_VEC_INLINE static V multiply_add(const Bf16Bits* p, V columns, V sums) {
    return fma(row(p), columns, sums);
  }
};

template <class V>
void gemm_pack_widened(const float* b, std::int64_t row_stride, std::int64_t column_stride, int depth, int columns,
                       float* packed) {
  gemm_pack<V>(b, row_stride, column_stride, depth, columns, packed);
  const std::int64_t count = static_cast<std::int64_t>(depth) * gemm_vectors<V>(columns) * V::width;
  for (std::int64_t i = 0; i < count; ++i) packed[i] = number_of(bf16_of(packed[i]));
}

// All of the depth at once: sums in memory would be rounded.
template <class V>
void gemm_multiply_widened(GemmBf16Rows a, std::int64_t rows, int depth, const float* packed, int columns,
                           GemmBf16Rows init, Bf16Bits* c, std::int64_t c_stride, GemmAhead& ahead) {
  gemm_for_panels<V>(columns, [&](int first, int width, int lanes, int vectors) {
    const float* const b = packed + static_cast<std::int64_t>(depth) * first;
    gemm_panel_of<GemmWidened<V>, Bf16Bits>(
        vectors, {a.data, a.stride, 1, b, width, depth, init.after(first), c + first, c_stride, lanes, &ahead}, rows);
  });
}

template <class V>
void gemm_accumulate_widened(GemmBf16Rows g, GemmBf16Rows x, std::int64_t rows, int out, int in, float* c,
                             std::int64_t c_stride, float* memory, GemmAhead& ahead) {
  const std::int64_t width = static_cast<std::int64_t>(gemm_vectors<V>(in)) * V::width;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Bf16Bits* const from = x.data + r * x.stride;
    float* const to = memory + r * width;
    int i = 0;
    for (; i + V::width <= in; i += V::width) load_elements<V>(from + i).store(to + i);
    if (i < in) load_first<V>(from + i, in - i).store(to + i);
  }
  gemm_for_panels<V>(in, [&](int first, int, int lanes, int vectors) {
    gemm_panel_of<GemmWidened<V>, float>(
        vectors,
        {g.data, 1, g.stride, memory + first, width, rows, {c + first, c_stride}, c + first, c_stride, lanes, &ahead},
        out);
  });
}

template <class V>
constexpr GemmBf16Kernel gemm_bf16_kernel_over(const char* name) {
  return {name, &gemm_pack_widened<V>, &gemm_multiply_widened<V>, &gemm_accumulate_widened<V>};
}

}  // namespace
}  // namespace greedynas::blocks
