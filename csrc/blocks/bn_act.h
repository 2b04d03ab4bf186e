// Batch normalisation, activation and residual addition in one: forward and backward.
//
// A tensor [N, C, H, W] in channels-last memory is a matrix [rows, channels] with rows = N * H * W whose rows are
// `stride` elements apart and whose channels are neighbours; float32 or bf16, computed in float32. With
// z = (x - mean) / sqrt(variance + eps) * weight + bias
// the result is act(z) or act(z + residual). Means, variances, weights and biases are float32.
//
// Sums over rows are taken in chunks of rows that depend on the shape alone and joined in one order, so the results do
// not depend on the number of threads. Nothing is checked and nothing is allocated here.
#pragma once

#include <cstdint>

namespace greedynas::norm {

enum class Storage { float32, bf16 };
enum class Activation { identity, relu, hard_swish, silu, relu6 };

struct Shape {
  Storage storage;
  std::int64_t rows;
  int channels;
  // Whether outputs are too large to be found in a cache by the layer that reads them next: they are then written past
  // the caches, where the processor can.
  bool large;
};

// The shape of whole tensors, `large` from 4 MiB on: more than a core's share of most last-level caches.
inline Shape shape_of(Storage storage, std::int64_t rows, int channels) {
  return {storage, rows, channels, rows * channels * (storage == Storage::bf16 ? 2 : 4) >= (std::int64_t{4} << 20)};
}

// Floats of memory that so many elements need.
constexpr std::int64_t floats_for(Storage storage, std::int64_t elements) {
  return storage == Storage::bf16 ? (elements + 1) / 2 : elements;
}

struct Input {
  const void* data;
  std::int64_t stride;  // from row to row, in elements
};

// float32 [channels] each; weight and bias may be nullptr, for ones and zeros.
struct Channels {
  const float *mean, *variance, *weight, *bias;
  float eps;
};

struct BnAct {
  Shape shape;
  Activation activation;
  bool residual;
  int threads;
};

// The results of the backward pass; outputs are [rows, channels] without gaps. Any may be nullptr; that of the residual
// is computed with that of x only.
struct Gradients {
  void* x;
  void* residual;
  float *weight, *bias;
};

// Gradients of the parameters of a batch norm that is followed by no activation, as they are known before the gradient
// of its input x is made: [channels] each, nullptr if the moments are constants.
struct KnownGradients {
  const float *weight, *bias;
  bool scaled;  // the gradient of the result has been multiplied by the norm's scale already
};

// Floats that each of the functions below needs as `workspace`.
std::int64_t workspace_floats(const Shape& shape);

// Mean and biased variance of each channel; rows > 0.
void moments(const Shape& shape, Input x, int threads, float* workspace, float* mean, float* variance);

// running += share * (moments - running), with the unbiased variance; rows > 1.
void update_running(const Shape& shape, const float* mean, const float* variance, double share, float* running_mean,
                    float* running_var);

// The same normalisation as one multiplication and one addition: z = x * scale + shift; [channels] each.
void affine(int num_channels, const Channels& channels, float* scale, float* shift);

// Where a layer that applies the affine form on load has computed its gradients as if scale and shift were constants,
// this adds what comes through the moments of x with `batch_statistics`: to `grad` [rows, channels], of x, in place.
// grad_scale, grad_shift: of the affine form; grad_weight, grad_bias: to be written, or nullptr.
void through_moments(const Shape& shape, bool batch_statistics, Input x, const Channels& channels,
                     const float* grad_scale, const float* grad_shift, int threads, float* workspace, void* grad,
                     float* grad_weight, float* grad_bias);

// y: [rows, channels] without gaps. `residual` is read if the layer has one.
void forward(const BnAct& layer, Input x, const Channels& channels, Input residual, float* workspace, void* y);

// With `batch_statistics`, mean and variance are those of x and
// the gradient goes through them too; otherwise they are constants.
void backward(const BnAct& layer, bool batch_statistics, Input grad, Input x, const Channels& channels, Input residual,
              float* workspace, const Gradients& gradients);

// The gradient of x from that of the result of such a batch norm is grad * scale + sum + 2 * x * square: for layers
// that add the gradients of statistics of x, their sum and sum of squares; [channels] each. `known.weight` is not
// nullptr.
void statistics_gradient(std::int64_t rows, int num_channels, const Channels& channels, const KnownGradients& known,
                         float* sum, float* square);

// The known gradients of weight and bias where a layer has computed those of the affine form.
void known_from_affine(int num_channels, const Channels& channels, const float* grad_scale, const float* grad_shift,
                       float* grad_weight, float* grad_bias);

}  // namespace greedynas::norm
