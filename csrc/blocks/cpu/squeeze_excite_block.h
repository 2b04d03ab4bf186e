// The kernels of squeeze-and-excitation, written once over a vector type V; see bn_act_rows.h for the rules.
#pragma once

#include "blocks/cpu/bn_act_math.h"
#include "blocks/cpu/bn_act_rows.h"
#include "blocks/cpu/squeeze_excite_kernels.h"

namespace greedynas::norm {
namespace {

constexpr Activation activation_of(Prologue prologue) {
  return prologue == Prologue::affine_relu         ? Activation::relu
         : prologue == Prologue::affine_hard_swish ? Activation::hard_swish
         : prologue == Prologue::affine_silu       ? Activation::silu
         : prologue == Prologue::affine_relu6      ? Activation::relu6
                                                   : Activation::identity;
}

// Scale and shift of one vector of channels.
template <Prologue kPrologue, class V>
struct Affine {
  V scale, shift;

  GREEDYNAS_VEC_INLINE Affine(const SqueezeExcite& layer, int start) : scale(V::set(1.0F)), shift(V::set(0.0F)) {
    if constexpr (kPrologue != Prologue::none) {
      scale = V::load_to_register(layer.scale + start);
      shift = V::load_to_register(layer.shift + start);
    }
  }
  GREEDYNAS_VEC_INLINE V before_activation(V x) const {
    if constexpr (kPrologue == Prologue::none) return x;
    return fma(x, scale, shift);
  }
  GREEDYNAS_VEC_INLINE V a(V x) const { return activated<activation_of(kPrologue)>(before_activation(x)); }
};

template <class V>
GREEDYNAS_VEC_INLINE void clear(Slots<V> slots, float* accumulators) {
  for (int i = 0; i < slots.count(); ++i) V::set(0.0F).store(accumulators + i * V::width);
}

// Sums of a, or with kGrad of grad * a.
template <bool kGrad, Prologue kPrologue, class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void sum_rows_of_a(const SqueezeExcite& layer, RowsOf<const T> grad, RowsOf<const T> x,
                                        Slots<V> slots, float* sums) {
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i, sums += V::width) {
    const int start = slots.start(i);
    const Affine<kPrologue, V> affine(layer, start);
    V sum = V::set(0.0F);
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ahead) __builtin_prefetch(x[r + kRows] + start);
      const V a = affine.a(load_as<V>(x[r] + start));
      if constexpr (kGrad) {
        if (ahead) __builtin_prefetch(grad[r + kRows] + start);
        sum = fma(load_as<V>(grad[r] + start), a, sum);
      } else {
        sum = sum + a;
      }
    }
    (V::load(sums) + sum).store(sums);
  }
}

template <bool kGrad>
struct SumOf {
  template <class V, class T>
  struct With {
    template <Prologue kPrologue>
    static void run_layer(const Shape& part, const SqueezeExcite& layer, Input grad_input, Input x_input, float* sums) {
      const RowsOf<const T> grad = rows_of<T>(grad_input);
      const RowsOf<const T> x = rows_of<T>(x_input);
      const Slots<V> slots{part.channels};
      clear(slots, sums);
      std::int64_t row = 0;
      constexpr int kTogether = 8;
      for (; row + kTogether <= part.rows; row += kTogether) {
        sum_rows_of_a<kGrad, kPrologue, V, T, kTogether>(layer, {grad[row], grad.stride}, {x[row], x.stride}, slots,
                                                         sums);
      }
      for (; row < part.rows; ++row) {
        sum_rows_of_a<kGrad, kPrologue, V, T, 1>(layer, {grad[row], grad.stride}, {x[row], x.stride}, slots, sums);
      }
      slots.close_gap(sums);
    }
  };
};

template <Prologue kPrologue, bool kStream, class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void excite_rows(const SqueezeExcite& layer, RowsOf<const T> x, Slots<V> slots, const float* gates,
                                      RowsOf<T> y) {
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i) {
    const int start = slots.start(i);
    const Affine<kPrologue, V> affine(layer, start);
    const V gate = V::load_to_register(gates + start);
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ahead) __builtin_prefetch(x[r + kRows] + start);
      put<kStream>(affine.a(load_as<V>(x[r] + start)) * gate, y[r] + start);
    }
  }
}

