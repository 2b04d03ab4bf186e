// mixconv for one block of channels and some images, written once over a vector type V (csrc/cpu/vec_*.h).
//
// The images are swept row by row. Rows of x (activated, converted to float32, zero-padded) live in a ring of
// kernel rows that stays in the L1 or L2 cache, and so do rows of grad in the backward pass: there one sweep
// computes the gradient of the weights, and that of x a few rows behind.
// Included by one file a level, each compiled for that level alone: no inline function of the standard library here.
#pragma once

#include "blocks/cpu/mixconv_load.h"
#include "blocks/cpu/mixconv_rows.h"

namespace greedynas::blocks {

GREEDYNAS_VEC_INLINE int element_bytes(const MixconvGeometry& geometry) {
  return geometry.storage == MixconvStorage::bf16 ? 2 : 4;
}

GREEDYNAS_VEC_INLINE char* mixconv_address(const MixconvGeometry& geometry, const MixconvTensor& tensor,
                                           std::int64_t image, std::int64_t row, std::int64_t channel) {
  const std::int64_t elements = image * tensor.image + row * tensor.row + channel;
  return static_cast<char*>(tensor.data) + elements * element_bytes(geometry);
}

// Rows of x as a block reads them.
GREEDYNAS_VEC_INLINE MixconvTensor input_tensor(const MixconvGeometry& geometry, const MixconvBlock& block) {
  if (block.rows == nullptr) return geometry.x;
  return {nullptr, 0, geometry.width * block.width, block.width};
}
GREEDYNAS_VEC_INLINE const void* input_row(const MixconvGeometry& geometry, const MixconvBlock& block,
                                           std::int64_t image, std::int64_t row) {
  if (block.rows != nullptr) return block.rows->input(image, row);
  return mixconv_address(geometry, geometry.x, image, row, block.first_channel);
}

GREEDYNAS_VEC_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
GREEDYNAS_VEC_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// By how much windows begin later than kernel / 2 before their pixel.
template <int kKernel, int kStride>
GREEDYNAS_VEC_INLINE std::int64_t late_rows(const MixconvGeometry& geometry) {
  return kKernel > 1 && kStride == 2 ? geometry.late_rows : 0;
}
template <int kKernel, int kStride>
GREEDYNAS_VEC_INLINE std::int64_t late_columns(const MixconvGeometry& geometry) {
  return kKernel > 1 && kStride == 2 ? geometry.late_columns : 0;
}

// Row i of images of this height, counted on from one image to the next, if the block has it.
GREEDYNAS_VEC_INLINE MixconvFetch::Row row_to_fetch(const MixconvGeometry& geometry, const MixconvBlock& block,
                                                    const MixconvTensor& tensor, std::int64_t height,
                                                    std::int64_t image, std::int64_t i) {
  for (; i >= height; i -= height) ++image;
  if (image >= block.image_end) return {};
  return {mixconv_address(geometry, tensor, image, i, block.first_channel), tensor.pixel * element_bytes(geometry)};
}

// How rows of a tensor are read: `careful` covers the pixels from which a vector would reach beyond the tensor's end;
// unless the products fetch the tensor's rows, reading one fetches the next.
template <class V>
GREEDYNAS_VEC_INLINE MixconvRow row_of(const MixconvTensor& tensor, std::int64_t pixels, std::int64_t plane,
                                       int channels, bool last, bool fetched) {
  std::int64_t careful = 0;
  if ((last || tensor.row < V::width) && tensor.pixel > 0) {
    careful = smaller(pixels, (V::width + tensor.pixel - 1) / tensor.pixel);
  } else if (tensor.pixel <= 0) {
    careful = pixels;
  }
  return {tensor.pixel, pixels, plane, channels, careful, fetched ? 0 : tensor.row};
}

template <int kKernel>
struct MixconvKernelIs {
  static constexpr int value = kKernel;
};

// body(MixconvKernelIs)
template <class Body>
GREEDYNAS_VEC_INLINE void with_kernel(int kernel, const Body& body) {
  switch (kernel) {
    case 1:
      return body(MixconvKernelIs<1>());
    case 3:
      return body(MixconvKernelIs<3>());
    case 5:
      return body(MixconvKernelIs<5>());
    case 7:
      return body(MixconvKernelIs<7>());
    case 9:
      return body(MixconvKernelIs<9>());
    default:
      return body(MixconvKernelIs<11>());
  }
}

// A ring of padded rows in the workspace: row i is in slot i % kSlots, its first pixel after `pad` zeros.
template <int kSlots>
struct MixconvRing {
  float* base;
  std::int64_t columns, pad, channels;

