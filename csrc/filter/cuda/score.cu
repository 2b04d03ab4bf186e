#include <algorithm>
#include <stdexcept>
#include <string>

#include "filter/cuda/kernels.cuh"
#include "filter/cuda/score.h"

namespace greedynas::filter::cuda {
namespace {

// Paths a launch: enough for many tiles on each multiprocessor, and states (64 MB at H = 128) that do not fill the
// card.
constexpr std::int64_t kPartPaths = 65536;

}  // namespace

std::int64_t score_workspace_bytes(const Shape& shape, std::int64_t n) {
  return std::min(n, kPartPaths) * 2 * shape.hidden * static_cast<std::int64_t>(sizeof(float));
}

void score(const DeviceModel& model, const PathBatch& batch, std::int64_t n, float* log_weak, ScoreStatus* status,
           void* workspace, const int* stop, Stream stream) {
  if (batch.keys != nullptr && model.shape.layers > paths::kMaxLayers) {
    throw std::invalid_argument("score: keys hold at most " + std::to_string(paths::kMaxLayers) +
                                " layers, the filter has " + std::to_string(model.shape.layers));
  }
  device::check(cudaMemsetAsync(status, 0xFF, sizeof *status, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
  const Weights weights = weights_of(model);
  auto* const states = static_cast<float*>(workspace);
  for (std::int64_t first = 0; first < n; first += kPartPaths) {
    const Part part{batch, first, std::min(n - first, kPartPaths), status};
    if (model.precision == Precision::float32) {
      launch_float32_states(weights, part, states, stop, stream);
    } else {
      launch_bf16_states(weights, part, states, stop, stream);
    }
    launch_head(weights, part, states, log_weak + first, stop, stream);
  }
}

}  // namespace greedynas::filter::cuda
