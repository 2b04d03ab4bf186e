// The rejection loop on the emulated device against a loop over single proposals.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda_engine.h"
#include "filter/cuda/rejection.h"
#include "paths/proposals.h"

using namespace greedynas;
using filter::Precision;
using filter::RejectionRequest;
using filter::RejectionResult;
using reference::Bytes;
using reference::Engine;
using reference::Floats;
using reference::Net;

namespace {

constexpr std::uint64_t kPoison = 0xA5A5A5A5A5A5A5A5ULL;

RejectionResult naive(const Floats& scores, const RejectionRequest& request) {
  RejectionResult result;
  std::vector<std::pair<float, std::uint64_t>> rejected;
  for (; result.proposals < request.limit && std::ssize(result.accepted) < request.wanted; ++result.proposals) {
    const float score = scores[static_cast<std::size_t>(result.proposals)];
    const std::uint64_t number = request.start + static_cast<std::uint64_t>(result.proposals);
    if (static_cast<double>(score) <= request.threshold) {
      result.accepted.push_back(number);
    } else {
      rejected.emplace_back(score, number);
    }
  }
  std::sort(rejected.begin(), rejected.end());
  const std::int64_t missing = request.wanted - std::ssize(result.accepted);
  const std::int64_t fallbacks = request.want_fallbacks ? std::min(missing, std::ssize(rejected)) : 0;
  for (std::int64_t i = 0; i < fallbacks; ++i) result.fallbacks.push_back(rejected[static_cast<std::size_t>(i)].second);
  return result;
}

RejectionResult on_device(const Engine& engine, const RejectionRequest& request, std::int64_t chunk) {
  const filter::Shape& shape = engine.model().shape;
  RejectionResult result;
  result.accepted.assign(static_cast<std::size_t>(request.wanted), kPoison);
  Bytes workspace = Engine::bytes(filter::cuda::rejection_workspace_bytes(shape, chunk));
  Bytes pinned = Engine::bytes(filter::cuda::kRejectionHostBytes);
  const auto outcome = filter::cuda::reject(engine.model(), request, chunk, result.accepted.data(), workspace.data(),
                                            pinned.data(), nullptr, [] {});
  CHECK(std::count(result.accepted.begin(), result.accepted.end(), kPoison) == request.wanted - outcome.accepted);
  result.accepted.resize(static_cast<std::size_t>(outcome.accepted));
  result.proposals = outcome.proposals;
  const std::int64_t missing = request.wanted - outcome.accepted;
  const std::int64_t count = request.want_fallbacks ? std::min(missing, request.limit - outcome.accepted) : 0;
  if (count > 0) {
    result.fallbacks.assign(static_cast<std::size_t>(count), kPoison);
    workspace = Engine::bytes(filter::cuda::fallback_workspace_bytes(shape, chunk, count));
    filter::cuda::lowest_rejected(engine.model(), request, chunk, count, result.fallbacks.data(), workspace.data(),
                                  nullptr, [] {});
  }
  return result;
}

// 27 different paths, so that scores repeat and the number decides; scores of all proposals up to `limit`.
struct Problem {
  Net net{{5, 5, 5}, 16, 11, 2.0F};
  Bytes allowed{1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0};
  std::uint64_t start = (1ULL << 32) - 100;
  std::int64_t limit = 3000;
  Engine engine;
  Floats scores;

  explicit Problem(Precision precision) : engine(net, precision) {
    Bytes paths(static_cast<std::size_t>(3 * limit));
    paths::propose(allowed.data(), 3, 5, 77, 2, start, limit, paths.data());
    scores = engine.score_paths(paths);
  }

  RejectionRequest request(std::int64_t wanted, std::int64_t at_most, double share, bool want_fallbacks) const {
    Floats sorted = scores;
    std::sort(sorted.begin(), sorted.end());
    const double threshold = share < 0 ? -1e9 : sorted[static_cast<std::size_t>(share * 2999)];
    return {allowed.data(), 77, 2, start, wanted, at_most, threshold, want_fallbacks};
  }
};

void check_all(const Problem& problem, std::int64_t chunk) {
  for (const auto& request : {problem.request(20, 3000, 0.2, false), problem.request(1, 3000, 0.05, false),
                              problem.request(100, 150, 0.3, true), problem.request(100, 300, 0.1, true),
                              problem.request(40, 40, 1.0, false), problem.request(30, 20, -1, true)}) {
    const RejectionResult expected = naive(problem.scores, request);
    const RejectionResult got = on_device(problem.engine, request, chunk);
    CHECK(got.accepted == expected.accepted);
    CHECK(got.fallbacks == expected.fallbacks);
    CHECK(got.proposals == expected.proposals);
  }
}

void test_equals_the_naive_loop_for_every_chunk() {
  const Problem problem(Precision::bf16);
  for (const std::int64_t chunk : {24, 64, 2500}) check_all(problem, chunk);
  check_all(Problem(Precision::float32), 100);
}

void test_more_than_one_segment_and_nothing_wanted() {
  const Problem problem(Precision::bf16);
  const auto many = problem.request(1300, 3000, 0.5, false);
  const RejectionResult expected = naive(problem.scores, many);
  CHECK(on_device(problem.engine, many, 3000).accepted == expected.accepted);
  const RejectionResult none = on_device(problem.engine, problem.request(0, 3000, 0.5, false), 64);
  CHECK(none.accepted.empty());
  CHECK(none.proposals == 0);
  CHECK(on_device(problem.engine, problem.request(3, 0, 0.5, true), 64).proposals == 0);
}

void test_the_loop_can_be_ended() {
  const Problem problem(Precision::bf16);
  const auto request = problem.request(3000, 3000, -1, true);
  std::vector<std::uint64_t> numbers(3000);
  Bytes workspace = Engine::bytes(filter::cuda::fallback_workspace_bytes(problem.net.shape, 64, 3000));
  Bytes pinned = Engine::bytes(filter::cuda::kRejectionHostBytes);
  int rounds = 0;
  const auto end_the_third = [&] {
    if (++rounds == 3) throw std::runtime_error("enough");
  };
  CHECK_THROWS(filter::cuda::reject(problem.engine.model(), request, 64, numbers.data(), workspace.data(),
                                    pinned.data(), nullptr, end_the_third),
               std::runtime_error);
  CHECK(rounds == 3);
  rounds = 0;
  CHECK_THROWS(filter::cuda::lowest_rejected(problem.engine.model(), request, 64, 3000, numbers.data(),
                                             workspace.data(), nullptr, end_the_third),
               std::runtime_error);
}

void test_nan_is_an_error() {
  Net net({5, 5, 5}, 16, 11);
  for (std::size_t j = 0; j < 16; ++j) {
    net.fc1_bias[j] = std::numeric_limits<float>::infinity();
    net.fc2_weight[j] = j % 2 == 0 ? 1.0F : -1.0F;
    net.fc2_weight[16 + j] = 0;
  }
  const Engine engine(net, Precision::float32);
  const Bytes allowed(15, 1);
  const RejectionRequest request{allowed.data(), 1, 0, 0, 5, 50, 0.0, false};
  CHECK_THROWS(on_device(engine, request, 16), std::invalid_argument);
}

}  // namespace

int main() {
  test_equals_the_naive_loop_for_every_chunk();
  test_more_than_one_segment_and_nothing_wanted();
  test_the_loop_can_be_ended();
  test_nan_is_an_error();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
