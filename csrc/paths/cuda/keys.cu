#include "cuda/arena.h"
#include "cuda/platform.h"
#include "cuda/select.h"
#include "paths/cuda/keys.h"
#include "paths/key.h"

#ifdef GREEDYNAS_EMULATE_CUDA
#include <algorithm>
#else
#include <thrust/binary_search.h>
#include <thrust/execution_policy.h>
#endif

namespace greedynas::paths::cuda {
namespace {

namespace device = greedynas::cuda;

constexpr int kThreads = 256;

__device__ __forceinline__ PathKey key_at(const std::uint64_t* keys, std::int64_t i) {
  return {keys[2 * i], keys[2 * i + 1]};
}

__device__ __forceinline__ bool equal(PathKey a, PathKey b) { return a.high == b.high && a.low == b.low; }

struct Before {
  __device__ bool operator()(const PathKey& a, const PathKey& b) const {
    return a.high < b.high || (a.high == b.high && a.low < b.low);
  }
};

// flags[i] = 1 if key i is the first of its kind, else 0.
__global__ void __launch_bounds__(kThreads)
    mark_firsts(const std::uint64_t* sorted, std::int64_t n, std::uint8_t* flags) {
  for (std::int64_t i = device::global_thread(); i < n; i += device::global_threads()) {
    flags[i] = i == 0 || !equal(key_at(sorted, i), key_at(sorted, i - 1)) ? 1 : 0;
  }
}

// to[i] = keys[numbers[i]] for i < *count.
__global__ void __launch_bounds__(kThreads)
    gather_keys(const std::uint64_t* keys, const std::int64_t* numbers, const std::int64_t* count, std::uint64_t* to) {
  for (std::int64_t i = device::global_thread(); i < *count; i += device::global_threads()) {
    const PathKey key = key_at(keys, numbers[i]);
    to[2 * i] = key.high;
    to[2 * i + 1] = key.low;
  }
}

// Whether each query is among the sorted keys. Thrust's search is queued only, and runs on CUB's loop over items.
void find(const PathKey* sorted, std::int64_t n, const PathKey* queries, std::int64_t m, std::uint8_t* found,
          cudaStream_t stream) {
#ifdef GREEDYNAS_EMULATE_CUDA
  static_cast<void>(stream);
  for (std::int64_t i = 0; i < m; ++i) found[i] = std::binary_search(sorted, sorted + n, queries[i]) ? 1 : 0;
#else
  const auto on_stream = thrust::cuda::par_nosync.on(stream);
  thrust::binary_search(on_stream, sorted, sorted + n, queries, queries + m, found, Before{});
#endif
}

struct UniqueWorkspace {
  std::uint8_t* flags;   // [n]
  std::int64_t* firsts;  // [n]
  std::byte* selecting;
};

std::int64_t lay_out(std::int64_t n, void* memory, UniqueWorkspace* workspace) {
  device::Arena arena(memory);
  workspace->flags = arena.take<std::uint8_t>(n);
  workspace->firsts = arena.take<std::int64_t>(n);
  workspace->selecting = arena.take<std::byte>(device::select_workspace_bytes(n));
  return arena.bytes();
}

}  // namespace

std::int64_t unique_workspace_bytes(std::int64_t n) {
  UniqueWorkspace unused{};
  return lay_out(n, nullptr, &unused);
}

void unique_keys(const std::uint64_t* sorted, std::int64_t n, std::uint64_t* unique, std::int64_t* count,
                 void* workspace, Stream stream) {
  if (n == 0) {
    device::check(cudaMemsetAsync(count, 0, sizeof(*count), static_cast<cudaStream_t>(stream)), "unique_keys");
    return;
  }
  UniqueWorkspace parts{};
  lay_out(n, workspace, &parts);
  const dim3 grid = device::grid_for(n, kThreads);
  device::launch(mark_firsts, grid, kThreads, 0, stream, sorted, n, parts.flags);
  device::select_flagged(parts.flags, n, parts.firsts, count, parts.selecting, stream);
  device::launch(gather_keys, grid, kThreads, 0, stream, sorted, parts.firsts, count, unique);
}

void find_keys(const std::uint64_t* sorted, std::int64_t n, const std::uint64_t* queries, std::int64_t m,
               std::uint8_t* found, Stream stream) {
  if (m == 0) return;
  find(reinterpret_cast<const PathKey*>(sorted), n, reinterpret_cast<const PathKey*>(queries), m, found,
       static_cast<cudaStream_t>(stream));
}

}  // namespace greedynas::paths::cuda
