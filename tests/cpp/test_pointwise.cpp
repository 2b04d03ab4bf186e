// The 1x1 convolution of every level that this machine runs against plain loops in double precision. All tensors end
// with their allocation, so that the sanitizers see a step beyond.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "blocks/cpu/gemm_pairs_block.h"
#include "blocks/expand_depthwise.h"
#include "blocks/expanded_statistics.h"
#include "blocks/pointwise.h"
#include "check.h"
#include "floats.h"
#include "pairs_emulated.h"

using namespace greedynas;

namespace {

// The largest difference from `want` in units of `scale`.
struct Close {
  double worst = 0.0;
  void add(float found, double want, double scale) {
    const double error = std::abs(static_cast<double>(found) - want) / scale;
    if (!(error <= worst)) worst = error;  // not-a-number too
  }
  bool within(double bound) const { return worst <= bound; }
};

using Halves = std::vector<blocks::Bf16Bits>;

Halves random_halves(std::int64_t count, std::uint32_t seed) {
  Halves halves;
  for (const float value : random_floats(count, seed)) halves.push_back(blocks::bf16_of(value));
  return halves;
}

double number(blocks::Bf16Bits bf16) { return static_cast<double>(blocks::number_of(bf16)); }

// multiply and accumulate of one level, with odd sizes and gaps between rows.
void test_products(const blocks::GemmKernel& kernel, std::int64_t rows, int depth, int columns) {
  const std::int64_t stride = depth + 3, c_stride = columns + 5;
  const Floats a = random_floats((rows - 1) * stride + depth, 1), b = random_floats(depth * columns, 2);
  const Floats init = random_floats((rows - 1) * c_stride + columns, 3);
  Floats packed(static_cast<std::size_t>(blocks::gemm_packed_floats(depth, columns)), NAN);
  kernel.pack(b.data(), columns, 1, depth, columns, packed.data());
  Floats c(init.size(), 7.0F);
  blocks::GemmAhead ahead;
  ahead.add(b.data(), 200);
  ahead.add(init.data(), static_cast<std::int64_t>(init.size() * sizeof(float)));
  kernel.multiply({a.data(), stride}, rows, depth, packed.data(), columns, {init.data(), c_stride}, c.data(), c_stride,
                  ahead);
  Close products;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t n = 0; n < c_stride; ++n) {
      const auto at = static_cast<std::size_t>(r * c_stride + n);
      if (n >= columns) {
        if (at < c.size()) CHECK(c[at] == 7.0F);
        continue;
      }
      double sum = static_cast<double>(init[at]);
      for (int k = 0; k < depth; ++k) {
        sum += static_cast<double>(a[static_cast<std::size_t>(r * stride + k)]) *
               static_cast<double>(b[static_cast<std::size_t>(k * columns + n)]);
      }
      products.add(c[at], sum, std::sqrt(depth) + 1.0);
    }
  }
  CHECK(products.within(4e-6));  // of up to 300 summands, one after the other

  // The sum over rows of a outer x, where x may be read a little beyond its end.
  Floats x = random_floats(rows * columns + 15, 4), sums(static_cast<std::size_t>(depth * columns), 0.5F);
  kernel.accumulate({a.data(), stride}, {x.data(), columns}, rows, depth, columns, sums.data(), columns, ahead);
  Close outer;
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < columns; ++n) {
      double sum = 0.5;
      for (std::int64_t r = 0; r < rows; ++r) {
        sum += static_cast<double>(a[static_cast<std::size_t>(r * stride + k)]) *
               static_cast<double>(x[static_cast<std::size_t>(r * columns + n)]);
      }
      outer.add(sums[static_cast<std::size_t>(k * columns + n)], sum, std::sqrt(static_cast<double>(rows)) + 1.0);
    }
  }
  CHECK(outer.within(2e-6));
}

