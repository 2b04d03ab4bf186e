// What a level's kernels for mixconv do: one block of channels of some images.
#pragma once

#include "blocks/cpu/bn_act_kernels.h"
#include "blocks/mixconv.h"
#include "cpu/isa.h"
#include "cpu/vec_generic.h"

namespace greedynas::blocks {

inline constexpr int kMixconvLine = 16;    // channels of a cache line of float32: a multiple of all vectors
inline constexpr int kMixconvBlock = 192;  // channels of the widest block, a multiple of a line
// Columns that an inner product may compute beyond the last one.
inline constexpr int kMixconvOverrun = 8;

// What all tasks of a call share; the kernels see no more of it. Columns count pixels of a padded row in the workspace.
struct MixconvGeometry {
  std::int64_t height, width, out_height, out_width;
  int stride;
  MixconvStorage storage, weight_storage;
  MixconvTensor x;
  MixconvActivation activation;
  const float* scale;  // [C], as shift
  const float* shift;
  int late_rows, late_columns;  // see mixconv_late
};

// Rows of x that are made when they are needed, and rows of its gradient that are used as soon as they are there:
// neither tensor is in memory. Both are [pixels][width of the block], float32. Rows of an image are asked for in their
// order.
class MixconvRows {
 public:
  virtual ~MixconvRows() = default;
  // Stays there until kernel + 1 rows beyond it have been asked for.
  virtual const float* input(std::int64_t image, std::int64_t row) = 0;
  // Where the gradient of a row is to be written, and that it has been.
  virtual float* grad(std::int64_t image, std::int64_t row) = 0;
  virtual void grad_is_there(std::int64_t image, std::int64_t row) = 0;
};

// Up to kMixconvBlock channels of one group, and some images.
struct MixconvBlock {
  int kernel;
  int channels;
  int width;                   // the channels, filled up to a multiple of kMixconvLine
  std::int64_t first_channel;  // of the tensors
  const void* weight;          // of the block's first channel
  std::int64_t image_begin, image_end;
  float* workspace;             // width * mixconv_channel_floats, aligned to 64 bytes
  MixconvRows* rows = nullptr;  // instead of x and, in the backward pass, its gradient
};

// How the moments of y are taken: of so many rows at a time, counted on from one image of a task to the next.
struct MixconvMomentsTask {
  const norm::Kernel* kernel;  // for the block's channels
  std::int64_t rows;
  float* pieces;       // [rows of the task / rows, rounded up][3][width]: mean less first row, squares, first row
  std::int64_t width;  // floats
};

// Sums over the images of a task are set, not added to; nullptr: not wanted.
struct MixconvForwardTask {
  const MixconvGeometry* geometry;
  MixconvBlock block;
  MixconvTensor y;
  float* stats;                // [2][kMixconvBlock]
  MixconvMomentsTask moments;  // kernel is nullptr: not wanted
  bool streams;                // write y past the caches where that can be done
};

struct MixconvBackwardTask {
  const MixconvGeometry* geometry;
  MixconvBlock block;
  MixconvTensor grad, y, x_grad;
  const float* stats_grad;  // [2, C], the first row at the tensors' channel 0
  std::int64_t stats_row;   // C
  float* weight_grad;       // [kernel * kernel][width]
  float* norm_grad;         // [2][kMixconvBlock]
  MixconvGate gate;         // of the whole tensors
  bool streams;             // write x_grad past the caches where that can be done
};

// Padded rows of x and of grad in the workspace, in pixels of a block's width.
GREEDYNAS_VEC_INLINE std::int64_t mixconv_input_columns(const MixconvGeometry& geometry, int kernel) {
  return (geometry.out_width + kMixconvOverrun - 1) * geometry.stride + kernel + 2;
}
GREEDYNAS_VEC_INLINE std::int64_t mixconv_grad_columns(const MixconvGeometry& geometry, int kernel) {
  return geometry.width + kMixconvOverrun + 2 * kernel;
}
GREEDYNAS_VEC_INLINE std::int64_t mixconv_result_columns(const MixconvGeometry& geometry) {
  return geometry.width + 2 * kMixconvOverrun;
}

// Floats a channel: rings of kernel rows of x and of grad, a row of results for stride 2, k * k weights and their
// gradients.
GREEDYNAS_VEC_INLINE std::int64_t mixconv_channel_floats(const MixconvGeometry& geometry, int kernel) {
  const std::int64_t columns = mixconv_input_columns(geometry, kernel) + mixconv_grad_columns(geometry, kernel);
  return kernel * (columns + 2 * kernel) + mixconv_result_columns(geometry);
}

struct MixconvKernel {
  const char* name;  // of the level
  void (*forward)(const MixconvForwardTask& task);
  void (*backward)(const MixconvBackwardTask& task);
};

extern const MixconvKernel kMixconvPortable;
#ifdef GREEDYNAS_X86
extern const MixconvKernel kMixconvAvx2;
extern const MixconvKernel kMixconvAvx512;
extern const MixconvKernel kMixconvAvx512Bf16;
#endif

inline const MixconvKernel& mixconv_kernel_for([[maybe_unused]] cpu::Isa isa) {
#ifdef GREEDYNAS_X86
  // Not with AMX: there a product of pairs takes a multiplier as long as two single ones (timing tables, not measured).
  if (isa == cpu::Isa::avx512_bf16) return kMixconvAvx512Bf16;
  if (isa >= cpu::Isa::avx512) return kMixconvAvx512;
  if (isa == cpu::Isa::avx2) return kMixconvAvx2;
#endif
  return kMixconvPortable;
}

// The two passes with a given kernel, for tests.
void mixconv_forward_with(const MixconvKernel& kernel, const MixconvCall& call, const MixconvTensor& y, float* stats,
                          const MixconvMoments& moments, void* workspace, int threads);
void mixconv_backward_with(const MixconvKernel& kernel, const MixconvCall& call, const MixconvBackward& backward,
                           void* workspace, int threads);

}  // namespace greedynas::blocks
