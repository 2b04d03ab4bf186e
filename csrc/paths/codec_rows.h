// The loops of the codec, the same for every instruction set; the including file gives the two bit operations.
//
// Eight operations are 40 bits of a key. A row is taken as its full groups of eight and, overlapping them, its last
// eight operations, so nothing outside a row is read or written. All is in an unnamed namespace: a file that is
// compiled for newer CPUs must not give the linker a copy that others could use.
#pragma once

#include <cstdint>

#include "paths/key.h"

namespace greedynas::paths {

namespace {

static_assert(kBitsPerOperation == 5 && kMaxLayers == 25, "the shifts below are for keys of this form");

constexpr std::uint64_t kTooLarge = 0xe0e0e0e0e0e0e0e0ULL;  // the bits of eight operations that a key cannot hold
constexpr std::uint64_t kEight = (1ULL << 40) - 1;

// Eight bytes as a number, the first one on top.
std::uint64_t load8(const std::uint8_t* bytes) {
  std::uint64_t word;
  __builtin_memcpy(&word, bytes, sizeof word);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

void store8(std::uint64_t word, std::uint8_t* bytes) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  __builtin_memcpy(bytes, &word, sizeof word);
}

// Bits of a key below the last of `layers` layers: 3 to 123.
int unused_bits(int layers) { return 128 - kBitsPerOperation * layers; }

// Bits::gather makes 40 bits of the low five bits of eight bytes; `Full` is layers / 8.
template <typename Bits, int Full>
std::int64_t pack_long(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys) {
  const int unused = unused_bits(layers);
  const std::uint64_t rest = (1ULL << (kBitsPerOperation * (layers % 8))) - 1;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint8_t* path = paths + i * layers;
    const std::uint64_t last = load8(path + layers - 8);
    const std::uint64_t first = load8(path);
    std::uint64_t seen = last | first;
    std::uint64_t high = Bits::gather(first) << 24;
    std::uint64_t low = 0;
    if constexpr (Full > 1) {
      const std::uint64_t second = load8(path + 8);
      seen |= second;
      const std::uint64_t bits = Bits::gather(second);
      high |= bits >> 16;
      low |= bits << 48;
    }
    if constexpr (Full > 2) {
      const std::uint64_t third = load8(path + 16);
      seen |= third;
      low |= Bits::gather(third) << 8;
    }
    if ((seen & kTooLarge) != 0) return i;
    const std::uint64_t tail = Bits::gather(last) & rest;
    if (unused >= 64) {
      high |= tail << (unused - 64);
    } else {
      high |= tail >> (64 - unused);
      low |= tail << unused;
    }
    keys[2 * i] = high;
    keys[2 * i + 1] = low;
  }
  return n;
}

std::int64_t pack_short(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint8_t* path = paths + i * layers;
    std::uint64_t high = 0;
    std::uint8_t seen = 0;
    for (int layer = 0; layer < layers; ++layer) {
      high = high << kBitsPerOperation | path[layer];
      seen |= path[layer];
    }
    if (seen >= kMaxOperations) return i;
    keys[2 * i] = high << (64 - kBitsPerOperation * layers);
    keys[2 * i + 1] = 0;
  }
  return n;
}

// Bits::scatter is the inverse of Bits::gather.
template <typename Bits, int Full>
std::int64_t unpack_long(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths) {
  const int unused = unused_bits(layers);
  const std::uint64_t unused_high = unused > 64 ? (1ULL << (unused - 64)) - 1 : 0;
  const std::uint64_t unused_low = unused >= 64 ? ~0ULL : (1ULL << unused) - 1;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t high = keys[2 * i];
    const std::uint64_t low = keys[2 * i + 1];
    if (((high & unused_high) | (low & unused_low)) != 0) return i;
    std::uint8_t* path = paths + i * layers;
    store8(Bits::scatter(high >> 24), path);
    if constexpr (Full > 1) store8(Bits::scatter((high << 16 | low >> 48) & kEight), path + 8);
    if constexpr (Full > 2) store8(Bits::scatter(low >> 8 & kEight), path + 16);
    const std::uint64_t last = unused >= 64 ? high >> (unused - 64) : high << (64 - unused) | low >> unused;
    store8(Bits::scatter(last & kEight), path + layers - 8);
  }
  return n;
}

std::int64_t unpack_short(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths) {
  const int unused = 64 - kBitsPerOperation * layers;  // of the high word
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint64_t high = keys[2 * i];
    if (keys[2 * i + 1] != 0 || (high & ((1ULL << unused) - 1)) != 0) return i;
    high >>= unused;
    for (int layer = layers - 1; layer >= 0; --layer) {
      paths[i * layers + layer] = high & (kMaxOperations - 1);
      high >>= kBitsPerOperation;
    }
  }
  return n;
}

template <typename Bits>
std::int64_t pack_rows(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys) {
  switch (layers / 8) {
    case 0:
      return pack_short(paths, n, layers, keys);
    case 1:
      return pack_long<Bits, 1>(paths, n, layers, keys);
    case 2:
      return pack_long<Bits, 2>(paths, n, layers, keys);
    default:
      return pack_long<Bits, 3>(paths, n, layers, keys);
  }
}

template <typename Bits>
std::int64_t unpack_rows(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths) {
  switch (layers / 8) {
    case 0:
      return unpack_short(keys, n, layers, paths);
    case 1:
      return unpack_long<Bits, 1>(keys, n, layers, paths);
    case 2:
      return unpack_long<Bits, 2>(keys, n, layers, paths);
    default:
      return unpack_long<Bits, 3>(keys, n, layers, paths);
  }
}

}  // namespace
}  // namespace greedynas::paths
