// What mixconv needs of a vector type besides its common interface: bf16 in memory, parts of a vector, comparisons.
// Written over the compiler's own vectors, which all vector types contain, unless a vector type has conversions of its
// own.
#pragma once

#include <cstdint>

#include "cpu/vec_generic.h"

namespace greedynas::blocks {

template <class V>
struct MixconvLanes {
  typedef std::uint16_t Halves __attribute__((vector_size(V::width * sizeof(std::uint16_t))));
  typedef std::uint32_t Words __attribute__((vector_size(V::width * sizeof(std::uint32_t))));
};

GREEDYNAS_VEC_INLINE float number_of(float element) { return element; }
GREEDYNAS_VEC_INLINE float number_of(std::uint16_t bf16) {
  const std::uint32_t bits = static_cast<std::uint32_t>(bf16) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof bits);
  return result;
}

// To nearest, ties to even; not-a-number stays that.
GREEDYNAS_VEC_INLINE std::uint16_t bf16_of(float number) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &number, sizeof bits);
  const std::uint32_t rounded = bits + 0x7FFFU + ((bits >> 16) & 1U);
  return static_cast<std::uint16_t>((number == number ? rounded : bits | 0x400000U) >> 16);
}

template <class V>
GREEDYNAS_VEC_INLINE V load_elements(const float* p) {
  return V::load(p);
}
template <class V>
GREEDYNAS_VEC_INLINE V load_elements(const std::uint16_t* p) {
  if constexpr (requires { V::load_bf16(p); }) {
    return V::load_bf16(p);
  } else {
    using Lanes = MixconvLanes<V>;
    typename Lanes::Halves halves;
    __builtin_memcpy(&halves, p, sizeof halves);
    const typename Lanes::Words words = __builtin_convertvector(halves, typename Lanes::Words) << 16;
    V result;
    __builtin_memcpy(&result.v, &words, sizeof words);
    return result;
  }
}

// The value that a store keeps.
template <class V>
GREEDYNAS_VEC_INLINE V as_stored(V value, const float*) {
  return value;
}
template <class V>
GREEDYNAS_VEC_INLINE V as_stored(V value, const std::uint16_t*) {
  return round_to_bf16(value);
}

// Of values that `as_stored` gave.
template <class V>
GREEDYNAS_VEC_INLINE void store_elements(float* p, V value) {
  value.store(p);
}
template <class V>
GREEDYNAS_VEC_INLINE void store_elements(std::uint16_t* p, V value) {
  if constexpr (requires { value.store_upper_halves(p); }) {
    value.store_upper_halves(p);
  } else {
    using Lanes = MixconvLanes<V>;
    typename Lanes::Words words;
    __builtin_memcpy(&words, &value.v, sizeof words);
    const auto halves = __builtin_convertvector(words >> 16, typename Lanes::Halves);
    __builtin_memcpy(p, &halves, sizeof halves);
  }
}

// The first `count` elements, at most V::width; the other lanes are zero.
template <class V, class E>
GREEDYNAS_VEC_INLINE V load_first(const E* p, int count) {
  if constexpr (requires { V::load_first(p, count); }) return V::load_first(p, count);
  E buffer[V::width] = {};
  for (int i = 0; i < count; ++i) buffer[i] = p[i];
  return load_elements<V>(buffer);
}
template <class V, class E>
GREEDYNAS_VEC_INLINE void store_first(E* p, V value, int count) {
  if constexpr (requires { value.store_first(p, count); }) return value.store_first(p, count);
  E buffer[V::width];
  store_elements(buffer, value);
  const E* from = buffer;
  if (V::width > 8 && (count & 8) != 0) {
    __builtin_memcpy(p, from, 8 * sizeof(E));
    p += 8;
    from += 8;
  }
  if (V::width > 4 && (count & 4) != 0) {
    __builtin_memcpy(p, from, 4 * sizeof(E));
    p += 4;
    from += 4;
  }
  if ((count & 2) != 0) {
    __builtin_memcpy(p, from, 2 * sizeof(E));
    p += 2;
    from += 2;
  }
  if ((count & 1) != 0) *p = *from;
}

// Lane by lane a > b ? yes : no.
template <class V>
GREEDYNAS_VEC_INLINE V where_greater(V a, V b, V yes, V no) {
  return {a.v > b.v ? yes.v : no.v};
}

}  // namespace greedynas::blocks