template <class V, class T>
struct Excite {
  template <Prologue kPrologue>
  static void run_layer(const Shape& part, const SqueezeExcite& layer, Input x, const float* gates, void* y) {
    if constexpr (can_stream<V>()) {
      if (streams<V, T>(part, y)) return walk<kPrologue, true>(part, layer, x, gates, y);
    }
    walk<kPrologue, false>(part, layer, x, gates, y);
  }

 private:
  template <Prologue kPrologue, bool kStream>
  static void walk(const Shape& part, const SqueezeExcite& layer, Input x_input, const float* gates, void* y_data) {
    const RowsOf<const T> x = rows_of<T>(x_input);
    const RowsOf<T> y{static_cast<T*>(y_data), part.channels};
    const Slots<V> slots{part.channels};
    std::int64_t row = 0;
    constexpr int kTogether = 4;
    for (; row + kTogether <= part.rows; row += kTogether) {
      excite_rows<kPrologue, kStream, V, T, kTogether>(layer, {x[row], x.stride}, slots, gates, {y[row], y.stride});
    }
    for (; row < part.rows; ++row) {
      excite_rows<kPrologue, kStream, V, T, 1>(layer, {x[row], x.stride}, slots, gates, {y[row], y.stride});
    }
    if constexpr (kStream) V::end_streams();
  }
};

// What the backward pass reads and adds to, a channel.
struct SqueezeChannels {
  const float *gates, *offsets;
  float *sums, *products;
};

template <Prologue kPrologue, bool kStream, class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void squeeze_backward_rows(const SqueezeExcite& layer, RowsOf<const T> grad, RowsOf<const T> x,
                                                Slots<V> slots, const SqueezeChannels& c, RowsOf<T> out) {
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i) {
    const int start = slots.start(i);
    const Affine<kPrologue, V> affine(layer, start);
    const V gate = V::load_to_register(c.gates + start);
    const V offset = V::load_to_register(c.offsets + start);
    V sum = V::set(0.0F);
    V product = V::set(0.0F);
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ahead) {
        __builtin_prefetch(x[r + kRows] + start);
        __builtin_prefetch(grad[r + kRows] + start);
      }
      V g = fma(load_as<V>(grad[r] + start), gate, offset);
      if constexpr (kPrologue != Prologue::none) {
        const V value = load_as<V>(x[r] + start);
        g = through_activation<activation_of(kPrologue)>(g, affine.before_activation(value));
        sum = sum + g;
        product = fma(g, value, product);
        g = g * affine.scale;
      }
      put<kStream>(g, out[r] + start);
    }
    if constexpr (kPrologue != Prologue::none) {
      float* const sums = c.sums + i * V::width;
      float* const products = c.products + i * V::width;
      (V::load(sums) + sum).store(sums);
      (V::load(products) + product).store(products);
    }
  }
}

template <class V, class T>
struct SqueezeBackward {
  template <Prologue kPrologue>
  static void run_layer(const Shape& part, const SqueezeExcite& layer, Input grad, Input x, const SqueezeChannels* c,
                        void* grad_x) {
    if constexpr (can_stream<V>()) {
      if (streams<V, T>(part, grad_x)) return walk<kPrologue, true>(part, layer, grad, x, *c, grad_x);
    }
    walk<kPrologue, false>(part, layer, grad, x, *c, grad_x);
  }

 private:
  template <Prologue kPrologue, bool kStream>
  static void walk(const Shape& part, const SqueezeExcite& layer, Input grad_input, Input x_input,
                   const SqueezeChannels& c, void* grad_x) {
    const RowsOf<const T> grad = rows_of<T>(grad_input);
    const RowsOf<const T> x = rows_of<T>(x_input);
    const RowsOf<T> out{static_cast<T*>(grad_x), part.channels};
    const Slots<V> slots{part.channels};
    if constexpr (kPrologue != Prologue::none) {
      clear(slots, c.sums);
      clear(slots, c.products);
    }
    std::int64_t row = 0;
    constexpr int kTogether = 4;
    for (; row + kTogether <= part.rows; row += kTogether) {
      squeeze_backward_rows<kPrologue, kStream, V, T, kTogether>(layer, {grad[row], grad.stride}, {x[row], x.stride},
                                                                 slots, c, {out[row], out.stride});
    }
    for (; row < part.rows; ++row) {
      squeeze_backward_rows<kPrologue, kStream, V, T, 1>(layer, {grad[row], grad.stride}, {x[row], x.stride}, slots, c,
                                                         {out[row], out.stride});
    }
    if constexpr (kPrologue != Prologue::none) {
      slots.close_gap(c.sums);
      slots.close_gap(c.products);
    }
    if constexpr (kStream) V::end_streams();
  }
};

