// Rows that a 1x1 convolution works on at a time, and memory for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/gemm_kernels.h"
#include "blocks/pointwise.h"

namespace greedynas::blocks {

constexpr int kBeyond = 16;                   // floats that products may read beyond the last row
constexpr std::int64_t kBlockFloats = 32768;  // of the wider side: 128 KB, of an L2 cache
constexpr std::int64_t kTileRows = 24;        // a multiple of the rows of all tiles
constexpr std::int64_t kMaxBlockRows = 8 * kTileRows;

inline std::int64_t block_rows(int in, int out) {
  const std::int64_t fitting = kBlockFloats / std::max(in, out) / kTileRows * kTileRows;
  return std::clamp(fitting, kTileRows, kMaxBlockRows);
}

inline std::int64_t weight_floats(const Pointwise& layer) {
  return static_cast<std::int64_t>(layer.group_in()) * layer.out;
}

// Adds up gradients of the weight that parts of the rows have, each [groups][in][out], to [groups][out][in].
inline void add_turned_weights(const Pointwise& layer, std::int64_t parts, const float* sums, float* weight) {
  const std::int64_t in = layer.group_in(), out = layer.group_out(), size = weight_floats(layer);
  for (std::int64_t g = 0; g < size; g += in * out) {
    for (std::int64_t n = 0; n < out; ++n) {
      for (std::int64_t k = 0; k < in; ++k) {
        float sum = 0.0F;
        for (std::int64_t part = 0; part < parts; ++part) sum += sums[part * size + g + k * out + n];
        weight[g + n * in + k] = sum;
      }
    }
  }
}

// Memory of this thread that is kept from call to call, so that it stays in the caches; `which`: 0 .. 4.
inline float* scratch(int which, std::int64_t floats) {
  thread_local std::vector<float> memory[5];
  auto& mine = memory[which];
  if (mine.size() < static_cast<std::size_t>(floats)) mine.resize(static_cast<std::size_t>(floats));
  return mine.data();
}

template <class Element = float>
GemmRowsOf<Element> rows_of(norm::Input x) {
  return {static_cast<const Element*>(x.data), x.stride};
}

// Some rows of a tensor that come next, if there are any and they have no gaps.
inline void add_rows(norm::Input x, std::int64_t row, std::int64_t rows, int channels, GemmAhead& ahead,
                     norm::Storage storage = norm::Storage::float32) {
  if (x.data == nullptr || rows <= 0 || x.stride != channels) return;
  ahead.add(norm::from_row(x, row, storage).data, rows * channels * norm::bytes_of(storage));
}

// Carves a workspace; each piece begins on a cache line if the workspace does.
class Pieces {
 public:
  explicit Pieces(float* workspace) : next_(workspace), first_(workspace) {}
  float* take(std::int64_t floats) {
    float* const piece = next_;
    next_ += (floats + 15) / 16 * 16;
    return piece;
  }
  std::int64_t taken() const { return next_ - first_; }

 private:
  float *next_, *first_;
};

}  // namespace greedynas::blocks
