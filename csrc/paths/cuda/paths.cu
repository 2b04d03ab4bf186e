#include <vector>

#include "cuda/platform.h"
#include "paths/cuda/paths.h"
#include "paths/key.h"
#include "paths/proposals.h"

namespace greedynas::paths::cuda {
namespace {

namespace device = greedynas::cuda;

constexpr int kThreads = 256;

// All layers' choices as one kernel argument: 900 bytes, so that no copy to the device has to be waited for.
struct Mask {
  Choices layers[kMaxLayers];
};

__global__ void propose_kernel(const __grid_constant__ Mask mask, int layers, ProposalSource source, std::int64_t count,
                               std::uint8_t* paths, const int* stop) {
  // Lanes look at different operations, which constant memory would serve one after the other.
  auto* choices = reinterpret_cast<Choices*>(device::dynamic_shared());
  if (device::is_stopped(stop)) return;
  for (int layer = static_cast<int>(threadIdx.x); layer < layers; layer += kThreads) {
    choices[layer] = mask.layers[layer];
  }
  __syncthreads();
  for (std::int64_t j = device::global_thread(); j < count; j += device::global_threads()) {
    propose_one(choices, layers, source, static_cast<std::uint64_t>(j), paths + j * layers);
  }
}

__device__ __forceinline__ void note_lowest(std::uint64_t* lowest, std::int64_t index) {
  atomicMin(reinterpret_cast<unsigned long long*>(lowest), static_cast<unsigned long long>(index));
}

__global__ void pack_kernel(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys,
                            std::uint64_t* first_bad) {
  for (std::int64_t i = device::global_thread(); i < n; i += device::global_threads()) {
    PathKey key;
    bool bad = false;
    for (int layer = 0; layer < layers; ++layer) {
      const std::uint8_t operation = paths[i * layers + layer];
      bad = bad || operation >= kMaxOperations;
      key = with_operation(key, layer, operation);
    }
    keys[2 * i] = key.high;
    keys[2 * i + 1] = key.low;
    if (bad) note_lowest(first_bad, i);
  }
}

__global__ void unpack_kernel(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths,
                              std::uint64_t* first_bad) {
  for (std::int64_t i = device::global_thread(); i < n; i += device::global_threads()) {
    const PathKey key{keys[2 * i], keys[2 * i + 1]};
    PathKey repacked;
    for (int layer = 0; layer < layers; ++layer) {
      const std::uint8_t operation = operation_at(key, layer);
      paths[i * layers + layer] = operation;
      repacked = with_operation(repacked, layer, operation);
    }
    if (repacked.high != key.high || repacked.low != key.low) note_lowest(first_bad, i);
  }
}

void check_layers(const char* function, int layers) {
  if (layers < 1 || layers > kMaxLayers) {
    throw std::invalid_argument(std::string(function) + ": a key holds 1 to " + std::to_string(kMaxLayers) +
                                " layers, got " + std::to_string(layers));
  }
}

void reset(std::uint64_t* first_bad, Stream stream) {
  device::check(cudaMemsetAsync(first_bad, 0xFF, sizeof *first_bad, static_cast<cudaStream_t>(stream)),
                "cudaMemsetAsync");
}

}  // namespace

void propose(const std::uint8_t* allowed, int layers, int max_operations, const ProposalSource& source,
             std::int64_t count, std::uint8_t* paths, const int* stop, Stream stream) {
  const std::vector<Choices> choices = choices_of(allowed, layers, max_operations);
  Mask mask;
  for (std::size_t layer = 0; layer < choices.size(); ++layer) mask.layers[layer] = choices[layer];
  if (count == 0) return;
  device::launch(propose_kernel, device::grid_for(count, kThreads), kThreads, sizeof(Choices) * choices.size(), stream,
                 mask, layers, source, count, paths, stop);
}

void pack(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys, std::uint64_t* first_bad,
          Stream stream) {
  check_layers("pack", layers);
  reset(first_bad, stream);
  if (n == 0) return;
  device::launch(pack_kernel, device::grid_for(n, kThreads), kThreads, 0, stream, paths, n, layers, keys, first_bad);
}

void unpack(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths, std::uint64_t* first_bad,
            Stream stream) {
  check_layers("unpack", layers);
  reset(first_bad, stream);
  if (n == 0) return;
  device::launch(unpack_kernel, device::grid_for(n, kThreads), kThreads, 0, stream, keys, n, layers, paths, first_bad);
}

}  // namespace greedynas::paths::cuda
