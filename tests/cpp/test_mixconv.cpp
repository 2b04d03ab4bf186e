// mixconv of every level, and over stand-ins for AVX-512 vectors, against the definition in double.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "blocks/cpu/mixconv_pairs.h"
#include "blocks/mixconv.h"
#include "check.h"
#include "cpu/isa.h"
#include "cpu/vec_generic.h"
#include "pairs_emulated.h"

namespace {

namespace blocks = greedynas::blocks;
namespace cpu = greedynas::cpu;
using blocks::MixconvActivation;
using blocks::MixconvPadding;
using blocks::MixconvStorage;

using Wide = cpu::VecGeneric<16>;
const blocks::MixconvKernel kWide = blocks::mixconv_kernel_over<Wide>("wide");
const blocks::MixconvKernel kWidePairs =
    blocks::mixconv_pair_kernel_over<Wide, PairsEmulated<Wide>, &kWide>("wide pairs");

std::vector<const blocks::MixconvKernel*> kernels() {
  std::vector<const blocks::MixconvKernel*> result{&blocks::kMixconvPortable};
#ifndef __SANITIZE_THREAD__  // what threads write is the same for all vectors, and the stand-ins would take minutes
  result.insert(result.end(), {&kWide, &kWidePairs});
#endif
  for (const cpu::Isa isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16}) {
    if (cpu::available(isa)) {
      result.push_back(&blocks::mixconv_kernel_for(isa));
    } else {
      std::printf("skipped: this machine cannot run %s\n", std::string(cpu::name_of(isa)).c_str());
    }
  }
  return result;
}

// Numbers in either storage; allocated to the last element, so that the sanitizers see a step beyond.
struct Values {
  bool bf16;
  std::vector<float> floats;
  std::vector<std::uint16_t> halves;

