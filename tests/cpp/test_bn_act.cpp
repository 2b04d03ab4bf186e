// The normalisation kernels of every level that this machine runs, and those of wide vectors over the compiler's own
// vectors, against plain loops in double precision.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "blocks/bn_act.h"
#include "blocks/cpu/bn_act_block.h"
#include "blocks/cpu/bn_act_kernels.h"
#include "check.h"

using namespace greedynas;
using norm::Activation;
using norm::Storage;

namespace {

const norm::Kernel kWideKernel = norm::kernel_over<cpu::VecGeneric<16>>("wide");

std::vector<const norm::Kernel*> kernels(int channels) {
  std::vector<const norm::Kernel*> result;
  if (channels >= 16) result.push_back(&kWideKernel);
  for (const cpu::Isa isa : cpu::compiled()) {
    if (cpu::available(isa)) result.push_back(&norm::kernel_for(isa, channels));
  }
  return result;
}

// A matrix with gaps between its rows, as exactly sized storage: the sanitizer sees every step beyond it.
class Matrix {
 public:
  Matrix(Storage storage, std::int64_t rows, int channels, std::int64_t stride)
      : storage_(storage), stride_(stride), floats_(), halves_() {
    const auto size = static_cast<std::size_t>((rows - 1) * stride + channels);
    if (storage == Storage::float32) {
      floats_.assign(size, NAN);
    } else {
      halves_.assign(size, 0x7FC0);
    }
  }
  void fill(std::mt19937& random, double mean) {
    std::normal_distribution<float> normal(static_cast<float>(mean), 1.5F);
    for (float& value : floats_) value = normal(random);
    for (std::uint16_t& value : halves_) value = top_half(normal(random));
  }
  double at(std::int64_t row, int c) const {
    const auto index = static_cast<std::size_t>(row * stride_ + c);
    if (storage_ == Storage::float32) return static_cast<double>(floats_[index]);
    const std::uint32_t bits = static_cast<std::uint32_t>(halves_[index]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<double>(value);
  }
  void* data() { return storage_ == Storage::float32 ? static_cast<void*>(floats_.data()) : halves_.data(); }
  norm::Input input() { return {data(), stride_}; }

 private:
  static std::uint16_t top_half(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<std::uint16_t>(bits >> 16);
  }

  Storage storage_;
  std::int64_t stride_;
  std::vector<float> floats_;
  std::vector<std::uint16_t> halves_;
};

double activated(Activation activation, double z) {
  if (activation == Activation::relu) return std::max(z, 0.0);
  if (activation == Activation::silu) return z / (1 + std::exp(-z));
  if (activation == Activation::relu6) return std::clamp(z, 0.0, 6.0);
  if (activation == Activation::hard_swish) return z * std::min(std::max(z + 3, 0.0), 6.0) / 6;
  return z;
}

double slope(Activation activation, double z) {
  if (activation == Activation::relu) return z > 0 ? 1 : 0;
  if (activation == Activation::silu) return (1 + std::exp(-z) + z * std::exp(-z)) / std::pow(1 + std::exp(-z), 2);
  if (activation == Activation::relu6) return z > 0 && z < 6 ? 1 : 0;
  if (activation == Activation::hard_swish) return z > 3 ? 1 : z > -3 ? z / 3 + 0.5 : 0;
  return 1;
}

bool close(double actual, double expected, double tolerance) {
  return std::abs(actual - expected) <= tolerance * (1 + std::abs(expected));
}

struct Case {
  norm::BnAct layer;
  std::int64_t gap;
  Matrix x, residual, grad;
  std::vector<float> mean, scale, bias, slope, offset;

