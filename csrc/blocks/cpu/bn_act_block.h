// The kernels of bn_act, written once over a vector type V (csrc/cpu/vec_*.h). No inline function of the standard
// library here; see bn_act_rows.h for the rest of the rules.
#pragma once

#include "blocks/cpu/bn_act_kernels.h"
#include "blocks/cpu/bn_act_math.h"
#include "blocks/cpu/bn_act_rows.h"

namespace greedynas::norm {
namespace {

// Moments of kRows rows joined with those of the `before` rows before them (Chan, Golub, LeVeque 1979).
//
// Sums are taken of differences from the group's first row. Since that is one of the values, the spread is at least its
// squared distance from the mean, and no more than a factor of kRows is lost to cancellation, whatever the mean is.
template <class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void join_moments(RowsOf<const T> x, Slots<V> slots, const T* shift, std::int64_t before,
                                       float* mean, float* squares) {
  const float total = static_cast<float>(before + kRows);
  const V share = V::set(kRows / total);
  const V spread = V::set(static_cast<float>(before) * (kRows / total));
  const V inverse = V::set(1.0F / kRows);
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i, mean += V::width, squares += V::width) {
    const int start = slots.start(i);
    const V first = load_as<V>(x[0] + start);
    V sum = V::set(0.0F);
    V square = V::set(0.0F);
    GREEDYNAS_UNROLL
    for (int r = 1; r < kRows; ++r) {
      if (ahead) __builtin_prefetch(x[r + kRows] + start);
      const V difference = load_as<V>(x[r] + start) - first;
      sum = sum + difference;
      square = fma(difference, difference, square);
    }
    const V offset = sum * inverse;
    const V old_mean = V::load(mean);
    const V step = first - load_as<V>(shift + start) + offset - old_mean;
    fma(step, share, old_mean).store(mean);
    const V own = max(V::set(0.0F), square - sum * offset);
    (V::load(squares) + fma(step * step, spread, own)).store(squares);
  }
}

template <class V, class T>
struct Moments {
  static void run(const Shape& shape, Input input, const void* shift_row, float* mean, float* squares) {
    const RowsOf<const T> x = rows_of<T>(input);
    const T* shift = static_cast<const T*>(shift_row);
    const Slots<V> slots{shape.channels};
    for (int i = 0; i < slots.count(); ++i) {
      V::set(0.0F).store(mean + i * V::width);
      V::set(0.0F).store(squares + i * V::width);
    }
    std::int64_t row = 0;
    constexpr int kMany = 16;
    constexpr int kFew = 4;
    for (; row + kMany <= shape.rows; row += kMany) {
      join_moments<V, T, kMany>({x[row], x.stride}, slots, shift, row, mean, squares);
    }
    for (; row + kFew <= shape.rows; row += kFew) {
      join_moments<V, T, kFew>({x[row], x.stride}, slots, shift, row, mean, squares);
    }
    for (; row < shape.rows; ++row) join_moments<V, T, 1>({x[row], x.stride}, slots, shift, row, mean, squares);
    slots.close_gap(mean);
    slots.close_gap(squares);
  }
};

template <Activation kActivation, bool kResidual, bool kStream, class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void forward_rows(RowsOf<const T> x, RowsOf<const T> residual, RowsOf<T> y, Slots<V> slots,
                                       const Coefficients& c) {
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i) {
    const int start = slots.start(i);
    const V mean = V::load_to_register(c.mean + start);
    const V scale = V::load_to_register(c.scale + start);
    const V bias = V::load_to_register(c.bias + start);
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ahead) __builtin_prefetch(x[r + kRows] + start);
      V z = fma(load_as<V>(x[r] + start) - mean, scale, bias);
      if constexpr (kResidual) z = z + load_as<V>(residual[r] + start);
      put<kStream>(activated<kActivation>(z), y[r] + start);
    }
  }
}

template <class V, class T>
struct Forward {
  template <Activation kActivation, bool kResidual>
  static void run_layer(const Shape& shape, Input x_input, const Coefficients& c, Input residual_input, void* y_data) {
    if constexpr (can_stream<V>()) {
      if (streams<V, T>(shape, y_data))
        return walk<kActivation, kResidual, true>(shape, x_input, c, residual_input, y_data);
    }
    walk<kActivation, kResidual, false>(shape, x_input, c, residual_input, y_data);
  }

