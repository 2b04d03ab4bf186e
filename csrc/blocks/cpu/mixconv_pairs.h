// mixconv in bf16 by products of pairs of numbers, which processors with AVX512-BF16 add to a sum in one instruction.
//
// A word of the workspace holds a channel's numbers at one pixel of two neighbouring rows, the upper row's in its lower
// half, and a word of the weights those of two neighbouring taps of a column. Rows of words take the place of the rows
// of floats in mixconv_rows.h, with half as many products.
// Bits differ from other levels': sums have another order, subnormal numbers count as zero, and one that is not finite
// reaches a row further, where the other half of its word belongs to the kernel.
// For stride 1, bf16 weights, and nothing but the convolution and its statistics; all else is left to another kernel.
#pragma once

#include "blocks/cpu/mixconv_backward.h"

namespace greedynas::blocks {

// A row of a tensor from the block's first channel on, or one of zeros outside the image.
struct MixconvHalfRow {
  const std::uint16_t* first;
  std::int64_t pixel;
};

GREEDYNAS_VEC_INLINE MixconvHalfRow half_row(const MixconvGeometry& geometry, const MixconvBlock& block,
                                             const MixconvTensor& tensor, std::int64_t image, std::int64_t row) {
  alignas(64) static constexpr std::uint16_t kZeros[kMixconvBlock] = {};
  if (row < 0 || row >= geometry.height) return {kZeros, 0};
  const void* const address = mixconv_address(geometry, tensor, image, row, block.first_channel);
  return {static_cast<const std::uint16_t*>(address), tensor.pixel};
}

template <class V, class Pairs>
void load_row_pair(MixconvHalfRow upper, MixconvHalfRow lower, std::int64_t pixels, int channels, std::int64_t plane,
                   float* out) {
  for_vectors<V>(channels, [&](auto vectors, int vector, int lanes) __attribute__((always_inline)) {
    const std::uint16_t* a = upper.first + vector * V::width;
    const std::uint16_t* b = lower.first + vector * V::width;
    float* to = out + vector * plane;
    for (std::int64_t j = 0; j < pixels; ++j, a += upper.pixel, b += lower.pixel, to += V::width) {
      GREEDYNAS_UNROLL
      for (int n = 0; n < decltype(vectors)::count; ++n) {
        Pairs::join(a + n * V::width, b + n * V::width, lanes).store(to + n * plane);
      }
    }
  });
}

// A ring of rows of words. kStep is 2 if each row of the image is in one pair, which begins with an even row, and 1 if
// it is in two: then the first pair begins above the image.
template <class V, class Pairs, int kSlots, int kStep>
struct MixconvPairRing {
  static constexpr std::int64_t kBegin = kStep == 1 ? -1 : 0;

  const MixconvGeometry& geometry;
  const MixconvBlock& block;
  const MixconvTensor& tensor;
  MixconvRing<kSlots> ring;
  std::int64_t loaded = kBegin;

  // The pair that begins with row i of the image.
  GREEDYNAS_VEC_INLINE float* row(std::int64_t i, int width) const { return ring.row((i - kBegin) / kStep, width); }
  GREEDYNAS_VEC_INLINE std::int64_t plane() const { return ring.columns * V::width; }

