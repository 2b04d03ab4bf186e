#include "cuda/platform.h"
#include "paths/cuda/keys.h"
#include "paths/key.h"

// On its own, because this header takes longer to compile than all the rest.
#ifdef GREEDYNAS_EMULATE_CUDA
#include <algorithm>
#else
#include <cub/device/device_radix_sort.cuh>
#include <cuda/std/tuple>
#endif

namespace greedynas::paths::cuda {
namespace {

#ifdef GREEDYNAS_EMULATE_CUDA

// The plain twin of CUB's radix sort.
cudaError_t radix_sort(void* temporary, std::size_t& bytes, const PathKey* keys, PathKey* sorted, std::int64_t n,
                       int bits, cudaStream_t) {
  if (temporary == nullptr) return bytes = 1, cudaSuccess;
  const std::uint64_t mask = bits == kAllBits ? ~0ULL : (1ULL << (bits - 64)) - 1;
  std::copy(keys, keys + n, sorted);
  std::stable_sort(sorted, sorted + n, [mask](const PathKey& a, const PathKey& b) {
    return PathKey{a.high & mask, a.low} < PathKey{b.high & mask, b.low};
  });
  return cudaSuccess;
}

#else

struct Words {
  __host__ __device__::cuda::std::tuple<std::uint64_t&, std::uint64_t&> operator()(PathKey& key) const {
    return {key.high, key.low};
  }
};

cudaError_t radix_sort(void* temporary, std::size_t& bytes, const PathKey* keys, PathKey* sorted, std::int64_t n,
                       int bits, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortKeys(temporary, bytes, keys, sorted, n, Words{}, 0, bits, stream);
}

#endif

}  // namespace

std::int64_t sort_workspace_bytes(std::int64_t n) {
  std::size_t bytes = 0;
  greedynas::cuda::check(radix_sort(nullptr, bytes, nullptr, nullptr, n, kAllBits, nullptr), "sort_workspace_bytes");
  return static_cast<std::int64_t>(bytes);
}

void sort_keys(const std::uint64_t* keys, std::int64_t n, std::uint64_t* sorted, void* workspace, Stream stream,
               int bits) {
  if (n == 0) return;
  static_assert(sizeof(PathKey) == 2 * sizeof(std::uint64_t));
  auto bytes = static_cast<std::size_t>(sort_workspace_bytes(n));
  greedynas::cuda::check(radix_sort(workspace, bytes, reinterpret_cast<const PathKey*>(keys),
                                    reinterpret_cast<PathKey*>(sorted), n, bits, static_cast<cudaStream_t>(stream)),
                         "sort_keys");
}

}  // namespace greedynas::paths::cuda
