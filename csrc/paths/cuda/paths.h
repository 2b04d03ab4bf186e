// Proposals and keys on a CUDA device; the results are those of paths/proposals.h and paths/codec.h.
//
// Every pointer but `allowed` is device memory that the caller owns, every call is queued on `stream` (a cudaStream_t)
// of the current device and returns at once. Sizes that make no sense throw std::invalid_argument, CUDA's errors
// std::runtime_error.
#pragma once

#include <cstdint>

#include "paths/propose_one.h"

namespace greedynas::paths::cuda {

using Stream = void*;

// What kernels write for "no path": a word that holds the lowest index of a bad path starts with it.
inline constexpr std::uint64_t kNone = ~0ULL;

// allowed: [layers, max_operations] bytes in host memory; paths: [count, layers], row j is proposal source.start + j.
// Nothing is written if `stop` is not null and the device integer it points to is not 0 when the kernel runs.
void propose(const std::uint8_t* allowed, int layers, int max_operations, const ProposalSource& source,
             std::int64_t count, std::uint8_t* paths, const int* stop, Stream stream);

// paths: [n, layers], keys: [n, 2] (high, low). *first_bad becomes the lowest index of a path with an operation above
// 31, or kNone; the key of a bad path is undefined.
void pack(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys, std::uint64_t* first_bad,
          Stream stream);

// The inverse. *first_bad becomes the lowest index of a key that holds more than `layers` layers, or kNone.
void unpack(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths, std::uint64_t* first_bad,
            Stream stream);

}  // namespace greedynas::paths::cuda
