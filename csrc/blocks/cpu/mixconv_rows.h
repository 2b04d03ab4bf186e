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

// Some pixels to correlate with rows of taps: rows[y] + pixel * width, weights + y * weight_step.
struct MixconvTaps {
  const float* const* rows;
  int num_rows;
  const float* weights;
  std::int64_t weight_step;
};

// sums[t] += sum over i < kCount of row[t * kStride + kFirst + i] * weights[kFirst + i].
template <class V, int kFirst, int kCount, int kStride, int kTile>
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
      if (i >= 0 && i < kCount) sums[t] = fma(input, taps[i], sums[t]);
    }
  }
}

// kTile results, kOut floats apart.
template <class V, int kTaps, int kStride, int kTile>
__attribute__((noinline)) void correlate_tile(const MixconvTaps& taps, std::int64_t offset, float* out,
                                              std::int64_t out_step) {
  V sums[kTile];
  GREEDYNAS_UNROLL_ALL
  for (int t = 0; t < kTile; ++t) sums[t] = V::set(0.0F);
  const float* weights = taps.weights;
  for (int y = 0; y < taps.num_rows; ++y, weights += taps.weight_step) {
    const float* row = taps.rows[y] + offset;
    __asm__("" : "+r"(row));  // one register with displacements: GCC would keep an offset for each pixel
    if constexpr (kTaps <= 7 || kManyRegisters<V>) {
      add_taps<V, 0, kTaps, kStride>(row, weights, sums);
    } else {  // two parts, so that the taps of each stay in registers
      constexpr int kHalf = (kTaps + 1) / 2;
      add_taps<V, 0, kHalf, kStride>(row, weights, sums);
      add_taps<V, kHalf, kTaps - kHalf, kStride>(row, weights, sums);
    }
  }
  GREEDYNAS_UNROLL_ALL
  for (int t = 0; t < kTile; ++t) sums[t].store(out + t * out_step);
}

// At least `columns` results, at most kMixconvOverrun - 1 more. Result j is the correlation at pixel j * kStride.
template <class V, int kTaps, int kStride>
GREEDYNAS_VEC_INLINE void correlate_row(const MixconvTaps& taps, std::int64_t columns, float* out,
                                        std::int64_t out_step) {
  const bool sevens = columns % 7 == 0 && columns % 8 != 0;
  for (std::int64_t j = 0; j < columns;) {
    const std::int64_t offset = j * kStride * V::width;
    float* const to = out + j * out_step;
    if (columns - j <= 4) {
      correlate_tile<V, kTaps, kStride, 4>(taps, offset, to, out_step);
      j += 4;
    } else if (sevens || columns - j == 7) {
      correlate_tile<V, kTaps, kStride, 7>(taps, offset, to, out_step);
      j += 7;
    } else {
      correlate_tile<V, kTaps, kStride, 8>(taps, offset, to, out_step);
      j += 8;
    }
  }
}

// Gradient of kRows consecutive rows of weights from one row of grad, which is zero beyond its end:
// sums[r][i] += sum over j < columns of grad[j] * rows[r][j * kStride + i].
template <class V, int kKernel, int kStride, int kRows, int kTile>
__attribute__((noinline)) void weight_grad_rows(const float* grad, const float* const* rows, std::int64_t columns,
                                                float* sums) {
  V local[kRows][kKernel];
  GREEDYNAS_UNROLL_ALL
  for (int r = 0; r < kRows; ++r) {
    GREEDYNAS_UNROLL_ALL
    for (int i = 0; i < kKernel; ++i) local[r][i] = V::load(sums + (r * kKernel + i) * V::width);
  }
  const float* inputs[kRows];
  for (int r = 0; r < kRows; ++r) inputs[r] = rows[r];
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
          if (i >= 0 && i < kKernel) local[r][i] = fma(input, grads[t], local[r][i]);
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
template <class V, int kKernel, int kStride>
GREEDYNAS_VEC_INLINE void weight_grad_row(const float* grad, const float* const* rows, int num_rows,
                                          std::int64_t columns, float* sums) {
  constexpr int kRows = kKernel == 3 ? 3 : kManyRegisters<V> || kKernel == 5 ? 2 : 1;
  constexpr int kSums = kRows * kKernel;
  constexpr int kTile = kSums <= (kManyRegisters<V> ? 24 : 8) ? 7 : 4;
  constexpr int kTileOfOne = kKernel <= (kManyRegisters<V> ? 24 : 8) ? 7 : 4;
  int row = 0;
  for (; row + kRows <= num_rows; row += kRows) {
    weight_grad_rows<V, kKernel, kStride, kRows, kTile>(grad, rows + row, columns, sums + row * kKernel * V::width);
  }
  for (; row < num_rows; ++row) {
    weight_grad_rows<V, kKernel, kStride, 1, kTileOfOne>(grad, rows + row, columns, sums + row * kKernel * V::width);
  }
}

}  // namespace greedynas::blocks