  GREEDYNAS_VEC_INLINE void begin_image() { loaded = kBegin; }
  // All pairs that begin before row `end`.
  GREEDYNAS_VEC_INLINE void load_until(std::int64_t image, std::int64_t end) {
    for (; loaded < end; loaded += kStep) {
      load_row_pair<V, Pairs>(half_row(geometry, block, tensor, image, loaded),
                              half_row(geometry, block, tensor, image, loaded + 1), geometry.width, block.channels,
                              plane(), row(loaded, V::width));
    }
  }
};

// Rows of words that a kernel meets, wherever it begins.
template <int kKernel>
inline constexpr int kMixconvPairs = (kKernel + 1) / 2;

// [channels, taps] -> [vectors][2][pairs][kernel][width] words: for kernels that begin with an even row and, beside a
// zero, for those that begin with an odd one. Turned, the last tap comes first. Absent channels are zero.
template <class V, int kKernel>
void pack_weight_pairs(const MixconvBlock& block, bool turned, float* out) {
  constexpr int kTaps = kKernel * kKernel, kWords = kMixconvPairs<kKernel> * kKernel;
  const std::uint16_t* weights = static_cast<const std::uint16_t*>(block.weight);
  std::uint16_t halves[kWords * V::width][2];
  __builtin_memset(halves, 0, sizeof halves);
  for (int first = 0; first < block.channels; first += V::width, out += 2 * kWords * V::width) {
    const int live = static_cast<int>(smaller(V::width, block.channels - first));
    if (live < V::width) __builtin_memset(halves, 0, sizeof halves);
    for (int lane = 0; lane < live; ++lane, weights += kTaps) {
      for (int i = 0; i < kTaps; ++i) {
        const int u = i / kKernel, v = i % kKernel;
        halves[(u / 2 * kKernel + v) * V::width + lane][u % 2] = weights[turned ? kTaps - 1 - i : i];
      }
    }
    float* const odd = out + kWords * V::width;
    typename MixconvLanes<V>::Words above[kKernel] = {};
    for (int i = 0; i < kWords; ++i) {
      typename MixconvLanes<V>::Words words, &before = above[i % kKernel];
      __builtin_memcpy(&words, halves + i * V::width, sizeof words);
      const typename MixconvLanes<V>::Words shifted = words << 16 | before >> 16;
      __builtin_memcpy(out + i * V::width, &words, sizeof words);
      __builtin_memcpy(odd + i * V::width, &shifted, sizeof shifted);
      before = words;
    }
  }
}

template <class V, class Pairs>
struct MixconvPairProducts {
  GREEDYNAS_VEC_INLINE static V add(V row, V taps, V sums) { return Pairs::multiply_add(row, taps, sums); }
};

// As MixconvDirect without statistics, rounded in one instruction.
template <class V, class Pairs>
struct MixconvPairDirect {
  static constexpr bool usable = true, takes_all = false;

  std::uint16_t* to;
  std::int64_t pixel, ahead;

