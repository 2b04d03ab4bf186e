// MobileNetV2's inverted residual as one call: the layers of this folder one after the other, forward and backward.
//
//   1x1 expansion, norm, act; depthwise or MixConv, norm, act; [squeeze-and-excitation]; 1x1 projection, norm; [+ x]
//
// float32 or bf16, channels-last, on the CPU; parameters, moments and what belongs to a gate are float32. z1, z2 and z3
// are the raw results of the three convolutions. The backward pass computes what comes after them anew. Small images
// spend less time in layers than in calling them one by one: hence this file. Results do not depend on the number of
// threads. Nothing is checked here.
#pragma once

#include <vector>

#include "blocks/mixconv.h"
#include "blocks/pointwise.h"

namespace greedynas::blocks {

// A batch norm; [channels] each.
struct BlockNorm {
  const float *weight, *bias;
  float eps;
};

// Squeeze-and-excitation; reduce_weight is nullptr where there is none.
struct BlockGate {
  const float *reduce_weight, *reduce_bias;  // [width, middle], [width]
  const float *expand_weight, *expand_bias;  // [middle, width], [middle]
  int width;
  norm::Activation activation;
  bool sigmoid;  // else hard sigmoid
};

struct InvertedResidual {
  norm::Storage storage;              // of x, z1, z2, z3, y and the gradients of x and y
  std::int64_t batch, height, width;  // of x
  int in, middle, out, stride;
  MixconvPadding padding;  // of the depthwise convolution
  norm::Activation activation;
  bool residual;
  bool batch_statistics;  // else moments are given, and constants
  norm::Input x;          // [batch * height * width, in]
  const float* expand;    // [middle, in / groups], or nullptr: middle is in
  const float* project;   // [out, middle / groups]
  int expand_groups, project_groups;
  std::vector<MixconvGroup> depthwise;
  BlockNorm norms[3];  // the first one is not read without `expand`
  BlockGate gate;
  bool
      expands_in_caches[2];  // float32: z1 is never in memory, see expand_depthwise.h: without and with a backward pass
  int threads;

  std::int64_t rows() const { return batch * height * width; }
  std::int64_t out_pixels() const { return ((height - 1) / stride + 1) * ((width - 1) / stride + 1); }
  std::int64_t out_rows() const { return batch * out_pixels(); }
};

// What the passes hand on; without gaps. Those of the first norm are nullptr without `expand`, those of the gate
// without a gate, and of z1 and covariance there is only what `expands_in_caches` says.
struct InvertedResidualTensors {
  float* moments[3];      // [2, channels]: means and biased variances; written with batch_statistics, else read
  void *z1, *z2, *z3;     // nullptr, all three: not kept
  float *means, *logits;  // [batch, middle]; nullptr if not kept, as hidden
  float* hidden;          // [batch, gate.width], before its activation
  float* covariance;      // of the channels of x, in place of z1: [in + 1, in], the last row their means
};

// Gradients of a batch norm; [channels] each.
struct BlockNormGradients {
  float *weight, *bias;
};

// Gradients, each of the shape of the parameter.
struct InvertedResidualGradients {
  void* x;  // [rows, in]
  float *expand, *project;
  BlockNormGradients norms[3];
  float *reduce_weight, *reduce_bias, *expand_weight, *expand_bias;
};

std::int64_t workspace_floats(const InvertedResidual& block, bool keeps);
std::int64_t backward_workspace_floats(const InvertedResidual& block);

// y: [out_rows, out] without gaps.
void forward(const InvertedResidual& block, const InvertedResidualTensors& tensors, float* workspace, void* y);

// All gradients; those of depthwise weights go where the groups say. All of `tensors` have been kept.
void backward(const InvertedResidual& block, const InvertedResidualTensors& tensors, norm::Input grad, float* workspace,
              const InvertedResidualGradients& gradients);

}  // namespace greedynas::blocks
