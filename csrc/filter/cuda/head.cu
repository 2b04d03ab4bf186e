// The two fully connected layers, from the last hidden states to log Phi, in the CPU's order of additions.
//
// A block takes 32 paths: a warp 8 of them, a lane the units lane, lane + 32, lane + 64 and lane + 96. The second layer
// has one output that matters, good - weak, and its sum is a chain over the units: one thread a path.
#include "filter/cuda/kernels.cuh"

namespace greedynas::filter::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPathsPerWarp = 8;
constexpr int kPaths = kThreads / device::kWarp * kPathsPerWarp;
constexpr int kUnitsPerLane = 4;
constexpr int kDepth = 4;  // inputs that are read at a time

__device__ __forceinline__ float fused(float a, float b, float c) { return fma(Scalar{a}, Scalar{b}, Scalar{c}).v; }

// States of both directions of the warp's paths into shared memory, [paths, 2H]; zeros from the part's end on.
__device__ __forceinline__ void load_states(const Part& part, const float* states, std::int64_t path0, int hidden,
                                            float* rows) {
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  for (int p = 0; p < kPathsPerWarp; ++p) {
    for (int direction = 0; direction < 2; ++direction) {
      const float* const from = states + (direction * part.count + path0 + p) * hidden;
      float* const to = rows + (2 * p + direction) * hidden;
      for (int k = lane; k < hidden; k += device::kWarp) to[k] = path0 + p < part.count ? from[k] : 0.0F;
    }
  }
}

// First layer and ReLU for the warp's paths and the units from `unit0` on: activations [paths, H + 1].
__device__ __forceinline__ void first_layer(const Weights& weights, const float* rows, int unit0, float* activations) {
  const int hidden = weights.hidden;
  float sums[kUnitsPerLane][kPathsPerWarp];
  GREEDYNAS_UNROLL
  for (int j = 0; j < kUnitsPerLane; ++j) {
    const int unit = unit0 + j * device::kWarp;
    GREEDYNAS_UNROLL
    for (int p = 0; p < kPathsPerWarp; ++p) sums[j][p] = unit < hidden ? weights.fc1_bias[unit] : 0.0F;
  }
  for (int k = 0; k < 2 * hidden; k += kDepth) {
    float weight[kDepth][kUnitsPerLane];
    GREEDYNAS_UNROLL
    for (int i = 0; i < kDepth; ++i) {
      GREEDYNAS_UNROLL
      for (int j = 0; j < kUnitsPerLane; ++j) {
        const int unit = unit0 + j * device::kWarp;
        weight[i][j] = unit < hidden ? weights.fc1_weight[(k + i) * hidden + unit] : 0.0F;
      }
    }
    GREEDYNAS_UNROLL
    for (int p = 0; p < kPathsPerWarp; ++p) {
      const float4 input = *reinterpret_cast<const float4*>(rows + p * 2 * hidden + k);
      GREEDYNAS_UNROLL
      for (int j = 0; j < kUnitsPerLane; ++j) {
        float sum = fused(input.x, weight[0][j], sums[j][p]);
        sum = fused(input.y, weight[1][j], sum);
        sum = fused(input.z, weight[2][j], sum);
        sums[j][p] = fused(input.w, weight[3][j], sum);
      }
    }
  }
  GREEDYNAS_UNROLL
  for (int j = 0; j < kUnitsPerLane; ++j) {
    const int unit = unit0 + j * device::kWarp;
    GREEDYNAS_UNROLL
    for (int p = 0; p < kPathsPerWarp; ++p) {
      if (unit < hidden) activations[p * (hidden + 1) + unit] = max(Scalar{sums[j][p]}, Scalar{0.0F}).v;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    head_kernel(Weights weights, Part part, const float* states, float* log_weak, const int* stop) {
  if (device::is_stopped(stop)) return;
  const int hidden = weights.hidden;
  auto* const rows = reinterpret_cast<float*>(device::dynamic_shared());  // [paths, 2H]
  float* const activations = rows + kPaths * 2 * hidden;                  // [paths, H + 1]
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kPaths;
  const int path0 = static_cast<int>(threadIdx.x) / device::kWarp * kPathsPerWarp;
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  load_states(part, states, begin + path0, hidden, rows + path0 * 2 * hidden);
  __syncthreads();
  for (int unit0 = 0; unit0 < hidden; unit0 += kUnitsPerLane * device::kWarp) {
    first_layer(weights, rows + path0 * 2 * hidden, unit0 + lane, activations + path0 * (hidden + 1));
  }
  __syncthreads();
  const std::int64_t path = begin + threadIdx.x;
  if (threadIdx.x >= kPaths || path >= part.count) return;
  float difference = weights.fc2_difference[hidden];
  for (int j = 0; j < hidden; ++j) {
    difference = fused(activations[threadIdx.x * (hidden + 1) + j], weights.fc2_difference[j], difference);
  }
  const float result = log_weak_of(difference);
  // exp_within swallows a NaN, so it is the difference that is looked at.
  const bool is_nan = difference != difference;
  log_weak[path] = is_nan ? difference : result;
  if (is_nan) note_lowest(&part.status->nan_path, part.first + path);
}

}  // namespace

void launch_head(const Weights& weights, const Part& part, const float* states, float* log_weak, const int* stop,
                 Stream stream) {
  const std::int64_t bytes = kPaths * (3LL * weights.hidden + 1) * 4;
  const dim3 grid(static_cast<unsigned>((part.count + kPaths - 1) / kPaths));
  device::launch(head_kernel, grid, kThreads, bytes, stream, weights, part, states, log_weak, stop);
}

}  // namespace greedynas::filter::cuda
