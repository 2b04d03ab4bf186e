// Activations and their slopes over a vector type.
#pragma once

#include "blocks/bn_act.h"
#include "blocks/cpu/bn_act_vector.h"
#include "blocks/cpu/silu.h"

namespace greedynas::norm {

// Not-a-number goes through: max and min give their second argument where one is none.
template <Activation kActivation, class V>
GREEDYNAS_VEC_INLINE V activated(V z) {
  if constexpr (kActivation == Activation::relu) {
    return max(V::set(0.0F), z);
  } else if constexpr (kActivation == Activation::hard_swish) {
    return z * V::set(1.0F / 6.0F) * min(V::set(6.0F), max(V::set(0.0F), z + V::set(3.0F)));
  } else if constexpr (kActivation == Activation::silu) {
    return blocks::silu(z);
  } else if constexpr (kActivation == Activation::relu6) {
    return min(V::set(6.0F), max(V::set(0.0F), z));
  } else {
    return z;
  }
}

// grad times the slope of the activation at z.
template <Activation kActivation, class V>
GREEDYNAS_VEC_INLINE V through_activation(V grad, V z) {
  if constexpr (kActivation == Activation::relu) {
    return where_greater(z, V::set(0.0F), grad, V::set(0.0F));
  } else if constexpr (kActivation == Activation::hard_swish) {
    const V inside = where_greater(z, V::set(-3.0F), fma(z, V::set(1.0F / 3.0F), V::set(0.5F)), V::set(0.0F));
    return grad * where_greater(V::set(3.0F), z, inside, V::set(1.0F));
  } else if constexpr (kActivation == Activation::silu) {
    return grad * blocks::silu_slope(z);
  } else if constexpr (kActivation == Activation::relu6) {
    const V below = where_greater(V::set(6.0F), z, grad, V::set(0.0F));
    return where_greater(z, V::set(0.0F), below, V::set(0.0F));
  } else {
    return grad;
  }
}

// The activation at z, and its slope there.
template <Activation kActivation, class V>
GREEDYNAS_VEC_INLINE V activated_with_slope(V z, V& slope) {
  if constexpr (kActivation == Activation::silu) {
    return blocks::silu_with_slope(z, slope);
  } else {
    slope = through_activation<kActivation>(V::set(1.0F), z);
    return activated<kActivation>(z);
  }
}

}  // namespace greedynas::norm
