// What depends on all rows of an expanded tensor z = x weight^T, without z: float32, channels-last, on the CPU.
//
// z is linear in x. So the moments of z come from the means and the covariance of the channels of x, and so does the
// part of the gradients that comes through these moments. Work is divided by the shape alone, and so are results.
// Nothing is checked here.
#pragma once

#include "blocks/pointwise.h"

namespace greedynas::blocks {

// Floats of the workspace of `expanded_moments`.
std::int64_t expanded_moments_floats(const Pointwise& layer);

// Floats of the covariance of the channels of x, [in, in], and their means, [in], one after the other.
std::int64_t covariance_floats(const Pointwise& layer);

// Mean and biased variance [out] of x weight^T, which is not made, and the covariance that they come of; weight:
// [out, group_in]. The variance is a quadratic form: its error is some float32 epsilons of the largest variance that a
// weight of that length could give.
void expanded_moments(const Pointwise& layer, norm::Input x, const float* weight, float* workspace, float* mean,
                      float* variance, float* covariance);

// Floats of the workspace of `add_statistics_gradient`.
std::int64_t statistics_gradient_floats(const Pointwise& layer);

// Adds to the gradients of x, [rows, in] without gaps, and of the weight, [out, group_in], what comes through the
// moments of z that a batch norm takes; known: its own gradients, `scaled`.
void add_statistics_gradient(const Pointwise& layer, norm::Input x, const float* weight, const float* covariance,
                             const norm::Channels& norm, const norm::KnownGradients& known, float* workspace,
                             float* grad_x, float* grad_weight);

}  // namespace greedynas::blocks
