// The backward pass of mixconv_block.h.
#pragma once

#include "blocks/cpu/mixconv_block.h"

namespace greedynas::blocks {

// Order of the weights for the gradient of x, which is a correlation of grad with the kernel turned round. At stride 2
// the even and the odd columns of x meet every second tap: the taps of the one come before those of the other.
template <int kKernel, int kStride>
GREEDYNAS_VEC_INLINE void turned_order(int* order) {
  constexpr int kFirstTaps = kStride == 1 ? kKernel : (kKernel + 1) / 2;
  for (int y = 0; y < kKernel; ++y) {
    for (int i = 0; i < kKernel; ++i) {
      const int tap = i < kFirstTaps ? kKernel - 1 - kStride * i : kKernel - 2 - kStride * (i - kFirstTaps);
      order[y * kKernel + i] = y * kKernel + tap;
    }
  }
}

template <class V, int kKernel, int kStride>
struct MixconvSweep {
  static constexpr int kPad = kKernel / 2;
  static constexpr int kTaps = kKernel * kKernel;

  const MixconvBackwardTask& task;
  const MixconvGeometry& geometry;
  const MixconvBlock& block;
  MixconvRowFunctions functions;
  MixconvRing<kKernel> grads;
  const float* weights;  // in turned order
  float* results;        // a row of the gradient of x, for stride 2
  float* sums;           // of the gradient of the weights: [vectors][taps][width]

  GREEDYNAS_VEC_INLINE static bool wants_x_grad(const MixconvBackwardTask& of) {
    return of.x_grad.data != nullptr || of.block.rows != nullptr;
  }
  // Whether the products for the gradient of x fetch the rows of grad and x that are loaded next.
  GREEDYNAS_VEC_INLINE static bool products_fetch(const MixconvBackwardTask& of) {
    return kStride == 1 && wants_x_grad(of);
  }
  // What is loaded just after row y of the gradient of x is done.
  GREEDYNAS_VEC_INLINE MixconvFetch fetch_after(std::int64_t image, std::int64_t y) const {
    MixconvFetch result{{}, V::width * element_bytes(geometry)};
    if constexpr (kStride == 1) {
      result.rows[0] = row_to_fetch(geometry, block, task.grad, geometry.height, image, y + kPad + 1);
      if (sums != nullptr && block.rows == nullptr) {
        result.rows[1] = row_to_fetch(geometry, block, geometry.x, geometry.height, image, y + 2 * kPad + 1);
      }
    }
    return result;
  }

  // Row y of x and row i of grad meet in row top_tap(y) - i * stride of the kernel.
  GREEDYNAS_VEC_INLINE std::int64_t top_tap(std::int64_t y) const {
    return y + kPad - late_rows<kKernel, kStride>(geometry);
  }
  GREEDYNAS_VEC_INLINE std::int64_t first_grad_row(std::int64_t y) const {
    return larger(0, (top_tap(y) - 2 * kPad + kStride - 1) >> (kStride - 1));
  }
  GREEDYNAS_VEC_INLINE std::int64_t last_grad_row(std::int64_t y) const {
    return smaller(geometry.out_height - 1, top_tap(y) / kStride);
  }

  // That row y of grad meets, perhaps before the image.
  GREEDYNAS_VEC_INLINE std::int64_t first_input_row(std::int64_t y) const {
    return y * kStride - kPad + late_rows<kKernel, kStride>(geometry);
  }

  GREEDYNAS_VEC_INLINE void load_grad(std::int64_t image, std::int64_t y) const {
    const bool last = y == geometry.out_height - 1, fetched = products_fetch(task);
    const std::int64_t plane = grads.columns * V::width, channel = block.first_channel;
    MixconvGradSource source{};
    if (task.stats_grad != nullptr) {
      source.stats = {task.stats_grad + task.stats_row + channel, task.stats_grad + channel};
    }
    if (task.gate.activation != MixconvActivation::none) {
      const std::int64_t of_image = image * task.stats_row + channel;
      source.gate = {task.gate.gates + of_image, task.gate.offsets + of_image};
      source.norm = {task.gate.scale + channel, task.gate.shift + channel};
    }
    if (source.reads_y()) source.y = mixconv_address(geometry, task.y, image, y, channel);
    functions.load_grad(mixconv_address(geometry, task.grad, image, y, channel),
                        row_of<V>(task.grad, geometry.out_width, plane, block.channels, last, fetched),
                        row_of<V>(task.y, geometry.out_width, plane, block.channels, last, false), source,
                        grads.row(y, V::width));
  }