  Values(bool is_bf16, std::size_t n) : bf16(is_bf16) {
    if (bf16) halves.assign(n, 0x7FC0);
    if (!bf16) floats.assign(n, std::numeric_limits<float>::quiet_NaN());
  }
  void* data() { return bf16 ? static_cast<void*>(halves.data()) : floats.data(); }
  std::size_t size() const { return bf16 ? halves.size() : floats.size(); }
  double get(std::size_t i) const {
    if (!bf16) return floats[i];
    const std::uint32_t bits = static_cast<std::uint32_t>(halves[i]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  // Multiples of 1/64 within 1, which both storages hold.
  void fill(std::uint32_t seed) {
    for (std::size_t i = 0; i < size(); ++i) {
      seed = seed * 1664525U + 1013904223U;
      const float value = (static_cast<float>(seed >> 25) - 64.0F) / 64.0F;
      std::uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      if (bf16) halves[i] = static_cast<std::uint16_t>(bits >> 16);
      if (!bf16) floats[i] = value;
    }
  }
};

struct Setting {
  std::int64_t batch, height, width;
  std::vector<std::pair<std::int64_t, int>> groups;  // channels, kernel
  int stride;
  bool bf16;
  MixconvActivation activation;
  MixconvActivation gate = MixconvActivation::none;  // after y, none: there is no gate
  bool statistics = true;                            // they are wanted, and their gradients are added
  bool bf16_weights = false;
  MixconvPadding padding = MixconvPadding::symmetric;
};

// Zeros before the first pixel along a dimension.
std::int64_t padded_before(const Setting& setting, int kernel, std::int64_t size, std::int64_t out_size) {
  if (setting.padding == MixconvPadding::symmetric) return kernel / 2;
  return std::max<std::int64_t>((out_size - 1) * setting.stride + kernel - size, 0) / 2;
}

double activate(MixconvActivation activation, double z) {
  if (activation == MixconvActivation::relu) return std::fmax(z, 0.0);
  if (activation == MixconvActivation::silu) return z / (1 + std::exp(-z));
  if (activation == MixconvActivation::relu6) return std::fmin(std::fmax(z, 0.0), 6.0);
  if (activation == MixconvActivation::hard_swish) return z * std::fmin(std::fmax(z + 3, 0.0), 6.0) / 6;
  return z;
}

double slope(MixconvActivation activation, double z) {
  if (activation == MixconvActivation::relu) return z > 0 ? 1 : 0;
  if (activation == MixconvActivation::silu)
    return (1 + std::exp(-z) + z * std::exp(-z)) / std::pow(1 + std::exp(-z), 2);
  if (activation == MixconvActivation::relu6) return z > 0 && z < 6 ? 1 : 0;
  if (activation == MixconvActivation::hard_swish) return z <= -3 ? 0 : z >= 3 ? 1 : z / 3 + 0.5;
  return 1;
}

// A call with all its arrays, and what the definition makes of them.
struct Trial {
  const Setting& setting;
  blocks::MixconvCall call;
  std::int64_t channels, out_height, out_width;
  Values x, grad, y, x_grad;
  std::vector<Values> weights, weight_grads;
  std::vector<float> scale, shift, stats, norm_grad, stats_grad, gates, offsets;
  std::vector<double> want_y, want_x_grad, want_norm_grad, want_stats;
  std::vector<std::vector<double>> want_weight_grads;

  explicit Trial(const Setting& s)
      : setting(s),
        call(make_call(s)),
        channels(call.channels()),
        out_height(call.out_height()),
        out_width(call.out_width()),
        x(s.bf16, count(s.height, s.width)),
        grad(s.bf16, count(out_height, out_width)),
        y(s.bf16, grad.size()),
        x_grad(s.bf16, x.size()) {
    x.fill(1);
    grad.fill(2);
    for (std::size_t g = 0; g < s.groups.size(); ++g) {
      const auto [n, kernel] = s.groups[g];
      weights.emplace_back(s.bf16_weights, static_cast<std::size_t>(n * kernel * kernel));
      weights.back().fill(static_cast<std::uint32_t>(3 + g));
      weight_grads.emplace_back(s.bf16_weights, weights.back().size());
    }
    for (std::int64_t c = 0; c < channels; ++c) {
      scale.push_back(1.0F + 0.5F * static_cast<float>(c % 5));
      shift.push_back(0.25F * static_cast<float>(c % 7) - 0.5F);
    }
    stats.assign(static_cast<std::size_t>(2 * channels), std::nanf(""));
    norm_grad = stats;
    for (std::int64_t i = 0; i < 2 * channels; ++i) {
      stats_grad.push_back(s.statistics ? 0.125F * static_cast<float>(i % 3) : 0.0F);
    }
    for (std::int64_t i = 0; i < s.batch * channels; ++i) {
      gates.push_back(0.125F * static_cast<float>(i % 9));
      offsets.push_back(0.25F * static_cast<float>(i % 5) - 0.5F);
    }
    for (std::size_t g = 0; g < s.groups.size(); ++g) {
      call.groups[g].weight = weights[g].data();
      call.groups[g].weight_grad = weight_grads[g].data();
    }
    call.x = tensor(x, s.height, s.width);
    call.activation = s.activation;
    call.scale = scale.data();
    call.shift = shift.data();
  }

  static blocks::MixconvCall make_call(const Setting& s) {
    blocks::MixconvCall result{s.bf16 ? MixconvStorage::bf16 : MixconvStorage::float32,
                               s.bf16_weights ? MixconvStorage::bf16 : MixconvStorage::float32,
                               s.batch,
                               s.height,
                               s.width,
                               s.stride,
                               {},
                               {}};
    for (const auto& [n, kernel] : s.groups) result.groups.push_back({n, kernel, nullptr, nullptr});
    result.padding = s.padding;
    return result;
  }
  std::size_t count(std::int64_t height, std::int64_t width) const {
    return static_cast<std::size_t>(setting.batch * height * width * channels);
  }
  blocks::MixconvTensor tensor(Values& values, std::int64_t height, std::int64_t width) const {
    return {values.data(), height * width * channels, width * channels, channels};
  }
  double affine(double value, std::size_t c) const {
    return value * static_cast<double>(scale[c]) + static_cast<double>(shift[c]);
  }
  double z(std::size_t i, std::int64_t c) const {
    return setting.activation == MixconvActivation::none ? x.get(i) : affine(x.get(i), static_cast<std::size_t>(c));
  }
  // The norm before the gate is that of x.
  blocks::MixconvBackward backward() {
    blocks::MixconvBackward result{tensor(grad, out_height, out_width),
                                   setting.statistics ? stats_grad.data() : nullptr, tensor(y, out_height, out_width),
                                   tensor(x_grad, setting.height, setting.width),
                                   setting.activation == MixconvActivation::none ? nullptr : norm_grad.data()};
    if (setting.gate != MixconvActivation::none) {
      result.gate = {gates.data(), offsets.data(), scale.data(), shift.data(), setting.gate};
    }
    return result;
  }
  // The gradient of y at i without what comes through the statistics.
  double through_gate(std::size_t i) const {
    if (setting.gate == MixconvActivation::none) return grad.get(i);
    const auto all = static_cast<std::size_t>(channels), c = i % all;
    const std::size_t image = i / static_cast<std::size_t>(out_height * out_width) / all;
    const double gated = grad.get(i) * static_cast<double>(gates[image * all + c]);
    return (gated + static_cast<double>(offsets[image * all + c])) * slope(setting.gate, affine(y.get(i), c)) *
           static_cast<double>(scale[c]);
  }

  // Calls body(group, index into its weight, index of y, index of x, channel) for all products.
  template <class Body>
  void for_products(const Body& body) const {
    std::int64_t first = 0;
    for (std::size_t g = 0; g < setting.groups.size(); first += setting.groups[g++].first) {
      const auto [n, kernel] = setting.groups[g];
      for (std::int64_t image = 0; image < setting.batch; ++image) {
        for (std::int64_t i = 0; i < out_height * out_width * kernel * kernel * n; ++i) {
          const std::int64_t c = i % n, v = i / n % kernel, u = i / n / kernel % kernel;
          const std::int64_t pixel = i / n / kernel / kernel, row = pixel / out_width, column = pixel % out_width;
          const std::int64_t in_row =
              row * setting.stride + u - padded_before(setting, kernel, setting.height, out_height);
          const std::int64_t in_column =
              column * setting.stride + v - padded_before(setting, kernel, setting.width, out_width);
          if (in_row < 0 || in_row >= setting.height || in_column < 0 || in_column >= setting.width) continue;
          const std::int64_t from = ((image * setting.height + in_row) * setting.width + in_column) * channels;
          const std::int64_t to = (image * out_height * out_width + pixel) * channels;
          body(g, static_cast<std::size_t>((c * kernel + u) * kernel + v), static_cast<std::size_t>(to + first + c),
               static_cast<std::size_t>(from + first + c), first + c);
        }
      }
    }
  }

  void define_forward() {
    want_y.assign(y.size(), 0.0);
    want_stats.assign(stats.size(), 0.0);
    for_products([&](std::size_t g, std::size_t w, std::size_t to, std::size_t from, std::int64_t c) {
      want_y[to] += weights[g].get(w) * activate(setting.activation, z(from, c));
    });
    const auto all = static_cast<std::size_t>(channels);
    for (std::size_t i = 0; i < y.size(); ++i) {
      want_stats[i % all] += y.get(i);
      want_stats[all + i % all] += y.get(i) * y.get(i);
    }
  }
  // Uses y as the kernel wrote it.
  void define_backward() {
    const auto all = static_cast<std::size_t>(channels);
    std::vector<double> activated(x.size(), 0.0);
    want_weight_grads.clear();
    for (const Values& weight : weights) want_weight_grads.emplace_back(weight.size(), 0.0);
    for_products([&](std::size_t g, std::size_t w, std::size_t to, std::size_t from, std::int64_t c) {
      const double whole = through_gate(to) + static_cast<double>(stats_grad[to % all]) +
                           2 * y.get(to) * static_cast<double>(stats_grad[all + to % all]);
      activated[from] += weights[g].get(w) * whole;
      want_weight_grads[g][w] += whole * activate(setting.activation, z(from, c));
    });
    want_x_grad.assign(x.size(), 0.0);
    want_norm_grad.assign(norm_grad.size(), 0.0);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double inner = activated[i] * slope(setting.activation, z(i, static_cast<std::int64_t>(i % all)));
      const bool norm = setting.activation != MixconvActivation::none;
      want_x_grad[i] = norm ? inner * static_cast<double>(scale[i % all]) : inner;
      want_norm_grad[i % all] += norm ? inner * x.get(i) : 0;
      want_norm_grad[all + i % all] += norm ? inner : 0;
    }
  }
};

template <class Get>
void compare(const char* what, const char* level, const std::vector<double>& want, double tolerance, const Get& get) {
  double largest = 0;
  for (const double value : want) largest = std::fmax(largest, std::fabs(value));
  for (std::size_t i = 0; i < want.size(); ++i) {
    const bool good = std::fabs(get(i) - want[i]) <= tolerance * (1 + largest);
    if (!good) std::printf("%s, %s[%zu]: %.9g instead of %.9g\n", level, what, i, get(i), want[i]);
    CHECK(good);
    if (!good) return;
  }
}

void check_padded(const blocks::MixconvKernel& kernel, const Setting& setting) {
  Trial t(setting);
  const double tolerance = setting.bf16 ? 0.005 : 1e-5;
  std::vector<char> workspace(blocks::mixconv_workspace_bytes(t.call, 2));
  float* const stats = setting.statistics ? t.stats.data() : nullptr;
  blocks::mixconv_forward_with(kernel, t.call, t.tensor(t.y, t.out_height, t.out_width), stats, {}, workspace.data(),
                               2);
  t.define_forward();
  compare("y", kernel.name, t.want_y, tolerance, [&](std::size_t i) { return t.y.get(i); });
  if (setting.statistics) {
    compare("stats", kernel.name, t.want_stats, 1e-5, [&](std::size_t i) { return static_cast<double>(t.stats[i]); });
  }
  const bool norm = setting.activation != MixconvActivation::none;
  blocks::mixconv_backward_with(kernel, t.call, t.backward(), workspace.data(), 2);
  t.define_backward();
  compare("x_grad", kernel.name, t.want_x_grad, tolerance, [&](std::size_t i) { return t.x_grad.get(i); });
  for (std::size_t g = 0; g < t.weights.size(); ++g) {
    compare("weight_grad", kernel.name, t.want_weight_grads[g], setting.bf16_weights ? 0.005 : 1e-5,
            [&](std::size_t i) { return t.weight_grads[g].get(i); });
  }
  if (norm) {
    compare("norm_grad", kernel.name, t.want_norm_grad, 1e-5,
            [&](std::size_t i) { return static_cast<double>(t.norm_grad[i]); });
  }
}

void check(const blocks::MixconvKernel& kernel, Setting setting) {
  check_padded(kernel, setting);
  setting.padding = MixconvPadding::same_upper;
  check_padded(kernel, setting);
}

void test_kernels_against_the_definition() {
  for (const blocks::MixconvKernel* kernel : kernels()) {
    for (const int stride : {1, 2}) {
      for (const bool bf16 : {false, true}) {
        check(*kernel, {2, 6, 9, {{9, 3}, {18, 5}, {5, 7}}, stride, bf16, MixconvActivation::hard_swish});
        check(*kernel, {2, 4, 5, {{9, 3}, {18, 5}}, stride, bf16, MixconvActivation::silu});
        check(*kernel, {2, 4, 5, {{18, 3}, {9, 5}}, stride, bf16, MixconvActivation::relu6});
        check(*kernel, {1, 7, 4, {{17, 9}, {3, 11}, {2, 1}}, stride, bf16, MixconvActivation::none});
        check(*kernel, {3, 1, 1, {{3, 3}}, stride, bf16, MixconvActivation::relu});
        check(*kernel, {1, 3, 23, {{16, 5}}, stride, bf16, MixconvActivation::identity});
        for (const MixconvActivation gate :
             {MixconvActivation::identity, MixconvActivation::relu, MixconvActivation::hard_swish,
              MixconvActivation::silu, MixconvActivation::relu6}) {
          check(*kernel, {3, 5, 4, {{9, 3}, {34, 5}}, stride, bf16, MixconvActivation::relu, gate, true});
          check(*kernel, {2, 4, 3, {{5, 3}}, stride, bf16, MixconvActivation::none, gate, false});
        }
        // Whole tiles of 16, 14, 8, 7 and 4 pixels of whole vectors, and a rest.
        for (const int width : {7, 8, 12, 15, 21, 24, 28}) {
          check(*kernel, {2, 4, width, {{35, 3}, {16, 5}, {17, 7}}, stride, bf16, MixconvActivation::none});
          check(*kernel, {1, 3, width, {{32, 3}}, stride, bf16, MixconvActivation::identity});
        }
      }
    }
  }
}

// All in bf16, which some levels multiply in pairs of rows: images of an even and an odd number of rows, of fewer rows
// than a kernel, of one; with and without statistics; parts of blocks and of tiles.
void test_bf16_weights() {
  for (const blocks::MixconvKernel* kernel : kernels()) {
    for (const bool statistics : {true, false}) {
      for (const int stride : {1, 2}) {
        Setting setting{2, 6, 9, {{9, 3}, {34, 5}, {5, 7}}, stride, true, MixconvActivation::none};
        setting.statistics = statistics;
        setting.bf16_weights = true;
        check(*kernel, setting);
        setting.groups = {{17, 3}, {33, 5}, {16, 7}, {2, 9}, {3, 11}, {1, 1}};
        for (const auto& [height, width] :
             {std::pair(1, 1), {2, 5}, {3, 8}, {12, 6}, {13, 2}, {5, 13}, {7, 19}, {4, 31}}) {
          setting.height = height;
          setting.width = width;
          check(*kernel, setting);
        }
        setting.activation = MixconvActivation::relu;
        check(*kernel, setting);
        setting.gate = MixconvActivation::identity;
        check(*kernel, setting);
      }
    }
  }
}

const blocks::MixconvKernel* streaming = nullptr;

void forward_past_caches(const blocks::MixconvForwardTask& task) {
  blocks::MixconvForwardTask own = task;
  own.streams = true;
  streaming->forward(own);
}

void backward_past_caches(const blocks::MixconvBackwardTask& task) {
  blocks::MixconvBackwardTask own = task;
  own.streams = true;
  streaming->backward(own);
}

// Results that are written past the caches, wherever one or two vectors are a line, are those that are not.
void check_streams(const blocks::MixconvKernel& kernel, const Setting& setting) {
  streaming = &kernel;
  const blocks::MixconvKernel past{"past the caches", &forward_past_caches, &backward_past_caches};
  std::vector<float> found[2];
  for (int which = 0; which < 2; ++which) {
    Trial t(setting);
    std::vector<char> workspace(blocks::mixconv_workspace_bytes(t.call, 2));
    std::vector<float> memory(t.y.size() + t.x_grad.size() + 32, -1.0F);  // and a line more
    float* const line = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64 / 4;
    blocks::MixconvTensor y = t.tensor(t.y, t.out_height, t.out_width);
    blocks::MixconvBackward backward = t.backward();
    y.data = line;
    backward.x_grad.data = line + t.y.size();
    const blocks::MixconvKernel& own = which == 0 ? kernel : past;
    float* const stats = setting.statistics ? t.stats.data() : nullptr;
    blocks::mixconv_forward_with(own, t.call, y, stats, {}, workspace.data(), 2);
    backward.stats_grad = nullptr;
    blocks::mixconv_backward_with(own, t.call, backward, workspace.data(), 2);
    found[which].assign(line, line + t.y.size() + t.x_grad.size() + 1);
    if (setting.statistics) found[which].insert(found[which].begin(), t.stats.begin(), t.stats.end());
  }
  CHECK(found[0] == found[1]);
  CHECK(found[1].back() == -1.0F);
}

void test_streams() {
  for (const blocks::MixconvKernel* kernel : kernels()) {
    for (const int stride : {1, 2}) {
      for (const int width : {5, 14, 28}) {
        check_streams(*kernel, {2, 4, width, {{32, 3}, {16, 5}, {48, 7}}, stride, false, MixconvActivation::none});
        check_streams(*kernel, {2, 4, width, {{20, 3}, {28, 5}}, stride, false, MixconvActivation::relu});
        check_streams(*kernel, {2, 4, width, {{20, 3}, {15, 5}}, stride, false, MixconvActivation::none});
        check_streams(*kernel, {2, 4, width, {{24, 3}, {8, 5}}, stride, false, MixconvActivation::none});
        check_streams(*kernel,
                      {2, 4, width, {{32, 7}}, stride, false, MixconvActivation::none, MixconvActivation::none, false});
      }
    }
  }
}

// Means far from zero beside small deviations, on one thread and on three: the same bits, and y as without moments.
void check_moments(const blocks::MixconvKernel& kernel, const Setting& setting) {
  Trial t(setting);
  const auto all = static_cast<std::size_t>(t.channels);
  for (float& value : t.x.floats) value = 100.0F + value;
  const blocks::MixconvTensor y = t.tensor(t.y, t.out_height, t.out_width);
  std::vector<char> workspace(blocks::mixconv_workspace_bytes(t.call, 3));
  blocks::mixconv_forward_with(kernel, t.call, y, nullptr, {}, workspace.data(), 3);
  const std::vector<float> want_y = t.y.floats;
  std::vector<double> mean(all, 0.0), variance(all, 0.0);
  const double count = static_cast<double>(want_y.size() / all);
  for (std::size_t i = 0; i < want_y.size(); ++i) mean[i % all] += static_cast<double>(want_y[i]) / count;
  for (std::size_t i = 0; i < want_y.size(); ++i) {
    variance[i % all] += std::pow(static_cast<double>(want_y[i]) - mean[i % all], 2) / count;
  }
  std::vector<float> found[2];
  for (int which = 0; which < 2; ++which) {
    found[which].assign(2 * all, std::nanf(""));
    float* const moments = found[which].data();
    t.y.floats.assign(want_y.size(), std::nanf(""));
    std::vector<char> space(blocks::mixconv_workspace_bytes(t.call, 1 + 2 * which), '\xFF');
    blocks::mixconv_forward_with(kernel, t.call, y, t.stats.data(), {moments, moments + all}, space.data(),
                                 1 + 2 * which);
    CHECK(t.y.floats == want_y);
  }
  CHECK(found[0] == found[1]);
  for (std::size_t c = 0; c < all; ++c) {
    CHECK(std::fabs(static_cast<double>(found[0][c]) - mean[c]) <= 1e-5 * (1 + std::fabs(mean[c])));
    CHECK(std::fabs(static_cast<double>(found[0][all + c]) - variance[c]) <= 1e-4 * variance[c]);
  }
}

void test_moments() {
  for (const blocks::MixconvKernel* kernel : kernels()) {
    for (const int stride : {1, 2}) {
      // Some rows at a time, several images at a time, chunks of images of which the last one is smaller, many blocks.
      check_moments(*kernel, {2, 110, 45, {{20, 3}, {5, 5}}, stride, false, MixconvActivation::none});
      check_moments(*kernel, {300, 5, 4, {{33, 3}, {210, 5}}, stride, false, MixconvActivation::relu});
      check_moments(*kernel, {3, 1, 2, {{3, 3}}, stride, false, MixconvActivation::identity});
    }
  }
}

void test_bad_calls() {
  const Setting good{1, 3, 3, {{4, 3}}, 1, false, MixconvActivation::none};
  for (const int kernel : {0, 2, 13, -1}) {
    Setting bad = good;
    bad.groups[0].second = kernel;
    CHECK_THROWS(blocks::mixconv_workspace_bytes(Trial::make_call(bad), 1), std::invalid_argument);
  }
  Setting bad = good;
  bad.stride = 3;
  CHECK_THROWS(blocks::mixconv_workspace_bytes(Trial::make_call(bad), 1), std::invalid_argument);
}

}  // namespace

int main() {
  test_kernels_against_the_definition();
  test_bf16_weights();
  test_moments();
  test_streams();
  test_bad_calls();
  return failed_checks == 0 ? 0 : 1;
}
