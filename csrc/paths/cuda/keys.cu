#include "cuda/compact.cuh"
#include "cuda/platform.h"
#include "paths/cuda/keys.h"
#include "paths/key.h"

namespace greedynas::paths::cuda {
namespace {

namespace device = greedynas::cuda;

constexpr int kFindThreads = 256;

__device__ __forceinline__ PathKey key_at(const std::uint64_t* keys, std::int64_t i) {
  return {keys[2 * i], keys[2 * i + 1]};
}

__device__ __forceinline__ bool equal(PathKey a, PathKey b) { return a.high == b.high && a.low == b.low; }

__device__ __forceinline__ bool less(PathKey a, PathKey b) {
  return a.high < b.high || (a.high == b.high && a.low < b.low);
}

// Whether key i is the first of its kind.
struct IsFirst {
  const std::uint64_t* sorted;
  __device__ __forceinline__ bool operator()(std::int64_t i) const {
    return i == 0 || !equal(key_at(sorted, i), key_at(sorted, i - 1));
  }
};

__global__ void __launch_bounds__(device::kCompactThreads)
    count_firsts(const std::uint64_t* sorted, std::int64_t n, std::int64_t* segments) {
  const std::uint32_t kept = device::place_kept(n, IsFirst{sorted}, [](std::int64_t, std::uint32_t) {});
  if (threadIdx.x == 0) segments[blockIdx.x] = kept;
}

__global__ void __launch_bounds__(device::kCompactThreads)
    sum_segments(std::int64_t* segments, std::int64_t count, std::int64_t* total) {
  const std::int64_t all = device::sum_up(segments, count, 0);
  if (threadIdx.x == 0) *total = all;
}

__global__ void __launch_bounds__(device::kCompactThreads)
    write_firsts(const std::uint64_t* sorted, std::int64_t n, const std::int64_t* segments, std::uint64_t* unique) {
  const std::int64_t begin = segments[blockIdx.x];
  device::place_kept(n, IsFirst{sorted}, [=](std::int64_t item, std::uint32_t place) {
    unique[2 * (begin + place)] = sorted[2 * item];
    unique[2 * (begin + place) + 1] = sorted[2 * item + 1];
  });
}

__global__ void __launch_bounds__(kFindThreads)
    find_kernel(const std::uint64_t* sorted, std::int64_t n, const std::uint64_t* queries, std::int64_t m,
                std::uint8_t* found) {
  for (std::int64_t i = device::global_thread(); i < m; i += device::global_threads()) {
    const PathKey query = key_at(queries, i);
    std::int64_t low = 0;
    std::int64_t high = n;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (less(key_at(sorted, middle), query)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    found[i] = low < n && equal(key_at(sorted, low), query) ? 1 : 0;
  }
}

}  // namespace

std::int64_t unique_workspace_bytes(std::int64_t n) {
  return device::segments_of(n) * static_cast<std::int64_t>(sizeof(std::int64_t));
}

void unique_keys(const std::uint64_t* sorted, std::int64_t n, std::uint64_t* unique, std::int64_t* count,
                 void* workspace, Stream stream) {
  auto* segments = static_cast<std::int64_t*>(workspace);
  const std::int64_t num_segments = device::segments_of(n);
  const dim3 grid(static_cast<unsigned>(num_segments));
  if (n > 0) device::launch(count_firsts, grid, device::kCompactThreads, 0, stream, sorted, n, segments);
  device::launch(sum_segments, dim3(1), device::kCompactThreads, 0, stream, segments, num_segments, count);
  if (n > 0) device::launch(write_firsts, grid, device::kCompactThreads, 0, stream, sorted, n, segments, unique);
}

void find_keys(const std::uint64_t* sorted, std::int64_t n, const std::uint64_t* queries, std::int64_t m,
               std::uint8_t* found, Stream stream) {
  if (m == 0) return;
  device::launch(find_kernel, device::grid_for(m, kFindThreads), kFindThreads, 0, stream, sorted, n, queries, m, found);
}

}  // namespace greedynas::paths::cuda
