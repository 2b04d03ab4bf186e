// The channel shuffle of ShuffleNetV2 (https://arxiv.org/abs/1807.11164) with its split, as moves of elements, on the
// CPU.
//
// Tensors are rows of neighbouring channels, one row a pixel; rows may lie further apart than their channels reach.
// Shuffled, 2 * half channels are interleaved: channel 2 * i + h comes from channel h * half + i. Elements are moved as
// they are: 2 and 4 bytes have their own code, every other size is copied byte by byte. Results do not depend on the
// number of threads.
#pragma once

#include <cstdint>

namespace greedynas::blocks {

// Rows to read; `stride` is in elements.
struct ShuffleRows {
  const void* data;
  std::int64_t stride;
};

struct ShuffleShape {
  std::int64_t rows;
  std::int64_t half;  // channels of either half
  int element_bytes;  // 1 or more
};

// Shuffles x [rows, 2 * half] and writes its first and second half: kept and moved, both [rows, half] without gaps.
// Throws std::invalid_argument, as all of this file, on an element of no bytes.
void shuffle_split(const ShuffleShape& shape, ShuffleRows x, void* kept, void* moved, int threads);

// The inverse, which is the gradient too: from [rows, half] each to x [rows, 2 * half] without gaps.
void shuffle_merge(const ShuffleShape& shape, ShuffleRows kept, ShuffleRows moved, void* x, int threads);

}  // namespace greedynas::blocks
