// N vectors as one: each operation is done on all, so that none has to wait for its own last one.
//
// An LSTM cell is a long chain of operations, and CPUs do not look far enough ahead to find the next cell by
// themselves. The numbers are the same bits as one vector after the other.
#pragma once

#include "cpu/vec_generic.h"
#include "filter/arithmetic.h"

namespace greedynas::filter {

template <class V, int N>
struct Together {
  static constexpr bool approximate = Approximate<V>;

  V v[N];

  GREEDYNAS_VEC_INLINE static Together set(float value) {
    return of([&](int) __attribute__((always_inline)) { return V::set(value); });
  }
  // From p, p + stride, ..
  GREEDYNAS_VEC_INLINE static Together load(const float* p, int stride) {
    return of([&](int i) __attribute__((always_inline)) { return V::load(p + i * stride); });
  }

  GREEDYNAS_VEC_INLINE friend Together operator+(Together a, Together b) {
    return of([&](int i) __attribute__((always_inline)) { return a.v[i] + b.v[i]; });
  }
  GREEDYNAS_VEC_INLINE friend Together operator-(Together a, Together b) {
    return of([&](int i) __attribute__((always_inline)) { return a.v[i] - b.v[i]; });
  }
  GREEDYNAS_VEC_INLINE friend Together operator*(Together a, Together b) {
    return of([&](int i) __attribute__((always_inline)) { return a.v[i] * b.v[i]; });
  }
  GREEDYNAS_VEC_INLINE friend Together operator/(Together a, Together b) {
    return of([&](int i) __attribute__((always_inline)) { return a.v[i] / b.v[i]; });
  }
  GREEDYNAS_VEC_INLINE friend Together fma(Together a, Together b, Together c) {
    return of([&](int i) __attribute__((always_inline)) { return fma(a.v[i], b.v[i], c.v[i]); });
  }
  GREEDYNAS_VEC_INLINE friend Together min(Together a, Together b) {
    return of([&](int i) __attribute__((always_inline)) { return min(a.v[i], b.v[i]); });
  }
  GREEDYNAS_VEC_INLINE friend Together max(Together a, Together b) {
    return of([&](int i) __attribute__((always_inline)) { return max(a.v[i], b.v[i]); });
  }
  GREEDYNAS_VEC_INLINE friend Together times_power_of_two(Together p, Together shifted) {
    return of([&](int i) __attribute__((always_inline)) { return times_power_of_two(p.v[i], shifted.v[i]); });
  }
  GREEDYNAS_VEC_INLINE friend Together look_up(const float (&numbers)[32], Together index) {
    return of([&](int i) __attribute__((always_inline)) { return look_up(numbers, index.v[i]); });
  }
  GREEDYNAS_VEC_INLINE friend Together size_within(Together x, float limit) {
    return of([&](int i) __attribute__((always_inline)) { return size_within(x.v[i], limit); });
  }
  GREEDYNAS_VEC_INLINE friend Together with_sign_of(Together x, Together size) {
    return of([&](int i) __attribute__((always_inline)) { return with_sign_of(x.v[i], size.v[i]); });
  }

 private:
  template <class Function>
  GREEDYNAS_VEC_INLINE static Together of(Function function) {
    Together result;
    GREEDYNAS_UNROLL
    for (int i = 0; i < N; ++i) result.v[i] = function(i);
    return result;
  }
};

}  // namespace greedynas::filter
