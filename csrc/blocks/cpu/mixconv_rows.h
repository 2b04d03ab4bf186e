// The inner products of mixconv over rows of pixels, one vector of channels (V) a pixel.
//
// Both hold the sums of several results in registers, load each input once and use it for all of them. Tiles are sized
// for the 16 or 32 vector registers; widths of 7 and 8 come without waste.
#pragma once

#include "blocks/cpu/mixconv_kernels.h"
#include "cpu/vec_generic.h"

// On loops over registers that may be longer than 16. Left rolled under sanitizers, which instrument every access:
// unrolled, compilation takes minutes a file.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GREEDYNAS_UNROLL_ALL
#else
#define GREEDYNAS_UNROLL_ALL _Pragma("GCC unroll 64")
#endif

namespace greedynas::blocks {

template <class V>
inline constexpr bool kManyRegisters = V::width == 16;

// Two narrow tiles in one, where there are many registers: 7 or 8 sums just hide the latency of an addition, and each
// row of taps would be loaded twice as often.
template <class V>
inline constexpr int kWidestTile = kManyRegisters<V> ? 2 * kMixconvOverrun : kMixconvOverrun;

// Results of a tile that are added to statistics together: a narrow tile's, so that all levels give the same bits.
template <int kTile>
inline constexpr int kNarrowTile = kTile > kMixconvOverrun ? kTile / 2 : kTile;

// Rows of tensors that are needed soon. The products fetch them, some pixels a tile, so that memory is busy while the
// multipliers are: into L2 only, for the workspace's rows fill L1.
struct MixconvFetch {
  struct Row {
    const char* first = nullptr;  // nullptr: none
    std::int64_t pixel_bytes = 0;
  };
  Row rows[2];
  int vector_bytes = 0;

  template <int kTile>
  GREEDYNAS_VEC_INLINE void fetch(int vector, std::int64_t j) const {
    constexpr int kLineBytes = 64;
    const std::int64_t offset = vector * vector_bytes;
    if (offset % kLineBytes != 0) return;  // a line that came with the vector before
    for (const Row& row : rows) {
      if (row.first == nullptr) continue;
      const char* pixel = row.first + offset + j * row.pixel_bytes;
      GREEDYNAS_UNROLL
      for (int t = 0; t < kTile; ++t, pixel += row.pixel_bytes) __builtin_prefetch(pixel, 0, 2);
    }
  }
};

// Some pixels to correlate with rows of taps: rows[y] + pixel * width, weights + y * weight_step. From a vector of
// channels to the next one it is `plane` floats in rows and `weight_plane` in weights.
struct MixconvTaps {
  const float* const* rows;
  int num_rows;
  const float* weights;
  std::int64_t weight_step, plane, weight_plane;
  MixconvFetch fetch;
};

// So many results of a vector of channels, which belong to pixels first, first + 1, ... of a row.
struct MixconvTile {
  const float* results;  // [count][width]
  int count, vector;
  std::int64_t first;
};

// How a vector of a row and one of taps (or of gradients) add to sums: add(row, taps, sums).
template <class V>
struct MixconvProducts {
  GREEDYNAS_VEC_INLINE static V add(V row, V taps, V sums) { return fma(row, taps, sums); }
};

// sums[t] += sum over i < kCount of row[t * kStride + kFirst + i] * weights[kFirst + i].
template <class V, int kFirst, int kCount, int kStride, class Products, int kTile>
GREEDYNAS_VEC_INLINE void add_taps(const float* row, const float* weights, V (&sums)[kTile]) {
  V taps[kCount];
  GREEDYNAS_UNROLL_ALL
  for (int i = 0; i < kCount; ++i) taps[i] = V::load_to_register(weights + (kFirst + i) * V::width);
  GREEDYNAS_UNROLL_ALL
  for (int p = 0; p < (kTile - 1) * kStride + kCount; ++p) {
    const V input = V::load_to_register(row + (kFirst + p) * V::width);
    GREEDYNAS_UNROLL_ALL
    for (int t = 0; t < kTile; ++t) {
      const int i = p - t * kStride;
      if (i >= 0 && i < kCount) sums[t] = Products::add(input, taps[i], sums[t]);
    }
  }
}

// Results of kTile pixels, from pixel j on, of one vector of channels, into out.put.
template <class V, int kTaps, int kStride, int kTile, class Products, class Out>
__attribute__((noinline)) void correlate_tile(const MixconvTaps& taps, int vector, std::int64_t j, const Out& out) {
  taps.fetch.fetch<kTile>(vector, j);
  V sums[kTile];
  GREEDYNAS_UNROLL_ALL
  for (int t = 0; t < kTile; ++t) sums[t] = V::set(0.0F);
  const float* weights = taps.weights + vector * taps.weight_plane;
  const std::int64_t offset = vector * taps.plane + j * kStride * V::width;
  for (int y = 0; y < taps.num_rows; ++y, weights += taps.weight_step) {
    const float* row = taps.rows[y] + offset;
    __asm__("" : "+r"(row));  // one register with displacements: GCC would keep an offset for each pixel
    if constexpr (kTaps <= 7 || kManyRegisters<V>) {
      add_taps<V, 0, kTaps, kStride, Products>(row, weights, sums);
    } else {  // two parts, so that the taps of each stay in registers
      constexpr int kHalf = (kTaps + 1) / 2;
      add_taps<V, 0, kHalf, kStride, Products>(row, weights, sums);
      add_taps<V, kHalf, kTaps - kHalf, kStride, Products>(row, weights, sums);
    }
  }
  out.put(sums, vector, j);
}

// Results of correlate_tile in a buffer [kTile][width].
template <class V>
struct MixconvBuffer {
  float* to;

