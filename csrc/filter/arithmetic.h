// The scalar arithmetic of the filter network, written once for every instruction set and for CUDA.
//
// Each function is a fixed sequence of correctly rounded float32 operations (add, multiply, divide, fused
// multiply-add), so wherever the fused multiply-add exists the results are the same bits: AVX2, AVX-512, 64-bit ARM,
// CUDA. Only x86 without FMA rounds twice. Build without contraction (-ffp-contract=off, nvcc -fmad=false).
//
// V is a lane type: `Scalar` below, or a vector of csrc/cpu/vec_*.h. It has V::set(float), + - * /, fma(a, b, c),
// min(a, b), max(a, b) and times_power_of_two(p, shifted), see exp_within. Only a V with `approximate` has other bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "filter/tanh_table.h"

#if defined(__CUDACC__) || defined(GREEDYNAS_EMULATE_CUDA)
#define GREEDYNAS_INLINE __host__ __device__ __forceinline__
#else
// Never an out-of-line copy: one compiled for AVX-512 could be the one that the linker keeps for all.
#define GREEDYNAS_INLINE inline __attribute__((always_inline))
#endif

namespace greedynas::filter {

GREEDYNAS_INLINE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

GREEDYNAS_INLINE float float_of(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The float32 value that bfloat16 rounds `value` to (to nearest, ties to even). Finite values only.
GREEDYNAS_INLINE float round_to_bf16(float value) {
  const std::uint32_t bits = bits_of(value);
  return float_of((bits + 0x7FFFU + ((bits >> 16) & 1U)) & 0xFFFF0000U);
}

GREEDYNAS_INLINE std::uint16_t bf16_bits(float value) {
  return static_cast<std::uint16_t>(bits_of(round_to_bf16(value)) >> 16);
}

struct Scalar {
  float v;

  static constexpr int width = 1;
  GREEDYNAS_INLINE static Scalar set(float value) { return {value}; }

  GREEDYNAS_INLINE friend Scalar operator+(Scalar a, Scalar b) { return {a.v + b.v}; }
  GREEDYNAS_INLINE friend Scalar operator-(Scalar a, Scalar b) { return {a.v - b.v}; }
  GREEDYNAS_INLINE friend Scalar operator*(Scalar a, Scalar b) { return {a.v * b.v}; }
  GREEDYNAS_INLINE friend Scalar operator/(Scalar a, Scalar b) {
#ifdef __CUDA_ARCH__
    return {__fdiv_rn(a.v, b.v)};
#else
    return {a.v / b.v};
#endif
  }
  GREEDYNAS_INLINE friend Scalar fma(Scalar a, Scalar b, Scalar c) {
#if defined(__CUDA_ARCH__)
    return {__fmaf_rn(a.v, b.v, c.v)};
#elif defined(__FMA__) || defined(__aarch64__) || defined(GREEDYNAS_EMULATE_CUDA)
    return {__builtin_fmaf(a.v, b.v, c.v)};
#else
    return {a.v * b.v + c.v};
#endif
  }
  GREEDYNAS_INLINE friend Scalar min(Scalar a, Scalar b) { return a.v < b.v ? a : b; }
  GREEDYNAS_INLINE friend Scalar max(Scalar a, Scalar b) { return a.v > b.v ? a : b; }
  GREEDYNAS_INLINE friend Scalar times_power_of_two(Scalar p, Scalar shifted) {
    return {float_of(bits_of(p.v) + (bits_of(shifted.v) << 23))};
  }
};

// Of vectors for the bf16 mode, with what tanh_table.h needs: there cells take tanh and sigmoid from its table.
template <class V>
concept Approximate = requires { requires V::approximate; };

// exp(x) = scale + scale * rest, x clamped to [-limit, limit], limit <= 87; scale is a power of two.
//
// x log2(e) = n + f with an integer n; scale = 2^n and rest = 2^f - 1. Kept apart, so that exp(x) - 1 loses nothing
// near x = 0: the states of an LSTM are mostly small, and errors of one sign there would add up over units and steps.
template <class V>
struct Exponential {
  V scale, rest;

  GREEDYNAS_INLINE V plus(float term) const { return fma(scale, rest, scale + V::set(term)); }  // exp(x) + term
};

template <class V>
GREEDYNAS_INLINE Exponential<V> exp_within(V x, float limit) {
  x = min(max(x, V::set(-limit)), V::set(limit));
  const V shifted = fma(x, V::set(0x1.715476p+0F), V::set(12582912.0F));  // 1.5 * 2^23: the low bits now hold n
  const V n = shifted - V::set(12582912.0F);
  // log2(e) in two parts.
  const V f = fma(x, V::set(0x1.4ae0cp-26F), fma(x, V::set(0x1.715476p+0F), V::set(0.0F) - n));
  // (2^f - 1) / f on [-0.5, 0.5], minimax in relative error (1.1e-8), found with Remez's algorithm.
  V p = fma(V::set(0x1.4308fap-13F), f, V::set(0x1.5f07b4p-10F));
  p = fma(p, f, V::set(0x1.3b2ba0p-7F));
  p = fma(p, f, V::set(0x1.c6af6ep-5F));
  p = fma(p, f, V::set(0x1.ebfbdep-3F));
  p = fma(p, f, V::set(0x1.62e430p-1F));
  return {times_power_of_two(V::set(1.0F), shifted), p * f};
}

// One LSTM cell: gate inputs z of (input, forget, cell, output), old cell state c -> new cell state and hidden state.
// With e(x) = exp(-x): sigmoid(x) = 1 / (e(x) + 1) and tanh(x) = (1 - e(2x)) / (e(2x) + 1), brought onto one
// denominator a state. The clamp at 28 keeps every product finite and moves a gate by less than 1e-12.
template <class V>
struct CellState {
  V cell, hidden;
};

// e(x) + 1, the denominator of sigmoid(x).
template <class V>
GREEDYNAS_INLINE V sigmoid_denominator(V x) {
  return exp_within(V::set(0.0F) - x, 28.0F).plus(1.0F);
}

template <class V>
GREEDYNAS_INLINE V sigmoid_by_table(V x) {
  const V half = V::set(0.5F);
  return fma(tanh_by_table(x * half), half, half);
}

template <class V>
GREEDYNAS_INLINE V hidden_state(V output_gate, V cell) {
  if constexpr (Approximate<V>) return sigmoid_by_table(output_gate) * tanh_by_table(cell);
  const Exponential<V> d = exp_within(cell * V::set(-2.0F), 28.0F);
  return (V::set(0.0F) - d.plus(-1.0F)) / (sigmoid_denominator(output_gate) * d.plus(1.0F));
}

template <class V>
GREEDYNAS_INLINE CellState<V> lstm_cell(V zi, V zf, V zg, V zo, V cell) {
  if constexpr (Approximate<V>) {
    const V next = fma(sigmoid_by_table(zf), cell, sigmoid_by_table(zi) * tanh_by_table(zg));
    return {next, hidden_state(zo, next)};
  }
  const V forget = sigmoid_denominator(zf);
  const Exponential<V> g = exp_within(zg * V::set(-2.0F), 28.0F);
  const V input = sigmoid_denominator(zi) * g.plus(1.0F);
  const V candidate = V::set(0.0F) - g.plus(-1.0F);
  const V next = fma(cell, input, candidate * forget) / (input * forget);
  return {next, hidden_state(zo, next)};
}

// The first step, from a zero state: not the general formula with c = 0, which could round differently.
template <class V>
GREEDYNAS_INLINE CellState<V> first_lstm_cell(V zi, V zg, V zo) {
  if constexpr (Approximate<V>) {
    const V next = sigmoid_by_table(zi) * tanh_by_table(zg);
    return {next, hidden_state(zo, next)};
  }
  const Exponential<V> g = exp_within(zg * V::set(-2.0F), 28.0F);
  const V next = (V::set(0.0F) - g.plus(-1.0F)) / (sigmoid_denominator(zi) * g.plus(1.0F));
  return {next, hidden_state(zo, next)};
}

// log Phi, the log-probability of weak, from the difference of the logits, good - weak: -log(1 + exp(difference)).
// V is of one lane.
template <class V = Scalar>
GREEDYNAS_INLINE float log_weak_of(float difference) {
  const float magnitude = difference < 0.0F ? difference : -difference;
  const V u = exp_within(V::set(magnitude), 87.0F).plus(0.0F);
  // log(1 + u) = 2 atanh(s) with s = u / (2 + u) <= 1/3
  const V s = u / (V::set(2.0F) + u);
  const V s2 = s * s;
  V series = V::set(1.0F / 15.0F);
  series = fma(series, s2, V::set(1.0F / 13.0F));
  series = fma(series, s2, V::set(1.0F / 11.0F));
  series = fma(series, s2, V::set(1.0F / 9.0F));
  series = fma(series, s2, V::set(1.0F / 7.0F));
  series = fma(series, s2, V::set(1.0F / 5.0F));
  series = fma(series, s2, V::set(1.0F / 3.0F));
  series = fma(series, s2, V::set(1.0F));
  const V log1p = (s + s) * series;
  return -((difference > 0.0F ? difference : 0.0F) + log1p.v);
}

}  // namespace greedynas::filter
