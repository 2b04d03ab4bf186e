// blocks/mixconv.h on a CUDA device, see storage.h: the same functions, with fp16 as a third storage.
//
// Sums are float32, the last additions over blocks float64. The order of all of them depends on the shape alone.
#pragma once

#include <vector>

#include "blocks/cuda/storage.h"
#include "blocks/mixconv.h"

namespace greedynas::blocks::cuda {

struct Mixconv {
  Storage storage;         // of x, y, grad and x_grad
  Storage weight_storage;  // of weights and their gradients
  std::int64_t batch, height, width;
  int stride;  // 1 or 2
  std::vector<MixconvGroup> groups;
  MixconvTensor x;
  MixconvActivation activation = MixconvActivation::none;
  const float* scale = nullptr;  // [C], as shift; unless activation is none
  const float* shift = nullptr;
  MixconvPadding padding = MixconvPadding::symmetric;

  std::int64_t out_height() const { return (height - 1) / stride + 1; }
  std::int64_t out_width() const { return (width - 1) / stride + 1; }
};

// Bytes of workspace that either pass needs.
std::int64_t mixconv_workspace_bytes(const Mixconv& call);

// Writes y and, unless nullptr, stats [2, C]. Throws std::invalid_argument on a kernel size, a stride or an image
// without pixels that cannot be.
void mixconv_forward(const Mixconv& call, const MixconvTensor& y, float* stats, void* workspace, Stream stream);

// Writes the gradients that are wanted, in one sweep over x and grad.
void mixconv_backward(const Mixconv& call, const MixconvBackward& backward, void* workspace, Stream stream);

}  // namespace greedynas::blocks::cuda
