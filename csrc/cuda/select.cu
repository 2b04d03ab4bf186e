#include "cuda/platform.h"
#include "cuda/select.h"

// On its own, because these headers take longer to compile than all the rest.
#ifndef GREEDYNAS_EMULATE_CUDA
#include <thrust/iterator/counting_iterator.h>

#include <cub/device/device_select.cuh>
#endif

namespace greedynas::cuda {
namespace {

#ifdef GREEDYNAS_EMULATE_CUDA

// The plain twin of CUB's selection.
cudaError_t select(void* temporary, std::size_t& bytes, const std::uint8_t* flags, std::int64_t count,
                   std::int64_t* selected, std::int64_t* num_selected, cudaStream_t) {
  if (temporary == nullptr) return bytes = 1, cudaSuccess;
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (flags[i] != 0) selected[found++] = i;
  }
  *num_selected = found;
  return cudaSuccess;
}

#else

// Numbers by flags, also for 128-bit keys: CUB's selection of the keys themselves spills registers on sm_80.
cudaError_t select(void* temporary, std::size_t& bytes, const std::uint8_t* flags, std::int64_t count,
                   std::int64_t* selected, std::int64_t* num_selected, cudaStream_t stream) {
  const thrust::counting_iterator<std::int64_t> numbers(0);
  return cub::DeviceSelect::Flagged(temporary, bytes, numbers, flags, selected, num_selected, count, stream);
}

#endif

}  // namespace

std::int64_t select_workspace_bytes(std::int64_t count) {
  std::size_t bytes = 0;
  check(select(nullptr, bytes, nullptr, count, nullptr, nullptr, nullptr), "select_workspace_bytes");
  return static_cast<std::int64_t>(bytes);
}

void select_flagged(const std::uint8_t* flags, std::int64_t count, std::int64_t* selected, std::int64_t* num_selected,
                    void* workspace, void* stream) {
  auto bytes = static_cast<std::size_t>(select_workspace_bytes(count));
  check(select(workspace, bytes, flags, count, selected, num_selected, static_cast<cudaStream_t>(stream)),
        "select_flagged");
}

}  // namespace greedynas::cuda
