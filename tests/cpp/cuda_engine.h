// The network of filter_reference.h, the oracle, and the same one on the emulated device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "cuda/platform.h"
#include "filter/arithmetic.h"
#include "filter/cuda/score.h"
#include "filter_reference.h"

namespace reference {

namespace filter = greedynas::filter;

using Bytes = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

using Net = Network;

// A net in the kernels' layout, with the memory it needs; everything that is written starts as NaN.
class Engine {
 public:
  Engine(const Net& net, filter::Precision precision)
      : weights_(bytes(filter::cuda::weights_bytes(net.shape, precision))),
        model_{net.shape, precision, weights_.data()} {
    filter::cuda::prepare(net.shape, precision, net.num_ops, net.parameters(), weights_.data(), nullptr);
  }

  const filter::cuda::DeviceModel& model() const { return model_; }

  Floats score(const filter::cuda::PathBatch& batch, std::int64_t n, filter::cuda::ScoreStatus* status) const {
    Floats scores(static_cast<std::size_t>(n), std::numeric_limits<float>::quiet_NaN());
    std::vector<std::uint8_t> workspace = bytes(filter::cuda::score_workspace_bytes(model_.shape, n));
    filter::cuda::score(model_, batch, n, scores.data(), status, workspace.data(), nullptr, nullptr);
    return scores;
  }

  Floats score_paths(const Bytes& paths) const {
    filter::cuda::ScoreStatus status{};
    const auto n = static_cast<std::int64_t>(paths.size()) / model_.shape.layers;
    Floats scores = score({paths.data(), nullptr}, n, &status);
    CHECK(status.bad_path == filter::cuda::kNoPath);
    CHECK(status.nan_path == filter::cuda::kNoPath);
    return scores;
  }

  static std::vector<std::uint8_t> bytes(std::int64_t count) {
    return std::vector<std::uint8_t>(static_cast<std::size_t>(count), 0xFF);
  }

 private:
  std::vector<std::uint8_t> weights_;
  filter::cuda::DeviceModel model_;
};

}  // namespace reference
