// mixconv on the emulated device against the CPU core in float32, which has tests of its own against the definition.
#include <stdexcept>
#include <utility>

#include "blocks/cuda/mixconv.h"
#include "blocks/mixconv.h"
#include "cuda_blocks.h"

namespace {

using namespace device_test;
namespace blocks = greedynas::blocks;
namespace cuda = greedynas::blocks::cuda;
using blocks::MixconvActivation;

// Of sums of up to a few hundred products in another order.
constexpr double kSumError = 2e-6;

struct Setting {
  std::int64_t batch, height, width;
  std::vector<std::pair<std::int64_t, int>> groups;  // channels, kernel
  int stride;
  MixconvActivation activation;
  std::size_t gap = 0, offset = 0;  // elements between pixels, and before the first
  blocks::MixconvPadding padding = blocks::MixconvPadding::symmetric;
};

class Trial {
 public:
  Trial(const Setting& setting, Storage storage, Storage weight_storage)
      : setting_(setting),
        storage_(storage),
        channels_(channels(setting)),
        out_height_((setting.height - 1) / setting.stride + 1),
        out_width_((setting.width - 1) / setting.stride + 1),
        x_(plane(setting.height, setting.width)),
        y_(plane(out_height_, out_width_)),
        grad_(plane(out_height_, out_width_)),
        x_grad_(plane(setting.height, setting.width)),
        scale_(random_.floats(channels_)),
        shift_(random_.floats(channels_)),
        device_{storage, weight_storage, setting.batch, setting.height, setting.width, setting.stride, {}, {}},
        core_{blocks::MixconvStorage::float32,
              blocks::MixconvStorage::float32,
              setting.batch,
              setting.height,
              setting.width,
              setting.stride,
              {},
              {}} {
    x_.fill(random_);
    grad_.fill(random_);
    for (const auto& [count, kernel] : setting.groups) {
      const auto size = static_cast<std::size_t>(count * kernel * kernel);
      weights_.emplace_back(weight_storage, size);
      weight_grads_.emplace_back(weight_storage, size);
      for (std::size_t i = 0; i < size; ++i) weights_.back().set(i, random_.next());
      core_weights_.emplace_back(size);
      for (std::size_t i = 0; i < size; ++i) core_weights_.back()[i] = weights_.back().get(i);
      core_weight_grads_.emplace_back(size);
    }
    for (std::size_t g = 0; g < weights_.size(); ++g) {
      const auto [count, kernel] = setting.groups[g];
      device_.groups.push_back({count, kernel, weights_[g].data(), weight_grads_[g].data()});
      core_.groups.push_back({count, kernel, core_weights_[g].data(), core_weight_grads_[g].data()});
    }
    core_x_ = x_.compact();
    device_.x = place(x_, setting.height, setting.width);
    core_.x = place(core_x_, setting.height, setting.width);
    device_.activation = core_.activation = setting.activation;
    device_.scale = core_.scale = scale_.data();
    device_.shift = core_.shift = shift_.data();
    device_.padding = core_.padding = setting.padding;
    workspace_.resize(static_cast<std::size_t>(cuda::mixconv_workspace_bytes(device_)) / sizeof(float), std::nanf(""));
    core_workspace_.resize(blocks::mixconv_workspace_bytes(core_, 1));
  }

  void forward() {
    Floats stats(2 * channels_, std::nanf(""));
    cuda::mixconv_forward(device_, place(y_, out_height_, out_width_), stats.data(), workspace_.data(), nullptr);
    Floats want(y_.rows * channels_);
    blocks::mixconv_forward(core_, place(want, out_height_, out_width_), nullptr, {}, core_workspace_.data(), 1);
    const Floats got = y_.compact();
    compare(name("y"), got, want, kSumError + spacing(storage_));
    CHECK(y_.gaps_are_empty());
    std::vector<double> sums(2 * channels_, 0.0);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto value = static_cast<double>(got[i]);
      sums[i % channels_] += value;
      sums[channels_ + i % channels_] += value * value;
    }
    compare(name("stats"), stats, Floats(sums.begin(), sums.end()), kSumError);
    const Floats with_stats = got;
    cuda::mixconv_forward(device_, place(y_, out_height_, out_width_), nullptr, nullptr, nullptr);
    CHECK(y_.compact() == with_stats);
  }

