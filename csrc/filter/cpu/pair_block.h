// The bf16 filter with W_hh h as products of pairs of bf16 numbers; the rest is that of block.h.
#pragma once

#include "filter/cpu/block.h"

namespace greedynas::filter {

// See Singles in block.h. `Instructions` has store_bf16 and multiply_add: cpu/pairs_avx512.h, and a plain twin in the
// tests.
//
// A word holds inputs 2k and 2k + 1, the lower one in its lower half; the even and the odd product are added to a sum
// one after the other. So a sum has another order than with Singles. VDPBF16PS takes subnormal numbers for zero, also
// in its sums, which moves a gate by less than 1e-35.
template <class Instructions>
struct Pairs : Instructions {
  static constexpr int inputs = 2;

  GREEDYNAS_VEC_INLINE static float word(const float* weights, Precision) {
    return float_of(bf16_bits(weights[0]) | static_cast<std::uint32_t>(bf16_bits(weights[1])) << 16);
  }
};

}  // namespace greedynas::filter