  GREEDYNAS_VEC_INLINE float* row(std::int64_t i, int width) const {
    const auto slot = static_cast<std::uint32_t>(i) % kSlots;  // of 32 bits, which needs no division
    return base + slot * columns * channels + pad * width;
  }
  GREEDYNAS_VEC_INLINE float* end() const { return base + kSlots * columns * channels; }
  GREEDYNAS_VEC_INLINE void clear() const {
    __builtin_memset(base, 0, static_cast<std::size_t>(end() - base) * sizeof(float));
  }
};

// [channels, taps] -> [vectors][taps][width]; order[i] is the tap that comes i-th. Absent channels are zero.
template <class V, class W>
void pack_weights_of(const W* weights, int channels, int taps, const int* order, float* out) {
  for (int first = 0; first < channels; first += V::width, out += taps * V::width) {
    const int live = channels - first < V::width ? channels - first : V::width;
    if (live < V::width) __builtin_memset(out, 0, static_cast<std::size_t>(taps * V::width) * sizeof(float));
    for (int lane = 0; lane < live; ++lane, weights += taps) {
      for (int i = 0; i < taps; ++i) out[i * V::width + lane] = number_of(weights[order[i]]);
    }
  }
}

template <class V>
GREEDYNAS_VEC_INLINE void pack_weights(const MixconvGeometry& geometry, const MixconvBlock& block, const int* order,
                                       float* out) {
  const int taps = block.kernel * block.kernel;
  if (geometry.weight_storage == MixconvStorage::bf16) {
    pack_weights_of<V>(static_cast<const std::uint16_t*>(block.weight), block.channels, taps, order, out);
  } else {
    pack_weights_of<V>(static_cast<const float*>(block.weight), block.channels, taps, order, out);
  }
}

GREEDYNAS_VEC_INLINE MixconvNorm block_norm(const MixconvGeometry& geometry, const MixconvBlock& block) {
  if (geometry.activation == MixconvActivation::none) return {nullptr, nullptr};
  return {geometry.scale + block.first_channel, geometry.shift + block.first_channel};
}

// Rows of x on their way into a ring.
template <class V, int kSlots>
struct MixconvInput {
  const MixconvGeometry& geometry;
  const MixconvBlock& block;
  MixconvRing<kSlots> ring;
  MixconvNorm norm;
  bool fetched;  // otherwise than by reading the row before
  std::int64_t loaded = 0;

  GREEDYNAS_VEC_INLINE void load_until(const MixconvRowFunctions& functions, std::int64_t image, std::int64_t end) {
    for (; loaded < end; ++loaded) {
      const MixconvRow row = row_of<V>(input_tensor(geometry, block), geometry.width, ring.columns * V::width,
                                       block.channels, loaded == geometry.height - 1, fetched);
      functions.load_input(input_row(geometry, block, image, loaded), row, norm, ring.row(loaded, V::width));
    }
  }
};

// Rows of y on their way through MixconvMomentsTask.
struct MixconvMomentsRows {
  const MixconvForwardTask& task;
  float* piece;
  const void* first = nullptr;  // of the rows that wait
  std::int64_t waiting = 0;

