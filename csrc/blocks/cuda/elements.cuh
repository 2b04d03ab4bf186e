// Elements of tensors in device memory: conversion, accesses of 16 bytes, activations and their slopes.
#pragma once

#include <cmath>
#include <cstdint>

#include "blocks/bn_act.h"
#include "blocks/cuda/storage.h"
#include "cuda/platform.h"

namespace greedynas::blocks::cuda {

namespace device = greedynas::cuda;

struct Bf16 {
  std::uint16_t bits;
};
struct Fp16 {
  std::uint16_t bits;
};

__device__ __forceinline__ float float_of_bits(std::uint32_t bits) {
#ifdef GREEDYNAS_EMULATE_CUDA
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#else
  return __uint_as_float(bits);
#endif
}
__device__ __forceinline__ std::uint32_t bits_of_float(float value) {
#ifdef GREEDYNAS_EMULATE_CUDA
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#else
  return __float_as_uint(value);
#endif
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Bf16 value) { return float_of_bits(std::uint32_t{value.bits} << 16); }
__device__ __forceinline__ float to_float(Fp16 value) {
#ifdef GREEDYNAS_EMULATE_CUDA
  _Float16 half;
  std::memcpy(&half, &value, sizeof half);
  return static_cast<float>(half);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#endif
}

// To nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ Bf16 from_float<Bf16>(float value) {
#ifdef GREEDYNAS_EMULATE_CUDA
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t rounded = value != value ? 0x7FFF0000U : bits + 0x7FFFU + (bits >> 16 & 1U);
  return {static_cast<std::uint16_t>(rounded >> 16)};
#else
  Bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#endif
}
template <>
__device__ __forceinline__ Fp16 from_float<Fp16>(float value) {
  Fp16 result;
#ifdef GREEDYNAS_EMULATE_CUDA
  const auto half = static_cast<_Float16>(value);
  std::memcpy(&result, &half, sizeof half);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#endif
  return result;
}

// Elements in an access of 16 bytes.
template <class T>
inline constexpr int kWhole = 16 / static_cast<int>(sizeof(T));

__device__ __forceinline__ uint4 load_16_bytes(const void* from) {
#ifdef GREEDYNAS_EMULATE_CUDA
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0) emulation::fail("a load of 16 bytes from an unaligned address");
  uint4 words;
  std::memcpy(&words, from, sizeof words);
  return words;
#else
  return *static_cast<const uint4*>(from);
#endif
}
__device__ __forceinline__ void store_16_bytes(void* to, uint4 words) {
#ifdef GREEDYNAS_EMULATE_CUDA
  if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0) emulation::fail("a store of 16 bytes to an unaligned address");
  std::memcpy(to, &words, sizeof words);
#else
  *static_cast<uint4*>(to) = words;
#endif
}

// The elements of one access, kCount of them: kWhole<T>, aligned to 16 bytes, or one.
template <class T, int kCount>
struct Elements {
  static_assert(kCount == 1 || kCount == kWhole<T>);
  static constexpr int kWords = kCount == 1 ? 1 : 4;
  static constexpr int kPerWord = kCount / kWords;
  std::uint32_t words[kWords] = {};

  __device__ __forceinline__ void load(const T* from) {
    if constexpr (kCount == 1) {
      words[0] = raw(*from);
    } else {
      const uint4 all = load_16_bytes(from);
      words[0] = all.x;
      words[1] = all.y;
      words[2] = all.z;
      words[3] = all.w;
    }
  }
  __device__ __forceinline__ void store(T* to) const {
    if constexpr (kCount == 1) {
      *to = element(words[0]);
    } else {
      store_16_bytes(to, make_uint4(words[0], words[1], words[2], words[3]));
    }
  }
  __device__ __forceinline__ void get(float (&values)[kCount]) const {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) values[i] = to_float(element(words[i / kPerWord] >> (i % kPerWord * 16)));
  }
  __device__ __forceinline__ void set(const float (&values)[kCount]) {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const std::uint32_t bits = raw(from_float<T>(values[i])) << (i % kPerWord * 16);
      words[i / kPerWord] = i % kPerWord == 0 ? bits : words[i / kPerWord] | bits;
    }
  }

 private:
  // The element in the lower bits of a word, and back.
  __device__ __forceinline__ static T element(std::uint32_t word) {
    if constexpr (sizeof(T) == 4) {
      return float_of_bits(word);
    } else {
      return {static_cast<std::uint16_t>(word)};
    }
  }
  __device__ __forceinline__ static std::uint32_t raw(T value) {
    if constexpr (sizeof(T) == 4) {
      return bits_of_float(value);
    } else {
      return value.bits;
    }
  }
};

using norm::Activation;

// A NaN stays one.
__device__ __forceinline__ float activated(Activation activation, float z) {
  if (activation == Activation::relu) return z < 0.0F ? 0.0F : z;
  if (activation == Activation::hard_swish) return z * (1.0F / 6.0F) * fminf(6.0F, fmaxf(0.0F, z + 3.0F));
  if (activation == Activation::silu) return z / (1.0F + expf(-z));
  if (activation == Activation::relu6) return z < 0.0F ? 0.0F : z > 6.0F ? 6.0F : z;
  return z;
}

// grad times the slope of the activation at z.
__device__ __forceinline__ float through_activation(Activation activation, float grad, float z) {
  if (activation == Activation::relu) return z > 0.0F ? grad : 0.0F;
  if (activation == Activation::hard_swish) {
    const float inside = z > -3.0F ? fmaf(z, 1.0F / 3.0F, 0.5F) : 0.0F;
    return grad * (z < 3.0F ? inside : 1.0F);
  }
  if (activation == Activation::silu) {
    const float s = 1.0F / (1.0F + expf(-z));
    return grad * fmaf(z * s, 1.0F - s, s);
  }
  if (activation == Activation::relu6) return z > 0.0F && z < 6.0F ? grad : 0.0F;
  return grad;
}

// Calls body(T{}) for the type of the elements.
template <class Body>
void by_storage(Storage storage, const Body& body) {
  switch (storage) {
    case Storage::float32:
      return body(float{});
    case Storage::bf16:
      return body(Bf16{});
    case Storage::fp16:
      return body(Fp16{});
  }
}

// Whether each of some byte counts or addresses is a multiple of 16.
template <class... Values>
bool whole(Values... values) {
  return (... && (static_cast<std::uint64_t>(values) % 16 == 0));
}

}  // namespace greedynas::blocks::cuda
