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

// Moments of rows, joined from those of chunks (Chan, Golub, LeVeque 1979).
struct JoinedMoments {
  double rows = 0.0, mean = 0.0, squares = 0.0;

  // More rows: their mean, and the sum of their squared differences from it.
  void add(std::int64_t more, double mean_of_more, double squares_of_more) {
    const auto count = static_cast<double>(more);
    const double step = mean_of_more - mean;
    squares += squares_of_more + step * step * (rows * count / (rows + count));
    mean += step * (count / (rows + count));
    rows += count;
  }
  double variance() const { return squares / rows; }
};

// A pass goes over the chunks backwards where the pass before it went forwards: what that one read last is in the
// caches.
enum class Order { forwards, backwards };

// body(chunk, first row, shape of the chunk) for every chunk.
template <class Body>
void for_chunks(const Shape& shape, int threads, Order order, const Body& body) {
  const std::int64_t rows = chunk_rows(shape);
  const std::int64_t count = chunk_count(shape);
  cpu::team_for(count, 1, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t step = begin; step < end; ++step) {
      const std::int64_t chunk = order == Order::forwards ? step : count - 1 - step;
      Shape part = shape;
      part.rows = std::min(rows, shape.rows - chunk * rows);
      body(chunk, chunk * rows, part);
    }
  });
}

}  // namespace greedynas::norm