// The same of bf16 numbers, without gaps beyond the end of any row.
void test_bf16_products(const blocks::GemmBf16Kernel& kernel, std::int64_t rows, int depth, int columns) {
  const std::int64_t stride = depth + 3, c_stride = columns + 5;
  const Halves a = random_halves((rows - 1) * stride + depth, 1),
               init = random_halves((rows - 1) * c_stride + columns, 3);
  const Halves x = random_halves(rows * columns, 4);
  const Floats b = random_floats(depth * columns, 2);
  Floats packed(static_cast<std::size_t>(blocks::gemm_packed_floats(depth, columns)), NAN);
  kernel.pack(b.data(), columns, 1, depth, columns, packed.data());
  Halves c(init.size(), 7);
  blocks::GemmAhead ahead;
  ahead.add(b.data(), 200);
  kernel.multiply({a.data(), stride}, rows, depth, packed.data(), columns, {init.data(), c_stride}, c.data(), c_stride,
                  ahead);
  Close products;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t n = 0; n < c_stride; ++n) {
      const auto at = static_cast<std::size_t>(r * c_stride + n);
      if (n >= columns) {
        if (at < c.size()) CHECK(c[at] == 7);
        continue;
      }
      double sum = number(init[at]), size = std::abs(sum);
      for (int k = 0; k < depth; ++k) {
        const auto rounded = blocks::bf16_of(b[static_cast<std::size_t>(k * columns + n)]);
        const double product = number(a[static_cast<std::size_t>(r * stride + k)]) * number(rounded);
        sum += product;
        size += std::abs(product);
      }
      // Half of the last bit of the result, and what rounding of sums can be.
      products.add(static_cast<float>(number(c[at])), sum, std::abs(sum) / 256.0 + size * 1e-5 + 1e-30);
    }
  }
  CHECK(products.within(1.0));

  Floats sums(static_cast<std::size_t>(depth * columns), 0.5F),
      memory(static_cast<std::size_t>(blocks::gemm_bf16_floats(rows, depth, columns)), NAN);
  kernel.accumulate({a.data(), stride}, {x.data(), columns}, rows, depth, columns, sums.data(), columns, memory.data(),
                    ahead);
  Close outer;
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < columns; ++n) {
      double sum = 0.5;
      for (std::int64_t r = 0; r < rows; ++r) {
        sum +=
            number(a[static_cast<std::size_t>(r * stride + k)]) * number(x[static_cast<std::size_t>(r * columns + n)]);
      }
      outer.add(sums[static_cast<std::size_t>(k * columns + n)], sum, std::sqrt(static_cast<double>(rows)) + 1.0);
    }
  }
  CHECK(outer.within(2e-6));
}

// Forward and backward with a prologue and gates, on several threads: results are those of one thread.
void test_layer(std::int64_t images, std::int64_t pixels, int in, int out, bool gated, int groups = 1) {
  const std::int64_t rows = images * pixels;
  const Floats x = random_floats(rows * in, 1), weight = random_floats(out * in / groups, 2),
               scale = random_floats(in, 3), shift = random_floats(in, 4), gates = random_floats(images * in, 5),
               grad = random_floats(rows * out, 6);
  const blocks::PointwiseInput input{{x.data(), in}, norm::Prologue::affine_relu,    scale.data(),
                                     shift.data(),   gated ? gates.data() : nullptr, pixels};
  Floats results[2];
  for (int threads = 1; threads <= 2; ++threads) {
    const blocks::Pointwise layer{rows, in, out, threads, groups};
    Floats workspace(static_cast<std::size_t>(blocks::workspace_floats(layer)), NAN);
    Floats y(static_cast<std::size_t>(rows * out)), moments(static_cast<std::size_t>(2 * out)),
        grad_x(static_cast<std::size_t>(rows * in)), grad_weight(weight.size()),
        grad_affine(static_cast<std::size_t>(2 * in));
    blocks::pointwise(layer, input, weight.data(), workspace.data(), y.data(), moments.data(), moments.data() + out);
    blocks::pointwise_backward(layer, {{grad.data(), out}, {nullptr, 0}, nullptr, {nullptr, nullptr, false}}, input,
                               weight.data(), {nullptr, 0}, workspace.data(),
                               {grad_x.data(), grad_affine.data(), grad_affine.data() + in, grad_weight.data()});
    Floats& all = results[threads - 1];
    for (const Floats* part : {&y, &moments, &grad_x, &grad_weight, &grad_affine}) {
      all.insert(all.end(), part->begin(), part->end());
    }
  }
  CHECK(results[0] == results[1]);
  Close close;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (int n = 0; n < out; ++n) {
      double sum = 0.0;
      const int width = in / groups, first = n / (out / groups) * width;
      for (int k = first; k < first + width; ++k) {
        const auto c = static_cast<std::size_t>(k);
        const double z = static_cast<double>(x[static_cast<std::size_t>(r * in + k)]) * static_cast<double>(scale[c]) +
                         static_cast<double>(shift[c]);
        const double gate = gated ? static_cast<double>(gates[static_cast<std::size_t>(r / pixels * in + k)]) : 1.0;
        sum += std::max(z, 0.0) * gate * static_cast<double>(weight[static_cast<std::size_t>(n * width + k - first)]);
      }
      close.add(results[0][static_cast<std::size_t>(r * out + n)], sum, std::sqrt(in) + 1.0);
    }
  }
  CHECK(close.within(1e-5));
}