template <Prologue kPrologue, class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void prologue_backward_rows(const SqueezeExcite& layer, RowsOf<const T> grad, RowsOf<const T> x,
                                                 Slots<V> slots, RowsOf<T> y, RowsOf<T> out, float* sums,
                                                 float* products) {
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i, sums += V::width, products += V::width) {
    const int start = slots.start(i);
    const Affine<kPrologue, V> affine(layer, start);
    V sum = V::load(sums);
    V product = V::load(products);
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ahead) {
        __builtin_prefetch(x[r + kRows] + start);
        __builtin_prefetch(grad[r + kRows] + start);
      }
      const V value = load_as<V>(x[r] + start);
      V slope;
      put<false>(activated_with_slope<activation_of(kPrologue)>(affine.before_activation(value), slope), y[r] + start);
      const V through = load_as<V>(grad[r] + start) * slope;
      sum = sum + through;
      product = fma(through, value, product);
      put<false>(through * affine.scale, out[r] + start);
    }
    sum.store(sums);
    product.store(products);
  }
}

template <class V, class T>
struct PrologueBackward {
  template <Prologue kPrologue>
  static void run_layer(const Shape& part, const SqueezeExcite& layer, Input grad_input, Input x_input, void* y_data,
                        void* grad_x, float* sums, float* products) {
    const RowsOf<const T> grad = rows_of<T>(grad_input);
    const RowsOf<const T> x = rows_of<T>(x_input);
    const RowsOf<T> y{static_cast<T*>(y_data), part.channels};
    const RowsOf<T> out{static_cast<T*>(grad_x), part.channels};
    const Slots<V> slots{part.channels};
    clear(slots, sums);
    clear(slots, products);
    std::int64_t row = 0;
    constexpr int kTogether = 4;
    for (; row + kTogether <= part.rows; row += kTogether) {
      prologue_backward_rows<kPrologue, V, T, kTogether>(layer, {grad[row], grad.stride}, {x[row], x.stride}, slots,
                                                         {y[row], y.stride}, {out[row], out.stride}, sums, products);
    }
    for (; row < part.rows; ++row) {
      prologue_backward_rows<kPrologue, V, T, 1>(layer, {grad[row], grad.stride}, {x[row], x.stride}, slots,
                                                 {y[row], y.stride}, {out[row], out.stride}, sums, products);
    }
    slots.close_gap(sums);
    slots.close_gap(products);
  }
};

template <Prologue kPrologue, class V, class T, int kRows>
GREEDYNAS_VEC_INLINE void sum_gate_rows(const SqueezeExcite& layer, RowsOf<const T> grad, RowsOf<const T> x,
                                        Slots<V> slots, const float* gates, float* sums, RowsOf<T> y) {
  const std::int64_t width = padded(slots.channels);
  const bool ahead = kRows > 1 && slots.prefetches();
  for (int i = 0; i < slots.count(); ++i, sums += V::width) {
    const int start = slots.start(i);
    const Affine<kPrologue, V> affine(layer, start);
    const V gate = V::load_to_register(gates + start);
    V own[kGateSums];
    GREEDYNAS_UNROLL
    for (int k = 0; k < kGateSums; ++k) own[k] = V::load(sums + k * width);
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ahead) {
        __builtin_prefetch(x[r + kRows] + start);
        __builtin_prefetch(grad[r + kRows] + start);
      }
      const V g = load_as<V>(grad[r] + start), value = load_as<V>(x[r] + start), z = affine.before_activation(value);
      V slope;
      const V a = activated_with_slope<activation_of(kPrologue)>(z, slope), through = g * slope;
      put<false>(a * gate, y[r] + start);
      own[kGateProduct] = fma(g, a, own[kGateProduct]);
      own[kGateGrad] = own[kGateGrad] + through;
      own[kGateGradX] = fma(through, value, own[kGateGradX]);
      own[kGateSlope] = own[kGateSlope] + slope;
      own[kGateSlopeX] = fma(slope, value, own[kGateSlopeX]);
    }
    GREEDYNAS_UNROLL
    for (int k = 0; k < kGateSums; ++k) own[k].store(sums + k * width);
  }
}

