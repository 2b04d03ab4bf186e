// The optimizer's kernels over a vector type; what is left over at the end is done by ones.
//
// Included by one file a level, each compiled for that level alone.
#pragma once

#include "cpu/vec_generic.h"
#include "optim/cpu/sgd_kernels.h"

namespace greedynas::optim {
namespace {

enum class Momentum { none, plain, nesterov };

template <Momentum kMomentum, bool kDecay, bool kEma, bool kZero>
struct Update {
  template <class V>
  GREEDYNAS_VEC_INLINE static void step(const Coefficients& c, const Buffers& at, std::int64_t i) {
    V p = V::load(at.parameters + i);
    V g = V::load(at.gradients + i) * V::set(c.scale);
    if constexpr (kDecay) g = g + p * V::set(c.decay);
    if constexpr (kMomentum != Momentum::none) {
      const V m = V::load(at.momentum + i) * V::set(c.momentum) + g;
      m.store(at.momentum + i);
      g = kMomentum == Momentum::nesterov ? g + m * V::set(c.momentum) : m;
    }
    p = p - g * V::set(c.lr);
    p.store(at.parameters + i);
    if constexpr (kEma) {
      (V::load(at.ema + i) * V::set(c.ema_decay) + p * V::set(c.ema_share)).store(at.ema + i);
    }
    if constexpr (kZero) V::set(0.0F).store(at.gradients + i);
  }

  template <class V>
  static void run(const Coefficients& c, const Buffers& at, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width) step<V>(c, at, i);
    for (; i < count; ++i) step<cpu::VecGeneric<1>>(c, at, i);
  }
};

template <class V, Momentum kMomentum, bool kDecay, bool kEma>
GREEDYNAS_VEC_INLINE void update_by_zero(const Coefficients& c, const Buffers& at, std::int64_t count) {
  if (c.zero) return Update<kMomentum, kDecay, kEma, true>::template run<V>(c, at, count);
  Update<kMomentum, kDecay, kEma, false>::template run<V>(c, at, count);
}

template <class V, Momentum kMomentum, bool kDecay>
GREEDYNAS_VEC_INLINE void update_by_ema(const Coefficients& c, const Buffers& at, std::int64_t count) {
  if (at.ema != nullptr) return update_by_zero<V, kMomentum, kDecay, true>(c, at, count);
  update_by_zero<V, kMomentum, kDecay, false>(c, at, count);
}

template <class V, Momentum kMomentum>
GREEDYNAS_VEC_INLINE void update_by_decay(const Coefficients& c, const Buffers& at, std::int64_t count) {
  if (c.decay != 0.0F) return update_by_ema<V, kMomentum, true>(c, at, count);
  update_by_ema<V, kMomentum, false>(c, at, count);
}

template <class V>
void update_of(const Coefficients& c, const Buffers& at, std::int64_t count) {
  if (at.momentum == nullptr) return update_by_decay<V, Momentum::none>(c, at, count);
  if (c.nesterov) return update_by_decay<V, Momentum::nesterov>(c, at, count);
  update_by_decay<V, Momentum::plain>(c, at, count);
}

// In 16 sums, whatever the width of the vectors: value i goes into sum i % 16. The compiler's own vectors, because
// memory, not arithmetic, is the limit.
inline double sum_of_squares_of(const float* values, std::int64_t count) {
  constexpr int kLanes = 4, kSums = 4;
  // Elements, to be asked for early: one stream alone waits for memory at every new page. Threefold, measured; the
  // several streams of an update gain nothing.
  constexpr std::int64_t kAhead = 1024;
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
  typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));
  Doubles sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kLanes * kSums <= count; i += kLanes * kSums) {
    __builtin_prefetch(values + i + kAhead);
    GREEDYNAS_UNROLL
    for (int s = 0; s < kSums; ++s) {
      Floats narrow;
      __builtin_memcpy(&narrow, values + i + s * kLanes, sizeof narrow);
      const Doubles wide = __builtin_convertvector(narrow, Doubles);
      sums[s] += wide * wide;
    }
  }
  double lanes[kLanes * kSums];
  __builtin_memcpy(lanes, sums, sizeof lanes);
  for (int lane = 0; i < count; ++i, ++lane) {
    const double wide = static_cast<double>(values[i]);
    lanes[lane] += wide * wide;
  }
  double total = 0.0;
  for (const double lane : lanes) total += lane;
  return total;
}

template <class V>
constexpr Kernel kernel_over(const char* name) {
  return {name, &update_of<V>, &sum_of_squares_of};
}

}  // namespace
}  // namespace greedynas::optim
