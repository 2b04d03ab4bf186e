// Sets of 128-bit keys on a CUDA device: sorting, duplicates, membership.
//
// Keys are [n, 2] words (high, low) and order as unsigned 128-bit numbers (paths/key.h). Every pointer is device memory
// that the caller owns, `workspace` at least as many bytes as the function of that name says and aligned to 256; calls
// are queued on `stream` (a cudaStream_t) of the current device. CUDA's errors throw std::runtime_error.
#pragma once

#include <cstdint>

namespace greedynas::paths::cuda {

using Stream = void*;

// Bits of a key that take part in the order of `sort_keys`, counted from the least significant one.
inline constexpr int kAllBits = 128;

std::int64_t sort_workspace_bytes(std::int64_t n);

// Writes the keys in ascending order to `sorted`, which must not overlap `keys`.
void sort_keys(const std::uint64_t* keys, std::int64_t n, std::uint64_t* sorted, void* workspace, Stream stream,
               int bits = kAllBits);

std::int64_t unique_workspace_bytes(std::int64_t n);

// Writes each key of the ascending `sorted` once to `unique` (room for n, no overlap) and their number to *count.
void unique_keys(const std::uint64_t* sorted, std::int64_t n, std::uint64_t* unique, std::int64_t* count,
                 void* workspace, Stream stream);

// found[i] = 1 if queries[i] is among the ascending `sorted`, else 0. sorted: [n, 2], queries: [m, 2], found: [m].
void find_keys(const std::uint64_t* sorted, std::int64_t n, const std::uint64_t* queries, std::int64_t m,
               std::uint8_t* found, Stream stream);

}  // namespace greedynas::paths::cuda
