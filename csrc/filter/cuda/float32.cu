// The LSTM in float32, in the order of additions that every instruction set of the CPU has too.
//
// A block takes one direction and a tile of paths. A thread keeps 8 paths x up to 4 units x 4 gates in registers, so a
// weight from shared memory serves 8 multiply-adds and a hidden state 4 to 16. As many rows of W_hh as fit are kept in
// shared memory: with 227 KB all of them for H up to 96 and 80 of 128, with 163 KB all for H up to 64. The rest streams
// through two buffers in slices, the next one under way while one is used. The products of a sum stay in the order of
// k: first the rows kept, then the slices as they come.
#include <algorithm>

#include "filter/cuda/kernels.cuh"

namespace greedynas::filter::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / device::kWarp;
constexpr int kPathsPerThread = 8;
constexpr int kBuffers = 2;

struct Plan {
  int units;        // padded
  int unit_groups;  // warps that share a set of paths: 1, or 2 where H > 128
  int paths;        // a block
  int kept;         // rows (k) of W_hh that stay in shared memory
  int slice;        // rows in a buffer; they divide the others
  std::int64_t shared_bytes;
};

// Paths between the rows of the hidden states: 16 bytes more than the tile, so that lanes fall on different banks.
__host__ __device__ constexpr int state_stride(int paths) { return paths + 4; }

Plan plan_for(int hidden, int layers, std::int64_t available_bytes) {
  const int groups = hidden > kUnitsPerWarp ? 2 : 1;
  Plan plan{padded_units(hidden), groups, kWarps / groups * kPathsPerThread, hidden, groups == 2 ? 4 : 8, 0};
  const std::int64_t row = plan.units * std::int64_t{sizeof(float4)};
  const std::int64_t others = hidden * state_stride(plan.paths) * std::int64_t{sizeof(float)} + plan.paths * layers;
  if (others + hidden * row > available_bytes) {
    const std::int64_t left = std::max<std::int64_t>(available_bytes - others - kBuffers * plan.slice * row, 0);
    plan.kept = static_cast<int>(left / (plan.slice * row)) * plan.slice;
  }
  plan.shared_bytes = others + (plan.kept == hidden ? hidden : plan.kept + kBuffers * plan.slice) * row;
  return plan;
}

__device__ __forceinline__ float fused(float a, float b, float c) { return fma(Scalar{a}, Scalar{b}, Scalar{c}).v; }

__device__ __forceinline__ void prefetch(float4* to_shared, const float4* from_global, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    device::copy_async_16(to_shared + i, from_global + i);
  }
}

// Sums of one thread: path p, unit lane + 32 j, gate g.
template <int kUnits>
using Sums = float[kUnits][kPathsPerThread][kGates];

template <int kUnits>
__device__ __forceinline__ void start_sums(const Weights& weights, int direction, int layer, int unit0,
                                           const std::uint8_t* operations, Sums<kUnits>& sums) {
  GREEDYNAS_UNROLL
  for (int p = 0; p < kPathsPerThread; ++p) {
    const int operation = operations[p * weights.layers + layer];
    const float4* const from = weights.tables + table_row(weights, direction, layer, operation) * weights.hidden;
    GREEDYNAS_UNROLL
    for (int j = 0; j < kUnits; ++j) {
      const int unit = unit0 + j * device::kWarp;
      const float4 row = unit < weights.hidden ? from[unit] : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
      sums[j][p][0] = row.x;
      sums[j][p][1] = row.y;
      sums[j][p][2] = row.z;
      sums[j][p][3] = row.w;
    }
  }
}

// Adds the products of `rows` values of k. slice: [rows, units], hidden: [rows, stride] at the thread's paths.
template <int kUnits>
__device__ __forceinline__ void add_slice(const float4* slice, const float* hidden, int rows, int units, int stride,
                                          Sums<kUnits>& sums) {
  for (int k = 0; k < rows; ++k) {
    float h[kPathsPerThread];
    const float4 low = *reinterpret_cast<const float4*>(hidden + k * stride);
    const float4 high = *reinterpret_cast<const float4*>(hidden + k * stride + 4);
    h[0] = low.x, h[1] = low.y, h[2] = low.z, h[3] = low.w;
    h[4] = high.x, h[5] = high.y, h[6] = high.z, h[7] = high.w;
    GREEDYNAS_UNROLL
    for (int j = 0; j < kUnits; ++j) {
      const float4 weight = slice[k * units + j * device::kWarp];
      GREEDYNAS_UNROLL
      for (int p = 0; p < kPathsPerThread; ++p) {
        sums[j][p][0] = fused(h[p], weight.x, sums[j][p][0]);
        sums[j][p][1] = fused(h[p], weight.y, sums[j][p][1]);
        sums[j][p][2] = fused(h[p], weight.z, sums[j][p][2]);
        sums[j][p][3] = fused(h[p], weight.w, sums[j][p][3]);
      }
    }
  }
}

