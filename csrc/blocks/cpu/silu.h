// SiLU, z / (1 + exp(-z)) (https://arxiv.org/abs/1702.03118), over a vector type.
#pragma once

#include "filter/arithmetic.h"

namespace greedynas::blocks {

// 1 + exp(-z), the denominator of the sigmoid; not-a-number in z is left to the caller's own use of z.
template <class V>
GREEDYNAS_INLINE V silu_denominator(V z) {
  return filter::exp_within(V::set(0.0F) - z, 87.0F).plus(1.0F);
}

template <class V>
GREEDYNAS_INLINE V silu(V z) {
  return z / silu_denominator(z);
}

// With s the sigmoid, the slope is s (1 + z (1 - s)).
template <class V>
GREEDYNAS_INLINE V silu_with_slope(V z, V& slope) {
  const V s = V::set(1.0F) / silu_denominator(z), result = z * s;
  slope = fma(result, V::set(1.0F) - s, s);
  return result;
}

template <class V>
GREEDYNAS_INLINE V silu_slope(V z) {
  V slope;
  silu_with_slope(z, slope);
  return slope;
}

}  // namespace greedynas::blocks