  template <int kTile>
  GREEDYNAS_VEC_INLINE void put(const V (&results)[kTile], int, std::int64_t) const {
    GREEDYNAS_UNROLL_ALL
    for (int t = 0; t < kTile; ++t) results[t].store(to + t * V::width);
  }
};

// For correlate_row: every second column of planes in the workspace, with room for whole tiles.
template <class V>
struct MixconvPlanes {
  static constexpr bool usable = true, takes_all = true;

  float* to;  // [vectors][columns][width]
  std::int64_t plane;

  template <int kTile>
  GREEDYNAS_VEC_INLINE void put(const V (&results)[kTile], int vector, std::int64_t j) const {
    float* const first = to + vector * plane + 2 * j * V::width;
    GREEDYNAS_UNROLL_ALL
    for (int t = 0; t < kTile; ++t) results[t].store(first + 2 * t * V::width);
  }
};

// For correlate_row: all results go through `store`.
struct MixconvIndirect {
  static constexpr bool usable = false, takes_all = false;
};

template <class V, int kTaps, int kStride, class Products, class Out>
GREEDYNAS_VEC_INLINE void correlate_some(int tile, const MixconvTaps& taps, int vector, std::int64_t j,
                                         const Out& out) {
  if constexpr (kManyRegisters<V>) {
    if (tile == 14) return correlate_tile<V, kTaps, kStride, 14, Products>(taps, vector, j, out);
    if (tile == 16) return correlate_tile<V, kTaps, kStride, 16, Products>(taps, vector, j, out);
  }
  if (tile == 4) {
    correlate_tile<V, kTaps, kStride, 4, Products>(taps, vector, j, out);
  } else if (tile == 7) {
    correlate_tile<V, kTaps, kStride, 7, Products>(taps, vector, j, out);
  } else {
    correlate_tile<V, kTaps, kStride, 8, Products>(taps, vector, j, out);
  }
}

// All results of a row and of a block's channels: result j is the correlation at pixel j * kStride. Where `direct` is
// usable, whole tiles of whole vectors go to it, or all if it takes all; others to store(MixconvTile), each after the
// next one's products: a load just after the stores would wait for them.
template <class V, int kTaps, int kStride, class Products = MixconvProducts<V>, class Direct, class Store>
GREEDYNAS_VEC_INLINE void correlate_row(const MixconvTaps& taps, int channels, std::int64_t columns,
                                        const Direct& direct, const Store& store) {
  alignas(64) float buffers[2][kWidestTile<V> * V::width];
  int turn = 0;
  MixconvTile waiting{nullptr, 0, 0, 0};
  int waiting_narrow = 0;
  const auto store_waiting = [&] {
    for (int t = 0; t < waiting.count; t += waiting_narrow) {
      const int rest = waiting.count - t;
      store(MixconvTile{waiting.results + t * V::width, rest < waiting_narrow ? rest : waiting_narrow, waiting.vector,
                        waiting.first + t});
    }
  };
  const bool sevens = columns % 7 == 0 && columns % 8 != 0;
  for (std::int64_t j = 0; j < columns;) {
    const std::int64_t left = columns - j;
    const int narrow = left <= 4 ? 4 : sevens || left == 7 ? 7 : 8;
    const int tile = narrow > 4 && kManyRegisters<V> && left >= 2 * narrow ? 2 * narrow : narrow;
    const int count = left < tile ? static_cast<int>(left) : tile;
    for (int vector = 0; vector * V::width < channels; ++vector) {
      bool stored = false;
      if constexpr (Direct::usable) {
        stored = Direct::takes_all || (count == tile && (vector + 1) * V::width <= channels);
        if (stored) correlate_some<V, kTaps, kStride, Products>(tile, taps, vector, j, direct);
      }
      if (!stored) {
        correlate_some<V, kTaps, kStride, Products>(tile, taps, vector, j, MixconvBuffer<V>{buffers[turn]});
        store_waiting();
        waiting = {buffers[turn], count, vector, j};
        waiting_narrow = narrow;
        turn ^= 1;
      }
    }
    j += tile;
  }
  store_waiting();
}

// Gradient of kRows consecutive rows of weights from one row of grad, which is zero beyond its end:
// sums[r][i] += sum over j < columns of grad[j] * rows[r][j * kStride + i], with rows `offset` floats on.
template <class V, int kKernel, int kStride, int kRows, int kTile, class Products>
__attribute__((noinline)) void weight_grad_rows(const float* grad, const float* const* rows, std::int64_t offset,
                                                std::int64_t columns, float* sums) {
  V local[kRows][kKernel];
  GREEDYNAS_UNROLL_ALL
  for (int r = 0; r < kRows; ++r) {
    GREEDYNAS_UNROLL_ALL
    for (int i = 0; i < kKernel; ++i) local[r][i] = V::load(sums + (r * kKernel + i) * V::width);
  }
  const float* inputs[kRows];
  for (int r = 0; r < kRows; ++r) inputs[r] = rows[r] + offset;
  for (std::int64_t j = 0; j < columns; j += kTile) {
    V grads[kTile];
    GREEDYNAS_UNROLL_ALL
    for (int t = 0; t < kTile; ++t) grads[t] = V::load_to_register(grad + (j + t) * V::width);
    GREEDYNAS_UNROLL_ALL
    for (int r = 0; r < kRows; ++r) {
      const float* row = inputs[r] + j * kStride * V::width;
      // Hides that tiles overlap: GCC would carry the shared inputs over in registers that there are not.
      __asm__("" : "+r"(row));
      GREEDYNAS_UNROLL_ALL
      for (int p = 0; p < (kTile - 1) * kStride + kKernel; ++p) {
        const V input = V::load_to_register(row + p * V::width);
        GREEDYNAS_UNROLL_ALL
        for (int t = 0; t < kTile; ++t) {
          const int i = p - t * kStride;
          if (i >= 0 && i < kKernel) local[r][i] = Products::add(input, grads[t], local[r][i]);
        }
      }
    }
  }
  GREEDYNAS_UNROLL_ALL
  for (int r = 0; r < kRows; ++r) {
    GREEDYNAS_UNROLL_ALL
    for (int i = 0; i < kKernel; ++i) local[r][i].store(sums + (r * kKernel + i) * V::width);
  }
}

// The same for all rows that the image has: at least eight sums at a time keep both multipliers busy.
template <class V, int kKernel, int kStride, class Products = MixconvProducts<V>>
GREEDYNAS_VEC_INLINE void weight_grad_row(const float* grad, const float* const* rows, int num_rows,
                                          std::int64_t offset, std::int64_t columns, float* sums) {
  constexpr int kRows = kKernel == 3 ? 3 : kManyRegisters<V> || kKernel == 5 ? 2 : 1;
  constexpr int kSums = kRows * kKernel;
  constexpr int kTile = kSums <= (kManyRegisters<V> ? 24 : 8) ? 7 : 4;
  constexpr int kTileOfOne = kKernel <= (kManyRegisters<V> ? 24 : 8) ? 7 : 4;
  int row = 0;
  for (; row + kRows <= num_rows; row += kRows) {
    weight_grad_rows<V, kKernel, kStride, kRows, kTile, Products>(grad, rows + row, offset, columns,
                                                                  sums + row * kKernel * V::width);
  }
  for (; row < num_rows; ++row) {
    weight_grad_rows<V, kKernel, kStride, 1, kTileOfOne, Products>(grad, rows + row, offset, columns,
                                                                   sums + row * kKernel * V::width);
  }
}

}  // namespace greedynas::blocks