  // After `forward`, whose y it reads.
  void backward(bool through_stats) {
    Floats stats_grad = random_.floats(2 * channels_);
    for (float& value : stats_grad) value *= 0.25F;  // or fp16 overflows
    const bool has_norm = setting_.activation != MixconvActivation::none;
    Floats norm_grad(2 * channels_, std::nanf("")), core_norm_grad(2 * channels_);
    const float* const through = through_stats ? stats_grad.data() : nullptr;
    cuda::mixconv_backward(device_,
                           {place(grad_, out_height_, out_width_), through, place(y_, out_height_, out_width_),
                            place(x_grad_, setting_.height, setting_.width), has_norm ? norm_grad.data() : nullptr},
                           workspace_.data(), nullptr);
    Floats core_grad = grad_.compact(), core_y = y_.compact(), core_x_grad(core_x_.size());
    blocks::mixconv_backward(
        core_,
        {place(core_grad, out_height_, out_width_), through, place(core_y, out_height_, out_width_),
         place(core_x_grad, setting_.height, setting_.width), has_norm ? core_norm_grad.data() : nullptr},
        core_workspace_.data(), 1);
    compare(name("x_grad"), x_grad_.compact(), core_x_grad, kSumError + spacing(storage_));
    CHECK(x_grad_.gaps_are_empty());
    if (has_norm) compare(name("norm_grad"), norm_grad, core_norm_grad, kSumError);
    for (std::size_t g = 0; g < weights_.size(); ++g) {
      Floats got(weights_[g].size());
      for (std::size_t i = 0; i < got.size(); ++i) got[i] = weight_grads_[g].get(i);
      compare(name("weight_grad"), got, core_weight_grads_[g], kSumError + spacing(device_.weight_storage));
    }
  }

  // Each gradient alone is the same as with the others.
  void backward_in_parts() {
    const Floats x_grad = x_grad_.compact();
    const blocks::MixconvTensor grad = place(grad_, out_height_, out_width_);
    for (Array& weight_grad : weight_grads_) weight_grad.set(0, std::nanf(""));
    cuda::mixconv_backward(device_, {grad, nullptr, {}, {}, nullptr}, workspace_.data(), nullptr);
    for (const Array& weight_grad : weight_grads_) CHECK(!std::isnan(weight_grad.get(0)));
    for (auto& group : device_.groups) group.weight_grad = nullptr;
    cuda::mixconv_backward(device_, {grad, nullptr, {}, place(x_grad_, setting_.height, setting_.width), nullptr},
                           nullptr, nullptr);
    CHECK(x_grad_.compact() == x_grad);
  }

 private:
  static std::size_t channels(const Setting& setting) {
    std::size_t sum = 0;
    for (const auto& group : setting.groups) sum += static_cast<std::size_t>(group.first);
    return sum;
  }
  Rows plane(std::int64_t height, std::int64_t width) const {
    return {storage_, static_cast<std::size_t>(setting_.batch * height * width), channels_, channels_ + setting_.gap,
            setting_.offset};
  }
  static blocks::MixconvTensor place(Rows& rows, std::int64_t height, std::int64_t width) {
    const auto pixel = static_cast<std::int64_t>(rows.stride);
    return {rows.array.data(), height * width * pixel, width * pixel, pixel};
  }
  blocks::MixconvTensor place(Floats& values, std::int64_t height, std::int64_t width) const {
    const auto pixel = static_cast<std::int64_t>(channels_);
    return {values.data(), height * width * pixel, width * pixel, pixel};
  }
  std::string name(const char* what) const {
    const auto number = [](auto value) { return std::to_string(value); };
    return number(setting_.height) + "x" + number(setting_.width) + " k" + number(setting_.groups[0].second) + " s" +
           number(setting_.stride) + " c" + number(channels_) + " storage " + number(static_cast<int>(storage_)) + " " +
           what;
  }

