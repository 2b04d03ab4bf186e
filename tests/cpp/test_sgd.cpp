// The optimizer's kernels of every level that this machine runs, and those of wide vectors over the compiler's own
// vectors, against a plain loop: odd lengths, odd addresses, empty blocks, threads.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "optim/cpu/sgd_block.h"
#include "optim/cpu/sgd_kernels.h"
#include "optim/sgd.h"

using namespace greedynas;

namespace {

const optim::Kernel kWideKernel = optim::kernel_over<cpu::VecGeneric<16>>("wide");

using Floats = std::vector<float>;

// Exactly sized: the sanitizer sees every step beyond.
struct State {
  Floats parameters, gradients, momentum, ema;

  explicit State(std::int64_t count) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (Floats* values : {&parameters, &gradients, &momentum, &ema}) {
      for (std::int64_t i = 0; i < count; ++i) values->push_back(normal(random));
    }
  }
  optim::Buffers from(std::int64_t start, bool with_momentum, bool with_ema) {
    return {parameters.data() + start, gradients.data() + start, with_momentum ? momentum.data() + start : nullptr,
            with_ema ? ema.data() + start : nullptr};
  }
  bool operator==(const State& other) const {
    return parameters == other.parameters && gradients == other.gradients && momentum == other.momentum &&
           ema == other.ema;
  }
};

void plain_update(const optim::Coefficients& c, const optim::Buffers& at, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    volatile float product = at.gradients[i] * c.scale;  // rounded, whatever the compiler may fuse
    float g = product;
    if (c.decay != 0.0F) {
      product = at.parameters[i] * c.decay;
      g += product;
    }
    if (at.momentum != nullptr) {
      product = at.momentum[i] * c.momentum;
      at.momentum[i] = product + g;
      product = at.momentum[i] * c.momentum;
      g = c.nesterov ? g + product : at.momentum[i];
    }
    product = g * c.lr;
    at.parameters[i] -= product;
    if (at.ema != nullptr) {
      product = at.ema[i] * c.ema_decay;
      const volatile float share = at.parameters[i] * c.ema_share;
      at.ema[i] = product + share;
    }
    if (c.zero) at.gradients[i] = 0.0F;
  }
}

std::vector<const optim::Kernel*> kernels() {
  std::vector<const optim::Kernel*> result = {&kWideKernel};
  for (const cpu::Isa isa : cpu::compiled()) {
    if (cpu::available(isa)) result.push_back(&optim::kernel_for(isa));
  }
  return result;
}

void test_updates() {
  for (const std::int64_t count : {0, 1, 3, 4, 15, 16, 17, 31, 67}) {
    for (int choice = 0; choice < 32; ++choice) {
      const bool momentum = (choice & 1) != 0, ema = (choice & 2) != 0;
      const optim::Coefficients c = {0.7F,
                                     (choice & 4) != 0 ? 0.05F : 0.0F,
                                     0.9F,
                                     0.3F,
                                     0.99F,
                                     0.01F,
                                     momentum && (choice & 8) != 0,
                                     (choice & 16) != 0};
      State expected(count + 1);
      plain_update(c, expected.from(1, momentum, ema), count);
      for (const optim::Kernel* kernel : kernels()) {
        State actual(count + 1);
        kernel->update(c, actual.from(1, momentum, ema), count);
        CHECK(actual == expected);
      }
    }
  }
}

void test_sums() {
  for (const std::int64_t count : {0, 1, 15, 16, 17, 70}) {
    State state(count + 1);
    float* const values = state.gradients.data() + 1;
    double expected = 0.0;
    for (std::int64_t i = 0; i < count; ++i) expected += std::pow(static_cast<double>(values[i]), 2);
    const double portable = optim::kernel_for(cpu::Isa::portable).sum_of_squares(values, count);
    for (const optim::Kernel* kernel : kernels()) {
      const double sum = kernel->sum_of_squares(values, count);
      CHECK(std::abs(sum - expected) <= 1e-14 * expected);
      CHECK(std::memcmp(&sum, &portable, sizeof sum) == 0);
      for (std::int64_t i = 0; i < count; ++i) {
        const float before = values[i];
        for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
          values[i] = bad;
          CHECK(!std::isfinite(kernel->sum_of_squares(values, count)));
        }
        values[i] = -std::numeric_limits<float>::max();
        CHECK(std::isfinite(kernel->sum_of_squares(values, count)));
        values[i] = before;
      }
    }
  }
}

// Blocks over several chunks, an empty one and one without weight decay, on one thread and on several.
void test_blocks() {
  constexpr std::int64_t kCount = 150001;
  const std::vector<optim::Block> listed = {{3, 90001, 100005}, {100005, 100005, 100005}, {120000, 120000, kCount}};
  const optim::Blocks blocks = {listed.data(), static_cast<std::int64_t>(listed.size())};
  const optim::Sgd rule = {0.1, 0.9, 0.01, 0.999, 0.5, true, true};
  State expected(kCount);
  double squares = 0.0;
  for (const optim::Block& block : listed) {
    for (std::int64_t i = block.start; i < block.end; ++i) {
      const optim::Coefficients c = {0.5F,   i < block.decay_end ? 0.01F : 0.0F, 0.9F, 0.1F,
                                     0.999F, static_cast<float>(1.0 - 0.999),    true, true};
      squares += std::pow(static_cast<double>(expected.gradients[static_cast<std::size_t>(i)]), 2);
      plain_update(c, expected.from(i, true, true), 1);
    }
  }
  for (const int threads : {1, 4}) {
    State actual(kCount);
    CHECK(std::abs(optim::sum_of_squares(blocks, actual.gradients.data(), threads) - squares) <= 1e-12 * squares);
    optim::update(blocks, actual.from(0, true, true), rule, threads);
    CHECK(actual == expected);
  }
}

}  // namespace

int main() {
  test_updates();
  test_sums();
  test_blocks();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
