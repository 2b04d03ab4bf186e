// The LSTM with W_hh and the hidden states in bfloat16, on tensor cores, sums and cells in float32.
//
// A block takes one direction and a tile of 64, 48 or 32 paths, H / 16 warps. A warp owns 16 units, two groups of 8:
// the products of a group's four gates fall to the same lane, so cell states never leave registers. W_hh stands in
// shared memory in the order in which lanes read it, where it fits (H up to 128, or 160 with 227 KB), and comes through
// the caches otherwise. Hidden states alternate between two buffers, so a step needs one barrier.
#include "filter/cuda/kernels.cuh"
#include "filter/cuda/tensor_core.cuh"

namespace greedynas::filter::cuda {
namespace {

constexpr int kUnitGroup = 8;      // columns of an mma tile
constexpr int kGroupsPerWarp = 2;  // unit groups of a warp
constexpr int kTilePaths = 16;     // rows of an mma tile
constexpr int kDepth = 16;         // values of k in an mma

__host__ __device__ constexpr int state_stride(int hidden) { return hidden + 8; }  // odd in units of 16 bytes

std::int64_t shared_bytes(const Weights& weights, int paths, bool resident) {
  const std::int64_t h = weights.hidden;
  return (resident ? h * h * 8 : 0) + 2LL * paths * state_stride(weights.hidden) * 2 + paths * weights.layers;
}

// Sums of one thread for a unit group: path tile, gate, the four values of fragment D.
template <int kPathTiles>
using Sums = float[kPathTiles][kGates][4];

template <int kPathTiles>
__device__ __forceinline__ void start_sums(const Weights& weights, int direction, int layer, int unit,
                                           const std::uint8_t* operations, Sums<kPathTiles>& sums) {
  const int row = static_cast<int>(threadIdx.x) % device::kWarp / 4;
  GREEDYNAS_UNROLL
  for (int tile = 0; tile < kPathTiles; ++tile) {
    GREEDYNAS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int operation = operations[(tile * kTilePaths + row + half * 8) * weights.layers + layer];
      const float* const from =
          weights.rows + table_row(weights, direction, layer, operation) * kGates * weights.hidden + unit;
      GREEDYNAS_UNROLL
      for (int gate = 0; gate < kGates; ++gate) {
        const float2 z = *reinterpret_cast<const float2*>(from + gate * weights.hidden);
        sums[tile][gate][2 * half] = z.x;
        sums[tile][gate][2 * half + 1] = z.y;
      }
    }
  }
}

// fragments: of the unit group, [H / 16, 2, 32]; hidden: [paths, stride] bfloat16.
template <int kPathTiles>
__device__ __forceinline__ void add_products(const uint4* fragments, const std::uint16_t* hidden, int hidden_units,
                                             Sums<kPathTiles>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  const int stride = state_stride(hidden_units);
  GREEDYNAS_UNROLL_BY(kPathTiles / 2)
  for (int k = 0; k < hidden_units; k += kDepth) {
    const uint4 input_forget = fragments[k / kDepth * 2 * device::kWarp + lane];
    const uint4 cell_output = fragments[(k / kDepth * 2 + 1) * device::kWarp + lane];
    GREEDYNAS_UNROLL
    for (int tile = 0; tile < kPathTiles; ++tile) {
      const FragmentA a = load_fragment_a(hidden + tile * kTilePaths * stride + k, stride);
      multiply_add(sums[tile][0], a, input_forget.x, input_forget.y);
      multiply_add(sums[tile][1], a, input_forget.z, input_forget.w);
      multiply_add(sums[tile][2], a, cell_output.x, cell_output.y);
      multiply_add(sums[tile][3], a, cell_output.z, cell_output.w);
    }
  }
}

// Where a step's hidden states go: bfloat16 for the next step, or float32 for the head after the last.
struct Output {
  std::uint16_t* hidden;  // null at the last step
  float* states;          // of the tile's first path
  std::int64_t paths;     // that exist from there on
};

template <int kPathTiles>
__device__ __forceinline__ void finish_step(const Sums<kPathTiles>& sums, int unit, int hidden_units,
                                            const Output& output, float (&cell)[kPathTiles][4]) {
  const int row = static_cast<int>(threadIdx.x) % device::kWarp / 4;
  GREEDYNAS_UNROLL
  for (int tile = 0; tile < kPathTiles; ++tile) {
    float hidden[4];
    GREEDYNAS_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto& z = sums[tile];
      const FastState next = fast_cell(z[0][i], z[1][i], z[2][i], z[3][i], cell[tile][i]);
      cell[tile][i] = next.cell;
      hidden[i] = next.hidden;
    }
    GREEDYNAS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int path = tile * kTilePaths + row + half * 8;
      if (output.hidden != nullptr) {
        auto* const pair = output.hidden + path * state_stride(hidden_units) + unit;
        *reinterpret_cast<std::uint32_t*>(pair) = bf16_pair(hidden[2 * half], hidden[2 * half + 1]);
      } else if (path < output.paths) {
        auto* const pair = output.states + static_cast<std::int64_t>(path) * hidden_units + unit;
        *reinterpret_cast<float2*>(pair) = make_float2(hidden[2 * half], hidden[2 * half + 1]);
      }
    }
  }
}