  GREEDYNAS_VEC_INLINE void add(const void* row, bool last) {
    const MixconvMomentsTask& moments = task.moments;
    if (moments.kernel == nullptr) return;
    if (waiting++ == 0) first = row;
    if (waiting < moments.rows && !last) return;
    const int channels = task.block.channels;
    float* const shift = piece + 2 * moments.width;
    const bool bf16 = task.geometry->storage == MixconvStorage::bf16;
    for (int c = 0; c < channels; ++c) {
      shift[c] = bf16 ? number_of(static_cast<const std::uint16_t*>(first)[c]) : static_cast<const float*>(first)[c];
    }
    const norm::Shape shape{bf16 ? norm::Storage::bf16 : norm::Storage::float32, waiting * task.geometry->out_width,
                            channels, false};
    moments.kernel->moments(shape, {first, task.y.pixel}, first, piece, piece + moments.width);
    piece += 3 * moments.width;
    waiting = 0;
  }
};

// Whether results go from registers into their tensor, where that is possible. Beside the products of larger kernels,
// which are rare, the way through a buffer is short.
template <int kKernel, int kStride>
inline constexpr bool kDirect = kStride == 1 && kKernel >= 3 && kKernel <= 7;

template <class V>
GREEDYNAS_VEC_INLINE void end_streams(bool streams) {
  if constexpr (can_stream<V, float>) {
    if (streams) V::end_streams();
  }
}

template <class V, int kKernel, int kStride>
void forward_block(const MixconvForwardTask& task) {
  const MixconvGeometry& geometry = *task.geometry;
  const MixconvBlock& block = task.block;
  constexpr int kPad = kKernel / 2;
  const MixconvRowFunctions functions = row_functions<V>(geometry, MixconvActivation::none);
  const MixconvRing<kKernel> ring{block.workspace, mixconv_input_columns(geometry, kKernel), kPad, block.width};
  float* const weights = ring.end();
  ring.clear();
  int order[kKernel * kKernel];
  for (int i = 0; i < kKernel * kKernel; ++i) order[i] = i;
  pack_weights<V>(geometry, block, order, weights);
  if (task.stats != nullptr) __builtin_memset(task.stats, 0, 2 * kMixconvBlock * sizeof(float));

  const MixconvRow out{task.y.pixel, geometry.out_width, 0, block.channels, 0, task.y.row};
  MixconvInput<V, kKernel> input{geometry, block, ring, block_norm(geometry, block),
                                 kStride == 1 || block.rows != nullptr};
  MixconvMomentsRows moments{task, task.moments.pieces};
  for (std::int64_t image = block.image_begin; image < block.image_end; ++image) {
    input.loaded = 0;
    for (std::int64_t y = 0; y < geometry.out_height; ++y) {
      const std::int64_t top = y * kStride - kPad + late_rows<kKernel, kStride>(geometry), first = larger(top, 0);
      const std::int64_t end = smaller(top + kKernel, geometry.height);
      input.load_until(functions, image, end);
      const float* rows[kKernel];
      for (std::int64_t i = first; i < end; ++i) {
        rows[i - first] = ring.row(i, 0) + late_columns<kKernel, kStride>(geometry) * V::width;
      }
      MixconvFetch fetch{{}, V::width * element_bytes(geometry)};
      if (kStride == 1 && block.rows == nullptr) {
        fetch.rows[0] = row_to_fetch(geometry, block, geometry.x, geometry.height, image, y + kPad + 1);
      }
      const MixconvTaps taps{rows,
                             static_cast<int>(end - first),
                             weights + (first - top) * kKernel * V::width,
                             kKernel * V::width,
                             ring.columns * V::width,
                             kKernel * kKernel * V::width,
                             fetch};
      void* const to = mixconv_address(geometry, task.y, image, y, block.first_channel);
      const auto results = [&](const auto& direct) __attribute__((always_inline)) {
        correlate_row<V, kKernel, kStride>(
            taps, block.channels, geometry.out_width, direct,
            [&](const MixconvTile& tile) { functions.store_results(tile, to, out, task.stats); });
      };
      if constexpr (kDirect<kKernel, kStride>) {
        with_direct<V>(geometry.storage, to, out, task.stats, task.streams, results);
      } else {
        results(MixconvIndirect());
      }
      moments.add(to, image == block.image_end - 1 && y == geometry.out_height - 1);
    }
  }
  end_streams<V>(task.streams);
}

}  // namespace greedynas::blocks
