// The filter kernels against the plain reference, the scoring of batches, and the rejection loop.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "filter/cpu/kernels.h"
#include "filter/rejection.h"
#include "filter/score.h"
#include "filter_reference.h"
#include "paths/codec.h"
#include "paths/proposals.h"
#include "wide_kernels.h"

using namespace greedynas;
using filter::Model;
using filter::Precision;

namespace {

struct Level {
  const filter::Kernel* kernel;
  Precision precision;
  bool same_bits;  // promised against the reference
  float tolerance;
};

// On x86 the files of the portable level and of the stand-ins have no fused multiply-add.
constexpr bool kPortableFuses =
#ifdef GREEDYNAS_X86
    false;
#else
    true;
#endif

std::vector<Level> levels() {
  std::vector<Level> result{{&filter::kPortableKernel, Precision::float32, kPortableFuses, 2e-6F},
                            {&filter::kPortableKernel, Precision::bf16, false, 2e-3F},
                            {&kWideKernel, Precision::float32, kPortableFuses, 2e-6F},
                            {&kWideKernel, Precision::bf16, false, 2e-3F},
                            {&kWidePairKernel, Precision::bf16, false, 2e-3F},
                            {&kWideTileKernel, Precision::bf16, false, 2e-3F}};
  for (const cpu::Isa isa : cpu::compiled()) {
    if (isa == cpu::Isa::portable) continue;
    if (!cpu::available(isa)) {
      std::printf("skipped: this machine cannot run %s\n", std::string(cpu::name_of(isa)).c_str());
      continue;
    }
    const filter::Kernel& exact = filter::kernel_for(isa, Precision::float32);
    result.push_back({&exact, Precision::float32, true, 0.0F});
    result.push_back({&filter::kernel_for(isa, Precision::bf16), Precision::bf16, false, 2e-3F});
  }
  return result;
}

std::vector<float> score(const Model& model, const std::vector<std::uint8_t>& paths, std::int64_t n, int threads) {
  // One more than needed, so that a write past the end is seen.
  std::vector<float> result(static_cast<std::size_t>(n) + 1, std::numeric_limits<float>::quiet_NaN());
  filter::score(model, paths.data(), n, threads, result.data());
  CHECK(std::isnan(result.back()));
  result.pop_back();
  return result;
}

void compare(const Network& network, const Level& level, int count) {
  const Model model(network.shape, network.num_ops, level.precision, *level.kernel, network.parameters());
  const auto paths = network.random_paths(count, 5);
  const auto scores = score(model, paths, count, 1);
  for (int i = 0; i < count; ++i) {
    const float expected =
        network.log_weak(paths.data() + i * network.shape.layers, level.precision == Precision::bf16);
    const float error = std::fabs(scores[static_cast<std::size_t>(i)] - expected);
    const bool good = level.same_bits ? error == 0.0F : error <= level.tolerance;
    if (!good) {
      std::printf("%s, H = %d, L = %d, path %d of %d: %.9g instead of %.9g\n", level.kernel->name, network.shape.hidden,
                  network.shape.layers, i, count, scores[static_cast<std::size_t>(i)], expected);
    }
    CHECK(good);
  }
}

void test_kernels_against_reference() {
  for (const Level& level : levels()) {
    for (const int hidden : {16, 48, 128}) compare(Network({3, 1, 5, 2}, hidden, 1), level, hidden == 48 ? 101 : 7);
    compare(Network({4}, 16, 2), level, 4);
    compare(Network({1, 1}, 32, 3), level, 1);
    compare(Network({32, 2, 32}, 256, 4), level, 2);
    compare(Network(std::vector<int>(64, 3), 16, 5), level, 3);
    compare(Network({3, 3, 3}, 16, 6, 30.0F), level, level.same_bits ? 27 : 0);  // saturated gates
  }
}

// The cells of the bf16 kernels against double precision, where gates are saturated too.
void test_approximate_cell() {
  using Lane = ExactLane<true>;
  const auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  double worst = 0.0;
  for (int i = 0; i < 100'000; ++i) {
    const auto at = [i](int period, double width) { return width * (2.0 * (i % period) / (period - 1) - 1.0); };
    const double zi = at(991, 20.0), zf = at(997, 20.0), zg = at(1009, 10.0), zo = at(1013, 20.0), cell = at(1019, 4.0);
    const auto lane = [](double value) { return Lane{static_cast<float>(value)}; };
    const auto found = filter::lstm_cell(lane(zi), lane(zf), lane(zg), lane(zo), lane(cell));
    const double next = sigmoid(zf) * cell + sigmoid(zi) * std::tanh(zg);
    worst = std::max(worst, std::fabs(static_cast<double>(found.cell.v) - next));
    worst = std::max(worst, std::fabs(static_cast<double>(found.hidden.v) - sigmoid(zo) * std::tanh(next)));
  }
  CHECK(worst < 2.5e-4);  // a state is rounded to bf16, by up to 4e-3
  CHECK(worst > 1e-6);    // it is the approximation
}

void test_prefixes_and_threads_change_nothing() {
  const Network network({13, 13, 13, 4, 7}, 16, 7);
  const int count = 5000;
  const auto paths = network.random_paths(count, 8);
  for (const Level& level : levels()) {
    const Model model(network.shape, network.num_ops, level.precision, *level.kernel, network.parameters());
    std::vector<float> without;
    for (int i = 0; i < 4000; i += 40) {
      const std::vector<std::uint8_t> part(paths.begin() + i * 5, paths.begin() + (i + 40) * 5);
      const auto scores = score(model, part, 40, 1);
      without.insert(without.end(), scores.begin(), scores.end());
    }
    CHECK(model.prefixes(0) == nullptr);
    const auto with = score(model, paths, count, 1);
    CHECK(model.prefixes(0) != nullptr);
    CHECK(std::equal(without.begin(), without.end(), with.begin()));
    CHECK(score(model, paths, count, 3) == with);

    std::vector<std::uint64_t> keys(2 * static_cast<std::size_t>(count));
    paths::pack(paths.data(), count, 5, keys.data());
    std::vector<float> from_keys(static_cast<std::size_t>(count));
    filter::score_keys(model, keys.data(), count, 2, from_keys.data());
    CHECK(from_keys == with);
  }
}

filter::RejectionResult naive(const Model& model, const filter::RejectionRequest& request) {
  filter::RejectionResult result;
  std::vector<std::pair<float, std::uint64_t>> rejected;
  const int layers = model.shape().layers;
  std::vector<std::uint8_t> path(static_cast<std::size_t>(layers));
  while (static_cast<std::int64_t>(result.accepted.size()) < request.wanted && result.proposals < request.limit) {
    const std::uint64_t number = request.start + static_cast<std::uint64_t>(result.proposals++);
    paths::propose(request.allowed, layers, model.shape().operations, request.seed, request.stream, number, 1,
                   path.data());
    float value;
    filter::score(model, path.data(), 1, 1, &value);
    if (value <= request.threshold) {
      result.accepted.push_back(number);
    } else {
      rejected.emplace_back(value, number);
    }
  }
  const auto missing = static_cast<std::size_t>(request.wanted) - result.accepted.size();
  std::sort(rejected.begin(), rejected.end());
  for (std::size_t i = 0; request.want_fallbacks && i < std::min(missing, rejected.size()); ++i) {
    result.fallbacks.push_back(rejected[i].second);
  }
  return result;
}

void test_rejection_is_the_literal_loop() {
  const Network network({3, 2, 5, 4}, 16, 9);
  const Model model(network.shape, network.num_ops, Precision::float32, cpu::selected(), network.parameters());
  auto scores = score(model, network.random_paths(400, 10), 400, 1);
  std::sort(scores.begin(), scores.end());
  std::vector<std::uint8_t> allowed(4 * 5, 0);
  for (int layer = 0; layer < 4; ++layer) {
    for (int op = 0; op < network.num_ops[static_cast<std::size_t>(layer)]; ++op) {
      allowed[static_cast<std::size_t>(layer * 5 + op)] = layer != 2 || op != 1;
    }
  }
  for (const int rank : {0, 20, 200, 399}) {
    for (const std::int64_t wanted : {0, 1, 30}) {
      for (const std::int64_t limit : {0, 3, 1000}) {
        const filter::RejectionRequest request{
            allowed.data(), 77, 3, (1ULL << 33) - 5, wanted, limit, scores[static_cast<std::size_t>(rank)], true};
        const auto expected = naive(model, request);
        for (const int threads : {1, 4}) {
          int rounds = 0;
          const auto found = filter::reject(model, request, threads, [&] { ++rounds; });
          CHECK(found.accepted == expected.accepted);
          CHECK(found.fallbacks == expected.fallbacks);
          CHECK(found.proposals == expected.proposals);
          CHECK(rounds > 0 || wanted == 0 || limit == 0);
        }
      }
    }
  }
}

void test_a_screen_changes_no_decision() {
  const Network network({3, 2, 5, 4, 6}, 48, 13), other({3, 2, 5, 4, 6}, 48, 14);
  const auto make = [](const Network& weights, Precision precision) {
    return Model(weights.shape, weights.num_ops, precision, filter::kPortableKernel, weights.parameters());
  };
  const Model model = make(network, Precision::float32), screen = make(network, Precision::bf16);
  const Model wrong = make(other, Precision::bf16);
  const auto paths = network.random_paths(400, 15);
  auto scores = score(model, paths, 400, 1);
  const auto rounded = score(screen, paths, 400, 1);
  double band = 0.0;
  for (std::size_t i = 0; i < 400; ++i) {
    band = std::max(band, 8.0 * std::fabs(static_cast<double>(scores[i]) - rounded[i]));
  }
  CHECK(band > 0.0);
  std::sort(scores.begin(), scores.end());
  CHECK(band < 0.1 * (scores[399] - scores[0]));
  std::vector<std::uint8_t> allowed(5 * 6, 0);
  for (std::size_t layer = 0; layer < 5; ++layer) {
    std::fill_n(allowed.begin() + static_cast<std::ptrdiff_t>(6 * layer), network.num_ops[layer], std::uint8_t{1});
  }
  for (const std::size_t rank : {0, 4, 40, 200, 399}) {
    for (const std::int64_t wanted : {1, 50}) {
      for (const bool fallbacks : {false, true}) {
        const filter::RejectionRequest request{allowed.data(), 3, 0, 9, wanted, 700, scores[rank], fallbacks};
        const auto expected = filter::reject(model, request, 1, [] {});
        // The last one is found out at the first score that it gets wrong near the threshold.
        for (const auto& with :
             {filter::Screen{screen, band}, filter::Screen{model, 1e-3}, filter::Screen{wrong, 0.5}}) {
          const auto found = filter::reject(model, request, 2, [] {}, &with);
          CHECK(found.accepted == expected.accepted);
          CHECK(found.fallbacks == expected.fallbacks);
          CHECK(found.proposals == expected.proposals);
        }
      }
    }
  }
}

void test_rejection_is_interruptible() {
  const Network network({3, 2}, 16, 11);
  const Model model(network.shape, network.num_ops, Precision::float32, cpu::selected(), network.parameters());
  const std::array<std::uint8_t, 6> allowed{1, 1, 1, 1, 1, 0};
  const filter::RejectionRequest never{allowed.data(), 0, 0, 0, 1, std::int64_t{1} << 60, -1e30, false};
  int rounds = 0;
  CHECK_THROWS(filter::reject(model, never, 2,
                              [&] {
                                if (++rounds == 3) throw std::runtime_error("stop");
                              }),
               std::runtime_error);
  CHECK(rounds == 3);
}

void test_bad_input() {
  const Network network({3, 2}, 16, 12);
  const auto parameters = network.parameters();
  const auto make = [&](filter::Shape shape, std::vector<int> ops, filter::Parameters p) {
    const Model model(shape, std::move(ops), Precision::float32, cpu::selected(), p);
  };
  CHECK_THROWS(make({0, 3, 16}, {}, parameters), std::invalid_argument);
  CHECK_THROWS(make({65, 3, 16}, std::vector<int>(65, 1), parameters), std::invalid_argument);
  CHECK_THROWS(make({2, 33, 16}, {3, 2}, parameters), std::invalid_argument);
  CHECK_THROWS(make({2, 3, 24}, {3, 2}, parameters), std::invalid_argument);
  CHECK_THROWS(make({2, 3, 272}, {3, 2}, parameters), std::invalid_argument);
  CHECK_THROWS(make({2, 3, 16}, {3}, parameters), std::invalid_argument);
  CHECK_THROWS(make({2, 3, 16}, {3, 0}, parameters), std::invalid_argument);
  CHECK_THROWS(make({2, 3, 16}, {3, 4}, parameters), std::invalid_argument);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 2e15F}) {
    std::vector<float> recurrent = network.recurrent;
    recurrent.back() = bad;
    auto with_bad = parameters;
    with_bad.recurrent = recurrent.data();
    CHECK_THROWS(make(network.shape, network.num_ops, with_bad), std::invalid_argument);
  }

  const Model model(network.shape, network.num_ops, Precision::float32, cpu::selected(), parameters);
  float out[2];
  const std::array<std::uint8_t, 4> paths{0, 1, 2, 2};
  CHECK_THROWS(filter::score(model, paths.data(), 2, 1, out), std::invalid_argument);
  const std::array<std::uint8_t, 6> empty_layer{1, 1, 1, 0, 0, 0}, foreign{1, 1, 1, 1, 1, 1};
  const auto reject = [&](const std::uint8_t* allowed, double threshold, std::int64_t wanted) {
    filter::reject(model, {allowed, 0, 0, 0, wanted, 100, threshold, false}, 1, [] {});
  };
  CHECK_THROWS(reject(empty_layer.data(), 0, 1), std::invalid_argument);
  CHECK_THROWS(reject(foreign.data(), 0, 1), std::invalid_argument);
  const std::array<std::uint8_t, 6> good{1, 1, 1, 1, 1, 0};
  CHECK_THROWS(reject(good.data(), std::nan(""), 1), std::invalid_argument);
  CHECK_THROWS(reject(good.data(), 0, -1), std::invalid_argument);
}

}  // namespace

int main() {
#ifdef __SANITIZE_THREAD__
  constexpr bool kTestsOfOneThread = false;  // most of the time here, with nothing for this sanitizer to find
#else
  constexpr bool kTestsOfOneThread = true;
#endif
  if (kTestsOfOneThread) {
    test_kernels_against_reference();
    test_approximate_cell();
  }
  test_prefixes_and_threads_change_nothing();
  test_rejection_is_the_literal_loop();
  test_a_screen_changes_no_decision();
  test_rejection_is_interruptible();
  test_bad_input();
  return failed_checks == 0 ? 0 : 1;
}
