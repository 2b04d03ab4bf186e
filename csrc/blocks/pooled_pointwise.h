// The head of a network before its classifier, as one call: 1x1 convolution, batch norm by the statistics of the batch,
// activation, global average.
//
// Channels-last, on the CPU: x, z and the gradient of x are float32 or bf16, all else float32. z is the raw result of
// the convolution; what is averaged is never stored, and no more is its gradient, which is the same for all pixels of
// an image but for the slope of the activation. Nothing is checked here.
#pragma once

#include "blocks/inverted_residual.h"

namespace greedynas::blocks {

struct PooledPointwise {
  norm::Storage storage;        // of x, z and the gradient of x
  std::int64_t images, pixels;  // of x, at least one of each
  int in, out;
  norm::Input x;        // [images * pixels, in]
  const float* weight;  // [out, in]
  BlockNorm norm;
  norm::Activation activation;
  int threads;
};

// Gradients, each of the shape of the parameter.
struct PooledPointwiseGradients {
  void* x;
  float* weight;
  BlockNormGradients norm;
};

// For both passes.
std::int64_t workspace_floats(const PooledPointwise& layer);

// pooled: [images, out]; moments: [2, out], means and biased variances; z: [images * pixels, out].
void forward(const PooledPointwise& layer, float* moments, void* z, float* workspace, float* pooled);

void backward(const PooledPointwise& layer, const float* moments, const void* z, const float* grad_pooled,
              float* workspace, const PooledPointwiseGradients& gradients);

}  // namespace greedynas::blocks
