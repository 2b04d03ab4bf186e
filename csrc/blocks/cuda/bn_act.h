// blocks/bn_act.h on a CUDA device, see cuda/storage.h: the same functions, with fp16 as a third storage.
//
// Sums are float32 within a block and float64 over blocks.
#pragma once

#include "blocks/bn_act.h"
#include "blocks/cuda/storage.h"

namespace greedynas::norm::cuda {

using blocks::cuda::Storage;
using blocks::cuda::Stream;

struct Shape {
  Storage storage;
  std::int64_t rows;
  int channels;
};

struct BnAct {
  Shape shape;
  Activation activation;
  bool residual;
};

// Floats that `moments`, `through_moments` and `backward` need as `workspace`.
std::int64_t workspace_floats(const Shape& shape);

// Mean and biased variance of each channel; rows > 0.
void moments(const Shape& shape, Input x, float* workspace, float* mean, float* variance, Stream stream);

// running += share * (moments - running), with the unbiased variance; rows > 1.
void update_running(const Shape& shape, const float* mean, const float* variance, double share, float* running_mean,
                    float* running_var, Stream stream);

void affine(int num_channels, const Channels& channels, float* scale, float* shift, Stream stream);

void through_moments(const Shape& shape, bool batch_statistics, Input x, const Channels& channels,
                     const float* grad_scale, const float* grad_shift, float* workspace, void* grad, float* grad_weight,
                     float* grad_bias, Stream stream);

void forward(const BnAct& layer, Input x, const Channels& channels, Input residual, void* y, Stream stream);

void backward(const BnAct& layer, bool batch_statistics, Input grad, Input x, const Channels& channels, Input residual,
              float* workspace, const Gradients& gradients, Stream stream);

}  // namespace greedynas::norm::cuda
