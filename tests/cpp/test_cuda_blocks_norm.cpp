// bn_act and squeeze_excite on the emulated device against the CPU core in float32.
#include <algorithm>

#include "blocks/bn_act.h"
#include "blocks/cuda/bn_act.h"
#include "blocks/cuda/squeeze_excite.h"
#include "blocks/squeeze_excite.h"
#include "cuda_blocks.h"

namespace {

using namespace device_test;
namespace norm = greedynas::norm;
namespace cuda = greedynas::norm::cuda;
using norm::Activation;
using norm::Prologue;

// Of sums over some hundred rows in another order.
constexpr double kSumError = 2e-6;

struct Setting {
  std::size_t rows, channels;
  std::size_t gap = 0, offset = 0;  // elements between rows, and before the first
};

// Odd sizes, accesses of 16 bytes and of one element, several chunks and column tiles (rows.cuh makes them small here).
const Setting kSettings[] = {{1, 1},    {2, 3},         {5, 17},        {64, 40},       {333, 8},
                             {100, 72}, {50, 24, 8, 8}, {50, 16, 3, 0}, {50, 16, 8, 4}, {7, 264}};

Rows make_rows(Storage storage, const Setting& setting, bool compact = false) {
  return {storage, setting.rows, setting.channels, setting.channels + (compact ? 0 : setting.gap),
          compact ? 0 : setting.offset};
}

norm::Input input(Rows& rows) { return {rows.array.data(), static_cast<std::int64_t>(rows.stride)}; }

std::string name(Storage storage, const Setting& setting, const char* what) {
  return std::to_string(setting.rows) + " x " + std::to_string(setting.channels) + " storage " +
         std::to_string(static_cast<int>(storage)) + " " + what;
}

// A matrix for both: as the device has it, and as float32 without gaps.
struct Both {
  Rows device;
  Floats core;

  Both(Storage storage, const Setting& setting, Random& random, float shift = 0.0F)
      : device(make_rows(storage, setting)) {
    Floats values = random.floats(device.rows * device.channels);
    for (float& value : values) value += shift;
    device.fill(values);
    core = device.compact();
  }
  norm::Input core_input() const { return {core.data(), static_cast<std::int64_t>(device.channels)}; }
};

norm::Shape core_shape(const Setting& setting) {
  return {norm::Storage::float32, static_cast<std::int64_t>(setting.rows), static_cast<int>(setting.channels), false};
}
cuda::Shape device_shape(Storage storage, const Setting& setting) {
  return {storage, static_cast<std::int64_t>(setting.rows), static_cast<int>(setting.channels)};
}

Floats nans(std::int64_t count) { return Floats(static_cast<std::size_t>(count), std::nanf("")); }

void test_moments() {
  Random random(1);
  for (const Setting& setting : kSettings) {
    for (const Storage storage : kStorages) {
      for (const float shift : {0.0F, 500.0F}) {
        Both x(storage, setting, random, shift);
        const auto count = static_cast<std::int64_t>(setting.channels);
        Floats mean = nans(count), variance = nans(count), want_mean = nans(count), want_variance = nans(count);
        Floats workspace = nans(cuda::workspace_floats(device_shape(storage, setting)));
        Floats core_workspace = nans(norm::workspace_floats(core_shape(setting)));
        cuda::moments(device_shape(storage, setting), input(x.device), workspace.data(), mean.data(), variance.data(),
                      nullptr);
        norm::moments(core_shape(setting), x.core_input(), 1, core_workspace.data(), want_mean.data(),
                      want_variance.data());
        compare(name(storage, setting, "mean"), mean, want_mean, shift == 0.0F ? kSumError : 1e-7);
        compare(name(storage, setting, "variance"), variance, want_variance, kSumError);
        if (setting.rows < 2) continue;
        Floats running = random.floats(2 * setting.channels), want_running = running;
        cuda::update_running(device_shape(storage, setting), mean.data(), variance.data(), 0.3, running.data(),
                             running.data() + count, nullptr);
        norm::update_running(core_shape(setting), mean.data(), variance.data(), 0.3, want_running.data(),
                             want_running.data() + count);
        CHECK(running == want_running);
      }
    }
  }
}

struct Parameters {
  Floats mean, variance, weight, bias;

