// The beginning of a network as one call: k x k convolution of few channels, batch norm by the statistics of the batch,
// activation. There is no gradient of images.
//
// Channels-last, on the CPU: images are float32, what follows them float32 or bf16. The convolution is a matrix product
// with the windows of its input, one a row, which are made anew for the backward pass. Nothing is checked here.
#pragma once

#include "blocks/inverted_residual.h"

namespace greedynas::blocks {

struct ConvNormAct {
  norm::Storage storage;               // of z, y and the gradient of y
  std::int64_t images, height, width;  // of x, at least one of each
  int in, out, kernel, stride;         // an odd kernel; x is padded by kernel / 2 zeros on each side
  const float* weight;                 // [out, kernel, kernel, in]
  BlockNorm norm;
  norm::Activation activation;
  int threads;

  std::int64_t out_height() const { return (height - 1) / stride + 1; }
  std::int64_t out_width() const { return (width - 1) / stride + 1; }
  std::int64_t rows() const { return images * out_height() * out_width(); }
};

// For both passes.
std::int64_t workspace_floats(const ConvNormAct& layer);

// x: [images, height, width, in]; y and z, the raw result of the convolution: [rows, out]; moments: [2, out], means and
// biased variances. All without gaps.
void forward(const ConvNormAct& layer, const float* x, float* moments, void* z, float* workspace, void* y);

// grad: of y. grad_weight as the weight.
void backward(const ConvNormAct& layer, const float* x, const float* moments, const void* z, norm::Input grad,
              float* workspace, float* grad_weight, const BlockNormGradients& grad_norm);

}  // namespace greedynas::blocks
