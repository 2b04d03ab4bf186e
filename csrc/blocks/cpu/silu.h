// SiLU, z / (1 + exp(-z)) (https://arxiv.org/abs/1702.03118), over a vector type (csrc/filter/arithmetic.h).
#pragma once

#include "filter/arithmetic.h"

namespace greedynas::blocks {

// The sigmoid of z; not-a-number in z is left to the caller's own use of z. With fewer operations than exp_within,
// which keeps what an LSTM needs and this does not.
template <class V>
GREEDYNAS_INLINE V sigmoid(V z) {
  z = min(max(z, V::set(-87.0F)), V::set(87.0F));
  // -z log2(e) = n + f with an integer n, and exp(-z) = 2^n 2^f; log2(e) in two parts.
  const V magic = V::set(12582912.0F);  // 1.5 * 2^23: the low bits of a sum hold n
  const V shifted = fma(z, V::set(-0x1.715476p+0F), magic);
  const V f = fma(z, V::set(-0x1.4ae0cp-26F), fma(z, V::set(-0x1.715476p+0F), magic - shifted));
  // (2^f - 1) / f on [-0.5, 0.5], as in exp_within.
  V p = fma(V::set(0x1.4308fap-13F), f, V::set(0x1.5f07b4p-10F));
  p = fma(p, f, V::set(0x1.3b2ba0p-7F));
  p = fma(p, f, V::set(0x1.c6af6ep-5F));
  p = fma(p, f, V::set(0x1.ebfbdep-3F));
  p = fma(p, f, V::set(0x1.62e430p-1F));
  const V one = V::set(1.0F);
  return one / (times_power_of_two(fma(p, f, one), shifted) + one);
}

template <class V>
GREEDYNAS_INLINE V silu(V z) {
  return z * sigmoid(z);
}

// With s the sigmoid, the slope is s (1 + z (1 - s)).
template <class V>
GREEDYNAS_INLINE V silu_with_slope(V z, V& slope) {
  const V s = sigmoid(z), result = z * s;
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