// What the backward pass sums up for the gates, of the gradient of x as it has written it.
void test_gate_sums(std::int64_t images, std::int64_t pixels, int in, int out, int groups, norm::Prologue prologue) {
  const std::int64_t rows = images * pixels;
  const Floats x = random_floats(rows * in, 1), weight = random_floats(out * in / groups, 2),
               scale = random_floats(in, 3), shift = random_floats(in, 4), gates = random_floats(images * in, 5),
               grad = random_floats(rows * out, 6);
  const blocks::PointwiseInput input{{x.data(), in}, prologue, scale.data(), shift.data(), gates.data(), pixels};
  Floats grad_x[2], found[2];
  for (int which = 0; which < 2; ++which) {
    const blocks::Pointwise layer{rows, in, out, 1 + 2 * which, groups, images};
    Floats workspace(static_cast<std::size_t>(blocks::workspace_floats(layer)), NAN), grad_weight(weight.size());
    grad_x[which].resize(static_cast<std::size_t>(rows * in));
    found[which].assign(static_cast<std::size_t>(norm::kGateSums * images * in), NAN);
    blocks::pointwise_backward(layer, {{grad.data(), out}, {nullptr, 0}, nullptr, {nullptr, nullptr, false}}, input,
                               weight.data(), {nullptr, 0}, workspace.data(),
                               {grad_x[which].data(), nullptr, nullptr, grad_weight.data(), found[which].data()});
  }
  CHECK(found[0] == found[1] && grad_x[0] == grad_x[1]);
  std::vector<double> want(found[0].size(), 0.0);
  const auto size = static_cast<std::size_t>(images * in);
  double most = 1.0;
  for (std::int64_t i = 0; i < rows * in; ++i) {
    const auto c = static_cast<std::size_t>(i % in), at = static_cast<std::size_t>(i / in / pixels * in) + c;
    const auto value = static_cast<double>(x[static_cast<std::size_t>(i)]);
    const auto g = static_cast<double>(grad_x[0][static_cast<std::size_t>(i)]);
    const double z = value * static_cast<double>(scale[c]) + static_cast<double>(shift[c]);
    const double s = 1.0 / (1.0 + std::exp(-z));
    const bool relu = prologue == norm::Prologue::affine_relu, silu = prologue == norm::Prologue::affine_silu;
    const bool relu6 = prologue == norm::Prologue::affine_relu6;
    const double a = relu    ? std::max(z, 0.0)
                     : relu6 ? std::clamp(z, 0.0, 6.0)
                     : silu  ? z * s
                             : z * std::clamp(z + 3.0, 0.0, 6.0) / 6.0;
    const double slope = relu        ? (z > 0.0 ? 1.0 : 0.0)
                         : relu6     ? (z > 0.0 && z < 6.0 ? 1.0 : 0.0)
                         : silu      ? s * (1.0 + z * (1.0 - s))
                         : z <= -3.0 ? 0.0
                         : z < 3.0   ? z / 3.0 + 0.5
                                     : 1.0;
    want[norm::kGateProduct * size + at] += g * a;
    want[norm::kGateGrad * size + at] += g * slope;
    want[norm::kGateGradX * size + at] += g * slope * value;
    want[norm::kGateSlope * size + at] += slope;
    want[norm::kGateSlopeX * size + at] += slope * value;
    most = std::max({most, std::abs(g * a), std::abs(g * value)});
  }
  Close close;
  for (std::size_t i = 0; i < want.size(); ++i) close.add(found[0][i], want[i], most * std::sqrt(pixels));
  CHECK(close.within(1e-6));
}

