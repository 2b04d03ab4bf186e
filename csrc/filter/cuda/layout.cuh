// The weights as the kernels read them, and what all kernels of the filter share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/arena.h"
#include "cuda/platform.h"
#include "filter/arithmetic.h"
#include "filter/cuda/score.h"
#include "paths/key.h"

namespace greedynas::filter::cuda {

namespace device = greedynas::cuda;

inline constexpr int kGates = 4;

// The float32 kernel's threads: a warp has kUnitsPerWarp units at a time, the lanes 1, 2 or 4 each.
inline constexpr int kUnitsPerWarp = 128;

// H rounded up to what the lanes of the float32 kernel cover; the weights of units from H on are zero.
constexpr int padded_units(int hidden) {
  return hidden <= 32 ? 32 : hidden <= 64 ? 64 : (hidden + kUnitsPerWarp - 1) / kUnitsPerWarp * kUnitsPerWarp;
}

struct Weights {
  int layers, operations, hidden;
  float4* tables;         // float32: [2, L, N, H], the four gates of a unit together
  float* rows;            // bf16: the same as [2, L, N, 4, H]
  float4* columns;        // float32: W_hh as [2, H (k), padded units], the four gates together
  uint4* fragments;       // bf16: W_hh as [2, H / 8 (units), H / 16 (k), 2 (gates), 32 (lanes)], see tensor_core.cuh
  float* fc1_weight;      // [2H, H]: transposed
  float* fc1_bias;        // [H]
  float* fc2_difference;  // [H + 1]: good - weak, weights then bias
  std::uint8_t* num_ops;  // [L]
};

// Lays the arrays out from `base` on and returns how many bytes they take.
inline std::int64_t lay_out(const Shape& shape, Precision precision, void* base, Weights* weights) {
  const std::int64_t h = shape.hidden;
  greedynas::cuda::Arena arena(base);
  weights->layers = shape.layers;
  weights->operations = shape.operations;
  weights->hidden = shape.hidden;
  const bool single = precision == Precision::float32;
  auto* const tables = arena.take<float4>(2 * shape.layers * shape.operations * h);
  weights->tables = single ? tables : nullptr;
  weights->rows = single ? nullptr : reinterpret_cast<float*>(tables);
  weights->columns = single ? arena.take<float4>(2 * h * padded_units(shape.hidden)) : nullptr;
  weights->fragments = single ? nullptr : arena.take<uint4>(h * h);
  weights->fc1_weight = arena.take<float>(2 * h * h);
  weights->fc1_bias = arena.take<float>(h);
  weights->fc2_difference = arena.take<float>(h + 1);
  weights->num_ops = arena.take<std::uint8_t>(shape.layers);
  return arena.bytes();
}

inline Weights weights_of(const DeviceModel& model) {
  Weights weights{};
  lay_out(model.shape, model.precision, const_cast<void*>(model.weights), &weights);
  return weights;
}

// The paths that a launch scores: a part of a batch, numbered from `first`.
struct Part {
  PathBatch batch;
  std::int64_t first;
  std::int64_t count;
  ScoreStatus* status;
};

__device__ __forceinline__ void note_lowest(std::uint64_t* lowest, std::int64_t path) {
  atomicMin(reinterpret_cast<unsigned long long*>(lowest), static_cast<unsigned long long>(path));
}

// Operations [paths, L] of the part's paths begin .. begin + paths - 1 into shared memory; 0 from the part's end on.
// All threads of the block call it, with a barrier before (if the tile was read) and after.
__device__ __forceinline__ void load_operations(const Weights& weights, const Part& part, std::int64_t begin, int paths,
                                                std::uint8_t* operations) {
  const int layers = weights.layers;
  for (int i = static_cast<int>(threadIdx.x); i < paths * layers; i += static_cast<int>(blockDim.x)) {
    const int layer = i % layers;
    const std::int64_t path = begin + i / layers;
    std::uint8_t operation = 0;
    if (path < part.count) {
      const std::int64_t row = part.first + path;
      if (part.batch.keys != nullptr) {
        const paths::PathKey key{part.batch.keys[2 * row], part.batch.keys[2 * row + 1]};
        operation = paths::operation_at(key, layer);
      } else {
        operation = part.batch.paths[row * layers + layer];
      }
      if (operation >= weights.num_ops[layer]) {
        note_lowest(&part.status->bad_path, row);
        operation = 0;
      }
    }
    operations[i] = operation;
  }
}

// Number of an operation's row in the tables.
__device__ __forceinline__ std::int64_t table_row(const Weights& weights, int direction, int layer, int operation) {
  return (static_cast<std::int64_t>(direction) * weights.layers + layer) * weights.operations + operation;
}

// Layer of a step: forward from the first, backward from the last.
__device__ __forceinline__ int layer_of(int direction, int step, int layers) {
  return direction == kForward ? step : layers - 1 - step;
}

}  // namespace greedynas::filter::cuda
