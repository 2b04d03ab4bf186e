// blocks/squeeze_excite.h on a CUDA device, see cuda/storage.h: the same functions, with fp16 as a third storage.
#pragma once

#include "blocks/cuda/bn_act.h"
#include "blocks/squeeze_excite.h"

namespace greedynas::norm::cuda {

struct SqueezeExcite {
  Shape image;  // rows: the pixels of one image, at least one
  std::int64_t images;
  Prologue prologue;
  const float *scale, *shift;  // [channels], with a prologue
};

// Floats that `squeeze`, `excite_backward` and `squeeze_backward` need as `workspace`.
std::int64_t workspace_floats(const SqueezeExcite& layer);

void squeeze(const SqueezeExcite& layer, Input x, float* workspace, float* means, Stream stream);

void excite(const SqueezeExcite& layer, Input x, const float* gates, void* y, Stream stream);

void excite_backward(const SqueezeExcite& layer, Input grad, Input x, float* workspace, float* grad_gates,
                     Stream stream);

void squeeze_backward(const SqueezeExcite& layer, Input grad, Input x, const float* gates, const float* grad_means,
                      float* workspace, void* grad_x, float* grad_scale, float* grad_shift, Stream stream);

}  // namespace greedynas::norm::cuda