// Expansion and convolution in one: the same as one after the other, on one thread and on two.
void test_expand(std::int64_t images, std::int64_t size, int in, int out, int stride) {
  const std::int64_t rows = images * size * size, out_size = (size - 1) / stride + 1;
  const Floats x = random_floats(rows * in, 1), weight = random_floats(out * in, 2), scale = random_floats(out, 3),
               shift = random_floats(out, 4), kernel = random_floats(out * 9, 5);
  Floats z(static_cast<std::size_t>(rows * out)), moments(static_cast<std::size_t>(2 * out));
  const blocks::PointwiseInput input{{x.data(), in}, norm::Prologue::none, nullptr, nullptr, nullptr, 1};
  Floats space(static_cast<std::size_t>(blocks::workspace_floats(blocks::Pointwise{rows, in, out, 1})));
  blocks::pointwise({rows, in, out, 1}, input, weight.data(), space.data(), z.data(), moments.data(),
                    moments.data() + out);
  const blocks::MixconvStorage f32 = blocks::MixconvStorage::float32;
  blocks::MixconvCall call{f32, f32, images, size, size, stride, {{out, 3, kernel.data(), nullptr}}, {}};
  call.activation = blocks::MixconvActivation::relu;
  call.scale = scale.data();
  call.shift = shift.data();
  call.x = {z.data(), size * size * out, size * out, out};
  Floats want(static_cast<std::size_t>(images * out_size * out_size * out));
  std::vector<char> bytes(blocks::mixconv_workspace_bytes(call, 1));
  blocks::mixconv_forward(call, {want.data(), out_size * out_size * out, out_size * out, out}, nullptr, {},
                          bytes.data(), 1);
  call.x = {};
  for (int threads = 1; threads <= 2; ++threads) {
    const blocks::Pointwise expand{rows, in, out, threads};
    Floats found(static_cast<std::size_t>(2 * out)), y(want.size()), of_y(static_cast<std::size_t>(2 * out));
    Floats first(static_cast<std::size_t>(blocks::expanded_moments_floats(expand)), NAN);
    Floats covariance(static_cast<std::size_t>(blocks::covariance_floats(expand)), NAN);
    blocks::expanded_moments(expand, {x.data(), in}, weight.data(), first.data(), found.data(), found.data() + out,
                             covariance.data());
    CHECK(std::all_of(covariance.begin(), covariance.end(), [](float value) { return std::isfinite(value); }));
    Close close;
    for (std::size_t i = 0; i < found.size(); ++i) close.add(found[i], static_cast<double>(moments[i]), in);
    CHECK(close.within(1e-5));
    const blocks::ExpandDepthwise layer{expand, {x.data(), in}, weight.data(), call};
    Floats second(static_cast<std::size_t>(blocks::expand_depthwise_floats(layer)), NAN);
    blocks::expand_depthwise(layer, second.data(), y.data(), of_y.data(), of_y.data() + out);
    CHECK(y == want);
    Close close_of_y;
    const auto count = static_cast<double>(images * out_size * out_size);
    for (int c = 0; c < out; ++c) {
      double sum = 0.0;
      double squares = 0.0;
      for (std::size_t i = static_cast<std::size_t>(c); i < y.size(); i += static_cast<std::size_t>(out)) {
        sum += static_cast<double>(y[i]);
        squares += static_cast<double>(y[i]) * static_cast<double>(y[i]);
      }
      const double mean = sum / count;
      close_of_y.add(of_y[static_cast<std::size_t>(c)], mean, 1.0);
      close_of_y.add(of_y[static_cast<std::size_t>(out + c)], squares / count - mean * mean, 1.0 + squares / count);
    }
    CHECK(close_of_y.within(1e-5));
  }
}

}  // namespace

