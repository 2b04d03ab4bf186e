// What comes after a network's features in a training step, as one call: dropout, linear classifier, mean cross entropy
// with label smoothing (https://arxiv.org/abs/1512.00567), and how many images are classified correctly.
//
// float32, on the CPU. For a small network torch's layers take longer to be called than to compute.
#pragma once

#include <cstdint>

namespace greedynas::blocks {

struct ClassifierLoss {
  std::int64_t images;  // at least 1, as the others
  int features, classes;
  const float* weight;  // [classes, features]
  const float* bias;    // [classes]
  int threads;
};

struct ClassifierTargets {
  const std::int64_t* labels;  // [images]
  float smoothing;             // share of the target that all classes have in equal parts
  const float* mask;           // [images, features] of 0 and 1: what dropout keeps; nullptr: all
  float scale;                 // of what it keeps
};

struct ClassifierResult {
  float loss;            // mean over the images
  std::int64_t correct;  // images whose label has the largest logit, the first one of several
};

struct ClassifierGradients {
  float* features;  // [images, features], as the next two written
  float* weight;
  float* bias;
};

// For both passes.
std::int64_t workspace_floats(const ClassifierLoss& layer);

// The first label that is no class; `images` if there is none.
std::int64_t find_bad_label(const ClassifierLoss& layer, const std::int64_t* labels);

// What the backward pass needs.
struct ClassifierKept {
  float* features;     // [images, features]; before the forward pass those that come in, then what dropout leaves
  float* factors;      // [images, features], of dropout
  float* grad_logits;  // [images, classes], of the loss
};

// Labels are not checked.
ClassifierResult forward(const ClassifierLoss& layer, const ClassifierTargets& targets, const ClassifierKept& kept,
                         float* workspace);

// grad: of the loss.
void backward(const ClassifierLoss& layer, float grad, const ClassifierKept& kept, float* workspace,
              const ClassifierGradients& gradients);

}  // namespace greedynas::blocks