  const Setting setting_;
  Storage storage_;
  Random random_{7};
  std::size_t channels_;
  std::int64_t out_height_, out_width_;
  Rows x_, y_, grad_, x_grad_;
  Floats scale_, shift_;
  cuda::Mixconv device_;
  blocks::MixconvCall core_;
  std::vector<Array> weights_, weight_grads_;
  std::vector<Floats> core_weights_, core_weight_grads_;
  Floats core_x_, workspace_;
  std::vector<std::uint8_t> core_workspace_;
};

void check_padded(const Setting& setting) {
  for (const Storage storage : kStorages) {
    for (const Storage weight_storage : {Storage::float32, storage}) {
      Trial trial(setting, storage, weight_storage);
      trial.forward();
      trial.backward(true);
      trial.backward(false);
      if (weight_storage == storage) break;
    }
  }
}

void check(Setting setting) {
  check_padded(setting);
  if (setting.stride == 1) return;
  setting.padding = blocks::MixconvPadding::same_upper;
  check_padded(setting);
}

void test_every_kernel_size_and_stride() {
  for (const int kernel : {1, 3, 5, 7, 9, 11}) {
    for (const int stride : {1, 2}) {
      check({2, 5, 3, {{3, kernel}}, stride, MixconvActivation::hard_swish});
      check({3, 1, 1, {{17, kernel}}, stride, MixconvActivation::relu});
      check({1, 9, 17, {{8, kernel}}, stride, MixconvActivation::none});
      check({1, 8, 2, {{9, kernel}}, stride, MixconvActivation::none});
    }
  }
}

void test_groups_in_one_call() {
  check({2, 5, 3, {{3, 5}}, 1, MixconvActivation::silu});
  check({2, 5, 3, {{3, 5}}, 1, MixconvActivation::relu6});
  check({2, 6, 7, {{16, 3}, {40, 5}, {8, 7}}, 1, MixconvActivation::hard_swish});
  check({5, 4, 5, {{1, 3}, {17, 7}, {2, 11}, {20, 1}}, 2, MixconvActivation::identity});
  Setting many{1, 3, 3, {}, 1, MixconvActivation::relu};
  for (int i = 0; i < 11; ++i) many.groups.emplace_back((i + 1) % 3, 1 + 2 * (i % 4));
  check(many);
}

void test_slices_of_channels() {
  check({2, 5, 6, {{16, 3}, {8, 5}}, 1, MixconvActivation::hard_swish, 8, 8});
  check({2, 5, 6, {{16, 5}}, 2, MixconvActivation::relu, 3, 0});
  check({2, 5, 6, {{16, 7}}, 1, MixconvActivation::relu, 8, 5});
}

void test_several_tiles_a_block() {
  check({20, 8, 9, {{33, 3}}, 1, MixconvActivation::hard_swish});
  check({2, 31, 30, {{4, 5}}, 2, MixconvActivation::hard_swish});
  check({1, 17, 61, {{4, 7}}, 1, MixconvActivation::relu});
}

void test_gradients_alone() {
  Trial trial({2, 5, 6, {{16, 3}, {3, 9}}, 1, MixconvActivation::hard_swish}, Storage::bf16, Storage::float32);
  trial.forward();
  trial.backward(false);
  trial.backward_in_parts();
}

void test_an_empty_batch() { check({0, 4, 4, {{5, 3}}, 1, MixconvActivation::relu}); }

void test_bad_sizes_throw() {
  float value = 0.0F;
  cuda::Mixconv call{Storage::float32, Storage::float32, 1, 2, 2, 3, {{1, 3, &value, nullptr}}, {}};
  CHECK_THROWS(cuda::mixconv_workspace_bytes(call), std::invalid_argument);
  call.stride = 1;
  for (const int kernel : {0, 4, 13}) {
    call.groups[0].kernel = kernel;
    CHECK_THROWS(cuda::mixconv_workspace_bytes(call), std::invalid_argument);
  }
  call.groups[0].kernel = 3;
  call.height = 0;
  CHECK_THROWS(cuda::mixconv_forward(call, {}, nullptr, nullptr, nullptr), std::invalid_argument);
}

}  // namespace

int main() {
  test_every_kernel_size_and_stride();
  test_groups_in_one_call();
  test_slices_of_channels();
  test_several_tiles_a_block();
  test_gradients_alone();
  test_an_empty_batch();
  test_bad_sizes_throw();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