 private:
  template <Activation kActivation, bool kResidual, bool kStream>
  static void walk(const Shape& shape, Input x_input, const Coefficients& c, Input residual_input, void* y_data) {
    const RowsOf<const T> x = rows_of<T>(x_input);
    const RowsOf<const T> residual = rows_of<T>(residual_input);
    const RowsOf<T> y{static_cast<T*>(y_data), shape.channels};
    const Slots<V> slots{shape.channels};
    std::int64_t row = 0;
    constexpr int kTogether = 4;
    for (; row + kTogether <= shape.rows; row += kTogether) {
      forward_rows<kActivation, kResidual, kStream, V, T, kTogether>(
          {x[row], x.stride}, {residual[row], residual.stride}, {y[row], y.stride}, slots, c);
    }
    for (; row < shape.rows; ++row) {
      forward_rows<kActivation, kResidual, kStream, V, T, 1>({x[row], x.stride}, {residual[row], residual.stride},
                                                             {y[row], y.stride}, slots, c);
    }
    if constexpr (kStream) V::end_streams();
  }
};

// The gradient that reaches z; `centred` becomes x - mean.
template <Activation kActivation, bool kResidual, class V, class T>
GREEDYNAS_VEC_INLINE V grad_of_z(const T* grad, const T* x, const T* residual, V mean, V scale, V bias, V& centred) {
  const V g = load_as<V>(grad);
  centred = load_as<V>(x) - mean;
  if constexpr (kActivation == Activation::identity) return g;
  V z = fma(centred, scale, bias);
  if constexpr (kResidual) z = z + load_as<V>(residual);
  return through_activation<kActivation>(g, z);
}

template <Activation kActivation, bool kResidual, class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void sum_rows(RowsOf<const T> grad, RowsOf<const T> x, RowsOf<const T> residual, Slots<V> slots,
                                   const Coefficients& c, float* sums, float* products) {
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i, sums += V::width, products += V::width) {
    const int start = slots.start(i);
    const V mean = V::load_to_register(c.mean + start);
    const V scale = V::load_to_register(c.scale + start);
    const V bias = V::load_to_register(c.bias + start);
    V sum = V::set(0.0F);
    V product = V::set(0.0F);
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ahead) {
        __builtin_prefetch(grad[r + kRows] + start);
        __builtin_prefetch(x[r + kRows] + start);
      }
      V centred;
      const V g = grad_of_z<kActivation, kResidual>(grad[r] + start, x[r] + start, residual[r] + start, mean, scale,
                                                    bias, centred);
      sum = sum + g;
      product = fma(g, centred, product);
    }
    (V::load(sums) + sum).store(sums);
    (V::load(products) + product).store(products);
  }
}

template <class V, class T>
struct BackwardSums {
  template <Activation kActivation, bool kResidual>
  static void run_layer(const Shape& shape, Input grad_input, Input x_input, const Coefficients& c,
                        Input residual_input, float* sums, float* products) {
    const RowsOf<const T> grad = rows_of<T>(grad_input);
    const RowsOf<const T> x = rows_of<T>(x_input);
    const RowsOf<const T> residual = rows_of<T>(residual_input);
    const Slots<V> slots{shape.channels};
    for (int i = 0; i < slots.count(); ++i) {
      V::set(0.0F).store(sums + i * V::width);
      V::set(0.0F).store(products + i * V::width);
    }
    std::int64_t row = 0;
    constexpr int kTogether = 8;
    for (; row + kTogether <= shape.rows; row += kTogether) {
      sum_rows<kActivation, kResidual, V, T, kTogether>({grad[row], grad.stride}, {x[row], x.stride},
                                                        {residual[row], residual.stride}, slots, c, sums, products);
    }
    for (; row < shape.rows; ++row) {
      sum_rows<kActivation, kResidual, V, T, 1>({grad[row], grad.stride}, {x[row], x.stride},
                                                {residual[row], residual.stride}, slots, c, sums, products);
    }
    slots.close_gap(sums);
    slots.close_gap(products);
  }
};

template <class T>
struct GradientRows {
  RowsOf<T> x, residual;  // residual.data may be nullptr
};

template <Activation kActivation, bool kResidual, bool kStream, class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void backward_rows(RowsOf<const T> grad, RowsOf<const T> x, RowsOf<const T> residual,
                                        Slots<V> slots, const Coefficients& c, GradientRows<T> out) {
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i) {
    const int start = slots.start(i);
    const V mean = V::load_to_register(c.mean + start);
    const V scale = V::load_to_register(c.scale + start);
    const V bias = V::load_to_register(c.bias + start);
    const V slope = V::load_to_register(c.slope + start);
    const V offset = V::load_to_register(c.offset + start);
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ahead) {
        __builtin_prefetch(grad[r + kRows] + start);
        __builtin_prefetch(x[r + kRows] + start);
      }
      V centred;
      const V g = grad_of_z<kActivation, kResidual>(grad[r] + start, x[r] + start, residual[r] + start, mean, scale,
                                                    bias, centred);
      if constexpr (kResidual) {
        if (out.residual.data != nullptr) put<kStream>(g, out.residual[r] + start);
      }
      put<kStream>(fma(g, scale, fma(centred, slope, offset)), out.x[r] + start);
    }
  }
}

