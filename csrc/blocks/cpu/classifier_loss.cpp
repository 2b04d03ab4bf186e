#include "blocks/classifier_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "blocks/cpu/pointwise_blocks.h"
#include "cpu/team.h"

namespace greedynas::blocks {
namespace {

using norm::Prologue;

constexpr std::int64_t kRowFloats = 4096;  // what is worth a thread

struct Space {
  float *grad_logits, *losses, *hits, *rest;
  std::int64_t floats;

  Space(const ClassifierLoss& layer, float* workspace) {
    Pieces pieces(workspace);
    grad_logits = pieces.take(layer.images * layer.classes);
    losses = pieces.take(layer.images);
    hits = pieces.take(layer.images);
    rest = pieces.take(workspace_floats(Pointwise{layer.images, layer.features, layer.classes, layer.threads}));
    floats = pieces.taken();
  }
};

// A linear layer is a 1x1 convolution of images of one pixel.
Pointwise linear(const ClassifierLoss& layer) { return {layer.images, layer.features, layer.classes, layer.threads}; }

PointwiseInput input(const ClassifierLoss& layer, const float* features) {
  return {{features, layer.features}, Prologue::none, nullptr, nullptr, nullptr, 0};
}

// Calls body(row) for all rows.
template <class Body>
void for_rows(const ClassifierLoss& layer, std::int64_t width, const Body& body) {
  cpu::team_for(layer.images, std::max<std::int64_t>(1, kRowFloats / width), layer.threads,
                [&](std::int64_t begin, std::int64_t end) {
                  for (std::int64_t row = begin; row < end; ++row) body(row);
                });
}

// values *= factors, both [images, features].
void multiply(const ClassifierLoss& layer, const float* factors, float* values) {
  for_rows(layer, layer.features, [&](std::int64_t row) {
    const std::int64_t begin = row * layer.features, end = begin + layer.features;
    for (std::int64_t i = begin; i < end; ++i) values[i] *= factors[i];
  });
}

void fill_factors(const ClassifierLoss& layer, const ClassifierTargets& targets, float* factors) {
  const std::int64_t size = layer.images * layer.features;
  for (std::int64_t i = 0; i < size; ++i) {
    factors[i] = targets.mask == nullptr ? 1.0F : targets.mask[i] * targets.scale;
  }
}

// The loss of one image from its logits, which become the gradient of the mean loss over `images`.
float cross_entropy(std::int64_t images, int classes, std::int64_t label, float smoothing, float* logits) {
  const float largest = *std::max_element(logits, logits + classes);
  double sum = 0.0, logit_sum = 0.0;
  const double own = logits[label] - largest;
  for (int k = 0; k < classes; ++k) {
    const float logit = logits[k] - largest;
    logit_sum += logit;
    logits[k] = std::exp(logit);
    sum += logits[k];
  }
  const auto share = static_cast<float>(1.0 / sum);
  const float others = smoothing / static_cast<float>(classes), mean = 1.0F / static_cast<float>(images);
  for (int k = 0; k < classes; ++k) logits[k] = (logits[k] * share - others) * mean;
  logits[label] -= (1.0F - smoothing) * mean;
  const double of_all = smoothing == 0.0F ? 0.0 : smoothing * logit_sum / classes;  // not 0 times infinity
  return static_cast<float>(std::log(sum) - (1.0 - smoothing) * own - of_all);
}

}  // namespace

std::int64_t workspace_floats(const ClassifierLoss& layer) { return Space(layer, nullptr).floats; }

std::int64_t find_bad_label(const ClassifierLoss& layer, const std::int64_t* labels) {
  return std::find_if(labels, labels + layer.images,
                      [&](std::int64_t label) { return label < 0 || label >= layer.classes; }) -
         labels;
}

ClassifierResult forward(const ClassifierLoss& layer, const ClassifierTargets& targets, const ClassifierKept& kept,
                         float* workspace) {
  const Space space(layer, workspace);
  fill_factors(layer, targets, kept.factors);
  multiply(layer, kept.factors, kept.features);
  pointwise(linear(layer), input(layer, kept.features), layer.weight, space.rest, kept.grad_logits, nullptr, nullptr);
  for_rows(layer, layer.classes, [&](std::int64_t row) {
    float* const logits = kept.grad_logits + row * layer.classes;
    for (int k = 0; k < layer.classes; ++k) logits[k] += layer.bias[k];
    const std::int64_t label = targets.labels[row];
    space.hits[row] = std::max_element(logits, logits + layer.classes) - logits == label ? 1.0F : 0.0F;
    space.losses[row] = cross_entropy(layer.images, layer.classes, label, targets.smoothing, logits);
  });
  const double loss = std::accumulate(space.losses, space.losses + layer.images, 0.0);
  const double hits = std::accumulate(space.hits, space.hits + layer.images, 0.0);
  return {static_cast<float>(loss / static_cast<double>(layer.images)), static_cast<std::int64_t>(hits)};
}

void backward(const ClassifierLoss& layer, float grad, const ClassifierKept& kept, float* workspace,
              const ClassifierGradients& gradients) {
  const Space space(layer, workspace);
  std::fill_n(gradients.bias, layer.classes, 0.0F);
  for (std::int64_t row = 0; row < layer.images; ++row) {
    for (int k = 0; k < layer.classes; ++k) {
      const float value = grad * kept.grad_logits[row * layer.classes + k];
      space.grad_logits[row * layer.classes + k] = value;
      gradients.bias[k] += value;
    }
  }
  pointwise_backward(linear(layer), {{space.grad_logits, layer.classes}, {nullptr, 0}, nullptr, {}},
                     input(layer, kept.features), layer.weight, {nullptr, 0}, space.rest,
                     {gradients.features, nullptr, nullptr, gradients.weight});
  multiply(layer, kept.factors, gradients.features);
}

}  // namespace greedynas::blocks
