// Chunks of rows that the normalisation layers are divided into, by the shape alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks/bn_act.h"
#include "cpu/team.h"

namespace greedynas::norm {

constexpr std::int64_t kChunkElements = 65536;  // some 20 microseconds of work; 256 KB of float32 stay in an L2 cache

inline std::int64_t chunk_rows(const Shape& shape) {
  const std::int64_t rows = (kChunkElements + shape.channels - 1) / shape.channels;
  return std::max<std::int64_t>((rows + 15) / 16 * 16, 64);
}

inline std::int64_t chunk_count(const Shape& shape) {
  const std::int64_t rows = chunk_rows(shape);
  return (shape.rows + rows - 1) / rows;
}

inline std::int64_t bytes_of(Storage storage) { return storage == Storage::float32 ? 4 : 2; }

inline Input from_row(Input input, std::int64_t row, Storage storage) {
  return {static_cast<const char*>(input.data) + row * input.stride * bytes_of(storage), input.stride};
}

inline void* from_row(void* output, std::int64_t row, const Shape& shape) {
  if (output == nullptr) return nullptr;
  return static_cast<char*>(output) + row * shape.channels * bytes_of(shape.storage);
}

// Mean and sum of squared differences from it.
struct PartMoments {
  double mean, squares;
};

// Mean and biased variance [channels] of all rows, joined from those of parts (Chan, Golub, LeVeque 1979): rows(part),
// and of(part, channel). The loops over channels are the inner ones, so that they become vectors.
template <class Rows, class Of>
void join_moments(std::int64_t parts, int channels, float* mean, float* variance, const Rows& rows, const Of& of) {
  constexpr int kTogether = 64;
  for (int first = 0; first < channels; first += kTogether) {
    const int count = std::min(kTogether, channels - first);
    double means[kTogether] = {}, squares[kTogether] = {};
    double before = 0.0;
    for (std::int64_t part = 0; part < parts; ++part) {
      const auto more = static_cast<double>(rows(part));
      const double share = more / (before + more), spread = before * share;
      for (int c = 0; c < count; ++c) {
        const PartMoments own = of(part, first + c);
        const double step = own.mean - means[c];
        squares[c] += own.squares + step * step * spread;
        means[c] += step * share;
      }
      before += more;
    }
    for (int c = 0; c < count; ++c) {
      mean[first + c] = static_cast<float>(means[c]);
      variance[first + c] = static_cast<float>(squares[c] / before);
    }
  }
}

using cpu::Order;

// body(chunk, first row, shape of the chunk) for every chunk.
template <class Body>
void for_chunks(const Shape& shape, int threads, Order order, const Body& body) {
  const std::int64_t rows = chunk_rows(shape);
  const std::int64_t count = chunk_count(shape);
  cpu::team_for(count, 1, threads, order, [&](int, std::int64_t begin, std::int64_t end) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      Shape part = shape;
      part.rows = std::min(rows, shape.rows - chunk * rows);
      body(chunk, chunk * rows, part);
    }
  });
}

}  // namespace greedynas::norm