  GREEDYNAS_VEC_INLINE void add_weight_grad(const MixconvRing<kKernel>& inputs, std::int64_t y) const {
    const std::int64_t top = first_input_row(y), first = larger(top, 0);
    const std::int64_t end = smaller(top + kKernel, geometry.height);
    const float* rows[kKernel];
    for (std::int64_t i = first; i < end; ++i) {
      rows[i - first] = inputs.row(i, 0) + late_columns<kKernel, kStride>(geometry) * V::width;
    }
    const float* const grad = grads.row(y, V::width);
    for (int vector = 0; vector * V::width < block.channels; ++vector) {
      weight_grad_row<V, kKernel, kStride>(grad + vector * grads.columns * V::width, rows,
                                           static_cast<int>(end - first), vector * inputs.columns * V::width,
                                           geometry.out_width,
                                           sums + (vector * kTaps + (first - top) * kKernel) * V::width);
    }
  }

  // Gradient of row y of the activated x, in tiles.
  template <class Direct, class Store>
  GREEDYNAS_VEC_INLINE void input_grad(std::int64_t image, std::int64_t y, const Direct& direct,
                                       const Store& store) const {
    const std::int64_t first = first_grad_row(y);
    const int count = static_cast<int>(last_grad_row(y) - first + 1);
    const float* rows[kKernel];
    for (int i = 0; i < count; ++i) rows[i] = grads.row(first + i, V::width);
    MixconvTaps taps{rows,
                     count,
                     weights + (top_tap(y) - first * kStride) * kKernel * V::width,
                     -kStride * kKernel * V::width,
                     grads.columns * V::width,
                     kTaps * V::width,
                     fetch_after(image, y)};
    if constexpr (kStride == 1) {
      for (int i = 0; i < count; ++i) rows[i] -= kPad * V::width;
      correlate_row<V, kKernel, 1>(taps, block.channels, geometry.width, direct, store);
    } else {
      // Column 2 m + a + late meets grad's columns from m + offset on; the first taps belong to a with the parity of
      // kPad. Where a and late are 1, the image begins at m = -1.
      constexpr int kFirstTaps = (kKernel + 1) / 2, kOtherTaps = kKernel / 2;
      constexpr int kFirst = kPad % 2, kOther = 1 - kFirst;
      const std::int64_t late = late_columns<kKernel, kStride>(geometry);
      const std::int64_t first_column = kFirst ^ late, other_column = kOther ^ late;
      const std::int64_t first_offset = (kFirst - kPad) / 2 - (kFirst & late);
      const std::int64_t other_offset = (kOther - kPad + 1) / 2 - (kOther & late);
      for (int i = 0; i < count; ++i) rows[i] += first_offset * V::width;
      const std::int64_t plane = mixconv_result_columns(geometry) * V::width;
      correlate_row<V, kFirstTaps, 1>(taps, block.channels, (geometry.width - first_column + 1) / 2,
                                      MixconvPlanes<V>{results + first_column * V::width, plane}, store);
      for (int i = 0; i < count; ++i) rows[i] += (other_offset - first_offset) * V::width;
      if (kOtherTaps == 0) taps.num_rows = 0;
      taps.weights += kFirstTaps * V::width;
      correlate_row<V, (kOtherTaps > 0 ? kOtherTaps : 1), 1>(
          taps, block.channels, (geometry.width - other_column + 1) / 2,
          MixconvPlanes<V>{results + other_column * V::width, plane}, store);
      constexpr std::int64_t kPart = 8;
      for (std::int64_t j = 0; j < geometry.width; j += kPart) {
        const int part = static_cast<int>(smaller(kPart, geometry.width - j));
        for (int vector = 0; vector * V::width < block.channels; ++vector) {
          store(MixconvTile{results + vector * plane + j * V::width, part, vector, j});
        }
      }
    }
  }

  GREEDYNAS_VEC_INLINE void store_input_grad(std::int64_t image, std::int64_t y) const {
    const bool made = block.rows != nullptr;
    const MixconvRow x_row = row_of<V>(input_tensor(geometry, block), geometry.width, 0, block.channels,
                                       y == geometry.height - 1, made || sums != nullptr);
    const MixconvRow out{
        made ? block.width : task.x_grad.pixel, geometry.width, 0, block.channels, 0, made ? 0 : task.x_grad.row};
    const MixconvNorm norm = block_norm(geometry, block);
    const void* const x = input_row(geometry, block, image, y);
    void* to = nullptr;
    if (made) {
      to = block.rows->grad(image, y);
    } else {
      to = mixconv_address(geometry, task.x_grad, image, y, block.first_channel);
    }
    const auto store = [&](const MixconvTile& tile) {
      functions.store_input_grads(tile, x, x_row, norm, to, out, task.norm_grad);
    };
    if constexpr (kDirect<kKernel, kStride>) {
      if (geometry.activation == MixconvActivation::none) {
        return with_direct<V>(geometry.storage, to, out, nullptr, task.streams && !made,
                              [&](const auto& direct)
                                  __attribute__((always_inline)) { input_grad(image, y, direct, store); });
      }
    }
    input_grad(image, y, MixconvIndirect(), store);
  }

