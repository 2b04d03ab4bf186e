// SiLU, z / (1 + exp(-z)) (https://arxiv.org/abs/1702.03118), over a vector type (csrc/filter/arithmetic.h).
#pragma once

#include "filter/arithmetic.h"

namespace greedynas::blocks {

// x, but within +-limit.
template <class V>
GREEDYNAS_INLINE V within(V x, float limit) {
  if constexpr (requires { clamped(x, x); }) return clamped(x, V::set(limit));
  return min(max(x, V::set(-limit)), V::set(limit));
}

// 1 + exp(-z); not-a-number in z is left to the caller's own use of z. The error of its reciprocal, the sigmoid of z,
// is at most 1e-7, and for |z| <= 87 below (3 + 1.5 |z|) 2^-24 of it. With fewer operations than exp_within, which
// keeps what an LSTM needs and this does not; above all in a shorter chain, for each of them waits for the one before
// it.
template <class V>
GREEDYNAS_INLINE V one_plus_exp(V z) {
  // -z log2(e) = n + f with an integer n, and exp(-z) = 2^n 2^f.
  const V x = within(z, 87.0F), minus_log2_e = V::set(-0x1.715476p+0F);
  const V magic = V::set(12582912.0F);  // 1.5 * 2^23: the low bits of a sum hold n
  const V shifted = fma(x, minus_log2_e, magic), f = fma(x, minus_log2_e, magic - shifted);
  // (2^f - 1) / f on [-0.5, 0.5]; 2^f differs by less than 9.2e-8 of it.
  V p = fma(V::set(0x1.5bba14p-10F), f, V::set(0x1.3cea88p-7F));
  p = fma(p, f, V::set(0x1.c6b752p-5F));
  p = fma(p, f, V::set(0x1.ebf9bcp-3F));
  p = fma(p, f, V::set(0x1.62e42ap-1F));
  const V one = V::set(1.0F), power = fma(p, f, one);
  if constexpr (requires { scaled(power, f); }) return scaled(power, shifted - magic) + one;
  return times_power_of_two(power, shifted) + one;
}

template <class V>
GREEDYNAS_INLINE V silu(V z) {
  return z / one_plus_exp(z);
}

// With s the sigmoid, the slope is s (1 + z (1 - s)).
template <class V>
GREEDYNAS_INLINE V silu_with_slope(V z, V& slope) {
  const V one = V::set(1.0F), s = one / one_plus_exp(z), result = z * s;
  slope = fma(result, one - s, s);
  return result;
}

template <class V>
GREEDYNAS_INLINE V silu_slope(V z) {
  V slope;
  silu_with_slope(z, slope);
  return slope;
}

}  // namespace greedynas::blocks