int main() {
  const blocks::GemmKernel wide = blocks::gemm_kernel_over<cpu::VecGeneric<16>>("wide");
  std::vector<const blocks::GemmKernel*> kernels{&wide};
  for (const cpu::Isa isa : cpu::compiled()) {
    if (cpu::available(isa)) kernels.push_back(&blocks::gemm_kernel_for(isa));
  }
  for (const blocks::GemmKernel* kernel : kernels) {
    // Every number of rows of a tile, and all that a last vector of one to three can be.
    for (const int columns : {1, 7, 8, 12, 16, 17, 24, 28, 32, 36, 40, 44, 48, 65}) {
      for (std::int64_t rows = 1; rows <= 13; ++rows) test_products(*kernel, rows, 9, columns);
      test_products(*kernel, 25, 1, columns);
      test_products(*kernel, 25, 300, columns);
      test_products(*kernel, 9, 13, columns);  // tiles of different numbers of rows in the sum over rows
    }
  }
  const blocks::GemmBf16Kernel pairs = blocks::gemm_pair_kernel_over<cpu::VecGeneric<16>, PairsEmulated>("pairs");
  std::vector<const blocks::GemmBf16Kernel*> bf16_kernels{&pairs};
  for (const cpu::Isa isa : cpu::compiled()) {
    if (cpu::available(isa)) bf16_kernels.push_back(&blocks::gemm_bf16_kernel_for(isa));
  }
  for (const blocks::GemmBf16Kernel* kernel : bf16_kernels) {
    for (const int columns : {1, 7, 8, 12, 16, 17, 24, 28, 32, 36, 40, 44, 48, 65}) {
      for (std::int64_t rows = 1; rows <= 13; ++rows)
        test_bf16_products(*kernel, rows, rows % 2 == 0 ? 9 : 10, columns);
      test_bf16_products(*kernel, 25, 1, columns);
      test_bf16_products(*kernel, 25, 300, columns);
    }
  }
  for (const bool gated : {false, true}) {
    test_layer(1, 1, 1, 1, gated);
    test_layer(3, 7, 5, 9, gated);
    test_layer(5, 90, 24, 33, gated);  // several blocks and sums of weights, borders of images within blocks
  }
  test_layer(8, 49, 400, 352, false);  // weights so large that the backward pass has other blocks
  test_layer(3, 7, 6, 9, false, 3);
  test_layer(5, 90, 36, 34, true, 2);
  for (const norm::Prologue prologue : {norm::Prologue::affine_relu, norm::Prologue::affine_hard_swish,
                                        norm::Prologue::affine_silu, norm::Prologue::affine_relu6}) {
    test_gate_sums(1, 1, 1, 1, 1, prologue);
    test_gate_sums(40, 7, 5, 9, 1, prologue);  // many images a block
    test_gate_sums(5, 90, 24, 33, 1, prologue);
    test_gate_sums(3, 192, 36, 34, 2, prologue);  // images that end where blocks do
  }
  test_expand(1, 2, 1, 1, 1);
  test_expand(5, 7, 5, 19, 2);
  test_expand(3, 40, 24, 33, 1);  // more than is expanded together
  return failed_checks == 0 ? 0 : 1;
}
