// The first half of an inverted residual where nothing is kept for a backward pass: 1x1 expansion, batch norm and
// activation, depthwise convolution. float32, channels-last, on the CPU.
//
// The expanded tensor is the largest of the block. Here it is never written to memory: some images at a time are
// expanded into a buffer that stays in the caches, and convolved from there. Its moments are then needed before it is
// there: `expanded_moments` has them from the covariance of the channels that are expanded. Work is divided by the
// shape alone, and so are results. Nothing is checked here.
#pragma once

#include "blocks/mixconv.h"
#include "blocks/pointwise.h"

namespace greedynas::blocks {

// Floats of the workspace of `expanded_moments`.
std::int64_t expanded_moments_floats(const Pointwise& layer);

// Mean and biased variance [out] of x weight^T, which is not made; weight: [out, in]. The variance is a quadratic form:
// its error is some float32 epsilons of the largest variance that a weight of that length could give.
void expanded_moments(const Pointwise& layer, norm::Input x, const float* weight, float* workspace, float* mean,
                      float* variance);

struct ExpandDepthwise {
  Pointwise expand;
  norm::Input x;
  const float* weight;    // [out, in]
  MixconvCall depthwise;  // float32, with scale, shift and activation; its x is not read
};

std::int64_t expand_depthwise_floats(const ExpandDepthwise& layer);

// y [N, out_height, out_width, out] without gaps; mean and biased variance [out] of y, or nullptr.
void expand_depthwise(const ExpandDepthwise& layer, float* workspace, float* y, float* mean, float* variance);

}  // namespace greedynas::blocks
