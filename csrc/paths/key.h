// A path as one 128-bit key: 5 bits an operation, layer 0 in the most significant bits.
//
// With layer 0 on top, comparing keys as unsigned 128-bit numbers orders paths of equal length lexicographically.
// Unused low bits are zero, so keys of paths of equal length are equal exactly when the paths are.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace greedynas::paths {

inline constexpr int kBitsPerOperation = 5;
inline constexpr int kMaxOperations = 1 << kBitsPerOperation;
inline constexpr int kMaxLayers = 128 / kBitsPerOperation;  // 25

struct PathKey {
  std::uint64_t high = 0;
  std::uint64_t low = 0;

  friend constexpr bool operator==(const PathKey&, const PathKey&) = default;
  friend constexpr std::strong_ordering operator<=>(const PathKey&, const PathKey&) = default;
};

// The operation of `layer` is below kMaxOperations and `layer` below kMaxLayers; callers check (see codec.h).
constexpr PathKey with_operation(PathKey key, int layer, std::uint8_t operation) {
  const int shift = 128 - kBitsPerOperation * (layer + 1);
  const std::uint64_t value = operation;
  if (shift >= 64) {
    key.high |= value << (shift - 64);
  } else {
    key.low |= value << shift;
    // One operation straddles the two words; its upper bits belong to the high one.
    if (shift + kBitsPerOperation > 64) key.high |= value >> (64 - shift);
  }
  return key;
}

constexpr std::uint8_t operation_at(PathKey key, int layer) {
  const int shift = 128 - kBitsPerOperation * (layer + 1);
  std::uint64_t value = 0;
  if (shift >= 64) {
    value = key.high >> (shift - 64);
  } else {
    value = key.low >> shift;
    if (shift + kBitsPerOperation > 64) value |= key.high << (64 - shift);
  }
  return static_cast<std::uint8_t>(value & (kMaxOperations - 1));
}

// Both words through the finaliser of SplitMix64 (Steele, Lea, Flood 2014), so that neighbouring paths spread well.
constexpr std::uint64_t hash(PathKey key) {
  const auto mix = [](std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
  };
  return mix(mix(key.high + 0x9e3779b97f4a7c15ULL) ^ key.low);
}

}  // namespace greedynas::paths

template <>
struct std::hash<greedynas::paths::PathKey> {
  std::size_t operator()(const greedynas::paths::PathKey& key) const noexcept {
    return static_cast<std::size_t>(greedynas::paths::hash(key));
  }
};
