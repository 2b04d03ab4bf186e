// The two small products of squeeze-and-excitation between means and gates, forward and backward.
//
// Images are few, weights are large: products are taken with the images as columns, so that weights are read as they
// lie and only the images are packed.
#pragma once

#include "blocks/inverted_residual.h"

namespace greedynas::blocks {

struct GateProducts {
  std::int64_t images;
  int channels;
  BlockGate gate;
  int threads;
};

// For both passes.
std::int64_t workspace_floats(const GateProducts& layer);

// From means [images, channels]: hidden [images, width] and logits [images, channels], both before their activations,
// and gates [images, channels].
void gate_products(const GateProducts& layer, const float* means, float* workspace, float* hidden, float* logits,
                   float* gates);

// gates from logits, as above.
void gates_of(const GateProducts& layer, const float* logits, float* gates);

struct GateGradients {
  float* means;  // [images, channels]
  float *reduce_weight, *reduce_bias, *expand_weight, *expand_bias;
};

void gate_products_backward(const GateProducts& layer, const float* grad_gates, const float* means, const float* hidden,
                            const float* logits, float* workspace, const GateGradients& gradients);

}  // namespace greedynas::blocks
