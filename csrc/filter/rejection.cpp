#include "filter/rejection.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

#include "filter/score.h"
#include "paths/proposals.h"

namespace greedynas::filter {
namespace {

constexpr std::int64_t kSmallestRound = 6;             // paths that the AVX-512 kernels take at a time
constexpr std::int64_t kLargestRoundPerThread = 4096;  // some tenths of a second, so that an interrupt is soon heard

void check(const Model& model, const RejectionRequest& request) {
  const auto require = [](bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument("reject: " + message);
  };
  require(!std::isnan(request.threshold), "the threshold is NaN");
  require(request.wanted >= 0 && request.limit >= 0, "counts must not be negative");
  for (int layer = 0; layer < model.shape().layers; ++layer) {
    const std::uint8_t* allowed = request.allowed + std::int64_t{layer} * model.shape().operations;
    for (int op = model.num_ops()[static_cast<std::size_t>(layer)]; op < model.shape().operations; ++op) {
      require(allowed[op] == 0, "the mask allows operation " + std::to_string(op) + " at layer " +
                                    std::to_string(layer) + ", which the filter does not have");
    }
  }
}

// How many proposals to look at next: what is expected to suffice, within bounds. Affects the speed alone.
std::int64_t round_size(const RejectionRequest& request, const RejectionResult& so_far, int threads) {
  const auto accepted = static_cast<double>(so_far.accepted.size());
  const double missing = static_cast<double>(request.wanted) - accepted;
  const double acceptance = (accepted + 1.0) / (static_cast<double>(so_far.proposals) + 2.0);
  const double largest = static_cast<double>(kLargestRoundPerThread) * threads;
  const auto expected = static_cast<std::int64_t>(std::min(missing / acceptance, largest));
  return std::min(std::max(expected, kSmallestRound), request.limit - so_far.proposals);
}

// The rejected proposals of lowest (log Phi, number), at most as many as may still be needed.
class Reserve {
 public:
  void add(float log_weak, std::uint64_t number) { heap_.emplace(log_weak, number); }

  void shrink_to(std::int64_t size) {
    while (static_cast<std::int64_t>(heap_.size()) > size) heap_.pop();
  }

  bool would_keep(float log_weak, std::int64_t size) const {
    return static_cast<std::int64_t>(heap_.size()) < size || (size > 0 && log_weak < heap_.top().first);
  }

  std::vector<std::uint64_t> ascending() {
    std::vector<std::uint64_t> numbers;
    for (; !heap_.empty(); heap_.pop()) numbers.push_back(heap_.top().second);
    std::reverse(numbers.begin(), numbers.end());
    return numbers;
  }

 private:
  std::priority_queue<std::pair<float, std::uint64_t>> heap_;
};

// Scores paths [n, L] with the screen, and anew with the model those near the threshold. Returns whether the screen was
// as near to the model there as it should be.
bool score_screened(const Model& model, const Screen& screen, double threshold, const std::vector<std::uint8_t>& paths,
                    int threads, std::vector<float>& scores) {
  const auto layers = static_cast<std::size_t>(model.shape().layers);
  score(screen.model, paths.data(), static_cast<std::int64_t>(scores.size()), threads, scores.data());
  std::vector<std::size_t> near;
  std::vector<std::uint8_t> near_paths;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::fabs(static_cast<double>(scores[i]) - threshold) > screen.band) continue;
    near.push_back(i);
    near_paths.insert(near_paths.end(), paths.data() + i * layers, paths.data() + (i + 1) * layers);
  }
  std::vector<float> settled(near.size());
  score(model, near_paths.data(), static_cast<std::int64_t>(near.size()), threads, settled.data());
  bool good = true;
  for (std::size_t i = 0; i < near.size(); ++i) {
    good = good && 2.0 * std::fabs(static_cast<double>(settled[i]) - scores[near[i]]) <= screen.band;
    scores[near[i]] = settled[i];
  }
  return good;
}

}  // namespace

RejectionResult reject(const Model& model, const RejectionRequest& request, int threads,
                       const std::function<void()>& between_rounds, const Screen* screen) {
  check(model, request);
  const Shape& shape = model.shape();
  if (screen != nullptr && request.want_fallbacks) {
    // Fallbacks are ordered by the model's scores. They are rare: then all is done again.
    RejectionRequest without = request;
    without.want_fallbacks = false;
    RejectionResult result = reject(model, without, threads, between_rounds, screen);
    if (static_cast<std::int64_t>(result.accepted.size()) == request.wanted) return result;
    screen = nullptr;
  }
  RejectionResult result;
  Reserve reserve;
  std::vector<std::uint8_t> paths;
  std::vector<float> scores;
  const auto missing = [&] { return request.wanted - static_cast<std::int64_t>(result.accepted.size()); };
  while (missing() > 0 && result.proposals < request.limit) {
    const std::int64_t count = round_size(request, result, threads);
    const std::uint64_t first = request.start + static_cast<std::uint64_t>(result.proposals);
    paths.resize(static_cast<std::size_t>(count * shape.layers));
    scores.resize(static_cast<std::size_t>(count));
    paths::propose(request.allowed, shape.layers, shape.operations, request.seed, request.stream, first, count,
                   paths.data());
    if (screen == nullptr) {
      score(model, paths.data(), count, threads, scores.data());
    } else if (!score_screened(model, *screen, request.threshold, paths, threads, scores)) {
      return reject(model, request, threads, between_rounds);
    }
    for (std::int64_t i = 0; i < count && missing() > 0; ++i) {
      const float log_weak = scores[static_cast<std::size_t>(i)];
      const std::uint64_t number = first + static_cast<std::uint64_t>(i);
      ++result.proposals;
      if (static_cast<double>(log_weak) <= request.threshold) {
        result.accepted.push_back(number);
      } else if (request.want_fallbacks && reserve.would_keep(log_weak, missing())) {
        reserve.add(log_weak, number);
        reserve.shrink_to(missing());
      }
    }
    between_rounds();
  }
  if (request.want_fallbacks && missing() > 0) {
    reserve.shrink_to(missing());
    result.fallbacks = reserve.ascending();
  }
  return result;
}

}  // namespace greedynas::filter
