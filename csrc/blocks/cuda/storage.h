// What the CUDA twins of the fused layers have in common: types of elements, and the rules of their functions.
//
// Every pointer is device memory that the caller owns. Calls are queued on `stream` (a cudaStream_t) of the current
// device and return at once; nothing is allocated and nothing waits. CUDA's errors throw std::runtime_error. Sums are
// float32 or wider and have one order, which depends on the shape alone: the same call gives the same bits.
#pragma once

#include <cstdint>

namespace greedynas::blocks::cuda {

enum class Storage { float32, bf16, fp16 };

inline constexpr std::int64_t element_bytes(Storage storage) { return storage == Storage::float32 ? 4 : 2; }

using Stream = void*;

}  // namespace greedynas::blocks::cuda