template <int kPathTiles, bool kResident>
__global__ void __launch_bounds__(kPathTiles > 2 ? 256 : 512, 1)
    bf16_states(Weights weights, Part part, float* states, const int* stop) {
  if (device::is_stopped(stop)) return;
  constexpr int kPaths = kPathTiles * kTilePaths;
  const int layers = weights.layers;
  const int hidden_units = weights.hidden;
  const int direction = static_cast<int>(blockIdx.y);
  const int direction_size = hidden_units * hidden_units / 2;  // uint4
  const int state_size = kPaths * state_stride(hidden_units);
  std::byte* const shared = device::dynamic_shared();
  auto* const resident = reinterpret_cast<uint4*>(shared);
  auto* const hidden =
      reinterpret_cast<std::uint16_t*>(resident + (kResident ? direction_size : 0));  // [2, paths, stride]
  auto* const operations = reinterpret_cast<std::uint8_t*>(hidden + 2 * state_size);  // [paths, L]

  const uint4* fragments = weights.fragments + static_cast<std::int64_t>(direction) * direction_size;
  if constexpr (kResident) {
    for (int i = static_cast<int>(threadIdx.x); i < direction_size; i += static_cast<int>(blockDim.x)) {
      device::copy_async_16(resident + i, fragments + i);
    }
    device::wait_for_copies();
    fragments = resident;  // complete for all after the barriers below
  }
  const int group0 = static_cast<int>(threadIdx.x) / device::kWarp * kGroupsPerWarp;
  const int pair = static_cast<int>(threadIdx.x) % 4 * 2;
  const int group_size = hidden_units / kDepth * 2 * device::kWarp;

  for (std::int64_t tile = blockIdx.x; tile * kPaths < part.count; tile += gridDim.x) {
    __syncthreads();
    load_operations(weights, part, tile * kPaths, kPaths, operations);
    __syncthreads();
    float cell[kGroupsPerWarp][kPathTiles][4] = {};
    for (int step = 0; step < layers; ++step) {
      const int layer = layer_of(direction, step, layers);
      const std::uint16_t* const old_hidden = hidden + step % 2 * state_size;
      const Output output{step + 1 < layers ? hidden + (step + 1) % 2 * state_size : nullptr,
                          states + (direction * part.count + tile * kPaths) * hidden_units, part.count - tile * kPaths};
      GREEDYNAS_UNROLL
      for (int j = 0; j < kGroupsPerWarp; ++j) {
        const int unit = (group0 + j) * kUnitGroup + pair;
        Sums<kPathTiles> sums;
        start_sums<kPathTiles>(weights, direction, layer, unit, operations, sums);
        if (step > 0) {
          add_products<kPathTiles>(fragments + (group0 + j) * group_size, old_hidden, hidden_units, sums);
        }
        finish_step<kPathTiles>(sums, unit, hidden_units, output, cell[j]);
      }
      __syncthreads();  // the new hidden states are there, the old ones may be overwritten
    }
  }
}

template <int kPathTiles, bool kResident>
void launch_with(const Weights& weights, const Part& part, float* states, const int* stop, Stream stream) {
  constexpr int kPaths = kPathTiles * kTilePaths;
  const std::int64_t bytes = shared_bytes(weights, kPaths, kResident);
  const int threads = weights.hidden / (kUnitGroup * kGroupsPerWarp) * device::kWarp;
  const dim3 grid =
      device::persistent_grid(bf16_states<kPathTiles, kResident>, threads, bytes, (part.count + kPaths - 1) / kPaths);
  device::launch(bf16_states<kPathTiles, kResident>, dim3(grid.x, 2), threads, bytes, stream, weights, part, states,
                 stop);
}

bool fits(const Weights& weights, int path_tiles) {
  const int available = device::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return shared_bytes(weights, path_tiles * kTilePaths, true) <= available;
}

}  // namespace

void launch_bf16_states(const Weights& weights, const Part& part, float* states, const int* stop, Stream stream) {
  // More than 8 warps leave each thread too few registers for the sums of 64 paths. 48 paths are for H = 128 with 163
  // KB (sm_80), where more than 16 layers of operations no longer fit beside 64.
  if (weights.hidden > 128 && fits(weights, 2)) {
    launch_with<2, true>(weights, part, states, stop, stream);
  } else if (weights.hidden > 128) {
    launch_with<2, false>(weights, part, states, stop, stream);
  } else if (fits(weights, 4)) {
    launch_with<4, true>(weights, part, states, stop, stream);
  } else if (fits(weights, 3)) {
    launch_with<3, true>(weights, part, states, stop, stream);
  } else {
    launch_with<4, false>(weights, part, states, stop, stream);
  }
}

}  // namespace greedynas::filter::cuda