  Parameters(Random& random, std::size_t channels)
      : mean(random.floats(channels)),
        variance(random.floats(channels)),
        weight(random.floats(channels)),
        bias(random.floats(channels)) {
    for (float& value : variance) value = std::fabs(value) + 0.1F;
  }
  norm::Channels channels(bool has_weights = true) const {
    return {mean.data(), variance.data(), has_weights ? weight.data() : nullptr, has_weights ? bias.data() : nullptr,
            1e-3F};
  }
};

void check_layer(Storage storage, const Setting& setting, Activation activation, bool residual, bool has_weights) {
  Random random(2);
  Both x(storage, setting, random), other(storage, setting, random), grad(storage, setting, random);
  const Parameters parameters(random, setting.channels);
  const norm::Channels channels = parameters.channels(has_weights);
  const cuda::BnAct layer{device_shape(storage, setting), activation, residual};
  const norm::BnAct core{core_shape(setting), activation, residual, 1};
  const double rounding = kSumError + spacing(storage);
  Floats workspace = nans(cuda::workspace_floats(layer.shape));
  Floats core_workspace = nans(norm::workspace_floats(core.shape));

  Rows y = make_rows(storage, setting, true);
  Floats want(x.core.size());
  cuda::forward(layer, input(x.device), channels, input(other.device), y.array.data(), nullptr);
  norm::forward(core, x.core_input(), channels, other.core_input(), core_workspace.data(), want.data());
  compare(name(storage, setting, "y"), y.compact(), want, rounding);

  for (const bool batch_statistics : {false, true}) {
    const auto count = static_cast<std::int64_t>(setting.channels);
    Rows grad_x = make_rows(storage, setting, true), grad_other = make_rows(storage, setting, true);
    Floats grad_weight = nans(count), grad_bias = nans(count), want_weight = nans(count), want_bias = nans(count);
    Floats want_other(want.size());
    cuda::backward(
        layer, batch_statistics, input(grad.device), input(x.device), channels, input(other.device), workspace.data(),
        {grad_x.array.data(), residual ? grad_other.array.data() : nullptr, grad_weight.data(), grad_bias.data()},
        nullptr);
    norm::backward(core, batch_statistics, grad.core_input(), x.core_input(), channels, other.core_input(),
                   core_workspace.data(),
                   {want.data(), residual ? want_other.data() : nullptr, want_weight.data(), want_bias.data()});
    compare(name(storage, setting, "grad_x"), grad_x.compact(), want, rounding);
    if (residual) compare(name(storage, setting, "grad_residual"), grad_other.compact(), want_other, rounding);
    compare(name(storage, setting, "grad_weight"), grad_weight, want_weight, kSumError);
    compare(name(storage, setting, "grad_bias"), grad_bias, want_bias, kSumError);
    const Floats all = grad_x.compact();
    cuda::backward(layer, batch_statistics, input(grad.device), input(x.device), channels, input(other.device),
                   workspace.data(), {grad_x.array.data(), nullptr, nullptr, nullptr}, nullptr);
    CHECK(grad_x.compact() == all);
  }
}

void test_layers() {
  for (const Setting& setting : kSettings) {
    for (const Storage storage : kStorages) {
      check_layer(storage, setting, Activation::silu, true, true);
      check_layer(storage, setting, Activation::relu6, true, true);
      check_layer(storage, setting, Activation::hard_swish, false, true);
      check_layer(storage, setting, Activation::relu, true, true);
      check_layer(storage, setting, Activation::identity, false, false);
    }
  }
}

void test_affine_and_through_moments() {
  Random random(3);
  for (const Setting& setting : kSettings) {
    for (const Storage storage : kStorages) {
      Both x(storage, setting, random);
      const Parameters parameters(random, setting.channels);
      const norm::Channels channels = parameters.channels();
      const auto count = static_cast<std::int64_t>(setting.channels);
      Floats affine = nans(2 * count), want_affine = nans(2 * count);
      cuda::affine(static_cast<int>(count), channels, affine.data(), affine.data() + count, nullptr);
      norm::affine(static_cast<int>(count), channels, want_affine.data(), want_affine.data() + count);
      CHECK(affine == want_affine);

      Rows grad = make_rows(storage, setting, true);
      grad.fill(random);
      Floats want = grad.compact();
      const Floats grads = random.floats(2 * setting.channels);
      Floats workspace = nans(cuda::workspace_floats(device_shape(storage, setting)));
      Floats core_workspace = nans(norm::workspace_floats(core_shape(setting)));
      for (const bool batch_statistics : {false, true}) {
        Floats got_parameters = nans(2 * count), want_parameters = nans(2 * count);
        cuda::through_moments(device_shape(storage, setting), batch_statistics, input(x.device), channels, grads.data(),
                              grads.data() + count, workspace.data(), grad.array.data(), got_parameters.data(),
                              got_parameters.data() + count, nullptr);
        norm::through_moments(core_shape(setting), batch_statistics, x.core_input(), channels, grads.data(),
                              grads.data() + count, 1, core_workspace.data(), want.data(), want_parameters.data(),
                              want_parameters.data() + count);
        compare(name(storage, setting, "through_moments"), grad.compact(), want, kSumError + spacing(storage));
        CHECK(got_parameters == want_parameters);
      }
    }
  }
}

void check_squeeze(Storage storage, const Setting& setting, std::size_t images, Prologue prologue) {
  Random random(4);
  Both x(storage, setting, random), grad(storage, setting, random);
  const Parameters parameters(random, setting.channels);
  const auto pixels = static_cast<std::int64_t>(setting.rows / images);
  cuda::SqueezeExcite layer{device_shape(storage, setting), static_cast<std::int64_t>(images), prologue,
                            parameters.weight.data(), parameters.bias.data()};
  norm::SqueezeExcite core{core_shape(setting), layer.images, prologue, layer.scale, layer.shift, 1};
  layer.image.rows = core.image.rows = pixels;
  const auto count = static_cast<std::int64_t>(setting.channels);
  const double rounding = kSumError + spacing(storage);
  Floats workspace = nans(cuda::workspace_floats(layer)), core_workspace = nans(norm::workspace_floats(core));

  Floats means = nans(layer.images * count), want_means = means;
  cuda::squeeze(layer, input(x.device), workspace.data(), means.data(), nullptr);
  norm::squeeze(core, x.core_input(), core_workspace.data(), want_means.data());
  compare(name(storage, setting, "means"), means, want_means, kSumError);

  const Floats gates = random.floats(means.size()), grad_means = random.floats(means.size());
  Rows y = make_rows(storage, setting, true);
  Floats want(x.core.size());
  cuda::excite(layer, input(x.device), gates.data(), y.array.data(), nullptr);
  norm::excite(core, x.core_input(), gates.data(), want.data());
  compare(name(storage, setting, "excited"), y.compact(), want, rounding);

  Floats grad_gates = nans(layer.images * count), want_gates = grad_gates;
  cuda::excite_backward(layer, input(grad.device), input(x.device), workspace.data(), grad_gates.data(), nullptr);
  norm::excite_backward(core, grad.core_input(), x.core_input(), core_workspace.data(), want_gates.data());
  compare(name(storage, setting, "grad_gates"), grad_gates, want_gates, kSumError);

  Rows grad_x = make_rows(storage, setting, true);
  Floats norm_grads = nans(2 * count), want_norm_grads = norm_grads;
  cuda::squeeze_backward(layer, input(grad.device), input(x.device), gates.data(), grad_means.data(), workspace.data(),
                         grad_x.array.data(), norm_grads.data(), norm_grads.data() + count, nullptr);
  norm::squeeze_backward(core, grad.core_input(), x.core_input(), gates.data(), grad_means.data(),
                         core_workspace.data(), want.data(), want_norm_grads.data(), want_norm_grads.data() + count);
  compare(name(storage, setting, "grad_x"), grad_x.compact(), want, rounding);
  if (prologue == Prologue::none) return;
  compare(name(storage, setting, "norm_grads"), norm_grads, want_norm_grads, kSumError);
}

void test_squeeze_excite() {
  for (const Setting& setting : kSettings) {
    for (const std::size_t images : {1U, 2U, 7U, 37U}) {
      if (setting.rows % images != 0) continue;
      for (const Storage storage : kStorages) {
        for (const Prologue prologue : {Prologue::none, Prologue::affine, Prologue::affine_relu,
                                        Prologue::affine_hard_swish, Prologue::affine_relu6}) {
          check_squeeze(storage, setting, images, prologue);
        }
      }
    }
  }
  check_squeeze(Storage::bf16, {74, 8}, 37, Prologue::affine_relu);
}

void test_no_rows() {
  float sum[2] = {1.0F, 1.0F}, workspace[2 * 2 * 2000] = {}, one = 1.0F;
  const cuda::BnAct layer{{Storage::float32, 0, 1}, Activation::relu, false};
  const norm::Channels channels{&one, &one, nullptr, nullptr, 0.0F};
  cuda::forward(layer, {nullptr, 1}, channels, {}, nullptr, nullptr);
  cuda::backward(layer, true, {nullptr, 1}, {nullptr, 1}, channels, {}, workspace, {nullptr, nullptr, sum, sum + 1},
                 nullptr);
  CHECK(sum[0] == 0.0F && sum[1] == 0.0F);
  sum[0] = sum[1] = 1.0F;
  const cuda::SqueezeExcite none{{Storage::float32, 4, 1}, 0, Prologue::affine, &one, &one};
  cuda::squeeze(none, {nullptr, 1}, workspace, nullptr, nullptr);
  cuda::squeeze_backward(none, {nullptr, 1}, {nullptr, 1}, nullptr, nullptr, workspace, nullptr, sum, sum + 1, nullptr);
  CHECK(sum[0] == 0.0F && sum[1] == 0.0F);
}

}  // namespace

int main() {
  test_moments();
  test_layers();
  test_affine_and_through_moments();
  test_squeeze_excite();
  test_no_rows();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
