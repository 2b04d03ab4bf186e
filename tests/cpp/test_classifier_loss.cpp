// Dropout, classifier and loss in one call: against plain sums in double; on one thread and on three, the same bits.
// All tensors and workspaces end with their allocation, so that the sanitizers see a step beyond. Values and gradients
// are compared with torch's in tests/nn.
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "blocks/classifier_loss.h"
#include "check.h"
#include "floats.h"

using namespace greedynas;

namespace {

Floats unset(std::int64_t count) { return Floats(static_cast<std::size_t>(count), NAN); }

struct Case {
  std::int64_t images;
  int features, classes;
  float smoothing;
  bool drops;
};

// The loss, the number of correct images, and everything else that the passes write, one after the other.
Floats run(const Case& c, int threads) {
  const std::int64_t size = c.images * c.features;
  const Floats weight = random_floats(std::int64_t{c.classes} * c.features, 1), bias = random_floats(c.classes, 2);
  const Floats pooled = random_floats(size, 3), signs = random_floats(size, 4);
  Floats features = pooled, mask = unset(size);
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = signs[i] > 0.0F ? 1.0F : 0.0F;
  std::vector<std::int64_t> labels;
  for (std::int64_t i = 0; i < c.images; ++i) labels.push_back(i * 7 % c.classes);
  const float scale = 1.25F, grad = 0.5F;
  const blocks::ClassifierLoss layer{c.images, c.features, c.classes, weight.data(), bias.data(), threads};
  CHECK(blocks::find_bad_label(layer, labels.data()) == c.images);
  Floats space = unset(blocks::workspace_floats(layer)), grad_logits = unset(c.images * c.classes);
  const float* const kept = c.drops ? mask.data() : nullptr;
  Floats factors = unset(size);
  const blocks::ClassifierKept passed{features.data(), factors.data(), grad_logits.data()};
  const blocks::ClassifierResult result =
      blocks::forward(layer, {labels.data(), c.smoothing, kept, scale}, passed, space.data());
  double loss = 0.0;
  for (std::int64_t i = 0; i < c.images; ++i) {
    std::vector<double> logits;
    double sum = 0.0, all = 0.0;
    for (int k = 0; k < c.classes; ++k) {
      double logit = bias[static_cast<std::size_t>(k)];
      for (std::int64_t f = 0; f < c.features; ++f) {
        const auto at = static_cast<std::size_t>(i * c.features + f);
        const double value = kept == nullptr ? pooled[at] : pooled[at] * mask[at] * scale;
        logit += value * weight[static_cast<std::size_t>(k * c.features + f)];
      }
      logits.push_back(logit);
      sum += std::exp(logit);
      all += logit;
    }
    const double own = logits[static_cast<std::size_t>(labels[static_cast<std::size_t>(i)])];
    loss += std::log(sum) - (1.0 - c.smoothing) * own - c.smoothing * all / c.classes;
  }
  loss /= static_cast<double>(c.images);
  CHECK(std::abs(loss - result.loss) < 1e-5 * (1.0 + std::abs(loss)));
  Floats grad_features = unset(size), grad_weight = unset(std::int64_t{c.classes} * c.features),
         grad_bias = unset(c.classes);
  space = unset(blocks::workspace_floats(layer));
  blocks::backward(layer, grad, passed, space.data(), {grad_features.data(), grad_weight.data(), grad_bias.data()});
  Floats all{result.loss, static_cast<float>(result.correct)};
  for (const Floats* part : {&features, &factors, &grad_logits, &grad_features, &grad_weight, &grad_bias}) {
    for (const float value : *part) CHECK(std::isfinite(value));
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

void check_bad_labels() {
  const blocks::ClassifierLoss layer{3, 2, 4, nullptr, nullptr, 1};
  CHECK(blocks::find_bad_label(layer, std::array<std::int64_t, 3>{0, 4, -1}.data()) == 1);
  CHECK(blocks::find_bad_label(layer, std::array<std::int64_t, 3>{0, 3, -100}.data()) == 2);
}

}  // namespace

int main() {
  for (const Case& c :
       {Case{32, 256, 10, 0.1F, true}, {1, 1, 1, 0.0F, false}, {7, 33, 3, 1.0F, true}, {70, 65, 1000, 0.0F, false}}) {
    CHECK(run(c, 1) == run(c, 3));
  }
  check_bad_labels();
  return failed_checks == 0 ? 0 : 1;
}
