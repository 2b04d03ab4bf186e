// Products of small matrices of float32 or bf16 numbers in the caches, one set of kernels a level.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/vec_generic.h"

namespace greedynas::blocks {

using Bf16Bits = std::uint16_t;

// Rows of floats or bf16 numbers, `stride` apart.
template <class Element>
struct GemmRowsOf {
  const Element* data;
  std::int64_t stride;

  GREEDYNAS_VEC_INLINE GemmRowsOf from(std::int64_t row) const {
    return {data == nullptr ? nullptr : data + row * stride, stride};
  }
  GREEDYNAS_VEC_INLINE GemmRowsOf after(std::int64_t columns) const {
    return {data == nullptr ? nullptr : data + columns, stride};
  }
};

using GemmRows = GemmRowsOf<float>;
using GemmBf16Rows = GemmRowsOf<Bf16Bits>;

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

// The same of bf16 numbers, with sums in float32.
struct GemmBf16Kernel {
  const char* name;  // of the level

  // Rounds b to bf16. As many floats as above.
  void (*pack)(const float* b, std::int64_t row_stride, std::int64_t column_stride, int depth, int columns,
               float* packed);

  // As above; init and c are bf16.
  void (*multiply)(GemmBf16Rows a, std::int64_t rows, int depth, const float* packed, int columns, GemmBf16Rows init,
                   Bf16Bits* c, std::int64_t c_stride, GemmAhead& ahead);

  // As above, but nothing beyond the end of a row is read. memory: gemm_bf16_floats of it.
  void (*accumulate)(GemmBf16Rows g, GemmBf16Rows x, std::int64_t rows, int out, int in, float* c,
                     std::int64_t c_stride, float* memory, GemmAhead& ahead);
};

// Room for g and x as `accumulate` multiplies them.
constexpr std::int64_t gemm_bf16_floats(std::int64_t rows, int out, int in) {
  return (rows + 1) / 2 * ((out + 15) / 16 * 16) + (rows + 1) * ((in + 15) / 16 * 16);
}

constexpr std::int64_t gemm_packed_floats(int depth, int columns) {
  return static_cast<std::int64_t>(depth) * ((columns + 15) / 16 * 16);
}

extern const GemmKernel kGemmPortable;
extern const GemmBf16Kernel kGemmBf16Portable;
#ifdef GREEDYNAS_X86
extern const GemmKernel kGemmAvx2, kGemmAvx512;
extern const GemmBf16Kernel kGemmBf16Avx2, kGemmBf16Avx512, kGemmBf16Avx512Bf16;
#endif

inline const GemmKernel& gemm_kernel_for([[maybe_unused]] cpu::Isa isa) {
#ifdef GREEDYNAS_X86
  if (isa >= cpu::Isa::avx512) return kGemmAvx512;
  if (isa == cpu::Isa::avx2) return kGemmAvx2;
#endif
  return kGemmPortable;
}

inline const GemmBf16Kernel& gemm_bf16_kernel_for([[maybe_unused]] cpu::Isa isa) {
#ifdef GREEDYNAS_X86
  if (isa >= cpu::Isa::avx512_bf16) return kGemmBf16Avx512Bf16;
  if (isa == cpu::Isa::avx512) return kGemmBf16Avx512;
  if (isa == cpu::Isa::avx2) return kGemmBf16Avx2;
#endif
  return kGemmBf16Portable;
}

}  // namespace greedynas::blocks
