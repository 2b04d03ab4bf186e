// The 1x1 convolution, forward and backward, with what comes before and after it in the same pass.
//
// A tensor [N, C, H, W] in channels-last memory is a matrix [rows, channels], see bn_act.h. The convolution reads
// a = x, or with a prologue a = act(x * scale + shift), times a gate for each image and channel if there are gates; a
// is never stored. It gives y = a weight^T, and the moments of y on request. Work is done in blocks of rows that stay
// in the caches; they depend on the shape alone, and so do results. With groups, as in torch, each range of channels of
// y is made of the same range of channels of a. Tensors are float32 or bf16, weights and what belongs to channels
// float32, and so are sums; with bf16 tensors weights are rounded to bf16 before they are multiplied. Nothing is
// checked here.
#pragma once

#include "blocks/bn_act.h"
#include "blocks/squeeze_excite.h"

namespace greedynas::blocks {

struct Pointwise {
  std::int64_t rows;
  int in, out;  // channels, at least 1
  int threads;
  int groups = 1;                                  // a divisor of both
  std::int64_t gate_images = 0;                    // of which the backward pass takes gate_sums
  norm::Storage storage = norm::Storage::float32;  // of x, y and their gradients

  int group_in() const { return in / groups; }
  int group_out() const { return out / groups; }
};

// What the convolution reads.
struct PointwiseInput {
  norm::Input x;
  norm::Prologue prologue;
  const float *scale, *shift;  // [in], with a prologue
  const float* gates;          // [rows / pixels, in], or nullptr
  std::int64_t pixels;         // rows of an image, with gates
};

// The gradient of y: `grad`, or with a norm what comes through a batch norm of y without activation.
struct PointwiseGrad {
  norm::Input grad;
  norm::Input y;               // data is nullptr: no norm
  const norm::Channels* norm;  // of y
  norm::KnownGradients known;  // of the norm
};

struct PointwiseGradients {
  void* x;               // [rows, in] without gaps; nullptr, without prologue and gates: not wanted
  float *scale, *shift;  // [in], with a prologue and no gates
  float* weight;         // [out, group_in]
  // [norm::kGateSums, gate_images, in] with gates, for grad the gradient of x and a before its gates; or nullptr.
  float* gate_sums = nullptr;
};

// Floats of `workspace`, for both.
std::int64_t workspace_floats(const Pointwise& layer);

// y: [rows, out] without gaps; mean and biased variance [out] of y, or nullptr. weight: [out, group_in].
void pointwise(const Pointwise& layer, const PointwiseInput& input, const float* weight, float* workspace, void* y,
               float* mean, float* variance);

// The gradient of x is that of a where the input has gates or no prologue; then `add`, if its data is not nullptr, is
// added to it. With a prologue and no gates it is that of x, with scale and shift taken for constants.
void pointwise_backward(const Pointwise& layer, const PointwiseGrad& grad, const PointwiseInput& input,
                        const float* weight, norm::Input add, float* workspace, const PointwiseGradients& gradients);

}  // namespace greedynas::blocks
