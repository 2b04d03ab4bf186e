// The plain twin of csrc/cpu/pairs_avx512.h, so that the pair kernel runs on any machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "filter/arithmetic.h"

template <class V>
struct PairsEmulated {
  static void store_bf16(V values, void* words) {
    float numbers[V::width];
    std::uint16_t bits[V::width];
    values.store(numbers);
    for (int i = 0; i < V::width; ++i) bits[i] = greedynas::filter::bf16_bits(numbers[i]);
    std::memcpy(words, bits, sizeof bits);
  }
  static void store_first_bf16(V values, void* words, int count) {
    std::uint16_t bits[V::width];
    store_bf16(values, bits);
    std::memcpy(words, bits, static_cast<std::size_t>(count) * sizeof bits[0]);
  }
  static V join(const std::uint16_t* a, const std::uint16_t* b, int count) {
    std::uint16_t words[V::width][2] = {};
    for (int i = 0; i < V::width && i < count; ++i) {
      words[i][0] = a[i];
      words[i][1] = b[i];
    }
    V result;
    std::memcpy(&result, words, sizeof words);
    return result;
  }
  static V multiply_add(V a, V b, V sums) {
    std::uint16_t x[2 * V::width], y[2 * V::width];
    float z[V::width];
    std::memcpy(x, &a, sizeof x);
    std::memcpy(y, &b, sizeof y);
    sums.store(z);
    for (int i = 0; i < 2 * V::width; ++i) z[i / 2] += value_of(x[i]) * value_of(y[i]);
    return V::load(z);
  }

 private:
  static float value_of(std::uint16_t bf16) {
    return greedynas::filter::float_of(static_cast<std::uint32_t>(bf16) << 16);
  }
};
