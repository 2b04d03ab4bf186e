// LSTM cells in training, written once over a vector type V. Included by one file a level, each compiled for that level
// alone.
#pragma once

#include "filter/arithmetic.h"
#include "filter/cpu/cells.h"

namespace greedynas::filter {
namespace {

// Not-a-number where x is not finite, which the clamp of exp_within would hide; else value.
template <class V>
GREEDYNAS_INLINE V where_finite(V x, V value) {
  return fma(x, V::set(0.0F), value);
}

template <class V>
GREEDYNAS_INLINE V sigmoid(V x) {
  return where_finite(x, V::set(1.0F) / sigmoid_denominator(x));
}

template <class V>
GREEDYNAS_INLINE V tanh_of(V x) {
  const Exponential<V> e = exp_within(x * V::set(-2.0F), 28.0F);
  return where_finite(x, (V::set(0.0F) - e.plus(-1.0F)) / e.plus(1.0F));
}

template <class V>
void cells_forward(std::int64_t rows, int width, float* gates, const float* previous, float* cell, float* tanh_cell,
                   float* state) {
  for (std::int64_t row = 0; row < rows; ++row) {
    float* const own = gates + row * 4 * width;
    for (int unit = 0; unit < width; unit += V::width) {
      const std::int64_t at = row * width + unit;
      float *const in = own + unit, *const forget = in + width, *const candidate = forget + width;
      float* const out = candidate + width;
      const V i = sigmoid(V::load(in)), f = sigmoid(V::load(forget)), g = tanh_of(V::load(candidate));
      const V o = sigmoid(V::load(out));
      const V next = previous == nullptr ? i * g : fma(f, V::load(previous + at), i * g);
      const V bounded = tanh_of(next);
      i.store(in);
      f.store(forget);
      g.store(candidate);
      o.store(out);
      next.store(cell + at);
      bounded.store(tanh_cell + at);
      (o * bounded).store(state + at);
    }
  }
}

template <class V>
void cells_backward(std::int64_t rows, int width, const float* gates, const float* previous, const float* tanh_cell,
                    const float* grad_state, const float* grad_cell, float* grad_gates, float* grad_previous) {
  const V one = V::set(1.0F), zero = V::set(0.0F);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (int unit = 0; unit < width; unit += V::width) {
      const std::int64_t at = row * width + unit, gate = row * 4 * width + unit;
      const auto load = [&](int which) { return V::load(gates + gate + which * width); };
      const auto store = [&](int which, V value) { value.store(grad_gates + gate + which * width); };
      const V i = load(0), f = load(1), g = load(2), o = load(3), t = V::load(tanh_cell + at);
      const V grad = V::load(grad_state + at);
      const V through = grad * o * (one - t * t);
      const V total = grad_cell == nullptr ? through : through + V::load(grad_cell + at);
      store(0, total * g * i * (one - i));
      store(1, previous == nullptr ? zero : total * V::load(previous + at) * f * (one - f));
      store(2, total * i * (one - g * g));
      store(3, grad * t * o * (one - o));
      (total * f).store(grad_previous + at);
    }
  }
}

template <class V>
constexpr CellKernel cell_kernel_over(const char* name) {
  static_assert(kCellUnits % V::width == 0);
  return {name, &cells_forward<V>, &cells_backward<V>};
}

}  // namespace
}  // namespace greedynas::filter
