// Products of small float32 matrices in the caches, one set of kernels a level.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/vec_generic.h"

namespace greedynas::blocks {

// Rows of floats, `stride` apart.
struct GemmRows {
  const float* data;
  std::int64_t stride;

  GREEDYNAS_VEC_INLINE GemmRows from(std::int64_t row) const {
    return {data == nullptr ? nullptr : data + row * stride, stride};
  }
  GREEDYNAS_VEC_INLINE GemmRows after(std::int64_t columns) const {
    return {data == nullptr ? nullptr : data + columns, stride};
  }
};

// Memory that is needed after a product: products bring it into the L2 cache while they multiply, a line a step, range
// after range.
struct GemmAhead {
  static constexpr int kRanges = 4;
  struct Range {
    const char* next;
    std::int64_t lines;
  };
  Range ranges[kRanges] = {};
  int count = 0, current = 0;

  void add(const void* data, std::int64_t bytes) {
    ranges[count++] = {static_cast<const char*>(data), (bytes + 63) / 64};
  }
  // What a tile goes on with.
  GREEDYNAS_VEC_INLINE Range& range() {
    if (ranges[current].lines == 0 && current + 1 < count) ++current;
    return ranges[current];
  }
};

struct GemmKernel {
  const char* name;  // of the level

  // A matrix [depth, columns] with any strides, as `multiply` reads it: panels of some vectors of columns, each of
  // which is [depth][its columns], the last vector filled up with zeros. `gemm_packed_floats` of them.
  void (*pack)(const float* b, std::int64_t row_stride, std::int64_t column_stride, int depth, int columns,
               float* packed);

  // c [rows, columns] = init + a [rows, depth] times the packed matrix; without init.data: no summand.
  void (*multiply)(GemmRows a, std::int64_t rows, int depth, const float* packed, int columns, GemmRows init, float* c,
                   std::int64_t c_stride, GemmAhead& ahead);

  // c [out, in] += the sum over rows of g [rows, out] times x [rows, in]. Up to 15 floats beyond the end of a row of x
  // are read, but have no part in the result.
  void (*accumulate)(GemmRows g, GemmRows x, std::int64_t rows, int out, int in, float* c, std::int64_t c_stride,
                     GemmAhead& ahead);
};

constexpr std::int64_t gemm_packed_floats(int depth, int columns) {
  return static_cast<std::int64_t>(depth) * ((columns + 15) / 16 * 16);
}

extern const GemmKernel kGemmPortable;
#ifdef GREEDYNAS_X86
extern const GemmKernel kGemmAvx2;
extern const GemmKernel kGemmAvx512;
#endif

inline const GemmKernel& gemm_kernel_for([[maybe_unused]] cpu::Isa isa) {
#ifdef GREEDYNAS_X86
  if (isa >= cpu::Isa::avx512) return kGemmAvx512;
  if (isa == cpu::Isa::avx2) return kGemmAvx2;
#endif
  return kGemmPortable;
}

}  // namespace greedynas::blocks