template <int kUnits>
__global__ void __launch_bounds__(kThreads, 1)
    float32_states(Weights weights, Part part, Plan plan, float* states, const int* stop) {
  if (device::is_stopped(stop)) return;
  const int layers = weights.layers;
  const int hidden_units = weights.hidden;
  const int direction = static_cast<int>(blockIdx.y);
  const int stride = state_stride(plan.paths);
  const int slices = (hidden_units - plan.kept) / plan.slice;  // that are streamed
  const int slice_size = plan.slice * plan.units;
  const int kept_size = plan.kept * plan.units;
  auto* const kept = reinterpret_cast<float4*>(device::dynamic_shared());  // [kept, units]
  float4* const buffers = kept + kept_size;                                // [2, slice, units]
  auto* const hidden = reinterpret_cast<float*>(buffers + (slices > 0 ? kBuffers * slice_size : 0));  // [H, stride]
  auto* const operations = reinterpret_cast<std::uint8_t*>(hidden + hidden_units * stride);           // [paths, L]

  const int warp = static_cast<int>(threadIdx.x) / device::kWarp;
  const int path_groups = kWarps / plan.unit_groups;
  const int path0 = warp % path_groups * kPathsPerThread;
  const int unit0 = warp / path_groups * kUnitsPerWarp + static_cast<int>(threadIdx.x) % device::kWarp;
  const float4* const columns = weights.columns + static_cast<std::int64_t>(direction) * hidden_units * plan.units;
  const float4* const streamed = columns + kept_size;
  prefetch(kept, columns, kept_size);
  device::wait_for_copies();  // there for all after the barriers below

  for (std::int64_t tile = blockIdx.x; tile * plan.paths < part.count; tile += gridDim.x) {
    __syncthreads();
    load_operations(weights, part, tile * plan.paths, plan.paths, operations);
    if (layers > 1 && slices > 0) prefetch(buffers, streamed, slice_size);
    __syncthreads();
    float cell[kUnits][kPathsPerThread];
    int next = 1;  // slices asked for so far, counted over all steps
    for (int step = 0; step < layers; ++step) {
      Sums<kUnits> sums;
      start_sums<kUnits>(weights, direction, layer_of(direction, step, layers), unit0, operations + path0 * layers,
                         sums);
      if (step > 0) {
        __syncthreads();  // the hidden states are there for all
        add_slice<kUnits>(kept + unit0, hidden + path0, plan.kept, plan.units, stride, sums);
        for (int slice = 0; slice < slices; ++slice, ++next) {
          device::wait_for_copies();
          __syncthreads();  // the slice is there for all, and all have done with the buffer that is filled next
          if (next < (layers - 1) * slices) {
            prefetch(buffers + next % kBuffers * slice_size, streamed + next % slices * slice_size, slice_size);
          }
          add_slice<kUnits>(buffers + (next - 1) % kBuffers * slice_size + unit0,
                            hidden + (plan.kept + slice * plan.slice) * stride + path0, plan.slice, plan.units, stride,
                            sums);
        }
        __syncthreads();  // all have read the old hidden states
      }
      GREEDYNAS_UNROLL
      for (int j = 0; j < kUnits; ++j) {
        const int unit = unit0 + j * device::kWarp;
        GREEDYNAS_UNROLL
        for (int p = 0; p < kPathsPerThread; ++p) {
          const auto& z = sums[j][p];
          const CellState<Scalar> next_state =
              step == 0 ? first_lstm_cell(Scalar{z[0]}, Scalar{z[2]}, Scalar{z[3]})
                        : lstm_cell(Scalar{z[0]}, Scalar{z[1]}, Scalar{z[2]}, Scalar{z[3]}, Scalar{cell[j][p]});
          cell[j][p] = next_state.cell.v;
          if (unit >= hidden_units) continue;
          const std::int64_t path = tile * plan.paths + path0 + p;
          if (step + 1 < layers) {
            hidden[unit * stride + path0 + p] = next_state.hidden.v;
          } else if (path < part.count) {
            states[(direction * part.count + path) * hidden_units + unit] = next_state.hidden.v;
          }
        }
      }
    }
  }
}

template <int kUnits>
void launch_with(const Weights& weights, const Part& part, const Plan& plan, float* states, const int* stop,
                 Stream stream) {
  const dim3 grid = device::persistent_grid(float32_states<kUnits>, kThreads, plan.shared_bytes,
                                            (part.count + plan.paths - 1) / plan.paths);
  device::launch(float32_states<kUnits>, dim3(grid.x, 2), kThreads, plan.shared_bytes, stream, weights, part, plan,
                 states, stop);
}

}  // namespace

void launch_float32_states(const Weights& weights, const Part& part, float* states, const int* stop, Stream stream) {
  const Plan plan =
      plan_for(weights.hidden, weights.layers, device::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (plan.units == 32) {
    launch_with<1>(weights, part, plan, states, stop, stream);
  } else if (plan.units == 64) {
    launch_with<2>(weights, part, plan, states, stop, stream);
  } else {
    launch_with<4>(weights, part, plan, states, stop, stream);
  }
}

}  // namespace greedynas::filter::cuda