  Case(const norm::BnAct& of, std::int64_t gap_between, std::uint32_t seed)
      : layer(of), gap(gap_between), x(make()), residual(make()), grad(make()) {
    std::mt19937 random(seed);
    x.fill(random, 0.3);
    residual.fill(random, 0);
    grad.fill(random, 0);
    std::normal_distribution<float> normal;
    for (std::vector<float>* values : {&mean, &scale, &bias, &slope, &offset}) {
      for (int c = 0; c < layer.shape.channels; ++c) values->push_back(normal(random));
    }
  }
  Matrix make() const {
    return {layer.shape.storage, layer.shape.rows, layer.shape.channels, layer.shape.channels + gap};
  }
  Matrix output() const { return {layer.shape.storage, layer.shape.rows, layer.shape.channels, layer.shape.channels}; }
  norm::Coefficients coefficients() const {
    return {mean.data(), scale.data(), bias.data(), slope.data(), offset.data()};
  }
  double centred(std::int64_t row, int c) const { return x.at(row, c) - static_cast<double>(mean[at(c)]); }
  double z(std::int64_t row, int c) const {
    const double normalised = centred(row, c) * static_cast<double>(scale[at(c)]) + static_cast<double>(bias[at(c)]);
    return normalised + (layer.residual ? residual.at(row, c) : 0.0);
  }
  double grad_z(std::int64_t row, int c) const { return grad.at(row, c) * ::slope(layer.activation, z(row, c)); }
  static std::size_t at(int c) { return static_cast<std::size_t>(c); }
};

void check_moments(const norm::Kernel& kernel, Case& some) {
  const norm::Shape& shape = some.layer.shape;
  std::vector<float> mean(static_cast<std::size_t>(norm::padded(shape.channels)), NAN);
  std::vector<float> squares = mean;
  kernel.moments(shape, some.x.input(), some.x.data(), mean.data(), squares.data());
  for (int c = 0; c < shape.channels; ++c) {
    double sum = 0;
    double square = 0;
    for (std::int64_t row = 0; row < shape.rows; ++row) sum += some.x.at(row, c);
    const double expected = sum / static_cast<double>(shape.rows);
    for (std::int64_t row = 0; row < shape.rows; ++row) square += std::pow(some.x.at(row, c) - expected, 2);
    CHECK(close(static_cast<double>(mean[Case::at(c)]) + some.x.at(0, c), expected, 1e-5));
    CHECK(close(static_cast<double>(squares[Case::at(c)]), square, 1e-5));
  }
}

void check_forward(const norm::Kernel& kernel, Case& some, double tolerance) {
  Matrix y = some.output();
  kernel.forward(some.layer, some.x.input(), some.coefficients(), some.residual.input(), y.data());
  for (std::int64_t row = 0; row < some.layer.shape.rows; ++row) {
    for (int c = 0; c < some.layer.shape.channels; ++c) {
      const double expected = activated(some.layer.activation, some.z(row, c));
      CHECK(close(y.at(row, c), expected, tolerance));
    }
  }
}

void check_backward(const norm::Kernel& kernel, Case& some, double tolerance) {
  const norm::Shape& shape = some.layer.shape;
  std::vector<float> sums(static_cast<std::size_t>(norm::padded(shape.channels)), NAN);
  std::vector<float> products = sums;
  kernel.backward_sums(some.layer, some.grad.input(), some.x.input(), some.coefficients(), some.residual.input(),
                       sums.data(), products.data());
  Matrix grad_x = some.output();
  Matrix grad_residual = some.output();
  const bool before = some.layer.residual;
  kernel.backward(some.layer, some.grad.input(), some.x.input(), some.coefficients(), some.residual.input(),
                  grad_x.data(), before ? grad_residual.data() : nullptr);
  for (int c = 0; c < shape.channels; ++c) {
    double sum = 0;
    double product = 0;
    for (std::int64_t row = 0; row < shape.rows; ++row) {
      const double g = some.grad_z(row, c);
      sum += g;
      product += g * some.centred(row, c);
      const double expected = g * static_cast<double>(some.scale[Case::at(c)]) +
                              some.centred(row, c) * static_cast<double>(some.slope[Case::at(c)]) +
                              static_cast<double>(some.offset[Case::at(c)]);
      CHECK(close(grad_x.at(row, c), expected, tolerance));
      if (before) CHECK(close(grad_residual.at(row, c), g, tolerance));
    }
    CHECK(close(static_cast<double>(sums[Case::at(c)]), sum, 1e-4));
    CHECK(close(static_cast<double>(products[Case::at(c)]), product, 1e-4));
  }
}

void test_kernels() {
  std::uint32_t seed = 0;
  for (const int channels : {1, 3, 4, 7, 8, 15, 16, 21, 40}) {
    for (const std::int64_t rows : {1, 4, 23}) {
      for (const Storage storage : {Storage::float32, Storage::bf16}) {
        for (const Activation activation :
             {Activation::identity, Activation::relu, Activation::hard_swish, Activation::silu, Activation::relu6}) {
          for (const bool residual : {false, true}) {
            ++seed;
            const bool large = seed % 2 == 0;
            const norm::BnAct layer{{storage, rows, channels, large}, activation, residual, 1};
            Case some(layer, seed % 3 == 0 ? 0 : 5, seed);
            for (const norm::Kernel* kernel : kernels(channels)) {
              check_moments(*kernel, some);
              check_forward(*kernel, some, storage == Storage::float32 ? 1e-5 : 1e-2);
              check_backward(*kernel, some, storage == Storage::float32 ? 1e-5 : 1e-2);
            }
          }
        }
      }
    }
  }
}

// SiLU as exactly as it says, over all that matters of its range, and not-a-number where it must be.
void test_silu() {
  constexpr int kChannels = 16;
  constexpr std::int64_t kRows = 2000;
  const std::vector<float> zeros(kChannels, 0.0F), ones(kChannels, 1.0F);
  std::vector<float> z(kRows * kChannels), y(z.size());
  for (std::size_t i = 0; i < z.size(); ++i)
    z[i] = 0.006F * (static_cast<float>(i) - 0.5F * static_cast<float>(z.size()));
  z[0] = NAN;
  z[1] = INFINITY;
  const norm::BnAct layer{{Storage::float32, kRows, kChannels, false}, Activation::silu, false, 1};
  const norm::Coefficients plain{zeros.data(), ones.data(), zeros.data(), zeros.data(), zeros.data()};
  for (const norm::Kernel* kernel : kernels(kChannels)) {
    kernel->forward(layer, {z.data(), kChannels}, plain, {nullptr, 0}, y.data());
    CHECK(std::isnan(y[0]));
    CHECK(y[1] == INFINITY);
    for (std::size_t i = 2; i < z.size(); ++i) {
      const double size = std::abs(static_cast<double>(z[i])), expected = activated(Activation::silu, z[i]);
      // That of the sigmoid, and the rounding of z over its denominator.
      const double bound = (4 + 1.5 * size) * std::pow(2.0, -24) * std::abs(expected);
      CHECK(size > 86 || std::abs(static_cast<double>(y[i]) - expected) <= bound);
      CHECK(std::abs(static_cast<double>(y[i]) - expected) <= 2e-7 * (1 + size));
    }
  }
}

// Whole calls over several chunks: the same bits on any number of threads.
void test_threads() {
  const norm::Shape shape = norm::shape_of(Storage::float32, 5000, 40);
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 3}) {
    Case some({shape, Activation::hard_swish, true, threads}, 3, 1);
    std::vector<float> workspace(static_cast<std::size_t>(norm::workspace_floats(shape)), NAN);
    std::vector<float> result(40 * 4 + 3 * 5000 * 40, NAN);
    float* const mean = result.data();
    norm::moments(shape, some.x.input(), threads, workspace.data(), mean, mean + 40);
    const norm::Channels channels{mean, mean + 40, some.scale.data(), some.bias.data(), 1e-5F};
    float* const y = mean + 160;
    norm::forward(some.layer, some.x.input(), channels, some.residual.input(), workspace.data(), y);
    norm::backward(some.layer, true, some.grad.input(), some.x.input(), channels, some.residual.input(),
                   workspace.data(), {y + 200000, y + 400000, mean + 80, mean + 120});
    for (const float value : result) CHECK(std::isfinite(value));
    results.push_back(result);
  }
  CHECK(std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)) == 0);
}

}  // namespace

int main() {
  test_kernels();
  test_silu();
  test_threads();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
