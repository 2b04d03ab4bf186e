// What the files of this folder share about inverted residuals.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "bindings.h"
#include "blocks/inverted_residual.h"

namespace greedynas::bindings {

inline float* floats(Address address) { return at<float>(address); }

// The weight of a 1x1 convolution: its groups, which are one array or an array each.
struct Weight {
  std::vector<Address> parts;
  std::int64_t groups;

  bool in_parts() const { return parts.size() > 1; }
  const float* whole() const { return parts.empty() || in_parts() ? nullptr : at<const float>(parts.front()); }
};

// A block, and its weights that may be in parts.
struct LaidBlock {
  blocks::InvertedResidual block;
  Weight expand, project;

  std::int64_t expand_floats() const { return std::int64_t{block.middle} * block.in / block.expand_groups; }
  std::int64_t project_floats() const { return std::int64_t{block.out} * block.middle / block.project_groups; }
};

// Of the three norms.
using Moments = std::array<Address, 3>;
// z1, z2, z3, means, hidden, logits, covariance: see blocks/inverted_residual.h.
using Kept = std::array<Address, 7>;
// Of the weights, and weight and bias of the norm, of expansion, depthwise convolution (whose weights are apart) and
// projection, and of the gate's four parameters.
using Gradients = std::array<Address, 12>;

void run_forward(const LaidBlock& laid, Place x, const Moments& moments, const Kept& kept, Address y);

// depthwise, parts: places of the gradients of depthwise weights, and of weights that are in parts.
void run_backward(const LaidBlock& laid, Place x, const Moments& moments, const Kept& kept, Place grad, Address grad_x,
                  const Gradients& gradients, const Address* depthwise, const Address* parts);

}  // namespace greedynas::bindings
