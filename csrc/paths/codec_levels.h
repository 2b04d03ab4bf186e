// The codec's loops, one pair an instruction set; codec.cpp chooses. They check nothing but what they are said to.
#pragma once

#include <cstdint>

namespace greedynas::paths {

// Packs rows until one has an operation that a key cannot hold; returns its number, or n.
using PackRows = std::int64_t (*)(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys);
// Unpacks rows until a key has bits below its last layer; returns its number, or n.
using UnpackRows = std::int64_t (*)(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths);

std::int64_t pack_rows_portable(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys);
std::int64_t unpack_rows_portable(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths);
#ifdef GREEDYNAS_X86
std::int64_t pack_rows_bmi2(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys);
std::int64_t unpack_rows_bmi2(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths);
#endif

}  // namespace greedynas::paths