template <class V, class T>
struct SumGate {
  template <Prologue kPrologue>
  static void run_layer(const Shape& part, const SqueezeExcite& layer, Input grad_input, Input x_input,
                        const float* gates, float* sums, void* y_data) {
    const RowsOf<const T> grad = rows_of<T>(grad_input);
    const RowsOf<const T> x = rows_of<T>(x_input);
    const RowsOf<T> y{static_cast<T*>(y_data), part.channels};
    const Slots<V> slots{part.channels};
    const std::int64_t width = padded(part.channels);
    for (int k = 0; k < kGateSums; ++k) clear(slots, sums + k * width);
    std::int64_t row = 0;
    constexpr int kTogether = 8;
    for (; row + kTogether <= part.rows; row += kTogether) {
      sum_gate_rows<kPrologue, V, T, kTogether>(layer, {grad[row], grad.stride}, {x[row], x.stride}, slots, gates, sums,
                                                {y[row], y.stride});
    }
    for (; row < part.rows; ++row) {
      sum_gate_rows<kPrologue, V, T, 1>(layer, {grad[row], grad.stride}, {x[row], x.stride}, slots, gates, sums,
                                        {y[row], y.stride});
    }
    for (int k = 0; k < kGateSums; ++k) slots.close_gap(sums + k * width);
  }
};

// Op<V, T>::run_layer<prologue>(part, layer, arguments...).
template <template <class, class> class Op>
struct ByPrologue {
  template <class V, class T>
  struct With {
    template <class... Arguments>
    static void run(const Shape& part, const SqueezeExcite* layer, Arguments... arguments) {
      using Chosen = Op<V, T>;
      switch (layer->prologue) {
        case Prologue::none:
          return Chosen::template run_layer<Prologue::none>(part, *layer, arguments...);
        case Prologue::affine:
          return Chosen::template run_layer<Prologue::affine>(part, *layer, arguments...);
        case Prologue::affine_relu:
          return Chosen::template run_layer<Prologue::affine_relu>(part, *layer, arguments...);
        case Prologue::affine_hard_swish:
          return Chosen::template run_layer<Prologue::affine_hard_swish>(part, *layer, arguments...);
        case Prologue::affine_silu:
          return Chosen::template run_layer<Prologue::affine_silu>(part, *layer, arguments...);
        case Prologue::affine_relu6:
          return Chosen::template run_layer<Prologue::affine_relu6>(part, *layer, arguments...);
      }
    }
  };
};

template <class V>
void squeeze_of(const SqueezeExcite& layer, const Shape& part, Input x, float* sums) {
  by_storage<V, ByPrologue<SumOf<false>::template With>::template With>(part, &layer, x, x, sums);
}

template <class V>
void excite_of(const SqueezeExcite& layer, const Shape& part, Input x, const float* gates, void* y) {
  by_storage<V, ByPrologue<Excite>::template With>(part, &layer, x, gates, y);
}

template <class V>
void excite_backward_of(const SqueezeExcite& layer, const Shape& part, Input grad, Input x, float* sums) {
  by_storage<V, ByPrologue<SumOf<true>::template With>::template With>(part, &layer, grad, x, sums);
}

template <class V>
void squeeze_backward_of(const SqueezeExcite& layer, const Shape& part, Input grad, Input x, const float* gates,
                         const float* offsets, void* grad_x, float* sums, float* products) {
  const SqueezeChannels c{gates, offsets, sums, products};
  by_storage<V, ByPrologue<SqueezeBackward>::template With>(part, &layer, grad, x, &c, grad_x);
}

template <class V>
void prologue_backward_of(const SqueezeExcite& layer, const Shape& part, Input grad, Input x, void* y, void* grad_x,
                          float* sums, float* products) {
  by_storage<V, ByPrologue<PrologueBackward>::template With>(part, &layer, grad, x, y, grad_x, sums, products);
}

template <class V>
void gate_sums_of(const SqueezeExcite& layer, const Shape& part, Input grad, Input x, const float* gates, float* sums,
                  void* y) {
  by_storage<V, ByPrologue<SumGate>::template With>(part, &layer, grad, x, gates, sums, y);
}

template <class V>
constexpr SqueezeKernel squeeze_kernel_over() {
  return {&squeeze_of<V>,           &excite_of<V>,   &excite_backward_of<V>, &squeeze_backward_of<V>,
          &prologue_backward_of<V>, &gate_sums_of<V>};
}

}  // namespace
}  // namespace greedynas::norm