  template <int kTile>
  GREEDYNAS_VEC_INLINE void put(const V (&results)[kTile], int vector, std::int64_t j) const {
    const std::int64_t step = pixel;
    std::uint16_t* p = to + j * step + vector * V::width;
    GREEDYNAS_UNROLL_ALL
    for (int t = 0; t < kTile; ++t, p += step) {
      __builtin_prefetch(p + ahead, 1);
      Pairs::store_bf16(results[t], p);
    }
  }
};

// Row y of a tensor of results: the correlation of the kernel, which is in `weights`, with the rows of a ring that has
// those from y - kKernel / 2 on. `stats` as for store_results.
template <class V, class Pairs, int kKernel, class Ring>
GREEDYNAS_VEC_INLINE void correlate_pairs(const Ring& from, const float* weights, const MixconvFetch& fetch,
                                          const MixconvTensor& results, std::int64_t image, std::int64_t y,
                                          float* stats) {
  constexpr int kPad = kKernel / 2, kPairs = kMixconvPairs<kKernel>;
  constexpr int kWords = kPairs * kKernel * V::width;
  const MixconvGeometry& geometry = from.geometry;
  const MixconvBlock& block = from.block;
  const bool odd = (y - kPad) % 2 != 0;
  const std::int64_t top = y - kPad - (odd ? 1 : 0), first = larger(top, 0);
  const std::int64_t end = smaller(top + 2 * kPairs, geometry.height);
  const float* rows[kPairs];
  int count = 0;
  for (std::int64_t i = first; i < end; i += 2) rows[count++] = from.row(i, V::width) - kPad * V::width;
  const MixconvTaps taps{rows,
                         count,
                         weights + (odd ? kWords : 0) + (first - top) / 2 * kKernel * V::width,
                         kKernel * V::width,
                         from.plane(),
                         2 * kWords,
                         fetch};
  const MixconvRow row{results.pixel, geometry.width, 0, block.channels, 0, results.row};
  void* const address = mixconv_address(geometry, results, image, y, block.first_channel);
  std::uint16_t* const to = static_cast<std::uint16_t*>(address);
  const auto into = [&](const auto& direct) __attribute__((always_inline)) {
    correlate_row<V, kKernel, 1, MixconvPairProducts<V, Pairs>>(
        taps, block.channels, geometry.width, direct,
        [&](const MixconvTile& tile) { store_results<V, std::uint16_t>(tile, to, row, stats); });
  };
  if (stats == nullptr) {
    into(MixconvPairDirect<V, Pairs>{to, row.pixel, row.ahead});
  } else {
    into(MixconvDirect<V, std::uint16_t, true>{to, row.pixel, row.ahead, stats, false});
  }
}

template <class V, class Pairs, int kKernel>
void forward_pairs(const MixconvForwardTask& task) {
  const MixconvGeometry& geometry = *task.geometry;
  const MixconvBlock& block = task.block;
  constexpr int kPad = kKernel / 2, kPairs = kMixconvPairs<kKernel>;
  const MixconvRing<kPairs> ring{block.workspace, mixconv_input_columns(geometry, kKernel), kPad, block.width};
  float* const weights = ring.end();
  ring.clear();
  pack_weight_pairs<V, kKernel>(block, false, weights);
  if (task.stats != nullptr) __builtin_memset(task.stats, 0, 2 * kMixconvBlock * sizeof(float));

  MixconvPairRing<V, Pairs, kPairs, 2> inputs{geometry, block, geometry.x, ring};
  for (std::int64_t image = block.image_begin; image < block.image_end; ++image) {
    inputs.begin_image();
    for (std::int64_t y = 0; y < geometry.height; ++y) {
      inputs.load_until(image, smaller(y + kPad + 1, geometry.height));
      MixconvFetch fetch{{}, V::width * element_bytes(geometry)};
      fetch.rows[0] = row_to_fetch(geometry, block, geometry.x, geometry.height, image, y + kPad + 2);
      correlate_pairs<V, Pairs, kKernel>(inputs, weights, fetch, task.y, image, y, task.stats);
    }
  }
}

template <class V, class Pairs, int kKernel>
void backward_pairs(const MixconvBackwardTask& task) {
  const MixconvGeometry& geometry = *task.geometry;
  const MixconvBlock& block = task.block;
  constexpr int kPad = kKernel / 2, kPairs = kMixconvPairs<kKernel>, kTaps = kKernel * kKernel;
  const MixconvRing<kKernel> input_ring{block.workspace, mixconv_input_columns(geometry, kKernel), kPad, block.width};
  const MixconvRing<kPairs> grad_ring{input_ring.end(), mixconv_grad_columns(geometry, kKernel), kKernel, block.width};
  // The weights are in there twice, for which a ring of half as many rows leaves room in mixconv_channel_floats.
  float* const weights = grad_ring.end();
  float* const sums = weights + 2 * kPairs * kKernel * block.width;
  input_ring.clear();
  grad_ring.clear();
  pack_weight_pairs<V, kKernel>(block, true, weights);
  __builtin_memset(sums, 0, static_cast<std::size_t>(kTaps * block.width) * sizeof(float));

  const bool wants_x_grad = task.x_grad.data != nullptr, wants_weight_grad = task.weight_grad != nullptr;
  MixconvPairRing<V, Pairs, kPairs, 2> grads{geometry, block, task.grad, grad_ring};
  MixconvPairRing<V, Pairs, kKernel, 1> inputs{geometry, block, geometry.x, input_ring};
  for (std::int64_t image = block.image_begin; image < block.image_end; ++image) {
    grads.begin_image();
    inputs.begin_image();
    std::int64_t done = 0;  // rows of x_grad
    for (std::int64_t y = 0; y < geometry.height; y += 2) {
      grads.load_until(image, y + 1);
      if (wants_weight_grad) {
        // Rows y and y + 1 of grad with the pairs of rows of x that the kernel's rows meet there.
        const std::int64_t top = y - kPad, first = larger(top, -1);
        const std::int64_t end = smaller(top + kKernel, geometry.height);
        inputs.load_until(image, end);
        const float* rows[kKernel];
        for (std::int64_t i = first; i < end; ++i) rows[i - first] = inputs.row(i, 0);
        const float* const grad = grads.row(y, V::width);
        for (int vector = 0; vector * V::width < block.channels; ++vector) {
          weight_grad_row<V, kKernel, 1, MixconvPairProducts<V, Pairs>>(
              grad + vector * grads.plane(), rows, static_cast<int>(end - first), vector * inputs.plane(),
              geometry.width, sums + (vector * kTaps + (first - top) * kKernel) * V::width);
        }
      }
      if (!wants_x_grad) continue;
      for (; done < geometry.height && smaller(done + kPad, geometry.height - 1) <= y + 1; ++done) {
        MixconvFetch fetch{{}, V::width * element_bytes(geometry)};
        fetch.rows[0] = row_to_fetch(geometry, block, task.grad, geometry.height, image, done + kPad + 2);
        if (wants_weight_grad) {
          fetch.rows[1] = row_to_fetch(geometry, block, geometry.x, geometry.height, image, done + 2 * kPad + 2);
        }
        correlate_pairs<V, Pairs, kKernel>(grads, weights, fetch, task.x_grad, image, done, nullptr);
      }
    }
  }
  if (wants_weight_grad) spread_sums<V>(sums, block.width, kTaps, task.weight_grad);
}

// Whether pairs of rows are for such a task. Of a kernel of one tap each would be half empty.
GREEDYNAS_VEC_INLINE bool has_pairs(const MixconvGeometry& geometry, const MixconvBlock& block) {
  return geometry.storage == MixconvStorage::bf16 && geometry.weight_storage == MixconvStorage::bf16 &&
         geometry.stride == 1 && geometry.activation == MixconvActivation::none && block.rows == nullptr &&
         block.kernel > 1;
}

template <class V, class Pairs, const MixconvKernel* kOther>
void forward_pairs_any(const MixconvForwardTask& task) {
  if (!has_pairs(*task.geometry, task.block) || task.moments.kernel != nullptr) return kOther->forward(task);
  with_kernel(task.block.kernel,
              [&](auto is) __attribute__((always_inline)) { forward_pairs<V, Pairs, decltype(is)::value>(task); });
}

template <class V, class Pairs, const MixconvKernel* kOther>
void backward_pairs_any(const MixconvBackwardTask& task) {
  const bool plain = task.stats_grad == nullptr && task.gate.activation == MixconvActivation::none;
  if (!has_pairs(*task.geometry, task.block) || !plain) return kOther->backward(task);
  with_kernel(task.block.kernel,
              [&](auto is) __attribute__((always_inline)) { backward_pairs<V, Pairs, decltype(is)::value>(task); });
}

// `kOther` takes the tasks for which there are no products of pairs. See cpu/pairs_avx512.h for `Pairs`.
template <class V, class Pairs, const MixconvKernel* kOther>
constexpr MixconvKernel mixconv_pair_kernel_over(const char* name) {
  static_assert(kMixconvLine % V::width == 0);
  return {name, &forward_pairs_any<V, Pairs, kOther>, &backward_pairs_any<V, Pairs, kOther>};
}

}  // namespace greedynas::blocks
