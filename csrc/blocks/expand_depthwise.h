// The first half of an inverted residual without the expanded tensor in memory: 1x1 expansion, batch norm and
// activation, depthwise convolution, forward and backward. float32, channels-last, on the CPU.
//
// The expanded tensor z = x weight^T is the largest of the block. Here its rows are made where the convolution wants
// them, and once more in the backward pass, where rows of its gradient are used as soon as they are there. What would
// take a pass over all of z is had from the covariance of the channels that are expanded: the moments of z, and, as z
// is linear in x, the part of the gradients that comes through these moments. Work is divided by the shape alone, and
// so are results. Nothing is checked here.
#pragma once

#include "blocks/mixconv.h"
#include "blocks/pointwise.h"

namespace greedynas::blocks {

struct ExpandDepthwise {
  Pointwise expand;
  norm::Input x;
  const float* weight;    // [out, group_in]
  MixconvCall depthwise;  // float32, with scale, shift and activation; its x is not read
};

// For both passes.
std::int64_t expand_depthwise_floats(const ExpandDepthwise& layer);

// y [N, out_height, out_width, out] without gaps; mean and biased variance [out] of y, or nullptr.
void expand_depthwise(const ExpandDepthwise& layer, float* workspace, float* y, float* mean, float* variance);

struct ExpandDepthwiseBackward {
  MixconvBackward depthwise;       // of the convolution; its x_grad and norm_grad are not looked at
  const norm::Channels* norm;      // of z
  const float* covariance;         // of x; nullptr: the moments of the norm are constants
  norm::Input add;                 // [rows, in], added to the gradient of x; data nullptr: nothing
  float *x, *weight;               // [rows, in] without gaps and [out, group_in], as the gradients are
  float *norm_weight, *norm_bias;  // [out]
};

// Writes the gradients, those of the depthwise weights where the call's groups say.
void expand_depthwise_backward(const ExpandDepthwise& layer, const ExpandDepthwiseBackward& backward, float* workspace);

}  // namespace greedynas::blocks
