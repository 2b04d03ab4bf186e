// The beginning of a network in one call: the raw convolution against plain sums in double; on one thread and on three,
// the same bits; everything that is promised is written. All tensors and workspaces end with their allocation, so that
// the sanitizers see a step beyond. Values and gradients are compared with torch's in tests/nn.
#include <array>
#include <cmath>
#include <cstdint>

#include "blocks/conv_norm_act.h"
#include "check.h"
#include "elements.h"
#include "floats.h"

using namespace greedynas;

namespace {

Floats unset(std::int64_t count) { return Floats(static_cast<std::size_t>(count), NAN); }

// Images, height, width, channels of x and of y, kernel size, stride.
using Sizes = std::array<int, 7>;

double convolved(const blocks::ConvNormAct& layer, const Floats& x, const Floats& weight, std::int64_t row, int out) {
  const std::int64_t image = row / (layer.out_height() * layer.out_width());
  const std::int64_t y0 = row / layer.out_width() % layer.out_height() * layer.stride - layer.kernel / 2;
  const std::int64_t x0 = row % layer.out_width() * layer.stride - layer.kernel / 2;
  double sum = 0.0;
  for (int ky = 0; ky < layer.kernel; ++ky) {
    for (int kx = 0; kx < layer.kernel; ++kx) {
      if (y0 + ky < 0 || y0 + ky >= layer.height || x0 + kx < 0 || x0 + kx >= layer.width) continue;
      for (int c = 0; c < layer.in; ++c) {
        const std::int64_t pixel = (image * layer.height + y0 + ky) * layer.width + x0 + kx;
        const std::int64_t place = ((std::int64_t{out} * layer.kernel + ky) * layer.kernel + kx) * layer.in + c;
        sum += static_cast<double>(x[static_cast<std::size_t>(pixel * layer.in + c)]) *
               static_cast<double>(weight[static_cast<std::size_t>(place)]);
      }
    }
  }
  return sum;
}

// Everything that the passes write, one after the other.
Floats run(const Sizes& sizes, norm::Activation activation, norm::Storage storage, int threads) {
  const auto& [images, height, width, in, out, kernel, stride] = sizes;
  const std::int64_t weights = std::int64_t{out} * kernel * kernel * in;
  const Floats x = random_floats(std::int64_t{images} * height * width * in, 1), weight = random_floats(weights, 2);
  const Floats gamma = random_floats(out, 3), beta = random_floats(out, 4);
  const blocks::ConvNormAct layer{storage,    images, height, width,         in,
                                  out,        kernel, stride, weight.data(), {gamma.data(), beta.data(), 1e-3F},
                                  activation, threads};
  const std::int64_t size = layer.rows() * out;
  Elements grad(storage, random_floats(size, 5)), z(storage, size), y(storage, size);
  Floats moments = unset(2 * out);
  Floats space = unset(blocks::workspace_floats(layer));
  blocks::forward(layer, x.data(), moments.data(), z.data(), space.data(), y.data());
  const Floats of_z = z.numbers(), of_y = y.numbers();
  const double tolerance = storage == norm::Storage::bf16 ? 0.1 : 1e-4;  // of sums of up to 147 products
  for (std::int64_t row = 0; row < layer.rows(); ++row) {
    for (int c = 0; c < out; ++c) {
      const double expected = convolved(layer, x, weight, row, c);
      const double found = of_z[static_cast<std::size_t>(row * out + c)];
      CHECK(std::abs(found - expected) < tolerance * (1.0 + std::abs(expected)));
    }
  }
  Floats grad_weight = unset(weights), grad_gamma = unset(out), grad_beta = unset(out);
  space = unset(blocks::workspace_floats(layer));
  blocks::backward(layer, x.data(), moments.data(), z.data(), {grad.data(), out}, space.data(), grad_weight.data(),
                   {grad_gamma.data(), grad_beta.data()});
  Floats all;
  for (const Floats* part :
       std::initializer_list<const Floats*>{&moments, &of_z, &of_y, &grad_weight, &grad_gamma, &grad_beta}) {
    for (const float value : *part) CHECK(std::isfinite(value));
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

}  // namespace

int main() {
  for (const auto activation : {norm::Activation::relu, norm::Activation::hard_swish}) {
    for (const Sizes& sizes : {Sizes{3, 9, 7, 1, 16, 3, 1},
                               {2, 8, 11, 3, 20, 3, 2},
                               {2, 5, 3, 3, 9, 7, 2},
                               {2, 1, 1, 2, 5, 5, 1},
                               {4, 4, 4, 5, 1, 1, 2}}) {
      for (const auto storage : {norm::Storage::float32, norm::Storage::bf16}) {
        CHECK(run(sizes, activation, storage, 1) == run(sizes, activation, storage, 3));
      }
    }
  }
  return failed_checks == 0 ? 0 : 1;
}
