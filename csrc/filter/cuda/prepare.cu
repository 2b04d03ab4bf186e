// The module's parameters into the kernels' layout, once a refresh.
#include <stdexcept>
#include <string>

#include "filter/cuda/kernels.cuh"
#include "filter/cuda/tensor_core.cuh"

namespace greedynas::filter::cuda {
namespace {

constexpr int kThreads = 256;

struct Counts {
  std::uint8_t layers[kMaxFilterLayers];
};

// Source rows are [4, H] over gate and unit; float32 wants a unit's four gates together.
__global__ void __launch_bounds__(kThreads) prepare_tables(Weights weights, Parameters from) {
  const std::int64_t hidden = weights.hidden;
  const std::int64_t count = 2LL * weights.layers * weights.operations * hidden;
  for (std::int64_t i = device::global_thread(); i < count; i += device::global_threads()) {
    const std::int64_t first = i / hidden * kGates * hidden + i % hidden;
    const float* const row = from.tables + first;
    if (weights.tables != nullptr) {
      weights.tables[i] = make_float4(row[0], row[hidden], row[2 * hidden], row[3 * hidden]);
    } else {
      for (int gate = 0; gate < kGates; ++gate) weights.rows[first + gate * hidden] = row[gate * hidden];
    }
  }
}

__global__ void __launch_bounds__(kThreads) prepare_columns(Weights weights, Parameters from, int padded) {
  const std::int64_t hidden = weights.hidden;
  for (std::int64_t i = device::global_thread(); i < 2 * hidden * padded; i += device::global_threads()) {
    const std::int64_t unit = i % padded;
    const std::int64_t k = i / padded % hidden;
    const std::int64_t direction = i / padded / hidden;
    if (unit >= hidden) {
      weights.columns[i] = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
      continue;
    }
    const float* const at = from.recurrent + (direction * kGates * hidden + unit) * hidden + k;
    const std::int64_t gate = hidden * hidden;
    weights.columns[i] = make_float4(at[0], at[gate], at[2 * gate], at[3 * gate]);
  }
}

// Word i of a lane's fragment B holds k = 2 * (lane % 4) + 8 i and the next; its column is unit lane / 4 of the group.
__global__ void __launch_bounds__(kThreads) prepare_fragments(Weights weights, Parameters from) {
  const std::int64_t hidden = weights.hidden;
  const std::int64_t count = hidden * hidden;  // uint4 of both directions
  for (std::int64_t i = device::global_thread(); i < count; i += device::global_threads()) {
    const std::int64_t lane = i % device::kWarp;
    const std::int64_t gate = i / device::kWarp % 2 * 2;
    const std::int64_t depth = i / (2 * device::kWarp) % (hidden / 16);
    const std::int64_t group = i / (2 * device::kWarp) / (hidden / 16) % (hidden / 8);
    const std::int64_t direction = i / (count / 2);
    const std::int64_t unit = group * 8 + lane / 4;
    const std::int64_t k = depth * 16 + lane % 4 * 2;
    const float* const first = from.recurrent + ((direction * kGates + gate) * hidden + unit) * hidden + k;
    const float* const second = first + hidden * hidden;
    weights.fragments[i] = make_uint4(bf16_pair(first[0], first[1]), bf16_pair(first[8], first[9]),
                                      bf16_pair(second[0], second[1]), bf16_pair(second[8], second[9]));
  }
}

__global__ void __launch_bounds__(kThreads)
    prepare_head(Weights weights, Parameters from, const __grid_constant__ Counts num_ops) {
  const std::int64_t hidden = weights.hidden;
  for (std::int64_t i = device::global_thread(); i < 2 * hidden * hidden; i += device::global_threads()) {
    weights.fc1_weight[i] = from.fc1_weight[i % hidden * 2 * hidden + i / hidden];
    if (i < hidden) {
      weights.fc1_bias[i] = from.fc1_bias[i];
      weights.fc2_difference[i] = from.fc2_weight[i] - from.fc2_weight[hidden + i];
    }
    if (i == hidden) weights.fc2_difference[i] = from.fc2_bias[0] - from.fc2_bias[1];
    if (i < weights.layers) weights.num_ops[i] = num_ops.layers[i];
  }
}

void check_sizes(const Shape& shape) {
  const auto outside = [](int value, int highest) { return value < 1 || value > highest; };
  if (outside(shape.layers, kMaxFilterLayers) || outside(shape.operations, paths::kMaxOperations) ||
      outside(shape.hidden, kMaxHidden) || shape.hidden % 16 != 0) {
    throw std::invalid_argument("filter: the CUDA kernels take 1 to " + std::to_string(kMaxFilterLayers) +
                                " layers, 1 to " + std::to_string(paths::kMaxOperations) +
                                " operations and a hidden size that is a multiple of 16 up to " +
                                std::to_string(kMaxHidden) + ", got " + std::to_string(shape.layers) + ", " +
                                std::to_string(shape.operations) + " and " + std::to_string(shape.hidden));
  }
}

Counts counts_of(const Shape& shape, const std::vector<int>& num_ops) {
  if (num_ops.size() != static_cast<std::size_t>(shape.layers)) {
    throw std::invalid_argument("filter: num_ops must hold " + std::to_string(shape.layers) + " numbers, got " +
                                std::to_string(num_ops.size()));
  }
  Counts counts{};
  for (std::size_t layer = 0; layer < num_ops.size(); ++layer) {
    if (num_ops[layer] < 1 || num_ops[layer] > shape.operations) {
      throw std::invalid_argument("filter: num_ops must be 1 to " + std::to_string(shape.operations) + ", got " +
                                  std::to_string(num_ops[layer]) + " at layer " + std::to_string(layer));
    }
    counts.layers[layer] = static_cast<std::uint8_t>(num_ops[layer]);
  }
  return counts;
}

}  // namespace

std::int64_t weights_bytes(const Shape& shape, Precision precision) {
  check_sizes(shape);
  Weights unused{};
  return lay_out(shape, precision, nullptr, &unused);
}

void prepare(const Shape& shape, Precision precision, const std::vector<int>& num_ops, const Parameters& parameters,
             void* memory, Stream stream) {
  check_sizes(shape);
  const Counts counts = counts_of(shape, num_ops);
  const Weights weights = weights_of({shape, precision, memory});
  const std::int64_t hidden = shape.hidden;
  const auto grid = [](std::int64_t count) { return device::grid_for(count, kThreads); };
  device::launch(prepare_tables, grid(2LL * shape.layers * shape.operations * hidden), kThreads, 0, stream, weights,
                 parameters);
  if (precision == Precision::float32) {
    const int padded = padded_units(shape.hidden);
    device::launch(prepare_columns, grid(2 * hidden * padded), kThreads, 0, stream, weights, parameters, padded);
  } else {
    device::launch(prepare_fragments, grid(hidden * hidden), kThreads, 0, stream, weights, parameters);
  }
  device::launch(prepare_head, grid(2 * hidden * hidden), kThreads, 0, stream, weights, parameters, counts);
}

}  // namespace greedynas::filter::cuda