  void sweep(std::int64_t image, MixconvInput<V, kKernel>& input) const {
    input.loaded = 0;
    std::int64_t done = 0;  // rows of x_grad
    for (std::int64_t y = 0; y < geometry.out_height; ++y) {
      load_grad(image, y);
      if (sums != nullptr) {
        input.load_until(functions, image, smaller(first_input_row(y) + kKernel, geometry.height));
        add_weight_grad(input.ring, y);
      }
      if (!wants_x_grad(task)) continue;
      for (; done < geometry.height && last_grad_row(done) <= y; ++done) {
        store_input_grad(image, done);
        if (block.rows != nullptr) block.rows->grad_is_there(image, done);
      }
    }
  }
};

// [vectors][taps][a vector] -> [taps][width]
template <class V>
GREEDYNAS_VEC_INLINE void spread_sums(const float* sums, int width, int taps, float* out) {
  for (int vector = 0; vector * V::width < width; ++vector) {
    for (int tap = 0; tap < taps; ++tap, sums += V::width) {
      V::load(sums).store(out + tap * width + vector * V::width);
    }
  }
}

template <class V, int kKernel, int kStride>
void backward_block(const MixconvBackwardTask& task) {
  const MixconvGeometry& geometry = *task.geometry;
  const MixconvBlock& block = task.block;
  constexpr int kTaps = kKernel * kKernel;
  const MixconvRing<kKernel> inputs{block.workspace, mixconv_input_columns(geometry, kKernel), kKernel / 2,
                                    block.width};
  const MixconvRing<kKernel> grads{inputs.end(), mixconv_grad_columns(geometry, kKernel), kKernel, block.width};
  float* const weights = grads.end();
  inputs.clear();
  grads.clear();
  int order[kTaps];
  turned_order<kKernel, kStride>(order);
  pack_weights<V>(geometry, block, order, weights);
  float* const sums = weights + kTaps * block.width;
  __builtin_memset(sums, 0, static_cast<std::size_t>(kTaps * block.width) * sizeof(float));
  float unwanted[2 * kMixconvBlock];
  MixconvBackwardTask own = task;
  if (own.norm_grad == nullptr) own.norm_grad = unwanted;
  __builtin_memset(own.norm_grad, 0, 2 * kMixconvBlock * sizeof(float));

  MixconvInput<V, kKernel> input{geometry, block, inputs, block_norm(geometry, block),
                                 MixconvSweep<V, kKernel, kStride>::products_fetch(task) || block.rows != nullptr};
  const MixconvSweep<V, kKernel, kStride> sweep{own,
                                                geometry,
                                                block,
                                                row_functions<V>(geometry, task.gate.activation),
                                                grads,
                                                weights,
                                                sums + kTaps * block.width,
                                                task.weight_grad == nullptr ? nullptr : sums};
  for (std::int64_t image = block.image_begin; image < block.image_end; ++image) sweep.sweep(image, input);
  end_streams<V>(task.streams);
  if (task.weight_grad != nullptr) spread_sums<V>(sums, block.width, kTaps, task.weight_grad);
}

template <class V, int kStride>
void forward_of(const MixconvForwardTask& task) {
  with_kernel(task.block.kernel,
              [&](auto is) __attribute__((always_inline)) { forward_block<V, decltype(is)::value, kStride>(task); });
}

template <class V, int kStride>
void backward_of(const MixconvBackwardTask& task) {
  with_kernel(task.block.kernel,
              [&](auto is) __attribute__((always_inline)) { backward_block<V, decltype(is)::value, kStride>(task); });
}

template <class V>
void forward_any(const MixconvForwardTask& task) {
  task.geometry->stride == 1 ? forward_of<V, 1>(task) : forward_of<V, 2>(task);
}

template <class V>
void backward_any(const MixconvBackwardTask& task) {
  task.geometry->stride == 1 ? backward_of<V, 1>(task) : backward_of<V, 2>(task);
}

template <class V>
constexpr MixconvKernel mixconv_kernel_over(const char* name) {
  static_assert(kMixconvLine % V::width == 0);
  return {name, &forward_any<V>, &backward_any<V>};
}

}  // namespace greedynas::blocks