template <class V, class T>
struct Backward {
  template <Activation kActivation, bool kResidual>
  static void run_layer(const Shape& shape, Input grad_input, Input x_input, const Coefficients& c,
                        Input residual_input, void* grad_x, void* grad_residual) {
    if constexpr (can_stream<V>()) {
      if (streams<V, T>(shape, grad_x) && streams<V, T>(shape, grad_residual))
        return walk<kActivation, kResidual, true>(shape, grad_input, x_input, c, residual_input, grad_x, grad_residual);
    }
    walk<kActivation, kResidual, false>(shape, grad_input, x_input, c, residual_input, grad_x, grad_residual);
  }

 private:
  template <Activation kActivation, bool kResidual, bool kStream>
  static void walk(const Shape& shape, Input grad_input, Input x_input, const Coefficients& c, Input residual_input,
                   void* grad_x, void* grad_residual) {
    const RowsOf<const T> grad = rows_of<T>(grad_input);
    const RowsOf<const T> x = rows_of<T>(x_input);
    const RowsOf<const T> residual = rows_of<T>(residual_input);
    const Slots<V> slots{shape.channels};
    const auto at_row = [&](std::int64_t row) -> GradientRows<T> {
      T* const to_x = static_cast<T*>(grad_x) + row * shape.channels;
      T* const to_residual = grad_residual == nullptr ? nullptr : static_cast<T*>(grad_residual) + row * shape.channels;
      return {{to_x, shape.channels}, {to_residual, shape.channels}};
    };
    std::int64_t row = 0;
    constexpr int kTogether = 4;
    for (; row + kTogether <= shape.rows; row += kTogether) {
      backward_rows<kActivation, kResidual, kStream, V, T, kTogether>(
          {grad[row], grad.stride}, {x[row], x.stride}, {residual[row], residual.stride}, slots, c, at_row(row));
    }
    for (; row < shape.rows; ++row) {
      backward_rows<kActivation, kResidual, kStream, V, T, 1>({grad[row], grad.stride}, {x[row], x.stride},
                                                              {residual[row], residual.stride}, slots, c, at_row(row));
    }
    if constexpr (kStream) V::end_streams();
  }
};

// Op<V, T>::run_layer<activation, residual>(shape, arguments...).
template <template <class, class> class Op>
struct ByLayer {
  template <class V, class T>
  struct With {
    template <Activation kActivation, class... Arguments>
    static void by_residual(const Shape& shape, bool residual, Arguments... arguments) {
      residual ? Op<V, T>::template run_layer<kActivation, true>(shape, arguments...)
               : Op<V, T>::template run_layer<kActivation, false>(shape, arguments...);
    }
    template <class... Arguments>
    static void run(const Shape& shape, const BnAct* layer, Arguments... arguments) {
      switch (layer->activation) {
        case Activation::identity:
          return by_residual<Activation::identity>(shape, layer->residual, arguments...);
        case Activation::relu:
          return by_residual<Activation::relu>(shape, layer->residual, arguments...);
        case Activation::hard_swish:
          return by_residual<Activation::hard_swish>(shape, layer->residual, arguments...);
        case Activation::silu:
          return by_residual<Activation::silu>(shape, layer->residual, arguments...);
        case Activation::relu6:
          return by_residual<Activation::relu6>(shape, layer->residual, arguments...);
      }
    }
  };
};

template <class V>
void moments_of(const Shape& shape, Input x, const void* shift, float* mean, float* squares) {
  by_storage<V, Moments>(shape, x, shift, mean, squares);
}

template <class V>
void forward_of(const BnAct& layer, Input x, const Coefficients& c, Input residual, void* y) {
  by_storage<V, ByLayer<Forward>::template With>(layer.shape, &layer, x, c, residual, y);
}

template <class V>
void backward_sums_of(const BnAct& layer, Input grad, Input x, const Coefficients& c, Input residual, float* sums,
                      float* products) {
  by_storage<V, ByLayer<BackwardSums>::template With>(layer.shape, &layer, grad, x, c, residual, sums, products);
}

template <class V>
void backward_of(const BnAct& layer, Input grad, Input x, const Coefficients& c, Input residual, void* grad_x,
                 void* grad_residual) {
  by_storage<V, ByLayer<Backward>::template With>(layer.shape, &layer, grad, x, c, residual, grad_x, grad_residual);
}

template <class V>
constexpr Kernel kernel_over(const char* name) {
  return {name, &moments_of<V>, &forward_of<V>, &backward_sums_of<V>, &backward_of<V>};
}

}  // namespace
}  // namespace greedynas::norm
